"""Plans of a tiny step, on emulated devices and by TPU's own compiler where it is installed."""

import importlib.util
import json
import math
import os
import shlex
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxasa import config
from jaxasa.cli import main
from jaxasa.config import gin_files
from jaxasa.core import cpu, trees
from jaxasa.models import flops
from jaxasa.parallel import chips, mesh, sharding
from jaxasa.plan import aot, hlo, planner, roofline

CONTRACT = {"topology", "chips", "fits", "hbm_bytes", "flops_per_step", "collective_bytes"}
CONTRACT |= {"expected_step_seconds", "expected_mfu", "tokens_per_second", "clips_per_second"}
TINY = ["--gin_file", "gin/run/tiny_text.gin", "--gin.Model.unroll=1", "--gin.Mesh.data=-1"]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the extra `plan`"
)


def run(path, *bindings):
    return gin_files.load([f"gin/run/{path}.gin"], bindings)[0]


def test_without_libtpu_the_verdict_is_unknown(capsys, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "libtpu" else found(name)
    )
    out = tmp_path / "plan.json"
    assert main.main(["plan", *TINY, "--topology", "v5e:2x4", "--json", str(out)]) == 0
    result, said = json.loads(out.read_text()), capsys.readouterr()
    assert result.keys() >= CONTRACT and result["fits"] is None and result["chips"] == 8
    assert result["hbm_bytes"].keys() == {"arguments", "temporaries", "capacity"}
    assert result["hbm_bytes"]["capacity"] == 16 * 2**30
    assert result["collective_bytes"].keys() == {"data"}
    text = run("tiny_text")
    tokens = text.text.batch_size * (20 + text.model.prompt_tokens + text.model.reply_tokens - 1)
    rate = tokens / result["expected_step_seconds"]
    assert result["tokens_per_second"] == pytest.approx(rate)
    mfu = result["model_flops_per_step"] / (result["expected_step_seconds"] * 8 * 197e12)
    assert result["expected_mfu"] == pytest.approx(mfu)
    assert "unknown" in said.out and "assumed of peak: products 80 %" in said.out
    assert said.err.startswith("compiling text for v5e:2x4 (emulated CPU devices)")


