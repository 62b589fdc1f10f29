# SPDX-License-Identifier: Apache-2.0
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
from jaxasa.stages import common, grpo
from jaxasa.stages.registry import STAGES
from jaxasa.train import state

LENGTH = dict(steps=4, batch_size=8, learning_rate=0.01, warmup_steps=0, max_grad_norm=0.0)
OPTIONS = {
    "spatial": config.SpatialStage(
        trainable=("spatial/.*", "projector/.*_(in|out|head)/.*"), **LENGTH
    ),
    "sft": config.SftStage(
        trainable=("projector/.*", "lora/.*", "decoder/.*"), questions_per_scene=2, **LENGTH
    ),
    "grpo": config.GrpoStage(
        trainable=("lora/.*",), questions_per_scene=2, num_generations=2, **LENGTH
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
    pytest.param(name, sizes, marks=() if (name, sizes) in QUICK else pytest.mark.soak)
    for name in OPTIONS
    for sizes in MESHES
]


def completions_from_replies(context, params, batch, key, num_generations, temperature):
    """Fixed completions: sampled ones may depend on the last bit of a logit."""
    reply = common.merge_leading_dims(batch["reply"])[:, None]
    vocab_size = context.model.decoder.vocab_size
    ids = (reply + jnp.arange(num_generations)[:, None]) % vocab_size
    logps = jnp.full(ids.shape, -np.log(vocab_size), jnp.float32)
    return sample.Completions(ids, logps, jnp.ones(ids.shape, bool))


def reward_by_length(stage, completion, *_):
    return {"total": len(completion) % 7}


@pytest.fixture(scope="module")
def step(tiny, context_of, noises):
    """`step(stage, mesh)`: metrics, gradients (from Adam's first moments) and state of a step."""

    def step(name, devices):
        options = OPTIONS[name]
        with jax.set_mesh(devices):
            context = context_of(options, noises(8, 8000), mesh=devices)
            if name == "grpo":
                parts = {"generate": completions_from_replies, "reward": reward_by_length}
                task = grpo.GrpoTrainer(context, **parts)
            else:
                task = STAGES[name].task(context)
            start = state.create(tiny.params, options, devices)
            key = jax.device_put(jax.random.key(0), start.step.sharding)
            after, metrics = task.step(start, next(task.batches), key)
        moments = optax.tree_utils.tree_get_all_with_path(after.opt_state, "mu")[0][1]
        gradients = {path: np.asarray(leaf) / 0.1 for path, leaf in moments.items()}
        names = [n for n in metrics if n != "samples" and "seconds/" not in n]
        return {name: float(metrics[name]) for name in names}, gradients, after

    return step


@pytest.fixture(scope="module")
def single_device(step):
    """`single_device(stage)`: what `step` gives on one device."""
    one = mesh.make_mesh(config.Mesh(), jax.devices()[:1])
    return functools.cache(lambda name: step(name, one))


@pytest.mark.parametrize("name, sizes", ALL)
def test_step_on_eight_devices_equals_that_on_one(step, single_device, name, sizes):
    expected, gradients, _ = single_device(name)
    metrics, sharded_gradients, after = step(name, mesh.make_mesh(MESHES[sizes]))
    # Advantages sum to zero, so the loss of GRPO is near 0.
    least = 1e-4 if name == "grpo" else 0.1
    assert abs(metrics["loss"]) > least and expected["gradient_norm"] > least
    for key, value in expected.items():
        np.testing.assert_allclose(metrics[key], value, rtol=1e-4, atol=1e-5, err_msg=key)
    nonzero = {path for path, leaf in gradients.items() if np.abs(leaf).max() > least / 1000}
    assert ("spatial/stem0/kernel" if name == "spatial" else "lora/layers/q/a") in nonzero
    assert len(nonzero) > 0.6 * len(gradients)
    for path, gradient in gradients.items():
        assert np.isfinite(gradient).all(), path
        # The gradient of trust is a small sum of large terms that cancel.
        share = 3e-4 if path.endswith("trust") else 1e-5
        atol = 1e-6 + share * np.abs(gradient).max()
        np.testing.assert_allclose(sharded_gradients[path], gradient, atol=atol, err_msg=path)
    replicated = [x.sharding.is_fully_replicated for x in jax.tree.leaves(after.params["decoder"])]
    assert all(replicated) == (sizes == "8x1x1")


def test_frozen_parameters_do_not_change(tiny, single_device):
    _, gradients, after = single_device("sft")
    for path, leaf in trees.flatten(tiny.params).items():
        is_changed = np.abs(np.asarray(trees.flatten(after.params)[path]) - leaf).max() > 0
        assert is_changed <= (path in gradients), path
    assert int(after.step) == 1


def test_sharding_rules_fit_the_model_on_every_mesh(tiny):
    shapes = jax.eval_shape(tiny.asa.init, jax.random.key(0))
    for sizes in MESHES.values():
        sharding.params_sharding(shapes, mesh.make_mesh(sizes))
        for path in trees.flatten(shapes):
            assert sum(bool(re.fullmatch(row, path)) for row, _ in sharding.RULES) == 1, path
    q = sharding.params_sharding(shapes, mesh.make_mesh(MESHES["2x2x2"]))["decoder"]["layers"]["q"]
    assert q["kernel"].spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    assert q["bias"].spec == jax.sharding.PartitionSpec(None, "tensor")


def test_grpo_has_gradients_and_moments_of_adapters_only(tiny, single_device):
    """Apart from the parameters, nothing of the frozen model's size is stored."""
    _, gradients, after = single_device("grpo")
    adapters = {k: v.shape for k, v in trees.flatten(tiny.params).items() if k.startswith("lora/")}
    assert {path: leaf.shape for path, leaf in gradients.items()} == adapters and adapters
    sizes = [leaf.size for leaf in jax.tree.leaves(after.opt_state) if leaf.ndim]
    assert sum(sizes) == 2 * sum(np.prod(shape) for shape in adapters.values())


def shapes_in(jaxpr):
    """Shape of every array that a jaxpr makes, those of its inner jaxprs included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from shapes_in(inner)


def test_logits_of_the_whole_batch_never_exist_in_an_update(tiny, context_of, noises, monkeypatch):
    """Forward and backward pass, traced, not run: 80 scenes with 2 x 4 completions."""
    monkeypatch.setattr(lm, "MAX_LOGITS", 2**22)
    scenes, per_scene = 80, 8
    context = context_of(OPTIONS["grpo"], noises(8, 8000))
    row = next(grpo.GrpoTrainer(context).batches)
    batch = {k: jax.ShapeDtypeStruct((scenes, *v.shape[1:]), v.dtype) for k, v in row.items()}
    length, vocab_size = tiny.model.reply_tokens, tiny.model.decoder.vocab_size
    per_token = scenes, per_scene, length
    batch["completion_ids"] = jax.ShapeDtypeStruct(per_token, np.int32)
    batch["completion_mask"] = jax.ShapeDtypeStruct(per_token, np.float32)
    audio_embeds = scenes, context.audio_tokens, tiny.model.decoder.width
    batch["audio_embeds"] = jax.ShapeDtypeStruct(audio_embeds, np.float32)

    def loss(lora, batch):
        return grpo.completion_logps(context, {**tiny.params, "lora": lora}, batch).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss))(tiny.params["lora"], batch).jaxpr
    sizes = [np.prod(shape) for shape in shapes_in(jaxpr) if vocab_size in shape[1:]]
    assert 0 < max(sizes) <= lm.MAX_LOGITS < np.prod(per_token) * vocab_size
