# SPDX-License-Identifier: Apache-2.0
"""HLO parsing against programs whose cost is known in closed form."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxasa import config
from jaxasa.config import gin_files
from jaxasa.parallel import chips, mesh
from jaxasa.plan import aot, hlo, roofline
from jaxasa.plan.replica_groups import parse_replica_groups

SLICE = chips.topology("v5e:2x4")


def test_flops_inside_and_outside_of_loops():
    def run(x, weights, batched):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)
        return x, jnp.einsum("bij,bjk->bik", batched, batched)

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((5, 16), (7, 16, 16), (3, 8, 8))]
    text = jax.jit(run).lower(*shapes).compile().as_text()
    program = hlo.Program(text, 1)
    cost = roofline.step_cost(program, {"data": 1}, chips.topology("v5e:1x1"))
    assert cost.flops == 7 * 2 * 5 * 16 * 16 + 3 * 2 * 8 * 8 * 8
    assert cost.collective_bytes == {}


def test_dynamic_loop_uses_the_given_trip_count():
    def run(x):
        return jax.lax.while_loop(lambda x: x.sum() < 1e9, lambda x: x @ x, x)

    text = jax.jit(run).lower(jax.ShapeDtypeStruct((8, 8), jnp.float32)).compile().as_text()
    program = hlo.Program(text, 1)
    one, nine = (roofline.step_cost(program, {}, SLICE, dynamic_trip_count=n).flops for n in (1, 9))
    assert one == 2 * 8**3 and nine == 9 * one


LINES = {
    "v5e's batched product": (
        "bf16[4,6,5]{2,1,0} convolution(%a, %b), window={size=4 stride=3 lhs_dilate=4}, "
        "dim_labels=0bf_0io->0bf",
        ("bf16[4,6,3]", "bf16[4,3,5]"),
        2 * 4 * 6 * 3 * 5,
    ),
    "a padded convolution": (
        "f32[2,10,8]{2,1,0} convolution(%a, %b), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
        ("f32[2,10,4]", "f32[3,4,8]"),
        # Two of the taps read padding.
        2 * 2 * 8 * 4 * (3 * 10 - 2),
    ),
    "a product of two axes": (
        "f32[5,7]{1,0} dot(%a, %b), lhs_contracting_dims={1,2}, rhs_contracting_dims={0,1}",
        ("f32[5,2,3]", "f32[2,3,7]"),
        2 * 5 * 7 * 6,
    ),
}


@pytest.mark.parametrize("line, operands, expected", LINES.values(), ids=LINES)
def test_flops_of_xla_spellings_of_products(line, operands, expected):
    text = "ENTRY %main (a: f32[]) -> f32[] {\n" + "".join(
        f"  %{name} = {shape}{{0}} parameter({i})\n"
        for i, (name, shape) in enumerate(zip("ab", operands, strict=True))
    )
    program = hlo.Program(text + f"  ROOT %c = {line}\n}}\n", 1)
    assert program.flops("main") == expected


def test_trip_count_from_loop_condition():
    text = """
%cond (p: (s32[], f32[2])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(28)
  %p = (s32[], f32[2]) parameter(0)
  %get-tuple-element.1 = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%get-tuple-element.1, %constant.1), direction=LT
}

%body (p: (s32[], f32[2])) -> (s32[], f32[2]) {
  ROOT %p = (s32[], f32[2]) parameter(0)
}

ENTRY %main (x: (s32[], f32[2])) -> (s32[], f32[2]) {
  %x = (s32[], /*index=1*/f32[2]{0:T(8,128)S(1)}) parameter(0)
  ROOT %while = (s32[], f32[2]) while(%x), condition=%cond, body=%body, metadata={op_name="a"}
}
"""
    assert hlo.Program(text, 1).execution_counts() == {"main": 1, "body": 28}


@pytest.mark.parametrize(
    "increment, trips",
    [
        ("%next = s32[] add(%i, %one)", 8),
        ("%half = s32[] add(%i, %one)\n  %next = s32[] add(%one, %half)", 4),
        ("%next = s32[] fusion(%i), kind=kLoop, calls=%adds", 4),
        ("%next = s32[] multiply(%i, %one)", 8),  # not understood: increment 1 is assumed
    ],
)
def test_trip_count_with_larger_increment(increment, trips):
    text = f"""
%adds (q: s32[]) -> s32[] {{
  %q = s32[] parameter(0)
  %two = s32[] constant(2)
  ROOT %sum = s32[] add(%q, %two)
}}

