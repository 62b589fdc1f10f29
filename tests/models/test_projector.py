# SPDX-License-Identifier: Apache-2.0
import dataclasses

import jax
import numpy as np
import pytest

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core import trees
from jaxasa.models.projector import Projector
from jaxasa.models.spatial import num_slot_features

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
    weights = {k: v for k, v in tiny.params["projector"].items() if k != "null_embedding"}
    return jax.jit(lambda *streams: tiny.asa.projector.apply({"params": weights}, *streams))


def streams():
    """semantic, dense, and features of no slots: all tokens are the map's."""
    rng = np.random.default_rng(0)
    semantic, dense = rng.normal(size=(2, 2, TOKENS, 16)).astype(np.float32)
    return semantic, dense, np.zeros((2, 0, num_slot_features(8)), np.float32)


def test_shapes(project):
    tokens, experts = project(*streams())
    assert tokens.shape == (2, TOKENS, 32)
    assert experts.tags.shape == experts.log_distance.shape == (2, TOKENS, 8)
    assert experts.direction.shape == (2, TOKENS, 8, 3)
    assert experts.reverberation.shape == (2, TOKENS, 2) and experts.count.shape == (2, TOKENS)


def test_slot_tokens_false_zeroes_the_slots_and_keeps_the_map(tiny):
    weights = {k: v for k, v in tiny.params["projector"].items() if k != "null_embedding"}
    rng = np.random.default_rng(1)
    semantic, dense, _ = streams()
    slots = rng.normal(size=(2, 3, num_slot_features(8))).astype(np.float32)
    without_slots = dataclasses.replace(
        tiny.asa.projector, projector=dataclasses.replace(tiny.model.projector, slot_tokens=False)
    )

    def apply(module, slots):
        return module.apply({"params": weights}, semantic, dense, slots)[0]

    tokens, ablated = apply(tiny.asa.projector, slots), apply(without_slots, slots)
    assert tokens.shape == ablated.shape == (2, 3 + TOKENS, 32)
    np.testing.assert_array_equal(ablated, apply(tiny.asa.projector, 0 * slots))
    np.testing.assert_array_equal(ablated[:, 3:], tokens[:, 3:])
    assert np.abs(ablated - tokens)[:, :3].max() > 0.01


def test_each_expert_reads_its_own_stream_and_each_token_its_own_time(project):
    semantic, dense, slots = streams()
    tokens, experts = project(semantic, dense, slots)
    changed = semantic.copy()
    changed[:, 2] = -changed[:, 2]
    other, other_experts = project(changed, dense, slots)
    for name in ("direction", "log_distance", "reverberation", "count"):
        np.testing.assert_array_equal(getattr(other_experts, name), getattr(experts, name))
    assert np.abs(other_experts.tags - experts.tags)[:, 2].max() > 0.1
    assert np.abs(other - tokens)[:, 2].max() > 0.1
    rest = np.arange(TOKENS) != 2
    np.testing.assert_array_equal(np.asarray(other)[:, rest], np.asarray(tokens)[:, rest])

    other, other_experts = project(semantic, -dense, slots)
    np.testing.assert_array_equal(other_experts.tags, experts.tags)
    for name in ("direction", "log_distance", "reverberation", "count"):
        assert np.abs(getattr(other_experts, name) - getattr(experts, name)).max() > 0.1
    assert np.abs(other - tokens).max() > 0.1


def shapes(size, **options):
    """{path: size} of a projector's parameters, and the shapes of its outputs."""
    semantic, dense, width, expert, hidden, classes = size
    module = Projector(config.Projector(hidden, expert, **options), classes, width)
    widths = (2, semantic), (2, dense), (0, num_slot_features(classes))
    streams = [np.zeros((1, *shape), np.float32) for shape in widths]
    (tokens, experts), variables = jax.eval_shape(
        module.init_with_output, jax.random.key(0), *streams
    )
    return {k: v.size for k, v in trees.flatten(variables["params"]).items()}, tokens, experts


@pytest.mark.parametrize("size", SIZES)
def test_all_kinds_have_equal_sizes_and_auxiliary_heads(size):
    whole, tokens, experts = shapes(SIZES[size])
    heads = {k for k in whole if "_head/" in k}
    for kind in ("p0", "p1"):
        other, *outputs = shapes(SIZES[size], kind=kind)
        assert abs(sum(other.values()) / sum(whole.values()) - 1) < 0.005
        assert outputs == [tokens, experts]
        assert {k: other[k] for k in heads} == {k: whole[k] for k in heads}
    names = {k.split("_in/")[0] for k in shapes(SIZES[size], kind="p1")[0] if "_in/" in k}
    assert names == {"semantic", "spatial", "slots"}


@pytest.mark.parametrize("name", config.EXPERTS)
def test_drop_experts_removes_an_expert_and_its_head_only(name):
    whole, tokens, _ = shapes(SIZES["tiny"])
    rest, rest_tokens, experts = shapes(SIZES["tiny"], drop_experts=(name,))
    assert set(whole) - set(rest) == {k for k in whole if k.startswith(f"{name}_")}
    assert rest_tokens == tokens
    absent = {k for k, v in experts._asdict().items() if v is None}
    fields = dict(zip(config.EXPERTS, experts._fields, strict=False))
    assert absent == ({fields[name]} if name in fields else set())


@pytest.mark.parametrize("kind", ["p0", "p1"])
def test_dual_tower_separates_streams_and_single_mlp_mixes_them(tiny, kind):
    options = dataclasses.replace(tiny.model.projector, kind=kind)
    module = Projector(options, 8, 32)
    semantic, dense, slots = streams()
    params = module.init(jax.random.key(0), semantic, dense, slots)
    tokens, experts = module.apply(params, semantic, dense, slots)
    _, by_semantic = module.apply(params, -semantic, dense, slots)
    _, by_dense = module.apply(params, semantic, -dense, slots)
    differs = lambda a, b, name: np.abs(getattr(a, name) - getattr(b, name)).max() > 0.01  # noqa: E731
    for name in ("direction", "log_distance", "reverberation", "count"):
        assert differs(by_dense, experts, name)
        assert differs(by_semantic, experts, name) == (kind == "p0")
    assert differs(by_semantic, experts, "tags")
    assert differs(by_dense, experts, "tags") == (kind == "p0")
    assert tokens.shape == (2, TOKENS, 32)


def test_unknown_kinds_and_experts_are_refused():
    for options, why in (
        ({"kind": "p3"}, "Projector.kind is 'p3', expected p0 or p1 or p2"),
        (
            {"drop_experts": ("echo",)},
            "Projector.drop_experts is .*echo.*, expected different names",
        ),
        ({"drop_experts": config.EXPERTS}, "Projector.drop_experts is .*but not all"),
        ({"drop_experts": ("count",), "kind": "p0"}, "with kind p0: only p2 has experts"),
    ):
        with pytest.raises(ConfigError, match=why):
            config.Projector(16, 8, **options)
