"""One gradient step of real stages on one device and on eight emulated ones.

Compiling takes long: a mesh each here, and every stage on every mesh with `pytest -m soak`.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxasa import config
from jaxasa.core import trees
from jaxasa.models import lm, sample
from jaxasa.parallel import mesh, sharding
from jaxasa.stages import grpo, sft, spatial
from jaxasa.train import state

LENGTH = dict(steps=4, batch_size=8, learning_rate=0.01, warmup_steps=0, max_grad_norm=0.0)
STAGES = {
    "spatial": (
        spatial,
        config.SpatialStage(trainable=("spatial/.*", "projector/.*_(in|out|head)/.*"), **LENGTH),
    ),
    "sft": (
        sft,
        config.SftStage(
            trainable=("projector/.*", "lora/.*", "decoder/.*"), questions_per_scene=2, **LENGTH
        ),
    ),
    "grpo": (
        grpo,
        config.GrpoStage(
            trainable=("lora/.*",), questions_per_scene=2, num_generations=2, **LENGTH
        ),
    ),
}
MESHES = {
    "8x1x1": config.Mesh(data=8),
    "2x4x1": config.Mesh(data=2, fsdp=4),
    "1x8x1": config.Mesh(data=1, fsdp=8),
    "2x2x2": config.Mesh(data=2, fsdp=2, tensor=2),
}
QUICK = {("sft", "2x2x2"), ("grpo", "1x8x1")}
ALL = [
    pytest.param(name, over, marks=() if (name, over) in QUICK else pytest.mark.soak)
    for name in STAGES
    for over in MESHES
]


def said(context, params, batch, key, group, temperature):
    """Completions made of the replies: which one is sampled may hang on a last bit."""
    reply = grpo.flat(batch["reply"])[:, None]
    ids = (reply + jnp.arange(group)[:, None]) % context.run.model.decoder.vocab
    logps = jnp.full(ids.shape, -np.log(context.run.model.decoder.vocab), jnp.float32)
    return sample.Completions(ids, logps, jnp.ones(ids.shape, bool))


@pytest.fixture(scope="module")
def step(tiny, context_of, noises):
    """`step(stage, mesh)`: metrics and gradients (as Adam's first moments tell) of one step."""

    def run(name, over):
        module, stage = STAGES[name]
        with jax.set_mesh(over), pytest.MonkeyPatch.context() as patch:
            patch.setattr(grpo, "rollout", said)
            patch.setattr(grpo.rewards, "total", lambda _, text, *__: {"total": len(text) % 7})
            task = module.task(context_of(stage, noises(8, 8000), mesh=over))
            start = state.create(tiny.params, stage, over)
            key = jax.device_put(jax.random.key(0), start.step.sharding)
            after, metrics = task.step(start, next(task.batches), key)
        moments = optax.tree_utils.tree_get_all_with_path(after.opt_state, "mu")[0][1]
        gradients = {path: np.asarray(leaf) / 0.1 for path, leaf in moments.items()}
        found = {k: float(v) for k, v in metrics.items() if k != "samples" and "seconds/" not in k}
        return found, gradients, after

    return run


@pytest.fixture(scope="module")
def alone(step):
    """`alone(stage)`: what `step` gives on one device."""
    one = mesh.make(config.Mesh(), jax.devices()[:1])
    return functools.cache(lambda name: step(name, one))


@pytest.mark.parametrize("name, over", ALL)
def test_eight_devices_take_the_step_of_one(step, alone, name, over):
    metrics, gradients, _ = alone(name)
    found, slopes, after = step(name, mesh.make(MESHES[over]))
    # Advantages add up to nothing, so that the loss of stage 4 is near 0.
    least = 1e-4 if name == "grpo" else 0.1
    assert abs(found["loss"]) > least and metrics["gradient_norm"] > least
    for key, value in metrics.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-5, err_msg=key)
    learning = {path for path, leaf in gradients.items() if np.abs(leaf).max() > least / 1000}
    assert ("spatial/stem0/kernel" if name == "spatial" else "lora/layers/q/a") in learning
    assert len(learning) > 0.6 * len(gradients)
    for path, expected in gradients.items():
        assert np.isfinite(expected).all(), path
        # The slope of trust is a small sum of large terms that cancel.
        share = 3e-4 if path.endswith("trust") else 1e-5
        atol = 1e-6 + share * np.abs(expected).max()
        np.testing.assert_allclose(slopes[path], expected, atol=atol, err_msg=path)
    spread = [x.sharding.is_fully_replicated for x in jax.tree.leaves(after.params["decoder"])]
    assert all(spread) == (over == "8x1x1")


