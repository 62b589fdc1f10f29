# SPDX-License-Identifier: Apache-2.0
"""Preflight, with stages that only count steps instead of training."""

import dataclasses
import json
import tempfile

import numpy as np
import pytest

from jaxasa.cli import main
from jaxasa.config import ConfigError, gin_files
from jaxasa.core.workdir import WorkFolder
from jaxasa.data import pipeline, procedural, sounds
from jaxasa.pipeline import preflight
from jaxasa.stages import runner
from jaxasa.stages.registry import STAGES
from jaxasa.train import loop

SMALL = (
    *("Semantic.n_mels=16", "Semantic.width=16", "Semantic.heads=2", "Spatial.n_mels=16"),
    *(
        "Spatial.width=16",
        "Spatial.heads=2",
        "Spatial.stem=((4, 4, 8),)",
        "Projector.hidden_width=16",
    ),
    *("Decoder.width=32", "Decoder.intermediate_size=32", "Decoder.head_dim=8", "Decoder.layers=1"),
    *("Scenes.train=8", "Scenes.dev=4", "Scenes.seconds=1.0", "Run.stages=('spatial', 'grpo')"),
)


@pytest.fixture
def counting(monkeypatch, tmp_path):
    """Stages that note what they are given; a sound bank that is quick to make."""
    keep = ("alarm", "blast", "drum", "typing")
    monkeypatch.setattr(procedural, "CLASSES", {name: procedural.CLASSES[name] for name in keep})
    monkeypatch.setattr(procedural, "CLIPS_PER_RECORDING", 1)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    seen: list = []

    def make(name):
        def task(context):
            def element(element, rng, done):
                return {"audio": element[0]}

            def step(old, batch, key):
                seen.append((name, int(old.step), batch["audio"].shape))
                return dataclasses.replace(old, step=old.step + 1), {"loss": 1.0}

            def evaluate(params):
                seen.append((name, "evaluation", len(context.dev)))
                return {"accuracy": 0.5}

            size = context.stage.batch_size
            batches = pipeline.Batches(context.train, element, 0, name, size, total_examples=size)
            return loop.Task(name, batches, step, evaluate)

        return task

    for name in ("spatial", "grpo"):
        counted = dataclasses.replace(STAGES[name], task=make(name))
        monkeypatch.setitem(STAGES, name, counted)
    return seen


@pytest.mark.soak
def test_every_stage_steps_saves_restores_and_steps_again(counting, tmp_path, capsys):
    run, text = gin_files.load(["gin/run/smoke.gin"], SMALL)
    home = tmp_path / "home"
    sounds.build(dataclasses.replace(run.sounds, bank="procedural"), home / "sounds", run.seed)
    before = sorted(home.rglob("*"))
    rows = preflight.run_preflight(run, WorkFolder(home), text)
    expected = []
    for name, batch in (("spatial", run.spatial.batch_size), ("grpo", run.grpo.batch_size)):
        for step in (0, 1):
            expected += [(name, step, (batch, 16_000, 4)), (name, "evaluation", 4)]
    assert counting == expected
    assert [row["stage"] for row in rows] == ["spatial", "grpo"]
    assert all(row["save"] > 0 and row["build"] > 0 for row in rows)
    out = capsys.readouterr().out
    assert "synthetic, since the run's folder has none: scenes/train, scenes/dev" in out
    assert "nothing was kept" in out
    assert not list((tmp_path / "scratch").iterdir()) and sorted(home.rglob("*")) == before


@pytest.mark.soak
def test_an_error_is_reported_and_nothing_is_left(counting, tmp_path, capsys, monkeypatch):
    def broken(context):
        raise ConfigError("Mesh.tensor is 3, expected another")

    monkeypatch.setitem(STAGES, "grpo", dataclasses.replace(STAGES["grpo"], task=broken))
    words = ["preflight", "--gin_file", "gin/run/smoke.gin"]
    assert main.main([*words, *(f"--gin.{binding}" for binding in SMALL)]) == 2
    assert "Mesh.tensor is 3" in capsys.readouterr().err
    assert not list((tmp_path / "scratch").iterdir())
    assert counting[-1][0] == "spatial"


def test_several_processes_are_refused(capsys, monkeypatch):
    monkeypatch.setenv("JAXASA_COORDINATOR", "host:1")
    assert main.main(["preflight", "--gin_file", "gin/run/smoke.gin"]) == 2
    assert "preflight runs in one process" in capsys.readouterr().err


def test_synthetic_scenes_read_like_rendered_ones(counting, tmp_path):
    run, _ = gin_files.load(["gin/run/smoke.gin"], SMALL)
    prepared, synthetic = preflight._prepare_data(run, None, WorkFolder(tmp_path))
    assert prepared == run and synthetic == ["sounds", "scenes/train", "scenes/dev"]
    context = runner.prepare(run, "spatial", WorkFolder(tmp_path))
    audio, scene = context.train[0]
    assert len(context.train) == 8 and audio.dtype == np.int16 and audio.shape == (16_000, 4)
    assert {s["class"] for s in scene["sources"]} <= set(context.classes)
    assert json.loads((tmp_path / "scenes/dev/manifest.json").read_text())["count"] == 4


def test_damaged_dev_scene_is_skipped_like_a_train_scene(tmp_path, capfd):
    run, _ = gin_files.load(["gin/run/smoke.gin"], [*SMALL, "SpatialStage.max_damaged_records=1"])
    preflight._prepare_data(run, None, WorkFolder(tmp_path))
    path = next((tmp_path / "scenes" / "dev").glob("*.array_record"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    dev = runner.prepare(run, "spatial", WorkFolder(tmp_path)).dev
    assert all(dev[i][0].shape == (16_000, 4) for i in range(4))
    assert "skipped 1 of at most 1" in capfd.readouterr().err
