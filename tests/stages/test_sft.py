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
    """An imported set: four loud sounds of 0.5 s, each with one question."""
    folder = tmp_path_factory.mktemp("imported")
    rng = np.random.default_rng(1)
    sounds = rng.integers(20_000, 30_000, (4, 8000, 4)).astype(np.int16)
    path = folder / "a.array_record"
    entry = records.write_shard(path, ((x, {"id": str(k)}) for k, x in enumerate(sounds)))
    records.write_manifest(folder, {}, [entry])
    lines = [
        {"record": k, "seconds": 0.5, "question": "where is it ?", "answer": "left"}
        for k in range(4)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / import_scenes.QUESTIONS).write_text(text)
    return folder


@pytest.fixture
def made(context_of, noises):
    """`made(**changes)`: the context of stage 3 on made-up clips."""

    def make(**changes):
        fields = {"steps": 4, "batch": 8, "learning_rate": 0.01, "questions": 2, "warmup": 0}
        stage = config.SftStage(trainable=("lora/.*",), **fields, **changes)
        return context_of(stage, noises(16, 16_000, (2, 3)))

    return make


def foreign(batch):
    return (batch["audio"] > 10_000).any((1, 2))


def test_without_imported_questions_nothing_is_mixed(made):
    batch = next(sft.task(made()).batches)
    assert not foreign(batch).any()


def test_imported_questions_are_learnt_beside_those_on_scenes(tiny, text, made, folder):
    context = made(imported=(str(folder),), imported_share=0.25)
    task = sft.task(context)
    batch = next(task.batches)
    assert foreign(batch).sum() == 2 and batch["reply"].shape[:2] == (8, 2)
    replies = {text.decode(row) for row in batch["reply"][foreign(batch)].reshape(4, -1)}
    assert replies == {"<think></think><answer> left</answer>"}
    now = state.create(tiny.params, context.stage, context.mesh)
    losses = []
    for _ in range(4):
        now, metrics = task.step(now, batch, jax.random.key(0))
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
