# SPDX-License-Identifier: Apache-2.0
"""Each stage, resumed after its first step, ends bit for bit where it ends uninterrupted."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from jaxasa import config
from jaxasa.stages import grpo
from jaxasa.stages.registry import STAGES
from jaxasa.train import loop, state

LENGTH = dict(steps=2, batch_size=8, learning_rate=0.01, warmup_steps=0, save_every=1, log_every=1)
OPTIONS = {
    "text": config.TextStage(trainable=("decoder/.*",), **LENGTH),
    "spatial": config.SpatialStage(trainable=("spatial/.*",), random_eq_db=5.0, **LENGTH),
    "align": config.AlignStage(trainable=("projector/.*",), **LENGTH),
    "sft": config.SftStage(trainable=("projector/.*", "lora/.*"), questions_per_scene=2, **LENGTH),
    "grpo": config.GrpoStage(
        trainable=("lora/.*",),
        questions_per_scene=2,
        num_generations=2,
        num_iterations=2,
        kl_weight=0.1,
        **LENGTH,
    ),
}


def reward_by_length(stage, completion, *_):
    """A reward that differs among the completions of an untrained model."""
    return {"total": float(len(completion) % 7)}


@pytest.fixture(scope="module")
def task_of(context_of, noises, described):
    """`task_of(stage)`: its task without evaluation, and its mesh."""
    data = noises(16, 8000)
    # Of text-only scenes.
    scenes = config.Scenes(train=1, dev=1, benchmark=1, seconds=0.5, sources=(1, 2))

    def make(name):
        context = context_of(OPTIONS[name], data, clips=described.clips, scenes=scenes)
        if name == "grpo":
            trainer = grpo.GrpoTrainer(context, reward=reward_by_length)
            task = loop.Task(name, trainer.batches, trainer.step, trainer.evaluate)
        else:
            task = STAGES[name].task(context)
        return dataclasses.replace(task, evaluate=lambda params: None), context.mesh

    return make


@pytest.mark.parametrize(
    "name",
    [n if n in ("text", "grpo") else pytest.param(n, marks=pytest.mark.soak) for n in OPTIONS],
)
def test_resumed_stage_equals_uninterrupted_stage_bitwise(task_of, tiny, tmp_path, name):
    task, mesh = task_of(name)
    batches = []

    def recording(task):
        def step(now, batch, key):
            batches.append({k: v.tobytes() for k, v in batch.items()})
            return task.step(now, batch, key)

        return dataclasses.replace(task, step=step)

    def train(task):
        with jax.set_mesh(mesh):
            return loop.train(
                recording(task),
                state.create(tiny.params, OPTIONS[name], mesh),
                OPTIONS[name],
                folder=tmp_path / "checkpoint",
                logs=tmp_path / "logs",
                meta={"model": {}},
                config_text="",
                seed=0,
            )

    whole = train(task)
    # A process killed in its second step leaves the first one's checkpoint; the next has a new
    # iterator over batches. Compiled code is reused, to save time.
    shutil.rmtree(tmp_path / "checkpoint" / "2")
    new_task, _ = task_of(name)
    resumed = train(dataclasses.replace(task, batches=new_task.batches))
    assert int(whole.step) == int(resumed.step) == 2
    assert len(batches) == 3 and batches[2] == batches[1] != batches[0]
    changed = 0
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(tiny.params), strict=True):
        changed += np.asarray(a).tobytes() != np.asarray(b).tobytes()
    assert changed > 3
