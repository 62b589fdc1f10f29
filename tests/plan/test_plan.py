# SPDX-License-Identifier: Apache-2.0
"""Plans of a tiny step, on emulated devices and with the TPU compiler if libtpu is installed."""

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
TINY = ["--gin_file", "gin/run/tiny.gin", "--gin.Model.unroll=1", "--gin.Mesh.data=-1"]
TEXT = [*TINY, "--stage", "text"]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the extra `plan`"
)


def run(path, *bindings):
    return gin_files.load([f"gin/run/{path}.gin"], bindings)[0]


def positions_of(run, program):
    return flops.positions(aot.workload(run, program), run.model, run.scenes.seconds)


def model_flops_of(run, program, shapes):
    return flops.model_flops(aot.workload(run, program), run.model, run.scenes.seconds, shapes)


def test_verdict_is_unknown_without_libtpu(capsys, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "libtpu" else find_spec(name)
    )
    out = tmp_path / "plan.json"
    assert main.main(["plan", *TEXT, "--topology", "v5e:2x4", "--json", str(out)]) == 0
    result, output = json.loads(out.read_text()), capsys.readouterr()
    assert result.keys() >= CONTRACT and result["fits"] is None and result["chips"] == 8
    assert result["hbm_bytes"].keys() == {"arguments", "temporaries", "capacity"}
    assert result["hbm_bytes"]["capacity"] == 16 * 2**30
    assert result["collective_bytes"].keys() == {"data"}
    text = run("tiny")
    tokens = text.text.batch_size * (20 + text.model.prompt_tokens + text.model.reply_tokens - 1)
    rate = tokens / result["expected_step_seconds"]
    assert result["tokens_per_second"] == pytest.approx(rate)
    mfu = result["model_flops_per_step"] / (result["expected_step_seconds"] * 8 * 197e12)
    assert result["expected_mfu"] == pytest.approx(mfu)
    assert "unknown" in output.out and "assumed efficiency: matmul 80 %" in output.out
    assert output.err.startswith("compiling text for v5e:2x4 (emulated CPU devices)")


@needs_libtpu
def test_libtpu_verdict_and_advice(capsys, tmp_path):
    out = tmp_path / "plan.json"
    words = ["plan", *TEXT, "--topology", "v5e:2x2", "--json", str(out)]
    assert main.main(words) == 0
    result = json.loads(out.read_text())
    assert result["fits"] is True and 0 < result["expected_mfu"] < 0.8
    assert main.main([*words, "--gin.TextStage.batch_size=1048576"]) == 3
    result, output = json.loads(out.read_text()), capsys.readouterr().out
    assert result["fits"] is False and result["hbm_bytes"]["temporaries"] > 16 * 2**30
    assert "does not fit" in output and "--gin.TextStage.batch_size=524288" in output


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--topology", "v9:2x2"], "--topology is 'v9:2x2', expected one of v5e"),
        (["--topology", "v5p:4x4"], "expected 3 dimensions for v5p"),
        (["--topology", "v5e:2x4", "--gin.Mesh.fsdp=3"], "Mesh"),
        (["--topology", "v5e:2x4", "--gin.TextStage.batch_size=12"], "batch is 12, expected rows"),
    ],
)
def test_plan_errors_are_one_line(capsys, monkeypatch, words, expected):
    monkeypatch.setattr(planner, "_tpu_devices", lambda name: jax.devices()[:8])
    assert main.main(["plan", *TEXT, *words]) == 2
    last_line = capsys.readouterr().err.strip().splitlines()[-1]
    assert expected in last_line


def test_topology_counts_chips_and_devices():
    assert (chips.topology("v5p:4x4x8").chips, chips.topology("v5p:4x4x8").devices) == (128, 128)
    assert (chips.topology("tpu7x:4x4x4").chips, chips.topology("tpu7x:4x4x4").devices) == (64, 128)


