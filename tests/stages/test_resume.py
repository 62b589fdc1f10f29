"""Each stage, resumed after its first step, ends bit for bit where it ends uninterrupted."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from jaxasa import config
from jaxasa.stages import grpo, runner
from jaxasa.train import loop, state

LENGTH = dict(steps=2, batch_size=8, learning_rate=0.01, warmup_steps=0, save_every=1, log_every=1)
STAGES = {
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


@pytest.fixture(scope="module")
def task_of(context_of, noises, described):
    """`task_of(stage)`: its task without evaluation, and its mesh."""
    heard = noises(16, 8000)

    def make(name):
        context = context_of(STAGES[name], heard, clips=described.clips)
        ranges = config.Scenes(train=1, dev=1, benchmark=1, seconds=0.5, sources=(1, 2))
        context.run.scenes = ranges  # stage 0 draws scenes of its own
        task = runner.TASKS[name](context)
        return dataclasses.replace(task, evaluate=lambda params: None), context.mesh

    return make


@pytest.mark.parametrize(
    "name",
    [n if n in ("text", "grpo") else pytest.param(n, marks=pytest.mark.soak) for n in STAGES],
)
def test_two_steps_are_one_and_one(task_of, tiny, tmp_path, monkeypatch, name):
    # Rewards of what an untrained model says, so that GRPO moves.
    monkeypatch.setattr(
        grpo.rewards, "total", lambda stage, said, *_: {"total": float(len(said) % 7)}
    )
    task, over = task_of(name)
    drawn = []

    def noting(task):
        def step(old, batch, key):
            drawn.append({k: v.tobytes() for k, v in batch.items()})
            return task.step(old, batch, key)

        return dataclasses.replace(task, step=step)

    def train(task):
        with jax.set_mesh(over):
            start = state.create(tiny.params, STAGES[name], over)
            where = {"folder": tmp_path / "checkpoint", "logs": tmp_path / "logs"}
            made = {"meta": {"model": {}}, "config_text": "", "seed": 0}
            return loop.train(noting(task), start, STAGES[name], **where, **made)

    whole = train(task)
    # A process killed in its second step leaves the first one's checkpoint; the next has a new
    # reader. Compiled code is kept, to save time.
    shutil.rmtree(tmp_path / "checkpoint" / "2")
    fresh, _ = task_of(name)
    resumed = train(dataclasses.replace(task, batches=fresh.batches))
    assert int(whole.step) == int(resumed.step) == 2
    assert len(drawn) == 3 and drawn[2] == drawn[1] != drawn[0]
    moved = 0
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(tiny.params), strict=True):
        moved += np.asarray(a).tobytes() != np.asarray(b).tobytes()
    assert moved > 3