%cond (p: (f32[2], s32[])) -> pred[] {{
  %limit = s32[] constant(8)
  %p = (f32[2], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=1
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}}

%body (p: (f32[2], s32[])) -> (f32[2], s32[]) {{
  %p = (f32[2], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=1
  %x = f32[2] get-tuple-element(%p), index=0
  %one = s32[] constant(1)
  {increment}
  ROOT %out = (f32[2], s32[]) tuple(%x, %next)
}}

ENTRY %main (x: (f32[2], s32[])) -> (f32[2], s32[]) {{
  %x = (f32[2], s32[]) parameter(0)
  ROOT %while = (f32[2], s32[]) while(%x), condition=%cond, body=%body
}}
"""
    assert hlo.Program(text, 1).execution_counts()["body"] == trips


@given(st.permutations([0, 1, 2]), st.tuples(*[st.integers(1, 4)] * 3), st.data())
def test_iota_replica_groups_match_numpy(order, dims, data):
    size = math.prod(dims)
    width = data.draw(st.sampled_from([w for w in range(1, size + 1) if size % w == 0]))
    text = ",".join(map(str, dims)), ",".join(map(str, order))
    line = f"replica_groups=[{size // width},{width}]<=[{text[0]}]T({text[1]}), use"
    expected = np.arange(size).reshape(dims).transpose(order).reshape(-1, width)
    assert np.array(parse_replica_groups(line, size)).tolist() == expected.tolist()


@given(st.tuples(*[st.integers(1, 4)] * 3), st.integers(0, 2))
def test_replica_groups_by_mesh_axis(dims, axis):
    named = ",".join(f"'axis_{i}'={n}" for i, n in enumerate(dims))
    line = f"replica_groups=mesh[{named}] {{'axis_{axis}'}}, dimensions={{1}}"
    numbers = np.moveaxis(np.arange(math.prod(dims)).reshape(dims), axis, -1)
    expected = numbers.reshape(-1, dims[axis]).tolist()
    assert [list(group) for group in parse_replica_groups(line, math.prod(dims))] == expected


def test_replica_groups_as_lists_pairs_and_sub_axes():
    assert parse_replica_groups("replica_groups={{0,2},{1,3}}, to", 4) == ((0, 2), (1, 3))
    assert parse_replica_groups("replica_groups={}, to", 3) == ((0, 1, 2),)
    assert parse_replica_groups("source_target_pairs={{0,1},{1,0}}", 2) == ((0, 1), (1, 0))
    part = parse_replica_groups("replica_groups=mesh['x'=8] {'x':(2)2}", 8)
    assert part == ((0, 2), (1, 3), (4, 6), (5, 7))
    with pytest.raises(ValueError, match="not understood"):
        parse_replica_groups("replica_groups=?", 4)


@pytest.mark.parametrize("axis, other", [("fsdp", "tensor"), ("tensor", "fsdp")])
def test_collective_bytes_by_mesh_axis(axis, other):
    over = mesh.make_mesh(config.Mesh(data=1, fsdp=2, tensor=4))
    rows = P(other, axis)

    def run(x, weights):
        x = jax.lax.with_sharding_constraint(x @ weights, P(other, None))
        return jax.lax.with_sharding_constraint(x, P(other, None))

    shapes = [
        jax.ShapeDtypeStruct(size, jnp.float32, sharding=NamedSharding(over, spec))
        for size, spec in (((16, 32), rows), ((32, 8), P(axis, None)))
    ]
    with jax.set_mesh(over):
        text = jax.jit(run).lower(*shapes).compile().as_text()
    cost = roofline.step_cost(hlo.Program(text, 8), dict(over.shape), SLICE)
    # Each device reduces its partial sums over `axis`: [16 / other, 8] of float32.
    assert cost.collective_bytes == {axis: {"all-reduce": 16 // over.shape[other] * 8 * 4}}
    assert cost.flops == 2 * 16 * 32 * 8 / 8


@pytest.mark.parametrize("layers", [4, 28])
def test_training_step_matches_closed_form_cost(layers):
    """Stage text, whole decoder trainable, parameters sharded over eight devices."""
    rows, length, reply = 16 // 8, 79, 30
    bindings = ["Mesh.data=1", "Mesh.fsdp=8", "TextStage.batch_size=16", "Model.unroll=1"]
    bindings.append("TextStage.optimizer='adamw'")  # Muon has matmuls of its own
    run, _ = gin_files.load(["gin/run/tiny.gin"], [*bindings, f"Decoder.layers={layers}"])
    lowered, _ = aot.lower(run, "text", mesh.make_mesh(run.mesh))
    program = hlo.Program(lowered.compile().as_text(), 8)
    cost = roofline.step_cost(program, {"data": 1, "fsdp": 8, "tensor": 1}, SLICE)
    d = run.model.decoder
    heads, kv = d.heads * d.head_dim, d.kv_heads * d.head_dim
    weights = d.width * (2 * heads + 2 * kv + 3 * d.intermediate_size)
    # The backward pass costs twice the forward pass, for weights, attention and unembedding.
    layer = 3 * 2 * rows * length * weights + 3 * 2 * 2 * rows * length**2 * heads
    head = 3 * 2 * rows * reply * d.width * d.vocab_size
    assert cost.flops == pytest.approx(layers * layer + head, rel=0.05)
    # Weights are gathered in both passes; their gradients are reduced.
    by_kind = cost.collective_bytes["fsdp"]
    table = d.vocab_size * d.width
    assert by_kind["all-gather"] == pytest.approx(4 * (2 * layers * weights + table), rel=0.05)
    reduced = by_kind.get("all-reduce", 0) + by_kind.get("reduce-scatter", 0)
    assert reduced == pytest.approx(4 * (layers * weights + table), rel=0.05)