def test_model_flops_of_7b_sft_are_four_per_frozen_parameter():
    """Qwen2.5-7B has 7.615e9 parameters, of which 2 x 152,064 x 3,584 are its two tables."""
    base = run("base")
    rows = base.sft.batch_size * base.sft.questions_per_scene
    length = 125 + base.model.prompt_tokens + base.model.reply_tokens - 1
    table = 152_064 * 3_584
    expected = 4 * rows * ((7.615e9 - 2 * table) * length + table * base.model.reply_tokens)
    shapes = aot.params_shapes(base)
    sft = model_flops_of(base, "sft", shapes)
    # Adapters, projector and encoders add the rest.
    assert expected < sft < 1.05 * expected
    rollout = model_flops_of(base, "rollout", shapes)
    new_tokens = base.grpo.batch_size * base.grpo.num_generations * base.model.reply_tokens
    assert rollout > 2 * new_tokens * (7.615e9 - table)
    # The update reuses the encoded audio, and runs each prompt once for its whole group.
    assert positions_of(base, "rollout")["spatial"] > 0 == positions_of(base, "grpo")["spatial"]
    update = model_flops_of(base, "grpo", shapes)
    prompts, reply = base.grpo.batch_size, base.model.reply_tokens
    group = base.grpo.num_generations
    positions = prompts * (length + 1 - reply + group * (reply - 1))
    assert update == pytest.approx(
        4 * ((7.615e9 - 2 * table) * positions + table * prompts * group * reply), rel=0.05
    )


def test_model_flops_are_six_per_parameter_and_token_if_all_are_trainable():
    text = run("tiny")
    shapes = aot.params_shapes(text)
    layers = sum(
        np.prod(leaf.shape)
        for path, leaf in trees.flatten(shapes).items()
        if path.startswith("decoder/layers/")
    )
    table, norm = 512 * 128, 128
    rows, length = text.text.batch_size, 79
    expected = 6 * rows * (length * (layers + norm) + text.model.reply_tokens * table)
    assert model_flops_of(text, "text", shapes) == expected


def test_model_flops_count_per_scene_and_per_slot_layers_as_often_as_they_run():
    tiny = run("tiny")
    shape = jax.ShapeDtypeStruct((3, 5), np.float32)
    each_step = 16_000 // tiny.model.spatial.hop_length // tiny.model.spatial.frames_per_step
    steps = round(tiny.scenes.seconds * each_step)
    counts = {"room": 1, "label": tiny.model.spatial.num_slots, "stem": steps}
    for name, count in counts.items():
        result = model_flops_of(tiny, "spatial", {"spatial": {name: {"kernel": shape}}})
        assert result == 6 * 15 * tiny.spatial.batch_size * count, name
    assert {*flops.PER_SCENE, *flops.PER_SLOT} <= set(aot.params_shapes(tiny)["spatial"])


