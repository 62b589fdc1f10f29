# SPDX-License-Identifier: Apache-2.0
"""Stages 3 and 4 in two processes of four emulated devices, as in one process of eight.

Not part of the suite (some minutes of two cores): pytest -m soak tests/end_to_end/test_processes.py
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxasa.core import trees
from jaxasa.train import checkpoint

ROOT = Path(__file__).resolve().parents[2]
GIN = """
from __gin__ import dynamic_registration
from jaxasa import config
include "run/smoke.gin"
config.Run.name = "processes"
config.Scenes.train = 24
config.Scenes.dev = 8
config.Scenes.scenes_per_shard = 12
config.Scenes.seconds = 1.0
config.Scenes.workers = 1
config.SftStage.batch_size = 8
config.GrpoStage.learning_rate = 1e-2
config.GrpoStage.warmup_steps = 0
config.GrpoStage.length_weight = 1.0
"""
MESH = ("--gin.Mesh.data=2", "--gin.Mesh.fsdp=2", "--gin.Mesh.tensor=2")

pytestmark = pytest.mark.soak


def begin(folder: Path, gin: Path, *words: str, **env: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "jaxasa", *words, "--workdir", str(folder)]
    command += [
        "--gin_file",
        str(gin),
        "--gin_file",
        str(ROOT / "tests" / "end_to_end" / "soak.gin"),
    ]
    shared = {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(gin.parent / "cache")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=os.environ | shared | env, **pipes)


def wait_for(*processes: subprocess.Popen) -> None:
    for process in processes:
        output = process.communicate(timeout=1200)[0]
        assert process.returncode == 0, output[-2000:]


def port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def params(folder: Path, stage: str) -> dict[str, np.ndarray]:
    return trees.flatten(checkpoint.load(folder / "checkpoints" / stage)[0])


def evaluations(folder: Path, stage: str) -> dict[str, float]:
    lines = (folder / "logs" / stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if any(name.startswith("eval/") for name in row)]
    return {name: value for name, value in rows[-1].items() if name.startswith("eval/")}


def test_stages_in_two_processes_equal_those_in_one(tmp_path):
    gin, one, two = tmp_path / "run.gin", tmp_path / "one", tmp_path / "two"
    gin.write_text(GIN, encoding="utf-8")
    for words in (
        *(("sounds",), ("simulate", "--split", "train"), ("simulate", "--split", "dev")),
        *(("train", stage) for stage in ("text", "spatial", "align")),
    ):
        wait_for(begin(one, gin, *words))
    shutil.copytree(one, two)
    before = params(one, "align")
    for stage in ("sft", "grpo"):
        wait_for(begin(one, gin, "train", stage, *MESH, JAX_NUM_CPU_DEVICES="8"))
        together = {"JAXASA_COORDINATOR": f"127.0.0.1:{port()}", "JAXASA_PROCESSES": "2"}
        together |= {"JAX_NUM_CPU_DEVICES": "4"}
        each = [together | {"JAXASA_PROCESS": str(i)} for i in (0, 1)]
        wait_for(*(begin(two, gin, "train", stage, *MESH, **env) for env in each))
        expected, actual = params(one, stage), params(two, stage)
        change = max(np.abs(expected[path] - before[path]).max() for path in expected)
        assert change > 1e-3, stage
        for path, value in expected.items():
            np.testing.assert_allclose(actual[path], value, atol=1e-3 * change, err_msg=path)
        assert evaluations(two, stage) == pytest.approx(evaluations(one, stage), abs=0.05), stage
        before = expected
