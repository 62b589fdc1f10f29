import jax
import numpy as np
import pytest

TOKENS = 6


@pytest.fixture(scope="module")
def project(tiny):
    weights = {k: v for k, v in tiny.params["projector"].items() if k != "null"}
    return jax.jit(lambda *streams: tiny.asa.projector.apply({"params": weights}, *streams))


def streams():
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, 2, TOKENS, 16)).astype(np.float32)


def test_shapes(project):
    tokens, experts = project(*streams())
    assert tokens.shape == (2, TOKENS, 32)
    assert experts.tags.shape == experts.log_distance.shape == (2, TOKENS, 8)
    assert experts.direction.shape == (2, TOKENS, 8, 3)
    assert experts.reverberation.shape == (2, TOKENS, 2) and experts.count.shape == (2, TOKENS)


def test_each_expert_reads_its_own_stream_and_each_token_its_own_time(project):
    semantic, dense = streams()
    tokens, experts = project(semantic, dense)
    changed = semantic.copy()
    changed[:, 2] = -changed[:, 2]
    other, heard = project(changed, dense)
    for name in ("direction", "log_distance", "reverberation", "count"):
        np.testing.assert_array_equal(getattr(heard, name), getattr(experts, name))
    assert np.abs(heard.tags - experts.tags)[:, 2].max() > 0.1
    assert np.abs(other - tokens)[:, 2].max() > 0.1
    rest = np.arange(TOKENS) != 2
    np.testing.assert_array_equal(np.asarray(other)[:, rest], np.asarray(tokens)[:, rest])

    other, heard = project(semantic, -dense)
    np.testing.assert_array_equal(heard.tags, experts.tags)
    for name in ("direction", "log_distance", "reverberation", "count"):
        assert np.abs(getattr(heard, name) - getattr(experts, name)).max() > 0.1
    assert np.abs(other - tokens).max() > 0.1
