# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.parallel import mesh
from jaxasa.train import state, update


def test_over_microbatches_equals_the_whole_batch():
    batch = {"a": jnp.arange(24.0).reshape(8, 3), "b": jnp.arange(8)}
    function = lambda rows: {"c": rows["a"] * rows["b"][:, None], "d": -rows["b"]}  # noqa: E731
    for name, value in function(batch).items():
        for parts in (1, 2, 4):
            result = update.over_microbatches(function, batch, parts)
            np.testing.assert_array_equal(result[name], value)


def test_gradient_accumulation_equals_one_batch():
    rng = np.random.default_rng(0)
    params = {"lora": {"layers": {"q": {"a": rng.normal(size=(3, 2)).astype(np.float32)}}}}
    batch = {name: rng.normal(size=(8, n)).astype(np.float32) for name, n in (("x", 3), ("y", 2))}
    two = mesh.make_mesh(config.Mesh(), jax.devices()[:2])

    def loss(params, batch, key):
        error = batch["x"] @ params["lora"]["layers"]["q"]["a"] - batch["y"]
        size = {"error": jnp.abs(error).mean(), "error_max": jnp.abs(error).max()}
        return (error**2).mean(), size | {"rows": jnp.float32(len(error))}

    def train(parts):
        stage = config.Stage(9, 8, 0.1, ("lora/.*",), grad_accum_steps=parts)
        step = update.make_step(stage, two, loss, pad=0)
        now, metrics = state.create(params, stage, two), {}
        with jax.set_mesh(two):
            for i in range(3):
                key = jax.device_put(jax.random.key(i), now.step.sharding)
                now, metrics = step(now, batch, key)
        return np.asarray(now.params["lora"]["layers"]["q"]["a"]), jax.device_get(metrics)

    expected, whole = train(1)
    weights, accumulated = train(4)
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    assert (whole["rows"], accumulated["rows"]) == (8, 2)
    assert whole["examples"] == accumulated["examples"] == 8
    for name in ("loss", "gradient_norm", "error", "error_max"):
        np.testing.assert_allclose(accumulated[name], whole[name], rtol=1e-5)
    expected = "Stage.grad_accum_steps is 8, expected parts of the batch of 8"
    with pytest.raises(ConfigError, match=expected):
        train(8)  # a row each, on two devices


def test_step_counts_examples_and_tokens_without_padding():
    stage = config.Stage(9, 4, 0.1, (".*",))
    one = mesh.make_mesh(config.Mesh(), jax.devices()[:1])
    step = update.make_step(stage, one, lambda params, *_: (params["w"].sum(), {}), pad=7)
    now = state.create({"w": np.ones(2, np.float32)}, stage, one, rules=((r"w", None),))
    prompt, reply = np.full((4, 5), 7), np.arange(12).reshape(4, 3)
    batch = {"prompt": prompt.astype(np.int32), "reply": reply.astype(np.int32)}
    _, metrics = step(now, batch, jax.random.key(0))
    assert (metrics["examples"], metrics["tokens"]) == (4, 11)
