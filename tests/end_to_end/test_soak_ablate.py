# SPDX-License-Identifier: Apache-2.0
"""Two variants over two seeds, trained by two processes, of which one is killed on the way.

Not part of the suite (some minutes of two cores):
    pytest -m soak tests/end_to_end/test_soak_ablate.py
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GIN = """
from __gin__ import dynamic_registration
from jaxasa import config
include "run/smoke.gin"
config.Run.name = "tiny"
config.Run.stages = ("text", "spatial", "align", "sft")
config.Ablation.seeds = (0, 1)
config.Ablation.projector_steps = 3
config.Ablation.variants = {
    "p2": (),
    "binaural": ("Spatial.format='binaural'", "Spatial.features='interaural'"),
}
config.Scenes.train = 16
config.Scenes.dev = 8
config.Scenes.benchmark = 60
config.Scenes.scenes_per_shard = 20
config.Scenes.seconds = 2.0
config.TextStage.steps = 3
config.SpatialStage.steps = 3
config.AlignStage.steps = 3
config.SftStage.steps = 3
config.Bench.l1 = 8
config.Bench.l2 = 8
config.Bench.l3 = 8
"""

pytestmark = pytest.mark.soak


def test_killed_ablation_resumes_and_compares_its_variants(tmp_path):
    gin, folder = tmp_path / "tiny.gin", tmp_path / "run"
    gin.write_text(GIN)
    command = [sys.executable, "-m", "jaxasa", "bench", "ablate", "--workdir", str(folder)]
    command += [
        "--gin_file",
        str(gin),
        "--gin_file",
        str(ROOT / "tests" / "end_to_end" / "soak.gin"),
    ]
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    first = subprocess.Popen(command, env=env)
    while first.poll() is None and not list(folder.glob("ablation/suite-*/.lock")):
        time.sleep(0.05)
    second = subprocess.Popen(command, env=env)
    while first.poll() is None and not list(folder.glob("ablation/spatial-*/.lock")):
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    done = {p: p.read_text() for p in folder.glob("ablation/*/job.json") if "true" in p.read_text()}
    assert len(done) > 6
    third = subprocess.Popen(command, env=env)
    assert second.wait() == third.wait() == 0
    assert all(path.read_text() == text for path, text in done.items())
    result = json.loads((folder / "ablation.json").read_text())
    assert not result["failed"] and list(result["variants"]) == ["p2", "binaural"]
    for variant in result["variants"].values():
        assert list(variant["seeds"]) == ["0", "1"] and variant["overall"]["items"] == 24
    assert list(result["variants"]["binaural"]["against"]["seeds"]) == ["0", "1"]
    assert subprocess.run(command, env=env).returncode == 0
