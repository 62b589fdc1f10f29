import dataclasses

import jax
import numpy as np
import pytest

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core import trees
from jaxasa.models.projector import Projector
from jaxasa.models.spatial import statements_width

TOKENS = 6
# Widths: semantic, dense, decoder; E, hidden, classes. Of tiny.gin, Whisper-small with Qwen2.5-0.5B
# and 7B, and Qwen2-Audio.
SIZES = {
    "tiny": (96, 128, 128, 64, 256, 16),
    "small": (768, 512, 896, 512, 2048, 200),
    "base": (768, 512, 3584, 512, 2048, 200),
    "large": (1280, 512, 4096, 512, 2048, 200),
}


@pytest.fixture(scope="module")
def project(tiny):
    weights = {k: v for k, v in tiny.params["projector"].items() if k != "null"}
    return jax.jit(lambda *streams: tiny.asa.projector.apply({"params": weights}, *streams))


def streams():
    """semantic, dense and, as the last, what no slots say: tokens are the map's alone."""
    rng = np.random.default_rng(0)
    semantic, dense = rng.normal(size=(2, 2, TOKENS, 16)).astype(np.float32)
    return semantic, dense, np.zeros((2, 0, statements_width(8)), np.float32)


def test_shapes(project):
    tokens, experts = project(*streams())
    assert tokens.shape == (2, TOKENS, 32)
    assert experts.tags.shape == experts.log_distance.shape == (2, TOKENS, 8)
    assert experts.direction.shape == (2, TOKENS, 8, 3)
    assert experts.reverberation.shape == (2, TOKENS, 2) and experts.count.shape == (2, TOKENS)


def test_slots_that_say_nothing_leave_the_map_as_it_is(tiny):
    weights = {k: v for k, v in tiny.params["projector"].items() if k != "null"}
    rng = np.random.default_rng(1)
    semantic, dense, _ = streams()
    said = rng.normal(size=(2, 3, statements_width(8))).astype(np.float32)
    silent = dataclasses.replace(
        tiny.asa.projector, projector=dataclasses.replace(tiny.model.projector, slot_tokens=False)
    )
    apply = lambda module, said: module.apply({"params": weights}, semantic, dense, said)[0]  # noqa: E731
    loud, quiet = apply(tiny.asa.projector, said), apply(silent, said)
    assert loud.shape == quiet.shape == (2, 3 + TOKENS, 32)
    np.testing.assert_array_equal(quiet, apply(tiny.asa.projector, 0 * said))
    np.testing.assert_array_equal(quiet[:, 3:], loud[:, 3:])
    assert np.abs(quiet - loud)[:, :3].max() > 0.01


def test_each_expert_reads_its_own_stream_and_each_token_its_own_time(project):
    semantic, dense, said = streams()
    tokens, experts = project(semantic, dense, said)
    changed = semantic.copy()
    changed[:, 2] = -changed[:, 2]
    other, heard = project(changed, dense, said)
    for name in ("direction", "log_distance", "reverberation", "count"):
        np.testing.assert_array_equal(getattr(heard, name), getattr(experts, name))
    assert np.abs(heard.tags - experts.tags)[:, 2].max() > 0.1
    assert np.abs(other - tokens)[:, 2].max() > 0.1
    rest = np.arange(TOKENS) != 2
    np.testing.assert_array_equal(np.asarray(other)[:, rest], np.asarray(tokens)[:, rest])

    other, heard = project(semantic, -dense, said)
    np.testing.assert_array_equal(heard.tags, experts.tags)
    for name in ("direction", "log_distance", "reverberation", "count"):
        assert np.abs(getattr(heard, name) - getattr(experts, name)).max() > 0.1
    assert np.abs(other - tokens).max() > 0.1


def shapes(size, **options):
    """{path: size} of a projector's parameters, and the shapes of what it gives."""
    semantic, dense, width, expert, hidden, classes = size
    module = Projector(config.Projector(hidden, expert, **options), classes, width)
    widths = (2, semantic), (2, dense), (0, statements_width(classes))
    streams = [np.zeros((1, *shape), np.float32) for shape in widths]
    (tokens, experts), made = jax.eval_shape(module.init_with_output, jax.random.key(0), *streams)
    return {k: v.size for k, v in trees.flatten(made["params"]).items()}, tokens, experts


@pytest.mark.parametrize("size", SIZES)
def test_all_kinds_are_equally_large_and_equally_taught(size):
    whole, tokens, experts = shapes(SIZES[size])
    heads = {k for k in whole if "_head/" in k}
    for kind in ("p0", "p1"):
        other, *given = shapes(SIZES[size], kind=kind)
        assert abs(sum(other.values()) / sum(whole.values()) - 1) < 0.005
        assert given == [tokens, experts]
        assert {k: other[k] for k in heads} == {k: whole[k] for k in heads}
    names = {k.split("_in/")[0] for k in shapes(SIZES[size], kind="p1")[0] if "_in/" in k}
    assert names == {"semantic", "spatial", "slots"}


@pytest.mark.parametrize("name", config.EXPERTS)
def test_an_expert_left_out_is_gone_with_its_head_and_nothing_else(name):
    whole, tokens, _ = shapes(SIZES["tiny"])
    rest, same, experts = shapes(SIZES["tiny"], without=(name,))
    assert set(whole) - set(rest) == {k for k in whole if k.startswith(f"{name}_")}
    assert same == tokens
    absent = {k for k, v in experts._asdict().items() if v is None}
    fields = dict(zip(config.EXPERTS, experts._fields, strict=False))
    assert absent == ({fields[name]} if name in fields else set())


@pytest.mark.parametrize("kind", ["p0", "p1"])
def test_towers_are_apart_and_a_single_mlp_is_one(tiny, kind):
    options = dataclasses.replace(tiny.model.projector, kind=kind)
    module = Projector(options, 8, 32)
    semantic, dense, said = streams()
    params = module.init(jax.random.key(0), semantic, dense, said)
    tokens, experts = module.apply(params, semantic, dense, said)
    _, heard = module.apply(params, -semantic, dense, said)
    _, seen = module.apply(params, semantic, -dense, said)
    moved = lambda a, b, name: np.abs(getattr(a, name) - getattr(b, name)).max() > 0.01  # noqa: E731
    for name in ("direction", "log_distance", "reverberation", "count"):
        assert moved(seen, experts, name)
        assert moved(heard, experts, name) == (kind == "p0")
    assert moved(heard, experts, "tags") and moved(seen, experts, "tags") == (kind == "p0")
    assert tokens.shape == (2, TOKENS, 32)


def test_kinds_and_experts_that_there_are_not():
    for options, why in (
        ({"kind": "p3"}, "Projector.kind is 'p3', expected p0 or p1 or p2"),
        ({"without": ("echo",)}, "Projector.drop_experts is .*echo.*, expected different names"),
        ({"without": config.EXPERTS}, "Projector.drop_experts is .*but not all"),
        ({"without": ("count",), "kind": "p0"}, "with kind p0: only p2 has experts"),
    ):
        with pytest.raises(ConfigError, match=why):
            config.Projector(16, 8, **options)
