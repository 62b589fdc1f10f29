# SPDX-License-Identifier: Apache-2.0
"""Training that is killed repeatedly ends bit for bit where undisturbed training ends.

Not part of the suite (20 minutes of a core). 20 kills over the five stages of the demo, or fewer:
    pytest -m soak -s tests/end_to_end/test_soak.py
    JAXASA_SOAK_KILLS=6 JAXASA_SOAK_STAGES=text,grpo pytest -m soak -s tests/end_to_end/test_soak.py
JAXASA_SOAK_DATA: a work folder of an earlier soak, whose sounds and scenes are reused.
"""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxasa.train import checkpoint

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("JAXASA_SOAK_KILLS", "20"))
STAGES = tuple(os.environ.get("JAXASA_SOAK_STAGES", "text,spatial,align,sft,grpo").split(","))
EVERY = 3  # steps between checkpoints
EACH = -(-KILLS // len(STAGES))  # kills of a stage, at most
GIN = f"""
from __gin__ import dynamic_registration
from jaxasa import config
include "run/smoke.gin"
config.Run.name = "soak"
config.Run.stages = {STAGES!r}
config.Scenes.train = 24
config.Scenes.dev = 8
config.Scenes.scenes_per_shard = 12
config.Scenes.seconds = 1.0
config.Scenes.workers = 1
config.GrpoStage.num_generations = 2
config.GrpoStage.length_weight = 1.0
""" + "".join(
    f"config.{name.title()}Stage.{field} = {value}\n"
    for name in STAGES
    for field, value in {
        "steps": EVERY * (4 * EACH + 2),
        "batch_size": 8,
        "save_every": EVERY,
        "eval_every": 10_000,
        "log_every": EVERY,
    }.items()
)
SHARED = ("sounds", "scenes", "config.gin", "tokenizer.json")

pytestmark = pytest.mark.soak


class Job:
    """The command line on one work folder; jobs share compiled code."""

    def __init__(self, folder: Path, gin: Path, cache: Path):
        self.folder, self._gin = folder, gin
        self._env = os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }

    def begin(self, *words: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "jaxasa", *words]
        command += ["--workdir", str(self.folder), "--gin_file", str(self._gin)]
        command += ["--gin_file", str(ROOT / "tests" / "end_to_end" / "soak.gin")]
        with open(self.folder / "output", "a") as output:
            return subprocess.Popen(command, env=self._env, stdout=output, stderr=output)

    def run(self, *words: str) -> None:
        assert self.begin(*words).wait() == 0, (self.folder / "output").read_text()[-2000:]

    def saved(self, stage: str) -> int:
        """The last complete step."""
        places = (self.folder / "checkpoints" / stage).glob("[0-9]*")
        return max((int(p.name) for p in places if p.name.isdecimal()), default=0)

    def is_saving(self, stage: str) -> bool:
        return any((self.folder / "checkpoints" / stage).glob("*.orbax-checkpoint-tmp*"))


def kill_at_random(job: Job, stage: str, kills: int, rng: random.Random) -> list[dict]:
    """Trains `stage`, killed at most `kills` times; returns a row for each kill."""
    rows: list[dict] = []
    while True:
        before = job.saved(stage)
        process = job.begin("train", stage)
        while process.poll() is None and len(rows) < kills:
            time.sleep(0.005)
            if job.saved(stage) <= before:
                continue
            # It has saved a checkpoint: kills at a random moment, half of them during a save.
            moment = time.monotonic() + rng.uniform(0, 2)
            if rng.random() < 0.5:
                while not job.is_saving(stage) and time.monotonic() < moment + 3:
                    time.sleep(0.001)
            else:
                time.sleep(max(0.0, moment - time.monotonic()))
            if process.poll() is None:
                process.kill()
                process.wait()
                saving, step = job.is_saving(stage), job.saved(stage)
                rows.append({"stage": stage, "step": step, "in a save": saving})
            break
        code = process.wait()
        if code == 0:
            return rows
        assert code == -9, (job.folder / "output").read_text()[-2000:]


def test_killed_training_equals_undisturbed_training_bitwise(tmp_path):
    gin, cache = tmp_path / "soak.gin", tmp_path / "cache"
    gin.write_text(GIN)
    undisturbed, killed = (Job(tmp_path / name, gin, cache) for name in ("undisturbed", "killed"))
    undisturbed.folder.mkdir()
    data = os.environ.get("JAXASA_SOAK_DATA")
    if data:
        for name in ("sounds", "scenes"):
            shutil.copytree(Path(data) / name, undisturbed.folder / name)
    else:
        undisturbed.run("sounds")
        for split in ("train", "dev"):
            undisturbed.run("simulate", "--split", split)
    killed.folder.mkdir()
    rng, kills = random.Random(time.time_ns()), []
    began = time.monotonic()
    for stage in STAGES:
        undisturbed.run("train", stage)
        for name in SHARED:
            source, target = undisturbed.folder / name, killed.folder / name
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            else:
                shutil.copy(source, target)
        kills += kill_at_random(killed, stage, min(EACH, KILLS - len(kills)), rng)
        one, two = (
            checkpoint.load(j.folder / "checkpoints" / stage)[0] for j in (undisturbed, killed)
        )
        for a, b in zip(*map(jax.tree.leaves, (one, two)), strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    for kill in kills:
        print(f"killed {kill['stage']} with step {kill['step']} saved", end="")
        print(", while it wrote the next" if kill["in a save"] else "")
    inside = sum(kill["in a save"] for kill in kills)
    print(
        f"{len(kills)} kills, {inside} of them while a checkpoint was written; parameters after "
        f"{', '.join(STAGES)} equal the undisturbed run's bit for bit; "
        f"{time.monotonic() - began:.0f} s"
    )
    assert len(kills) == KILLS and inside > 0
