# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxasa.models import lm

TIME, WIDTH, VOCAB, TEMPERATURE = 5, 8, 30, 0.7


def arrays(batch):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(batch, TIME, WIDTH)).astype(np.float32)
    table = rng.normal(size=(VOCAB, WIDTH)).astype(np.float32)
    targets = rng.integers(0, VOCAB, (batch, TIME)).astype(np.int32)
    weights = rng.normal(size=(batch, TIME)).astype(np.float32)
    # Some targets are the likeliest token, which few random ones would be.
    targets[0] = (hidden[0] @ table.T).argmax(-1)
    return hidden, table, targets, weights


def dense(hidden, table, targets):
    logits = hidden @ table.T / TEMPERATURE
    logps = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(logps, targets[..., None], -1)[..., 0]
    return chosen, logits.argmax(-1) == targets


def weighted(function, targets, weights):
    def of(hidden, table):
        logps, hits = function(hidden, table, targets)
        return (logps * weights).sum(), (logps, hits)

    return jax.value_and_grad(of, argnums=(0, 1), has_aux=True)


@pytest.mark.parametrize("batch", [12, 10, 3])
def test_chunked_logps_equal_dense_ones_in_value_and_gradient(batch):
    hidden, table, targets, weights = arrays(batch)

    def chunked(*args):
        return lm.token_logps(*args, TEMPERATURE, chunk_size=2)

    (_, (logps, hits)), gradients = weighted(chunked, targets, weights)(hidden, table)
    (_, (expected, right)), expected_gradients = weighted(dense, targets, weights)(hidden, table)
    np.testing.assert_allclose(logps, expected, atol=1e-5)
    assert (hits == right).all() and hits[0].all() and not hits.all()
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(gradient, expected, atol=1e-5)


def sizes(jaxpr):
    """Sizes of all arrays that a jaxpr and its inner jaxprs compute."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns")):
            if hasattr(value, "eqns"):
                yield from sizes(value)


@pytest.mark.parametrize("batch", [12, 10])
def test_logits_of_the_whole_batch_never_exist(batch):
    hidden, table, targets, weights = arrays(batch)

    def largest(function):
        traced = jax.make_jaxpr(weighted(function, targets, weights))(hidden, table)
        return max(sizes(traced.jaxpr))

    assert largest(dense) >= batch * TIME * VOCAB
    chunked = largest(lambda *args: lm.token_logps(*args, TEMPERATURE, chunk_size=2))
    assert chunked <= 4 * TIME * VOCAB


def test_chunked_logits_are_bounded_by_default():
    shapes = (jax.ShapeDtypeStruct(s, t) for s, t in (((64, 512, 2), "f4"), ((4096, 2), "f4")))
    targets = jax.ShapeDtypeStruct((64, 512), "i4")
    traced = jax.make_jaxpr(lm.token_logps)(*shapes, targets)
    assert max(sizes(traced.jaxpr)) <= lm.MAX_LOGITS
