# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core import trees
from jaxasa.train import optim

PARAMS = {
    "decoder": {"layers": {"q": {"kernel": np.ones((2, 3, 3)), "bias": np.ones((2, 3))}}},
    "lora": {"layers": {"q": {"a": np.ones((2, 3, 1)), "b": np.zeros((2, 1, 3))}}},
    "projector": {"null": np.ones(3), "out": {"kernel": np.ones((3, 3)), "bias": np.ones(3)}},
}
PATHS = sorted(trees.flatten(PARAMS))


def stage(**changes):
    fields = dict(steps=100, batch_size=1, learning_rate=0.5, trainable=(".*",), warmup_steps=10)
    return config.Stage(**fields | changes)


def test_flatten_joins_paths():
    assert PATHS[0] == "decoder/layers/q/bias" and "projector/null" in PATHS and len(PATHS) == 7


def test_split_pattern_must_match_the_whole_path():
    trainable, frozen = trees.split(PARAMS, ["lora/.*", r".*/out/bias"])
    expected = {"lora/layers/q/a", "lora/layers/q/b", "projector/out/bias"}
    assert set(trainable) == expected and set(frozen) == set(PATHS) - expected
    with pytest.raises(ConfigError, match="'lora' matches no parameter"):
        trees.split(PARAMS, ["projector/.*", "lora"])
    with pytest.raises(ConfigError, match=r"'\('"):
        trees.split(PARAMS, ["("])


@given(st.sets(st.sampled_from(PATHS)))
def test_merge_undoes_split(chosen):
    trainable, frozen = trees.split(PARAMS, sorted(chosen))
    assert set(trainable) == chosen
    merged = trees.merge(trainable, frozen)
    assert list(trees.flatten(merged)) == PATHS
    assert merged["lora"]["layers"]["q"]["a"] is PARAMS["lora"]["layers"]["q"]["a"]


def test_merge_refuses_a_path_in_both_halves():
    with pytest.raises(ValueError, match="a/b"):
        trees.merge({"a/b": 1}, {"a/b": 2})


def test_schedule_warms_up_linearly_and_decays_to_a_tenth():
    rate = optim.schedule(stage())
    rises = np.array([rate(i) for i in range(11)])
    np.testing.assert_allclose(rises, 0.5 * np.arange(1, 12) / 11, rtol=1e-6)
    falls = np.array([rate(i) for i in range(10, 101)])
    assert (np.diff(falls) < 0).all()
    np.testing.assert_allclose(falls[[45, 90]], [0.5 * 0.55, 0.05], rtol=1e-5)
    short = optim.schedule(stage(steps=4, warmup_steps=20))
    np.testing.assert_allclose(short(2), 0.5, rtol=1e-6)


def test_weight_decay_applies_to_matrices_only():
    flat, _ = trees.split(PARAMS, (".*",))
    assert {path for path, yes in optim.weight_decay_mask(flat).items() if yes} == {
        "decoder/layers/q/kernel",
        "lora/layers/q/a",
        "lora/layers/q/b",
        "projector/out/kernel",
    }
    flat = {path: jnp.asarray(leaf) for path, leaf in flat.items()}
    transformation = optim.make_optimizer(stage(weight_decay=0.1, warmup_steps=0))
    zero = {path: jnp.zeros_like(leaf) for path, leaf in flat.items()}
    updates, _ = jax.jit(lambda: transformation.update(zero, transformation.init(flat), flat))()
    np.testing.assert_allclose(updates["projector/out/kernel"], -0.5 * 0.1, rtol=1e-5)
    assert not np.any(updates["projector/null"]) and not np.any(updates["decoder/layers/q/bias"])


@pytest.mark.parametrize("clip, changes", [(1.0, False), (0.0, True)])
def test_gradients_are_clipped_by_global_norm(clip, changes):
    flat = {"a": jnp.zeros(2), "b": jnp.zeros(3)}
    transformation = optim.make_optimizer(stage(max_grad_norm=clip))

    @jax.jit
    def moment(scale):
        gradient = {"a": jnp.full(2, scale), "b": jnp.full(3, scale)}
        _, after = transformation.update(gradient, transformation.init(flat), flat)
        return after[1][0].mu["a"][0]

    moments = [float(moment(10.0)), float(moment(1000.0))]
    assert (moments[0] != pytest.approx(moments[1])) == changes
    if not changes:
        assert moments[0] == pytest.approx(0.1 / np.sqrt(5), rel=1e-5)


def test_muon_orthogonalizes_each_layer_and_adam_updates_the_rest():
    rng = np.random.default_rng(0)
    flat = {path: jnp.zeros(leaf.shape) for path, leaf in trees.flatten(PARAMS).items()}
    flat["decoder/layers/q/kernel"] = jnp.zeros((2, 6, 4))
    grads = {path: jnp.asarray(rng.normal(size=leaf.shape), float) for path, leaf in flat.items()}

    def first_update(flat, grads, **changes):
        changes = {"weight_decay": 0.0, "warmup_steps": 0, "max_grad_norm": 0.0, **changes}
        optimizer = optim.make_optimizer(stage(**changes))
        return jax.jit(lambda: optimizer.update(grads, optimizer.init(flat), flat))()[0]

    updates = first_update(flat, grads, optimizer="muon")
    kernel = np.asarray(updates["decoder/layers/q/kernel"])
    for layer in range(2):
        one = {"x/kernel": flat["decoder/layers/q/kernel"][layer]}
        grad = {"x/kernel": grads["decoder/layers/q/kernel"][layer]}
        single = first_update(one, grad, optimizer="muon")["x/kernel"]
        np.testing.assert_allclose(kernel[layer], single, rtol=1e-4, atol=1e-6)
        # Newton and Schulz's five steps bring singular values between 0.7 and 1.2.
        stretch = np.linalg.svd(kernel[layer], compute_uv=False) / (0.5 * 0.2 * np.sqrt(6))
        assert stretch.min() > 0.65 and stretch.max() < 1.25
    rest = {path for path in flat if not path.endswith("/kernel")}
    adam = optax.adam(0.5, b2=0.95, nesterov=True)
    expected, _ = adam.update(grads, adam.init(flat))
    for path in rest:
        np.testing.assert_allclose(updates[path], expected[path], rtol=1e-4)


def test_unknown_optimizer_is_refused():
    with pytest.raises(ConfigError, match="Stage.optimizer is 'sgd', expected adamw or muon"):
        stage(optimizer="sgd")


def test_schedule_counts_updates_of_a_step():
    options = dict(steps=50, batch_size=1, learning_rate=0.5, trainable=(), warmup_steps=5)
    twice = optim.schedule(config.GrpoStage(num_iterations=2, **options))
    once = optim.schedule(config.GrpoStage(**options | {"steps": 100, "warmup_steps": 10}))
    np.testing.assert_array_equal(
        [twice(i) for i in (0, 9, 60, 100)], [once(i) for i in (0, 9, 60, 100)]
    )
