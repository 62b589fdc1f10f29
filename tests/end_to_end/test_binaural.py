"""A model that hears with two ears: one step of stage 1 on stored scenes, a suite, a question."""

import dataclasses
import types

import jax
import numpy as np
import pytest
import soundfile

from jaxasa import config
from jaxasa.bench import perturbations, suite
from jaxasa.bench import run as bench_run
from jaxasa.config import ConfigError
from jaxasa.core import trees
from jaxasa.data import pipeline, records, simulate
from jaxasa.inference import qa
from jaxasa.models.asa import ASA
from jaxasa.parallel import mesh
from jaxasa.pipeline import steps
from jaxasa.stages import common, runner, spatial
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
    """What stages and steps read of config.Run."""
    ears = dataclasses.replace(tiny.model.spatial, format="binaural", features="interaural")
    model = dataclasses.replace(tiny.model, spatial=ears, reply_tokens=8)
    scenes = config.Scenes(train=8, dev=8, benchmark=8, seconds=0.5)
    return types.SimpleNamespace(model=model, scenes=scenes, seed=0)


@pytest.fixture(scope="module")
def folder(described, tmp_path_factory):
    """DIR/binaural/{train,dev}: eight scenes each of noise [8000, 2]."""
    root = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(0)
    for split in ("train", "dev"):
        out = root / "binaural" / split
        out.mkdir(parents=True)
        audio = rng.integers(-3000, 3000, (8, 8000, 2)).astype(np.int16)
        pairs = zip(audio, described(8), strict=True)
        shard = records.write_shard(out / "a.array_record", pairs)
        records.write_manifest(out, {}, [shard])
    return root


@pytest.fixture(scope="module")
def trained(run, folder, tiny, text):
    """One step of stage 1: parameters before and after, metrics, and the batch."""
    asa, over = ASA(run.model), mesh.make(config.Mesh(data=8))
    context = common.Context(
        run=run,
        stage=STAGE,
        asa=asa,
        mesh=over,
        text=text,
        classes=tiny.classes,
        clips=(),
        train=runner._train_scenes(run, folder, "spatial"),
        dev=runner._train_scenes(run, folder, "spatial"),
    )
    before = jax.device_get(jax.jit(asa.init)(jax.random.key(0)))
    with jax.set_mesh(over):
        task = spatial.task(context)
        start = state.create(before, STAGE, over)
        key = jax.device_put(jax.random.key(0), start.step.sharding)
        batch = next(task.batches)
        after, metrics = task.step(start, batch, key)
    return before, jax.device_get(after.params), metrics, batch


@pytest.mark.soak
def test_stage_1_learns_from_two_ears_that_are_not_turned(trained):
    before, after, metrics, batch = trained
    assert batch["audio"].shape == (8, 8000, 2) and (batch["yaw"] == 0).all()
    assert np.isfinite(float(metrics["loss"]))
    old, new = trees.flatten(before), trees.flatten(after)
    for path in ("spatial/cues", "spatial/residual/kernel", "projector/direction_out/kernel"):
        assert np.abs(new[path] - old[path]).max() > 1e-4


@pytest.mark.soak
def test_it_answers_files_and_suites_of_two_channels(run, trained, tiny, text, tmp_path):
    out = tmp_path / "sft"
    meta = {
        "stage": "sft",
        "classes": list(tiny.classes),
        "seconds": 0.5,
        "model": dataclasses.asdict(run.model),
        "tokenizer": "tokenizer.json",
    }
    with checkpoint.Store(out) as store:
        store.save(1, state.State(np.int32(1), trained[1], {}), {}, meta, "")
    text.tokenizer.save(str(out / "tokenizer.json"))
    noise = 0.1 * np.random.default_rng(1).normal(size=(7000, 4))
    soundfile.write(tmp_path / "two.wav", noise[:, :2], 16_000)
    soundfile.write(tmp_path / "four.wav", noise, 16_000)
    found = qa.ask(out, tmp_path / "two.wav", "where is the dog?")
    assert found["reply"] and "note" not in found
    with pytest.raises(ConfigError, match=r"four.wav has 4 channels, expected 2 \(left and right"):
        qa.ask(out, tmp_path / "four.wav", "where is the dog?")

    model = qa.Model.load(out)
    soundfile.write(tmp_path / "a.flac", np.resize(noise[:, :2], (8000, 2)), 16_000)
    item = suite.Item(
        *("1", "L1", "azimuth", "where is the dog ?", ("a", "b", "c", "d"), "A", True),
        {"sources": []},
        tmp_path / "a.flac",
    )
    (answer,) = bench_run.answer(model, perturbations.none([item], ()), "mono", 1, "test")
    assert answer["id"] == "1" and answer["answer"]
    # Both ears hear their mean.
    mean = qa._mono(np.array([[[100, 300], [7, -8]]], np.int16))
    assert mean.tolist() == [[[200, 200], [-1, -1]]] and mean.dtype == np.int16


def test_scenes_are_rendered_and_looked_for_where_they_belong(run, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(simulate, "simulate", lambda *args: asked.append((args[3], args[6])))
    other = types.SimpleNamespace(
        **vars(run) | {"model": dataclasses.replace(run.model, spatial=config.Spatial(
            width=8, heads=2, layers=1, stem=((4, 2, 4),)))}
    )  # fmt: skip
    steps.scenes(run, tmp_path, "dev")
    steps.scenes(run, tmp_path, "dev", "records")
    steps.scenes(other, tmp_path, "dev")
    steps.scenes(other, tmp_path, "dev", "binaural:sphere")
    ears, field = tmp_path / "binaural" / "dev", tmp_path / "scenes" / "dev"
    assert asked == [
        (ears, "binaural"), (field, "records"), (field, "records"), (ears, "binaural:sphere")
    ]  # fmt: skip


def test_what_two_ears_cannot_do_is_refused(run, described, text):
    with pytest.raises(ConfigError, match="Spatial.features is 'intensity', expected interaural"):
        dataclasses.replace(run.model.spatial, features="intensity")
    with pytest.raises(ConfigError, match="Spatial.format is 'stereo', expected foa or binaural"):
        dataclasses.replace(run.model.spatial, format="stereo")
    make = pipeline.Targets(("dog",), 3, 0.0, augment=True)
    with pytest.raises(ConfigError, match="channels to augment is 2, expected 4"):
        make((np.zeros((10, 2), np.int16), described(1)[0]), np.random.default_rng(0), 0.0)
