# SPDX-License-Identifier: Apache-2.0
"""`jaxasa preflight`: every stage compiles, steps, saves, restores and steps again.

Errors of the first minutes of a job, or of its first checkpoint, appear here before a pod is paid
for: shapes, sharding, memory, sounds and scenes that cannot be read, disk. The code is that of
training, in a temporary folder; the evaluation of stage 4 is a rollout of each dev question and
its reward.
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
from jaxasa.core.workdir import WorkFolder
from jaxasa.data import records
from jaxasa.data.sounds import Bank
from jaxasa.pipeline import steps
from jaxasa.stages import common, runner
from jaxasa.stages.registry import STAGES
from jaxasa.train import loop

_COLUMNS = ("build", "first step", "evaluation", "save", "restore", "step")


def run_preflight(run: config.Run, source: WorkFolder | None, text: str) -> list[dict]:
    """Tries `run.stages` in a temporary folder; prints and returns a row for each.

    Sounds and scenes are those of `source` if it has them, and otherwise synthetic ones of the
    same shapes. On the CPU there are as many emulated devices as the mesh names. A row holds the
    seconds of each of: build (data, model, parameters), first step (with compiling), evaluation
    (with compiling; rollout and reward in stage 4), save, restore, and step (a second one).
    Raises ConfigError as training does, and if several processes run it together.
    """
    if os.environ.get("JAXASA_COORDINATOR"):
        raise ConfigError("preflight runs in one process, expected no JAXASA_COORDINATOR")
    _emulate_devices(run.mesh)
    rows = []
    with tempfile.TemporaryDirectory(prefix="jaxasa-preflight-") as name:
        work = WorkFolder(name)
        run, synthetic = _prepare_data(run, source, work)
        for stage in run.stages:
            rows.append(_try_stage(run, stage, work, text))
    _print(run, rows, synthetic)
    return rows


def _emulate_devices(mesh: config.Mesh) -> None:
    devices = math.prod(size for size in (mesh.data, mesh.fsdp, mesh.tensor) if size != -1)
    if jax.config.jax_num_cpu_devices < 1 and jax.config.jax_platforms == "cpu":
        try:
            jax.config.update("jax_num_cpu_devices", devices)
        except RuntimeError:  # devices are in use already; mesh.make checks their number
            return


def _prepare_data(
    run: config.Run, source: WorkFolder | None, work: WorkFolder
) -> tuple[config.Run, list[str]]:
    """Fills `work` with the data that training reads, linked from `source` or synthetic.

    Returns the run for it, and which parts are synthetic.
    """
    synthetic = []

    def link(path: Path, last_file: str) -> bool:
        """Links a folder of `work` to that of `source`, if it is complete there."""
        part = path.relative_to(work.path)
        if source is None or not (source.path / part / last_file).is_file():
            synthetic.append(part.as_posix())
            return False
        path.parent.mkdir(exist_ok=True)
        path.symlink_to((source.path / part).resolve())
        return True

    if link(work.sounds, "bank.json"):
        if source is not None and source.tokenizer.is_file():
            work.tokenizer.symlink_to(source.tokenizer.resolve())
    else:
        procedural = dataclasses.replace(run.sounds, bank="procedural", classes={})
        steps.build_sound_bank(dataclasses.replace(run, sounds=procedural), work)
    if not any(STAGES[stage].reads_scenes for stage in run.stages):
        return run, synthetic
    if run.scenes.rir_rooms and not link(work.rirs, "manifest.json"):
        run = dataclasses.replace(run, scenes=dataclasses.replace(run.scenes, rir_rooms=0))
    splits = ("dev",) if run.scenes.rir_rooms else ("train", "dev")
    for split in splits:
        if not link(work.scenes_of(run, split), "manifest.json"):
            _write_noise(run, work, split)
    return run, synthetic


def _write_noise(run: config.Run, work: WorkFolder, split: str) -> None:
    """Writes noise with descriptions of drawn scenes, enough for an evaluation or a batch."""
    out = work.scenes_of(run, split)
    out.mkdir(parents=True)
    clips = Bank.load(work.sounds).clips(split)
    count = min(getattr(run.scenes, split), 2 * common.EVAL_SCENES)
    samples, channels = round(run.scenes.seconds * SAMPLE_RATE), run.model.spatial.channels

    def scene(index: int) -> tuple[np.ndarray, dict]:
        rng = keys.rng(run.seed, "rehearsal", split, index)
        audio = rng.integers(-1000, 1000, (samples, channels), dtype=np.int16)
        return audio, scenes.describe(
            scenes.sample_scene(run.scenes, clips, run.seed, split, index)
        )

    shard = records.write_shard(out / "scenes.array_record", map(scene, range(count)))
    records.write_manifest(out, {}, [shard])


class _Timer:
    """Records when a batch of a task is drawn, and the seconds of its steps and evaluations.

    task: the same task, timed.
    """

    def __init__(self, task: loop.Task):
        self._task = task
        self.task = loop.Task(task.name, self, self.step, self.evaluate)
        self.seconds = {"step": 0.0, "evaluation": 0.0}
        self.batch_time = 0.0

    def __iter__(self):
        return self

    def __next__(self):
        self.batch_time = time.monotonic()
        return next(self._task.batches)

    def get_state(self) -> Mapping:
        return self._task.batches.get_state()

    def set_state(self, state: Mapping) -> None:
        self._task.batches.set_state(state)

    def _time(self, name: str, function, *arguments):
        start = time.monotonic()
        result = jax.block_until_ready(function(*arguments))
        self.seconds[name] = time.monotonic() - start
        return result

    def step(self, state, batch, key):
        return self._time("step", self._task.step, state, batch, key)

    def evaluate(self, params: Mapping) -> Any:
        return self._time("evaluation", self._task.evaluate, params)


def _try_stage(run: config.Run, stage: str, work: WorkFolder, text: str) -> dict:
    start = time.monotonic()
    context = runner.prepare(run, stage, work)
    row: dict[str, Any] = {"stage": stage, "batch": context.stage.batch_size}
    with jax.set_mesh(context.mesh):
        timer = _Timer(STAGES[stage].task(context))
        spent = []
        for last in (1, 2):  # the second resumes from the checkpoint of the first
            options = dataclasses.replace(context.stage, steps=last)
            shortened = dataclasses.replace(context, stage=options)
            state = runner.fit(run, shortened, timer.task, work, text)
            end = time.monotonic()
            spent.append({"start": timer.batch_time - start, "rest": end - timer.batch_time})
            spent[-1] |= timer.seconds
            start = end
    if int(state.step) != 2:
        raise RuntimeError(f"{stage}: at step {int(state.step)} after a restored step, expected 2")
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


def _print(run: config.Run, rows: list[dict], synthetic: list[str]) -> None:
    table = Table("stage", "batch", *_COLUMNS, title="preflight, in seconds")
    for row in rows:
        table.add_row(row["stage"], str(row["batch"]), *(f"{row[name]:.2f}" for name in _COLUMNS))
    console = Console()
    console.print(table)
    if synthetic:
        console.print(f"synthetic, since the run's folder has none: {', '.join(synthetic)}")
    console.print(
        f"{run.name}: preflight passed on {jax.device_count()} device(s); nothing was kept"
    )
