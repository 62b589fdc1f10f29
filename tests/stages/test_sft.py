# SPDX-License-Identifier: Apache-2.0
import json

import jax
import numpy as np
import pytest

from jaxasa import config
from jaxasa.data import import_scenes, records
from jaxasa.stages import sft
from jaxasa.train import state


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of `jaxasa import`: four loud recordings of 0.5 s, each with one question."""
    folder = tmp_path_factory.mktemp("imported")
    rng = np.random.default_rng(1)
    audio = rng.integers(20_000, 30_000, (4, 8000, 4)).astype(np.int16)
    path = folder / "a.array_record"
    entry = records.write_shard(path, ((x, {"id": str(k)}) for k, x in enumerate(audio)))
    records.write_manifest(folder, {}, [entry])
    lines = [
        {"record": k, "seconds": 0.5, "question": "where is it ?", "answer": "left"}
        for k in range(4)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / import_scenes.QUESTIONS_FILE).write_text(text)
    return folder


@pytest.fixture
def make(context_of, noises):
    """`make(**fields)`: the context of the stage on noise; fields: of SftStage."""

    def make(**fields):
        defaults = {"steps": 4, "batch_size": 8, "learning_rate": 0.01, "questions_per_scene": 2}
        defaults |= {"warmup_steps": 0, "trainable": ("lora/.*",)}
        return context_of(config.SftStage(**defaults | fields), noises(16, 16_000, (2, 3)))

    return make


def is_imported(batch):
    return (batch["audio"] > 10_000).any((1, 2))


def test_batches_have_no_imported_questions_by_default(make):
    batch = next(sft.task(make()).batches)
    assert not is_imported(batch).any()


def test_imported_questions_are_mixed_in_by_their_weight(tiny, text, make, folder):
    context = make(qa_datasets=(str(folder),), qa_datasets_weight=0.25)
    task = sft.task(context)
    batch = next(task.batches)
    assert is_imported(batch).sum() == 2 and batch["reply"].shape[:2] == (8, 2)
    replies = {text.decode(row) for row in batch["reply"][is_imported(batch)].reshape(4, -1)}
    assert replies == {"<think></think><answer> left</answer>"}
    now = state.create(tiny.params, context.stage, context.mesh)
    losses = []
    for _ in range(4):
        now, metrics = task.step(now, batch, jax.random.key(0))
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


def test_level_mix_moves_linearly_over_the_stage(make):
    mix = ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    context = make(level_mix=mix, questions_per_scene=6)
    make_example = sft.examples(context)
    rng = np.random.default_rng(0)
    shares = []
    for progress in (0.0, 0.5, 1.0):
        examples = [make_example(scene, rng, progress) for scene in context.train for _ in range(3)]
        levels = np.concatenate([example["level"] for example in examples])
        shares.append(np.bincount(levels, minlength=3) / len(levels))
    np.testing.assert_allclose(shares, [mix[0], (0.5, 0.0, 0.5), mix[1]], atol=0.1)