def test_what_is_frozen_stays(tiny, alone):
    _, gradients, after = alone("sft")
    for path, leaf in trees.flatten(tiny.params).items():
        moved = np.abs(np.asarray(trees.flatten(after.params)[path]) - leaf).max() > 0
        assert moved <= (path in gradients), path
    assert int(after.step) == 1


def test_the_table_fits_the_model_on_every_mesh(tiny):
    shapes = jax.eval_shape(tiny.asa.init, jax.random.key(0))
    for over in MESHES.values():
        sharding.params_sharding(shapes, mesh.make(over))
        for path in trees.flatten(shapes):
            assert sum(bool(re.fullmatch(row, path)) for row, _ in sharding.RULES) == 1, path
    q = sharding.params_sharding(shapes, mesh.make(MESHES["2x2x2"]))["decoder"]["layers"]["q"]
    assert q["kernel"].spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    assert q["bias"].spec == jax.sharding.PartitionSpec(None, "tensor")


def test_adapters_alone_have_gradients_and_moments(tiny, alone):
    """In stage 4 nothing of the frozen model's size is made, but its parameters themselves."""
    _, gradients, after = alone("grpo")
    adapters = {k: v.shape for k, v in trees.flatten(tiny.params).items() if k.startswith("lora/")}
    assert {path: leaf.shape for path, leaf in gradients.items()} == adapters and adapters
    held = [leaf.size for leaf in jax.tree.leaves(after.opt_state) if leaf.ndim]
    assert sum(held) == 2 * sum(np.prod(shape) for shape in adapters.values())


def shapes_in(jaxpr):
    """Shape of every array that a jaxpr makes, those of its inner jaxprs included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from shapes_in(inner)


def test_the_update_never_holds_the_logits_of_all_tokens(tiny, context_of, noises, monkeypatch):
    """Traced, not run, for 80 scenes with 8 completions, 4 of each question: both passes."""
    monkeypatch.setattr(lm, "LIMIT", 2**22)
    scenes, said = 80, 8
    context = context_of(STAGES["grpo"][1], noises(8, 8000))
    row = next(grpo.task(context).batches)
    batch = {k: jax.ShapeDtypeStruct((scenes, *v.shape[1:]), v.dtype) for k, v in row.items()}
    length, vocab = tiny.model.reply_tokens, tiny.model.decoder.vocab
    of_tokens = (scenes, said, length)
    batch |= {name: jax.ShapeDtypeStruct(of_tokens, kind) for name, kind in
              (("ids", np.int32), ("mask", np.float32))}  # fmt: skip
    tokens = scenes, context.audio_tokens, tiny.model.decoder.width
    batch["heard"] = jax.ShapeDtypeStruct(tokens, np.float32)

    def loss(lora, batch):
        return grpo.completion_logps(context, {**tiny.params, "lora": lora}, batch).sum()

    made = jax.make_jaxpr(jax.grad(loss))(tiny.params["lora"], batch)
    found = [np.prod(shape) for shape in shapes_in(made.jaxpr) if vocab in shape[1:]]
    assert 0 < max(found) <= lm.LIMIT < np.prod(of_tokens) * vocab