def test_ici_seconds_of_rings_and_partial_rings():
    pod = chips.topology("v5e:16x16")
    whole = tuple(range(256))
    coords = [(n // 16, n % 16) for n in range(256)]
    gathered = hlo.Collective("all-gather", 10**9, (whole,), False)
    # A chip receives the rest of the array over all of its links.
    expected = 1e9 * 255 / 256 / (200e9 * roofline.EFFICIENCY["ici"])
    assert roofline.ici_seconds(gathered, pod, coords) == pytest.approx(expected)
    # A row of the slice has half of the links; part of a row has no wraparound.
    row, part = (hlo.Collective("all-gather", 10**9, (whole[:n],), False) for n in (16, 8))
    slower = expected * 2 * (15 / 16) / (255 / 256)
    assert roofline.ici_seconds(row, pod, coords) == pytest.approx(slower)
    slowest = expected * 4 * (7 / 8) / (255 / 256)
    assert roofline.ici_seconds(part, pod, coords) == pytest.approx(slowest)
    twice = hlo.Collective("all-reduce", 10**9, (whole,), False)
    assert roofline.ici_seconds(twice, pod, coords) == pytest.approx(2 * expected)


def test_activation_constraints_avoid_all_reduce_of_activations():
    """Only gradients of adapters need an all-reduce; frozen weights are all-gathered."""
    over = mesh.make_mesh(config.Mesh(data=1, fsdp=8))

    def product(x, w):
        return sharding.constrain_batch(sharding.constrain_batch(x) @ w)

    shapes = [
        jax.ShapeDtypeStruct(size, jnp.float32, sharding=NamedSharding(over, spec))
        for size, spec in (((16, 64), P(("data", "fsdp"))), ((64, 32), P("fsdp")))
    ]
    with jax.set_mesh(over):
        text = jax.jit(product).lower(*shapes).compile().as_text()
    cost = roofline.step_cost(hlo.Program(text, 8), dict(over.shape), chips.topology("v5e:2x4"))
    assert cost.collective_bytes == {"fsdp": {"all-gather": 64 * 32 * 4}}


def test_libtpu_is_not_used_on_machines_without_tpu(monkeypatch):
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
def test_cpu_run_prints_nothing_about_libtpu():
    code = "from jaxasa.core import cpu; cpu.tune(); import jax; print(jax.devices()[0].platform)"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "TPU_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == "" and done.stdout.strip() in ("cpu", "tpu", "gpu")


@needs_libtpu
@pytest.mark.parametrize("layers", [4, 28])
@pytest.mark.parametrize("topology", ["v5e:2x4", "v5p:2x2x2"])
def test_tpu_compiled_step_matches_closed_form_cost(topology, layers):
    """Stage text in bfloat16, wide enough for its layers to dominate."""
    sizes = ["width=512", "kv_heads=4", "head_dim=128"]
    sizes += ["intermediate_size=1024", f"layers={layers}"]
    bindings = ["Mesh.data=1", "Mesh.fsdp=8", "TextStage.batch_size=16", "Model.unroll=1"]
    bindings += ["TextStage.optimizer='adamw'", "Model.dtype='bfloat16'"]
    text = run("tiny", *bindings, *(f"Decoder.{size}" for size in sizes))
    result = planner.plan(text, topology, "text")
    assert result["compiler"] == "libtpu" and result["fits"] is True
    weights, table, attention = per_layer(text)
    positions = positions_of(text, "text")
    length = positions["decoder"] / text.text.batch_size
    each = weights * positions["decoder"] + attention * text.text.batch_size * length**2
    forward = 2 * (layers * each + table * positions["head"])
    assert result["flops_per_step"] == pytest.approx(3 * forward, rel=0.05)
    # Weights are gathered in the forward and the backward pass, by whichever collective, and
    # gradients are reduced. All in bfloat16 except the gradient of the embedding.
    by_kind = result["collective_bytes"]["fsdp"]
    gathered, summed = 2 * (2 * layers * weights + table), 2 * layers * weights + 4 * table
    kinds = ("all-gather", "all-reduce", "reduce-scatter")
    assert sum(by_kind.get(kind, 0) for kind in kinds) == pytest.approx(gathered + summed, rel=0.05)
    assert by_kind["all-gather"] <= 1.05 * gathered
    if "reduce-scatter" in by_kind:
        whole = by_kind["all-gather"] + by_kind["all-reduce"]
        assert whole == pytest.approx(gathered, rel=0.05)


def per_layer(run):
    """Decoder: weights per layer and of the embedding, attention MACs per pair of positions."""
    d = run.model.decoder
    heads, kv = d.heads * d.head_dim, d.kv_heads * d.head_dim
    weights = d.width * (2 * heads + 2 * kv + 3 * d.intermediate_size)
    return weights, d.vocab_size * d.width, 2 * heads


@pytest.fixture
def emulated(monkeypatch):
    """Hides libtpu and disables optimizations: programs are compiled, not run."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "libtpu" else find_spec(name)
    )
    jax.config.update("jax_disable_most_optimizations", True)
    jax.devices()  # Starts JAX before a plan reduces the number of devices.


# Enough layers for the encoders to matter little: their filterbanks and Fourier transforms have
# no parameters, and the CPU partitioner gathers their inputs.
POLICY = ["Mesh.data=1", "Mesh.fsdp=2", "Model.unroll=1", "Scenes.seconds=1.0"]
POLICY += ["Decoder.layers=12", "GrpoStage.batch_size=8", "GrpoStage.questions_per_scene=2"]


def planned_policy(stage):
    """A plan of the tiny model, and the sizes that determine its cost."""
    tiny = run("tiny", *POLICY)
    weights, table, attention = per_layer(tiny)
    group, reply = tiny.grpo.num_generations, tiny.model.reply_tokens
    prompts = tiny.grpo.batch_size * tiny.grpo.questions_per_scene
    prompt = positions_of(tiny, stage)["decoder"] / prompts - group * (reply - 1)
    sizes = dict(prompts=prompts, rows=prompts * group, prompt=prompt, reply=reply)
    sizes |= dict(weights=weights, table=table, attention=attention)
    return planner.plan(tiny, "v5e:1x2", stage), types.SimpleNamespace(**sizes)


def test_grpo_update_matches_closed_form_cost(emulated):
    result, n = planned_policy("grpo")
    # A completion attends to its prompt and itself; the backward pass costs twice the forward pass.
    pairs = n.prompts * n.prompt**2 + n.rows * (n.reply - 1) * (n.prompt + n.reply - 1)
    attention = 3 * 2 * 12 * n.attention * pairs
    # The backward pass recomputes the logits.
    expected = result["model_flops_per_step"] + attention + 2 * n.table * n.rows * n.reply
    assert result["flops_per_step"] == pytest.approx(expected, rel=0.05)
    assert result["flops_per_step"] > result["model_flops_per_step"]


def test_rollout_matches_closed_form_cost(emulated):
    result, n = planned_policy("rollout")
    # Each new token attends to its prompt and to the whole preallocated reply cache.
    pairs = n.prompts * n.prompt**2 + n.rows * n.reply * (n.prompt + n.reply)
    # The last token passes through the decoder too, though its logits are not needed.
    products = 12 * (n.weights * n.rows + n.attention * pairs)
    expected = result["model_flops_per_step"] + 2 * products
    assert result["flops_per_step"] == pytest.approx(expected, rel=0.05)
    # Weights are gathered for the prompts and again for each token.
    gathered = 4 * (12 * n.weights * (1 + n.reply) + n.table)
    assert result["collective_bytes"]["fsdp"]["all-gather"] == pytest.approx(gathered, rel=0.05)


# (step, mesh, bytes of arguments, of temporaries, bindings), then bindings of each advice line.
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
PREFIXES = {"Mesh.tensor": "more tensor", "Mesh.fsdp": "more fsdp", "Model.remat": "remat"}


@pytest.mark.parametrize(
    "case, expected", [(case, expected) for case, *expected in ADVICE.values()], ids=ADVICE
)
def test_advice_loads_and_shards(case, expected):
    step, sizes, arguments, temporaries, bindings = case
    name = ("grpo" if step == "rollout" else step).capitalize() + "Stage"
    bindings = [f"{name}.batch_size=32", *bindings]
    bindings += [f"Mesh.{axis}={size}" for axis, size in zip(mesh.AXES, sizes, strict=True)]
    tiny = run("tiny", *bindings)
    over = types.SimpleNamespace(shape=dict(zip(mesh.AXES, sizes, strict=True)))
    lines = planner._advice(tiny, step, over, planner.Compiled(arguments, temporaries, None))
    advice = []
    for line in lines:
        words = [word for word in shlex.split(line) if word.startswith("--gin.")]
        options = [word.removeprefix("--gin.").rstrip(",") for word in words]
        advice.append(dict(binding.split("=") for binding in options))
        accumulates = f"{name}.grad_accum_steps" in advice[-1]
        default = "microbatches" if accumulates else "smaller batch"
        prefix = next((PREFIXES[key] for key in PREFIXES if key in advice[-1]), default)
        assert line.startswith(prefix if options else "a larger slice")
        changed = run("tiny", *bindings, *options)
        stage = getattr(changed, name.removesuffix("Stage").lower())
        microbatch = stage.batch_size // stage.grad_accum_steps
        assert microbatch % (over.shape["data"] * over.shape["fsdp"]) == 0
        if "Mesh.fsdp" in advice[-1]:
            split = mesh.make_mesh(changed.mesh, jax.devices()[: math.prod(sizes)])
            sharding.params_sharding(aot.params_shapes(changed), split)
    assert advice == [{key: str(value) for key, value in one.items()} for one in expected]
