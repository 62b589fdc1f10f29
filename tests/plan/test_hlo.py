"""Programs whose cost is known in closed form, and XLA's spellings of groups."""

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
from jaxasa.plan.groups import groups_of

SLICE = chips.topology("v5e:2x4")


def test_products_in_and_out_of_loops_are_those_of_the_sizes():
    def run(x, weights, batched):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)
        return x, jnp.einsum("bij,bjk->bik", batched, batched)

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((5, 16), (7, 16, 16), (3, 8, 8))]
    text = jax.jit(run).lower(*shapes).compile().as_text()
    program = hlo.Program(text, 1)
    found = roofline.cost(program, {"data": 1}, chips.topology("v5e:1x1"))
    assert found.flops == 7 * 2 * 5 * 16 * 16 + 3 * 2 * 8 * 8 * 8
    assert found.collective_bytes == {}


def test_a_loop_that_depends_on_data_turns_as_often_as_it_is_told():
    def run(x):
        return jax.lax.while_loop(lambda x: x.sum() < 1e9, lambda x: x @ x, x)

    text = jax.jit(run).lower(jax.ShapeDtypeStruct((8, 8), jnp.float32)).compile().as_text()
    program = hlo.Program(text, 1)
    one, nine = (roofline.cost(program, {}, SLICE, unknown=n).flops for n in (1, 9))
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
        # Two of the taps fall on padding.
        2 * 2 * 8 * 4 * (3 * 10 - 2),
    ),
    "a product of two axes": (
        "f32[5,7]{1,0} dot(%a, %b), lhs_contracting_dims={1,2}, rhs_contracting_dims={0,1}",
        ("f32[5,2,3]", "f32[2,3,7]"),
        2 * 5 * 7 * 6,
    ),
}


@pytest.mark.parametrize("line, taken, expected", LINES.values(), ids=LINES)
def test_products_as_xla_spells_them(line, taken, expected):
    text = "ENTRY %main (a: f32[]) -> f32[] {\n" + "".join(
        f"  %{name} = {shape}{{0}} parameter({i})\n"
        for i, (name, shape) in enumerate(zip("ab", taken, strict=True))
    )
    program = hlo.Program(text + f"  ROOT %c = {line}\n}}\n", 1)
    assert program.flops("main") == expected


def test_a_condition_tells_how_often_a_loop_turns():
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
    assert hlo.Program(text, 1).runs() == {"main": 1, "body": 28}


@pytest.mark.parametrize(
    "grown, turns",
    [
        ("%next = s32[] add(%i, %one)", 8),
        ("%half = s32[] add(%i, %one)\n  %next = s32[] add(%one, %half)", 4),
        ("%next = s32[] fusion(%i), kind=kLoop, calls=%adds", 4),
        ("%next = s32[] multiply(%i, %one)", 8),  # cannot be read: counted by 1
    ],
)
def test_a_counter_may_grow_by_more_than_one(grown, turns):
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
  {grown}
  ROOT %out = (f32[2], s32[]) tuple(%x, %next)
}}

