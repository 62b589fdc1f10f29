"""A rehearsal of a run: every stage compiles, steps, saves, restores and steps again.

What fails in the first minutes of a job, or at its first checkpoint, fails here before a pod is
paid for: shapes, sharding, memory, sounds and scenes that cannot be read, disk. The code that
runs is that of training, in a temporary folder; the evaluation of stage 4 is a rollout of each
dev question, and its reward.
"""

import dataclasses
import math
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxasa import config
from jaxasa.acoustics import scenes
from jaxasa.config import ConfigError
from jaxasa.core import keys
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.core.workdir import scenes_of
from jaxasa.data import records
from jaxasa.data.sounds import Bank
from jaxasa.pipeline import steps
from jaxasa.stages import common, runner
from jaxasa.train import loop

_COLUMNS = ("build", "first step", "evaluation", "save", "restore", "step")


def rehearse(run: config.Run, workdir: Path | None, text: str) -> list[dict]:
    """Rehearses `run.stages` in a temporary folder; prints and returns a row for each.

    Sounds and scenes are those of `workdir` where it has them, and else made up, with the shapes
    of real ones. On the CPU there are as many emulated devices as the mesh names. A row holds
    seconds for each of: build (data, model, parameters), first step (with compiling), evaluation
    (with compiling; rollout and reward in stage 4), save, restore, and step (once more).
    Raises ConfigError as training does, and where several processes would rehearse.
    """
    if os.environ.get("JAXASA_COORDINATOR"):
        raise ConfigError("--rehearse is for one process, expected no JAXASA_COORDINATOR")
    _emulate(run.mesh)
    rows = []
    with tempfile.TemporaryDirectory(prefix="jaxasa-rehearsal-") as name:
        folder = Path(name)
        run, made_up = _furnish(run, workdir, folder)
        for stage in run.stages:
            rows.append(_stage(run, stage, folder, text))
    _print(run, rows, made_up)
    return rows


def _emulate(mesh: config.Mesh) -> None:
    devices = math.prod(size for size in (mesh.data, mesh.fsdp, mesh.tensor) if size != -1)
    if jax.config.jax_num_cpu_devices < 1 and jax.config.jax_platforms == "cpu":
        try:
            jax.config.update("jax_num_cpu_devices", devices)
        except RuntimeError:  # devices are in use already, so that mesh.make has the say
            return


def _furnish(run: config.Run, source: Path | None, folder: Path) -> tuple[config.Run, list[str]]:
    """Fills `folder` with what training reads; returns the run for it, and what is made up."""
    made_up = []

    def borrow(*parts: str, closed_by: str) -> bool:
        if source is None or not source.joinpath(*parts, closed_by).is_file():
            made_up.append("/".join(parts))
            return False
        folder.joinpath(*parts).parent.mkdir(exist_ok=True)
        folder.joinpath(*parts).symlink_to(source.joinpath(*parts).resolve())
        return True

    if borrow("sounds", closed_by="bank.json"):
        if source is not None and (source / "tokenizer.json").is_file():
            (folder / "tokenizer.json").symlink_to((source / "tokenizer.json").resolve())
    else:
        procedural = dataclasses.replace(run.sounds, bank="procedural", classes={})
        steps.sound_bank(dataclasses.replace(run, sounds=procedural), folder)
    if run.stages == ("text",):
        return run, made_up
    if run.scenes.rir_rooms and not borrow("responses", closed_by="manifest.json"):
        run = dataclasses.replace(run, scenes=dataclasses.replace(run.scenes, rir_rooms=0))
    splits = ("dev",) if run.scenes.rir_rooms else ("train", "dev")
    for split in splits:
        place = scenes_of(run, folder, split)
        if not borrow(*place.relative_to(folder).parts, closed_by="manifest.json"):
            _write_scenes(run, folder, split)
    return run, made_up


def _write_scenes(run: config.Run, folder: Path, split: str) -> None:
    """Noise with the descriptions of real scenes, as many as an evaluation or a batch takes."""
    out = scenes_of(run, folder, split)
    out.mkdir(parents=True)
    clips = Bank.load(folder / "sounds").clips(split)
    count = min(getattr(run.scenes, split), 2 * common.EVAL_SCENES)
    samples, channels = round(run.scenes.seconds * SAMPLE_RATE), run.model.spatial.channels

    def scene(index: int) -> tuple[np.ndarray, dict]:
        rng = keys.rng(run.seed, "rehearsal", split, index)
        audio = rng.integers(-1000, 1000, (samples, channels), dtype=np.int16)
        return audio, scenes.describe(scenes.draw(run.scenes, clips, run.seed, split, index))

    shard = records.write_shard(out / "scenes.array_record", map(scene, range(count)))
    records.write_manifest(out, {}, [shard])


class _Timed:
    """A task that notes when its first batch is drawn, and how long steps and evaluations take."""

    def __init__(self, task: loop.Task):
        self.name, self.batches, self._task = task.name, self, task
        self.seconds = {"step": 0.0, "evaluation": 0.0}
        self.drawn = 0.0

    def __iter__(self):
        return self

    def __next__(self):
        self.drawn = time.monotonic()
        return next(self._task.batches)

    def get_state(self) -> Mapping:
        return self._task.batches.get_state()

    def set_state(self, state: Mapping) -> None:
        self._task.batches.set_state(state)

    def _spend(self, what: str, function, *arguments):
        began = time.monotonic()
        found = jax.block_until_ready(function(*arguments))
        self.seconds[what] = time.monotonic() - began
        return found

    def step(self, state, batch, key):
        return self._spend("step", self._task.step, state, batch, key)

    def evaluate(self, params: Mapping) -> Any:
        return self._spend("evaluation", self._task.evaluate, params)


def _stage(run: config.Run, stage: str, folder: Path, text: str) -> dict:
    began = time.monotonic()
    context = runner.prepare(run, stage, folder)
    row: dict[str, Any] = {"stage": stage, "batch": context.stage.batch_size}
    with jax.set_mesh(context.mesh):
        task = _Timed(runner.TASKS[stage](context))
        spent = []
        for last in (1, 2):  # the second goes on from the checkpoint of the first
            options = dataclasses.replace(context.stage, steps=last)
            after = runner.fit(context, task, options, folder, text)
            ended = time.monotonic()
            spent.append({"start": task.drawn - began, "rest": ended - task.drawn} | task.seconds)
            began = ended
    if int(after.step) != 2:
        raise RuntimeError(f"{stage}: at step {int(after.step)} after a restored step, expected 2")
    first, second = spent
    row |= {
        "build": first["start"],
        "first step": first["step"],
        "evaluation": first["evaluation"],
        "save": first["rest"] - first["step"] - first["evaluation"],
        "restore": second["start"],
        "step": second["step"],
    }
    return row | {name: round(row[name], 2) for name in _COLUMNS}


def _print(run: config.Run, rows: list[dict], made_up: list[str]) -> None:
    table = Table("stage", "batch", *_COLUMNS, title="rehearsal, in seconds")
    for row in rows:
        table.add_row(row["stage"], str(row["batch"]), *(f"{row[name]:.2f}" for name in _COLUMNS))
    console = Console()
    console.print(table)
    if made_up:
        console.print(f"made up, since the run's folder has none: {', '.join(made_up)}")
    console.print(f"{run.name} is rehearsed on {jax.device_count()} device(s); nothing was kept")
