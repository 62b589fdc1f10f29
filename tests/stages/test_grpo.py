import types

import jax
import numpy as np
import pytest

from jaxasa import config, mesh, state
from jaxasa.stages import common, grpo

CLIP = 0.2


def reference(logps, behaviour, advantages, mask):
    """Dr. GRPO's loss and its slope by logps, a token at a time."""
    value, slope = 0.0, np.zeros_like(logps)
    for (r, c), logp in np.ndenumerate(logps):
        ratio, gain = np.exp(logp - behaviour[r, c]), advantages[r]
        kept = min(ratio, 1 + CLIP) if gain > 0 else max(ratio, 1 - CLIP)
        if mask[r, c]:
            value -= kept * gain / mask.size
            slope[r, c] = -ratio * gain / mask.size if kept == ratio else 0.0
    return value, slope


def test_policy_loss_and_its_gradient_at_ratios_other_than_1():
    rng = np.random.default_rng(0)
    behaviour = rng.normal(-2, 1, (8, 6))
    logps = behaviour + rng.uniform(-0.6, 0.6, (8, 6))
    advantages, mask = rng.normal(size=8), rng.random((8, 6)) < 0.7
    value, slope = reference(logps, behaviour, advantages, mask)
    clipped = (slope == 0) & mask
    assert 5 < clipped.sum() < mask.sum() - 5
    found, gradient = jax.value_and_grad(grpo.policy_loss)(
        logps, behaviour, advantages, mask.astype(np.float32), CLIP
    )
    np.testing.assert_allclose(found, value, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, atol=1e-6)


@pytest.fixture(scope="module")
def task(tiny, text, described):
    """Stage 4 of the tiny model on made-up clips: the task, its context and a batch."""
    scenes = described(16, (2, 3))
    rng = np.random.default_rng(0)
    audio = rng.integers(-3000, 3000, (16, 16_000, 4)).astype(np.int16)
    stage = config.GrpoStage(
        steps=4, batch=8, learning_rate=0.01, trainable=("lora/.*",), group=4, warmup=0
    )
    context = common.Context(
        run=types.SimpleNamespace(
            model=tiny.model, scenes=types.SimpleNamespace(seconds=1.0), seed=0
        ),
        stage=stage,
        asa=tiny.asa,
        mesh=mesh.make(config.Mesh(), jax.devices()[:1]),
        text=text,
        classes=tiny.classes,
        clips=(),
        train=list(zip(audio, scenes, strict=True)),
        dev=list(zip(audio, scenes, strict=True)),
    )
    made = grpo.task(context)
    return types.SimpleNamespace(task=made, context=context, batch=next(made.batches))


def test_a_step_moves_the_adapters_from_ratios_of_1(tiny, task, monkeypatch):
    seen = []

    def total(stage, said, right, sources, classes):
        seen.append((right, sources))
        return {"total": float(len(said) % 7)}

    monkeypatch.setattr(grpo.rewards, "total", total)
    with jax.set_mesh(task.context.mesh):
        start = state.create(tiny.params, task.context.stage, task.context.mesh)
        after, metrics = task.task.step(start, task.batch, jax.random.key(0))
    assert len(seen) == 8 * 4 and metrics["reward/total"] > 0
    # Each prompt is judged by its own answer and its own scene.
    for p, (right, sources) in enumerate(seen[::4]):
        reply = task.context.text.decode(task.batch["reply"][p, 0])
        assert f"<answer> {right}</answer>" in reply
        labels = task.batch["source_label"][p]
        assert [s["class"] for s in sources] == [tiny.classes[k] for k in labels if k >= 0]
        assert sources[0]["azimuth"] == pytest.approx(task.batch["source_azimuth"][p, 0])
    # What sampling said of its tokens is what the update finds, whatever was sampled.
    assert abs(metrics["log_ratio"]) < 1e-5
    assert metrics["gradient_norm"] > 1e-3
    moved = jax.tree.map(
        lambda a, b: bool(np.abs(np.asarray(a) - b).max() > 0), after.params, tiny.params
    )
    assert all(jax.tree.leaves(moved.pop("lora"))) and not any(jax.tree.leaves(moved))


def test_equal_rewards_move_nothing(tiny, task, monkeypatch):
    monkeypatch.setattr(grpo.rewards, "total", lambda *_: {"total": 0.7})
    with jax.set_mesh(task.context.mesh):
        start = state.create(tiny.params, task.context.stage, task.context.mesh)
        _, metrics = task.task.step(start, task.batch, jax.random.key(1))
    assert metrics["gradient_norm"] == 0 and metrics["equal_groups"] == 1