ENTRY %main (x: (f32[2], s32[])) -> (f32[2], s32[]) {{
  %x = (f32[2], s32[]) parameter(0)
  ROOT %while = (f32[2], s32[]) while(%x), condition=%cond, body=%body
}}
"""
    assert hlo.Program(text, 1).runs()["body"] == turns


@given(st.permutations([0, 1, 2]), st.tuples(*[st.integers(1, 4)] * 3), st.data())
def test_groups_by_an_array_of_numbers_are_numpy_s(order, dims, data):
    size = math.prod(dims)
    width = data.draw(st.sampled_from([w for w in range(1, size + 1) if size % w == 0]))
    text = ",".join(map(str, dims)), ",".join(map(str, order))
    line = f"replica_groups=[{size // width},{width}]<=[{text[0]}]T({text[1]}), use"
    expected = np.arange(size).reshape(dims).transpose(order).reshape(-1, width)
    assert np.array(groups_of(line, size)).tolist() == expected.tolist()


@given(st.tuples(*[st.integers(1, 4)] * 3), st.integers(0, 2))
def test_groups_by_an_axis_of_a_named_mesh(dims, axis):
    named = ",".join(f"'axis_{i}'={n}" for i, n in enumerate(dims))
    line = f"replica_groups=mesh[{named}] {{'axis_{axis}'}}, dimensions={{1}}"
    numbers = np.moveaxis(np.arange(math.prod(dims)).reshape(dims), axis, -1)
    expected = numbers.reshape(-1, dims[axis]).tolist()
    assert [list(group) for group in groups_of(line, math.prod(dims))] == expected


def test_groups_in_lists_pairs_and_parts_of_an_axis():
    assert groups_of("replica_groups={{0,2},{1,3}}, to", 4) == ((0, 2), (1, 3))
    assert groups_of("replica_groups={}, to", 3) == ((0, 1, 2),)
    assert groups_of("source_target_pairs={{0,1},{1,0}}", 2) == ((0, 1), (1, 0))
    part = groups_of("replica_groups=mesh['x'=8] {'x':(2)2}", 8)
    assert part == ((0, 2), (1, 3), (4, 6), (5, 7))
    with pytest.raises(ValueError, match="not understood"):
        groups_of("replica_groups=?", 4)


@pytest.mark.parametrize("axis, other", [("fsdp", "tensor"), ("tensor", "fsdp")])
def test_collectives_are_counted_by_the_axis_that_they_run_along(axis, other):
    over = mesh.make(config.Mesh(data=1, fsdp=2, tensor=4))
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
    found = roofline.cost(hlo.Program(text, 8), dict(over.shape), SLICE)
    # Each device sums its part of the products over `axis`: [16 / other, 8] of float32.
    assert found.collective_bytes == {axis: {"all-reduce": 16 // over.shape[other] * 8 * 4}}
    assert found.flops == 2 * 16 * 32 * 8 / 8


@pytest.mark.parametrize("layers", [4, 28])
def test_a_real_step_costs_its_closed_form(layers):
    """Stage text, all of the decoder learning, parameters split over eight devices."""
    rows, length, reply = 16 // 8, 79, 30
    bindings = ["Mesh.data=1", "Mesh.fsdp=8", "TextStage.batch_size=16", "Model.unroll=1"]
    bindings.append("TextStage.optimizer='adamw'")  # Muon has products of its own
    run, _ = gin_files.load(["gin/run/tiny_text.gin"], [*bindings, f"Decoder.layers={layers}"])
    lowered, _ = aot.lower(run, "text", mesh.make(run.mesh))
    program = hlo.Program(lowered.compile().as_text(), 8)
    found = roofline.cost(program, {"data": 1, "fsdp": 8, "tensor": 1}, SLICE)
    d = run.model.decoder
    heads, kv = d.heads * d.head_dim, d.kv_heads * d.head_dim
    weights = d.width * (2 * heads + 2 * kv + 3 * d.intermediate_size)
    # Forward once and backward twice; scores and their values likewise; and the output's table.
    layer = 3 * 2 * rows * length * weights + 3 * 2 * 2 * rows * length**2 * heads
    head = 3 * 2 * rows * reply * d.width * d.vocab_size
    assert found.flops == pytest.approx(layers * layer + head, rel=0.05)
    # Weights are gathered for either pass, and their gradients added up.
    moved = found.collective_bytes["fsdp"]
    table = d.vocab_size * d.width
    assert moved["all-gather"] == pytest.approx(4 * (2 * layers * weights + table), rel=0.05)
    summed = moved.get("all-reduce", 0) + moved.get("reduce-scatter", 0)
    assert summed == pytest.approx(4 * (layers * weights + table), rel=0.05)
