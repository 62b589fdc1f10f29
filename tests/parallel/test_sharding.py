# SPDX-License-Identifier: Apache-2.0
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core import trees
from jaxasa.parallel import mesh, sharding
from jaxasa.train import state

RULES = (
    (r"decoder/layers/(up|down)/kernel", ("layers", "width", "hidden")),
    (r"decoder/layers/\w+/bias", ("layers", "hidden")),
    (r"projector/.*", None),
)
STAGE = config.Stage(steps=10, batch_size=8, learning_rate=0.1, trainable=(".*",), warmup_steps=1)


def params(layers=2, width=8, hidden=4):
    rng = np.random.default_rng(0)
    return {
        "decoder": {
            "layers": {
                "up": {
                    "kernel": rng.normal(size=(layers, width, hidden)).astype(np.float32),
                    "bias": rng.normal(size=(layers, hidden)).astype(np.float32),
                },
            }
        },
        "projector": {"out": {"kernel": rng.normal(size=(hidden, 3)).astype(np.float32)}},
    }


def eight():
    return mesh.make_mesh(config.Mesh(data=2, fsdp=2, tensor=2))


def one():
    return mesh.make_mesh(config.Mesh(), jax.devices()[:1])


def test_params_sharding_follows_the_rules():
    shardings = sharding.params_sharding(params(), eight(), RULES)
    up = shardings["decoder"]["layers"]["up"]
    assert up["kernel"].spec == P(None, "fsdp", "tensor") and up["bias"].spec == P(None, "tensor")
    assert shardings["projector"]["out"]["kernel"].spec == P()


def test_params_sharding_of_shapes_equals_that_of_arrays():
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, params()))
    assert sharding.params_sharding(shapes, eight(), RULES) == sharding.params_sharding(
        params(), eight(), RULES
    )


def test_params_sharding_names_paths_with_no_or_two_rules():
    tree = params() | {"extra": {"scale": np.ones(4)}}
    rules = (*RULES, (r"decoder/layers/up/bias", None))
    with pytest.raises(ConfigError) as error:
        sharding.params_sharding(tree, eight(), rules)
    assert "extra/scale matches 0 rules" in str(error.value)
    assert "decoder/layers/up/bias matches 2 rules" in str(error.value)
    assert "kernel" not in str(error.value)


def test_params_sharding_names_indivisible_sizes_and_wrong_ranks():
    with pytest.raises(ConfigError, match=r"up/kernel \(2, 7, 4\): dimension 1 .* fsdp = 2"):
        sharding.params_sharding(params(width=7), eight(), RULES)
    rules = ((r"decoder/.*/kernel", ("width", "hidden")), *RULES[1:])
    with pytest.raises(ConfigError, match=r"up/kernel has shape \(2, 8, 4\) but axes"):
        sharding.params_sharding(params(), eight(), rules)


def test_rules_of_the_model_name_axes_of_the_mesh():
    for _, axes in sharding.RULES:
        assert set(axes or ()) <= set(sharding.MESH_AXES)
    path = "decoder/layers/down/kernel"
    assert sum(bool(re.fullmatch(p, path)) for p, _ in sharding.RULES) == 1


def test_moments_are_sharded_as_their_parameters():
    now = state.create(params(), STAGE, eight(), RULES)
    path = "decoder/layers/up/kernel"
    moments = optax.tree_utils.tree_get_all_with_path(now.opt_state, "mu")[0][1]
    assert moments[path].sharding.spec == P(None, "fsdp", "tensor")
    assert now.params["decoder"]["layers"]["up"]["kernel"].addressable_shards[0].data.shape == (
        2,
        4,
        2,
    )
    counts = optax.tree_utils.tree_get_all_with_path(now.opt_state, "count")
    assert counts and all(count.sharding.is_fully_replicated for _, count in counts)
    assert now.step.sharding.is_fully_replicated and int(now.step) == 0


def test_shard_batch_shards_rows_over_data_and_fsdp():
    batch = {"x": np.arange(16).reshape(8, 2)}
    sharded = sharding.shard_batch(batch, eight())["x"]
    assert sharded.sharding.spec == P(("data", "fsdp"))
    assert sharded.addressable_shards[0].data.shape == (2, 2)
    np.testing.assert_array_equal(np.asarray(sharded), batch["x"])
    for wrong in (np.zeros((6, 2)), np.float32(1)):
        with pytest.raises(ConfigError, match="data x fsdp = 4"):
            sharding.shard_batch({"x": wrong}, eight())


def loss_and_gradient(devices):
    rng = np.random.default_rng(1)
    host = {"x": rng.normal(size=(8, 8)).astype(np.float32)}
    now = state.create(params(), STAGE, devices, RULES)
    batch = sharding.shard_batch(host, devices)

    def loss(flat):
        tree = trees.merge(flat, {})
        up = tree["decoder"]["layers"]["up"]
        hidden = jnp.tanh(jnp.einsum("bd,ldf->lbf", batch["x"], up["kernel"]) + up["bias"][:, None])
        return jnp.mean((hidden.sum(0) @ tree["projector"]["out"]["kernel"]) ** 2)

    trainable, _ = trees.split(now.params, (".*",))
    value, gradient = jax.jit(jax.value_and_grad(loss))(trainable)
    return float(value), jax.tree.map(np.asarray, gradient)


def test_loss_and_gradient_on_eight_devices_equal_those_on_one():
    value, gradient = loss_and_gradient(one())
    many_value, many_gradient = loss_and_gradient(eight())
    assert value > 0.01 and abs(value - many_value) < 1e-5 * value
    for path, expected in gradient.items():
        assert np.abs(expected).max() > 1e-4
        np.testing.assert_allclose(many_gradient[path], expected, rtol=1e-4, atol=1e-6)