@needs_libtpu
def test_libtpu_says_what_fits_and_what_to_change(capsys, tmp_path):
    out = tmp_path / "plan.json"
    words = ["plan", *TINY, "--topology", "v5e:2x2", "--json", str(out)]
    assert main.main(words) == 0
    result = json.loads(out.read_text())
    assert result["fits"] is True and 0 < result["expected_mfu"] < 0.8
    assert main.main([*words, "--gin.TextStage.batch_size=1048576"]) == 3
    result, said = json.loads(out.read_text()), capsys.readouterr().out
    assert result["fits"] is False and result["hbm_bytes"]["temporaries"] > 16 * 2**30
    assert "does not fit" in said and "--gin.TextStage.batch_size=524288" in said


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--topology", "v9:2x2"], "--topology is 'v9:2x2', expected one of v5e"),
        (["--topology", "v5p:4x4"], "expected 3 dimensions for v5p"),
        (["--topology", "v5e:2x4", "--gin.Mesh.fsdp=3"], "Mesh"),
        (["--topology", "v5e:2x4", "--gin.TextStage.batch_size=12"], "batch is 12, expected rows"),
    ],
)
def test_what_cannot_be_planned_is_one_line(capsys, monkeypatch, words, expected):
    monkeypatch.setattr(planner, "_tpu", lambda name: jax.devices()[:8])
    assert main.main(["plan", *TINY, *words]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert expected in said


def test_a_chip_counts_all_of_its_devices():
    assert (chips.topology("v5p:4x4x8").chips, chips.topology("v5p:4x4x8").devices) == (128, 128)
    assert (chips.topology("tpu7x:4x4x4").chips, chips.topology("tpu7x:4x4x4").devices) == (64, 128)


def test_model_flops_of_the_7b_sft_are_four_a_frozen_parameter():
    """Qwen2.5-7B has 7.615e9 parameters, of which 2 x 152,064 x 3,584 are its two tables."""
    base = run("base_sft")
    rows = base.sft.batch_size * base.sft.questions_per_scene
    length = 125 + base.model.prompt_tokens + base.model.reply_tokens - 1
    table = 152_064 * 3_584
    expected = 4 * rows * ((7.615e9 - 2 * table) * length + table * base.model.reply_tokens)
    shapes = aot.params_shapes(base)
    found = flops.model_flops(base, "sft", shapes)
    # Adapters, projector and encoders add the rest.
    assert expected < found < 1.05 * expected
    rollout = flops.model_flops(base, "rollout", shapes)
    said = base.grpo.batch_size * base.grpo.num_generations * base.model.reply_tokens
    assert rollout > 2 * said * (7.615e9 - table)
    # The update has what the rollout heard, and reads each prompt once for its whole group.
    assert (
        flops.positions(base, "rollout")["spatial"] > 0 == flops.positions(base, "grpo")["spatial"]
    )
    update = flops.model_flops(base, "grpo", shapes)
    asked, reply = base.grpo.batch_size, base.model.reply_tokens
    group = base.grpo.num_generations
    read = asked * (length + 1 - reply + group * (reply - 1))
    assert update == pytest.approx(
        4 * ((7.615e9 - 2 * table) * read + table * asked * group * reply), rel=0.05
    )


def test_learning_costs_six_where_all_learns():
    text = run("tiny_text")
    shapes = aot.params_shapes(text)
    layers = sum(
        np.prod(leaf.shape)
        for path, leaf in trees.flatten(shapes).items()
        if path.startswith("decoder/layers/")
    )
    table, norm = 512 * 128, 128
    rows, length = text.text.batch_size, 79
    expected = 6 * rows * (length * (layers + norm) + text.model.reply_tokens * table)
    assert flops.model_flops(text, "text", shapes) == expected


def test_what_works_once_a_scene_or_a_slot_costs_so_often():
    tiny = run("tiny_spatial")
    shape = jax.ShapeDtypeStruct((3, 5), np.float32)
    each_step = 16_000 // tiny.model.spatial.hop_length // tiny.model.spatial.frames_per_step
    steps = round(tiny.scenes.seconds * each_step)
    often = {"room": 1, "label": tiny.model.spatial.num_slots, "told": steps}
    for name, count in often.items():
        found = flops.model_flops(tiny, "spatial", {"spatial": {name: {"kernel": shape}}})
        assert found == 6 * 15 * tiny.spatial.batch_size * count, name
    assert {*flops.ONCE, *flops.EACH_SLOT} <= set(aot.params_shapes(tiny)["spatial"])


def test_collectives_that_products_hide_cost_nothing_and_others_all():
    pod = chips.topology("v5e:16x16")
    whole = tuple(range(256))
    coords = [(n // 16, n % 16) for n in range(256)]
    gathered = hlo.Collective("all-gather", 10**9, (whole,), False)
    # A chip takes in the rest of the array over all of its links.
    expected = 1e9 * 255 / 256 / (200e9 * roofline.EFFICIENCY["links"])
    assert roofline.link_seconds(gathered, pod, coords) == pytest.approx(expected)
    # A row of the slice has half of the links, and part of a row is no ring.
    row, part = (hlo.Collective("all-gather", 10**9, (whole[:n],), False) for n in (16, 8))
    slower = expected * 2 * (15 / 16) / (255 / 256)
    assert roofline.link_seconds(row, pod, coords) == pytest.approx(slower)
    slowest = expected * 4 * (7 / 8) / (255 / 256)
    assert roofline.link_seconds(part, pod, coords) == pytest.approx(slowest)
    twice = hlo.Collective("all-reduce", 10**9, (whole,), False)
    assert roofline.link_seconds(twice, pod, coords) == pytest.approx(2 * expected)


def test_no_weights_are_summed_where_rows_keep_their_place():
    """What activation constraints are for: gradients of adapters are all that is summed."""
    over = mesh.make(config.Mesh(data=1, fsdp=8))

    def product(x, w):
        return sharding.by_rows(sharding.by_rows(x) @ w)

    shapes = [
        jax.ShapeDtypeStruct(size, jnp.float32, sharding=NamedSharding(over, spec))
        for size, spec in (((16, 64), P(("data", "fsdp"))), ((64, 32), P("fsdp")))
    ]
    with jax.set_mesh(over):
        text = jax.jit(product).lower(*shapes).compile().as_text()
    found = roofline.cost(hlo.Program(text, 8), dict(over.shape), chips.topology("v5e:2x4"))
    assert found.collective_bytes == {"fsdp": {"all-gather": 64 * 32 * 4}}


def test_libtpu_without_a_tpu_is_left_alone(monkeypatch):
    nodes = set()
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "libtpu")
    monkeypatch.setattr(cpu, "_has_any", lambda *patterns: bool(nodes & set(patterns)))

    def platforms():
        monkeypatch.delenv("JAX_PLATFORMS", raising=False)
        cpu.tune()
        return cpu.os.environ.get("JAX_PLATFORMS")

    assert platforms() == "cpu"
    nodes.add("nvidia[0-9]*")
    assert platforms() == "cuda,cpu"
    nodes.add("vfio/[0-9]*")
    assert platforms() is None
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    cpu.tune()
    assert cpu.os.environ["JAX_PLATFORMS"] == "cpu"


@needs_libtpu
def test_a_run_on_the_cpu_says_nothing_of_libtpu():
    code = "from jaxasa import cpu; cpu.tune(); import jax; print(jax.devices()[0].platform)"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "TPU_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == "" and done.stdout.strip() in ("cpu", "tpu", "gpu")


@needs_libtpu
@pytest.mark.parametrize("layers", [4, 28])
@pytest.mark.parametrize("topology", ["v5e:2x4", "v5p:2x2x2"])
def test_a_step_of_tpu_s_compiler_costs_its_closed_form(topology, layers):
    """Stage text in bfloat16, wide enough for its layers to be nearly all that it does."""
    sizes = ["width=512", "kv_heads=4", "head_width=128", "hidden=1024", f"layers={layers}"]
    bindings = ["Mesh.data=1", "Mesh.fsdp=8", "TextStage.batch_size=16", "Model.unroll=1"]
    bindings += ["TextStage.optimizer='adamw'", "Model.dtype='bfloat16'"]
    text = run("tiny_text", *bindings, *(f"Decoder.{size}" for size in sizes))
    result = planner.plan(text, topology)
    assert result["compiler"] == "libtpu" and result["fits"] is True
    weights, table, attention = per_layer(text)
    positions = flops.positions(text, "text")
    length = positions["decoder"] / text.text.batch_size
    each = weights * positions["decoder"] + attention * text.text.batch_size * length**2
    forward = 2 * (layers * each + table * positions["head"])
    assert result["flops_per_step"] == pytest.approx(3 * forward, rel=0.05)
    # Weights are gathered for either pass, whatever the compiler gathers them by, and gradients are
    # added up. All in bfloat16 but for the gradient of the table.
    moved = result["collective_bytes"]["fsdp"]
    gathered, summed = 2 * (2 * layers * weights + table), 2 * layers * weights + 4 * table
    kinds = ("all-gather", "all-reduce", "reduce-scatter")
    assert sum(moved.get(kind, 0) for kind in kinds) == pytest.approx(gathered + summed, rel=0.05)
    assert moved["all-gather"] <= 1.05 * gathered
    if "reduce-scatter" in moved:
        whole = moved["all-gather"] + moved["all-reduce"]
        assert whole == pytest.approx(gathered, rel=0.05)


def per_layer(run):
    """Of the decoder: weights of a layer, of its table, and products of a place with another."""
    d = run.model.decoder
    heads, kv = d.heads * d.head_width, d.kv_heads * d.head_width
    return d.width * (2 * heads + 2 * kv + 3 * d.hidden), d.vocab * d.width, 2 * heads


@pytest.fixture
def emulated(monkeypatch):
    """Without libtpu, and quick to compile: what is compiled is not run."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "libtpu" else found(name)
    )
    jax.config.update("jax_disable_most_optimizations", True)
    jax.devices()  # Started before a plan asks for less of them.


# Layers enough that the encoders matter little: their filterbanks and Fourier transforms have no
# parameters, and CPU's partitioner gathers what it transforms.
POLICY = ["Mesh.data=1", "Mesh.fsdp=2", "Model.unroll=1", "Scenes.seconds=1.0"]
POLICY += ["Decoder.layers=12", "GrpoStage.batch_size=8", "GrpoStage.questions_per_scene=2"]


def planned_policy(stage):
    """A plan of the tiny model, and the rows, the lengths and the layers that its cost is of."""
    tiny = run("tiny_grpo", *POLICY)
    weights, table, attention = per_layer(tiny)
    group, reply = tiny.grpo.num_generations, tiny.model.reply_tokens
    asked = tiny.grpo.batch_size * tiny.grpo.questions_per_scene
    prompt = flops.positions(tiny, stage)["decoder"] / asked - group * (reply - 1)
    sizes = dict(asked=asked, said=asked * group, prompt=prompt, reply=reply)
    sizes |= dict(weights=weights, table=table, attention=attention)
    return planner.plan(tiny, "v5e:1x2", stage), types.SimpleNamespace(**sizes)


def test_an_update_of_grpo_costs_its_closed_form(emulated):
    result, n = planned_policy("grpo")
    # A completion sees its prompt and itself. Forward once and backward twice.
    pairs = n.asked * n.prompt**2 + n.said * (n.reply - 1) * (n.prompt + n.reply - 1)
    seen = 3 * 2 * 12 * n.attention * pairs
    # The backward pass makes the logits again.
    expected = result["model_flops_per_step"] + seen + 2 * n.table * n.said * n.reply
    assert result["flops_per_step"] == pytest.approx(expected, rel=0.05)
    assert result["flops_per_step"] > result["model_flops_per_step"]


def test_a_rollout_costs_its_closed_form(emulated):
    result, n = planned_policy("rollout")
    # Each new token sees its prompt and all of the room for a reply.
    pairs = n.asked * n.prompt**2 + n.said * n.reply * (n.prompt + n.reply)
    # The last token passes too, though what comes after it is not asked.
    products = 12 * (n.weights * n.said + n.attention * pairs)
    expected = result["model_flops_per_step"] + 2 * products
    assert result["flops_per_step"] == pytest.approx(expected, rel=0.05)
    # Weights are gathered for the prompts and again for each token.
    gathered = 4 * (12 * n.weights * (1 + n.reply) + n.table)
    assert result["collective_bytes"]["fsdp"]["all-gather"] == pytest.approx(gathered, rel=0.05)


# (stage, mesh, bytes of arguments, of temporaries, bindings), and what each line of advice binds.
ADVICE = {
    "split over data": (
        ("sft", (4, 2, 1), 1, 3, ["Model.remat='dots'", "SftStage.questions_per_scene=4"]),
        {"Mesh.data": 1, "Mesh.fsdp": 8},
        {"Model.remat": "'full'"},
        {"SftStage.grad_accum_steps": 2},
        {"SftStage.batch_size": 16},
        {"SftStage.questions_per_scene": 2},
    ),
    "parameters above all": (
        ("text", (4, 2, 1), 3, 1, []),
        {"Mesh.data": 1, "Mesh.fsdp": 8},
        {"Mesh.data": 2, "Mesh.fsdp": 2, "Mesh.tensor": 2},
        {"Model.remat": "'full'"},
        {"TextStage.grad_accum_steps": 2},
        {"TextStage.batch_size": 16},
    ),
    "parameters split already": (
        ("grpo", (1, 8, 1), 3, 1, ["Model.remat='full'"]),
        {},
        {"GrpoStage.grad_accum_steps": 2},
        {"GrpoStage.batch_size": 16},
        {"GrpoStage.num_generations": 4},
    ),
    "as many heads as the tensor axis": (
        ("align", (2, 2, 2), 3, 1, ["Model.remat='full'"]),
        {"Mesh.data": 1, "Mesh.fsdp": 4},
        {},
        {"AlignStage.grad_accum_steps": 2},
        {"AlignStage.batch_size": 16},
    ),
    "half of the rows do not divide": (
        ("align", (1, 8, 1), 1, 3, ["AlignStage.batch_size=24"]),
        {"Model.remat": "'full'"},
    ),
    "a width that more fsdp does not divide": (
        ("text", (3, 1, 1), 1, 3, ["TextStage.batch_size=3"]),
        {"Model.remat": "'full'"},
    ),
    "no decoder": (
        ("spatial", (1, 8, 1), 1, 3, []),
        {"SpatialStage.grad_accum_steps": 2},
        {"SpatialStage.batch_size": 16},
    ),
    "half of the parts do not divide": (
        ("grpo", (1, 8, 1), 1, 3, ["Model.remat='full'", "GrpoStage.grad_accum_steps=4"]),
        {"GrpoStage.num_generations": 4},
    ),
    "parts in halves": (
        ("grpo", (1, 4, 1), 1, 3, ["Model.remat='full'", "GrpoStage.grad_accum_steps=4"]),
        {"GrpoStage.grad_accum_steps": 8},
        {"GrpoStage.batch_size": 16},
        {"GrpoStage.num_generations": 4},
    ),
    "a rollout": (
        ("rollout", (1, 8, 1), 1, 3, []),
        {"GrpoStage.batch_size": 16},
        {"GrpoStage.num_generations": 4},
    ),
    "questions first": (
        ("rollout", (1, 1, 1), 1, 3, ["GrpoStage.batch_size=1", "GrpoStage.questions_per_scene=4"]),
        {"GrpoStage.questions_per_scene": 2},
        {"GrpoStage.num_generations": 4},
    ),
    "nothing left": (
        ("rollout", (1, 1, 1), 1, 3, ["GrpoStage.batch_size=1", "GrpoStage.num_generations=2"]),
        {},
    ),
}
KINDS = {"Mesh.tensor": "more tensor", "Mesh.fsdp": "more fsdp", "Model.remat": "remat"}


@pytest.mark.parametrize(
    "given, expected", [(given, expected) for given, *expected in ADVICE.values()], ids=ADVICE
)
def test_advice_is_of_use_and_can_be_followed(given, expected):
    what, sizes, arguments, temporaries, bindings = given
    name = ("grpo" if what == "rollout" else what).capitalize() + "Stage"
    bindings = [f"{name}.batch=32", *bindings]
    bindings += [f"Mesh.{axis}={size}" for axis, size in zip(mesh.AXES, sizes, strict=True)]
    tiny = run("tiny_grpo", *bindings)
    over = types.SimpleNamespace(shape=dict(zip(mesh.AXES, sizes, strict=True)))
    lines = planner._advice(tiny, what, over, planner.Compiled(arguments, temporaries, None))
    found = []
    for line in lines:
        words = [word for word in shlex.split(line) if word.startswith("--gin.")]
        said = [word.removeprefix("--gin.").rstrip(",") for word in words]
        found.append(dict(binding.split("=") for binding in said))
        parts = "in parts" if f"{name}.accumulate" in found[-1] else "smaller batch"
        kind = next((KINDS[key] for key in KINDS if key in found[-1]), parts)
        assert line.startswith(kind if said else "a larger slice")
        changed = run("tiny_grpo", *bindings, *said)
        stage = getattr(changed, name.removesuffix("Stage").lower())
        assert (
            stage.batch_size // stage.grad_accum_steps % (over.shape["data"] * over.shape["fsdp"])
            == 0
        )
        if "Mesh.fsdp" in found[-1]:
            split = mesh.make(changed.mesh, jax.devices()[: math.prod(sizes)])
            sharding.params_sharding(aot.params_shapes(changed), split)
    assert found == [{key: str(value) for key, value in one.items()} for one in expected]
