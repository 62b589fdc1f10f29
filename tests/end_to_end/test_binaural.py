# SPDX-License-Identifier: Apache-2.0
"""A binaural model: one step of stage 1 on stored scenes, a suite, a question."""

import dataclasses

import jax
import numpy as np
import pytest
import soundfile

from jaxasa import config
from jaxasa.bench import perturbations, suite
from jaxasa.bench import run as bench_run
from jaxasa.config import ConfigError, gin_files
from jaxasa.core import trees
from jaxasa.core.workdir import WorkFolder
from jaxasa.data import records, simulate, transforms
from jaxasa.inference import qa
from jaxasa.models.asa import ASA
from jaxasa.parallel import mesh
from jaxasa.pipeline import steps
from jaxasa.stages import runner, spatial
from jaxasa.train import checkpoint, state

STAGE = config.SpatialStage(
    steps=4,
    batch_size=8,
    learning_rate=0.01,
    trainable=("spatial/.*", "projector/.*_(in|out|head)/.*"),
    warmup_steps=0,
)


@pytest.fixture(scope="module")
def run(tiny):
    """A run of the tiny model with binaural audio."""
    ears = dataclasses.replace(tiny.model.spatial, format="binaural", features="interaural")
    model = dataclasses.replace(tiny.model, spatial=ears, reply_tokens=8)
    scenes = config.Scenes(train=8, dev=8, benchmark=8, seconds=0.5)
    smoke, _ = gin_files.load(["gin/run/smoke.gin"])
    return dataclasses.replace(smoke, model=model, scenes=scenes, seed=0)


@pytest.fixture(scope="module")
def work(described, tmp_path_factory):
    """A work folder with eight scenes of noise [8000, 2] in binaural/train and binaural/dev."""
    work = WorkFolder(tmp_path_factory.mktemp("work"))
    rng = np.random.default_rng(0)
    for split in ("train", "dev"):
        out = work.scenes(split, "binaural")
        out.mkdir(parents=True)
        audio = rng.integers(-3000, 3000, (8, 8000, 2)).astype(np.int16)
        pairs = zip(audio, described(8), strict=True)
        shard = records.write_shard(out / "a.array_record", pairs)
        records.write_manifest(out, {}, [shard])
    return work


@pytest.fixture(scope="module")
def one_step(run, work, tiny, context_of):
    """One step of stage 1: parameters before and after, metrics, and the batch."""
    asa, devices = ASA(run.model), mesh.make_mesh(config.Mesh(data=8))
    scenes = runner.training_scenes(run, "spatial", work)
    context = context_of(STAGE, scenes, asa, mesh=devices)
    before = jax.device_get(jax.jit(asa.init)(jax.random.key(0)))
    with jax.set_mesh(devices):
        task = spatial.task(context)
        start = state.create(before, STAGE, devices)
        key = jax.device_put(jax.random.key(0), start.step.sharding)
        batch = next(task.batches)
        after, metrics = task.step(start, batch, key)
    return before, jax.device_get(after.params), metrics, batch


@pytest.mark.soak
def test_spatial_stage_trains_on_binaural_scenes_without_rotation(one_step):
    before, after, metrics, batch = one_step
    assert batch["audio"].shape == (8, 8000, 2) and (batch["yaw"] == 0).all()
    assert np.isfinite(float(metrics["loss"]))
    old, new = trees.flatten(before), trees.flatten(after)
    for path in ("spatial/cues", "spatial/residual/kernel", "projector/direction_out/kernel"):
        assert np.abs(new[path] - old[path]).max() > 1e-4


@pytest.mark.soak
def test_binaural_model_answers_files_and_suites_of_two_channels(
    run, one_step, tiny, text, tmp_path
):
    out = tmp_path / "sft"
    meta = {
        "stage": "sft",
        "classes": list(tiny.classes),
        "seconds": 0.5,
        "model": dataclasses.asdict(run.model),
        "tokenizer": "tokenizer.json",
    }
    with checkpoint.CheckpointManager(out) as manager:
        manager.save(1, state.TrainState(np.int32(1), one_step[1], {}), {}, meta, "")
    text.backend.save(str(out / "tokenizer.json"))
    noise = 0.1 * np.random.default_rng(1).normal(size=(7000, 4))
    soundfile.write(tmp_path / "two.wav", noise[:, :2], 16_000)
    soundfile.write(tmp_path / "four.wav", noise, 16_000)
    answer = qa.ask(out, tmp_path / "two.wav", "where is the dog?")
    assert answer["reply"] and "note" not in answer
    with pytest.raises(ConfigError, match=r"four.wav has 4 channels, expected 2 \(left and right"):
        qa.ask(out, tmp_path / "four.wav", "where is the dog?")

    model = qa.QaModel.load(out)
    soundfile.write(tmp_path / "a.flac", np.resize(noise[:, :2], (8000, 2)), 16_000)
    item = suite.Item(
        *("1", "L1", "azimuth", "where is the dog ?", ("a", "b", "c", "d"), "A", True),
        {"sources": []},
        tmp_path / "a.flac",
    )
    (answer,) = bench_run.answer_items(model, perturbations.identity([item], ()), "mono", 1, "test")
    assert answer["id"] == "1" and answer["answer"]
    # Mono is the mean of both channels, in both of them.
    mean = qa._without_direction(np.array([[[100, 300], [7, -8]]], np.int16))
    assert mean.tolist() == [[[200, 200], [-1, -1]]] and mean.dtype == np.int16


def test_render_scenes_writes_each_format_to_its_folder(run, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(simulate, "simulate", lambda *args: calls.append((args[3], args[6])))
    spatial_foa = config.Spatial(width=8, heads=2, layers=1, stem=((4, 2, 4),))
    foa = dataclasses.replace(run, model=dataclasses.replace(run.model, spatial=spatial_foa))
    steps.render_scenes(run, WorkFolder(tmp_path), "dev")
    steps.render_scenes(run, WorkFolder(tmp_path), "dev", "records")
    steps.render_scenes(foa, WorkFolder(tmp_path), "dev")
    steps.render_scenes(foa, WorkFolder(tmp_path), "dev", "binaural:sphere")
    binaural, records_ = tmp_path / "binaural" / "dev", tmp_path / "scenes" / "dev"
    assert calls == [
        (binaural, "binaural"),
        (records_, "records"),
        (records_, "records"),
        (binaural, "binaural:sphere"),
    ]


def test_options_that_do_not_apply_to_binaural_audio_are_refused(run, described, text):
    with pytest.raises(ConfigError, match="Spatial.features is 'intensity', expected interaural"):
        dataclasses.replace(run.model.spatial, features="intensity")
    with pytest.raises(ConfigError, match="Spatial.format is 'stereo', expected foa or binaural"):
        dataclasses.replace(run.model.spatial, format="stereo")
    make = transforms.SpatialExamples(("dog",), 3, 0.0, augment=True)
    with pytest.raises(ConfigError, match="channels to augment is 2, expected 4"):
        make((np.zeros((10, 2), np.int16), described(1)[0]), np.random.default_rng(0), 0.0)
