# SPDX-License-Identifier: Apache-2.0
"""`jaxasa plan`: memory, FLOPs, collectives and expected time of a step on a TPU topology.

The real training step is compiled ahead of time for the topology, with the TPU compiler if libtpu
is installed (extra `plan`); no TPU is needed. The verdict "fits" rests on the compiler's memory
analysis. FLOPs, bytes accessed and collectives are read from the compiled program (hlo.py); the
step time is a roofline estimate (roofline.py). Without libtpu the step is compiled for emulated
CPU devices, and whether it fits stays unknown.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core import trees
from jaxasa.models import flops
from jaxasa.parallel import mesh
from jaxasa.parallel.chips import GIB, Topology, topology
from jaxasa.plan import aot, roofline
from jaxasa.plan.hlo import Program

_MAX_EMULATED_DEVICES = 1024


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step: bytes of its arguments and temporaries on one device, and its program.

    program: None if compilation ran out of memory; `temporaries` is then the need that XLA reports.
    """

    arguments: int
    temporaries: int
    program: Program | None


def plan(run: config.Run, name: str, step: str | None = None) -> dict:
    """Plans one step on the topology `name`, such as "v5e:16x16".

    step: a stage or "rollout" (None: the last of Run.stages). Returns the JSON object that
    `jaxasa plan --json` writes; bytes are per chip, FLOPs and throughput of the whole slice.
    Raises ConfigError for an unknown topology, and for a mesh, model or batch that does not
    divide over it.
    """
    slice_ = topology(name)
    step = step or run.stages[-1]
    config.check(step in aot.PROGRAMS, "--stage", step, "one of " + ", ".join(aot.PROGRAMS))
    is_tpu = importlib.util.find_spec("libtpu") is not None
    devices = _tpu_devices(name) if is_tpu else _emulated_devices(slice_)
    config.check(len(devices) == slice_.devices, "--topology", name, f"{slice_.devices} devices")
    device_mesh = mesh.make_mesh(run.mesh, devices)
    with _progress(f"compiling {step} for {name}{'' if is_tpu else ' (emulated CPU devices)'}"):
        lowered, inputs = aot.lower(run, step, device_mesh)
        arguments = sum(map(_bytes_per_device, jax.tree.leaves(inputs)))
        compiled = _compile(lowered, arguments, slice_.devices, is_tpu)
    shapes, work = aot.params_shapes(run), aot.workload(run, step)
    trainable, _ = trees.split(shapes, work.trainable)
    result = {
        "topology": name,
        "chips": slice_.chips,
        "stage": step,
        "mesh": dict(device_mesh.shape),
        "compiler": "libtpu" if is_tpu else "emulated CPU devices",
        "parameters": sum(math.prod(s.shape) for s in jax.tree.leaves(shapes)),
        "trainable_parameters": sum(math.prod(s.shape) for s in trainable.values()),
        "fits": None,
        "hbm_bytes": {
            "arguments": compiled.arguments * slice_.chip.devices,
            "temporaries": compiled.temporaries * slice_.chip.devices,
            "capacity": int(slice_.chip.hbm),
        },
        "flops_per_step": None,
        "model_flops_per_step": flops.model_flops(work, run.model, run.scenes.seconds, shapes),
        "collective_bytes": None,
        "expected_step_seconds": None,
        "expected_mfu": None,
        "seconds_by_bound": None,
        "tokens_per_second": None,
        "clips_per_second": None,
        "efficiencies": roofline.EFFICIENCY,
    }
    used = result["hbm_bytes"]["arguments"] + result["hbm_bytes"]["temporaries"]
    if is_tpu:
        result["fits"] = compiled.program is not None and used <= slice_.chip.hbm
    if compiled.program is not None:
        result |= _roofline_estimates(
            run, step, slice_, device_mesh, compiled.program, result["model_flops_per_step"]
        )
    result["advice"] = _advice(run, step, device_mesh, compiled) if result["fits"] is False else []
    return result


def _roofline_estimates(
    run: config.Run,
    step: str,
    slice_: Topology,
    device_mesh: Mesh,
    program: Program,
    model_flops: float,
) -> dict:
    """Fields of the plan that the roofline estimates."""
    coords = [_coordinates(device) for device in device_mesh.devices.flat]
    cost = roofline.step_cost(
        program,
        dict(device_mesh.shape),
        slice_,
        coords if all(len(c) == len(slice_.dims) for c in coords) else None,
        run.model.reply_tokens if step == aot.ROLLOUT else 1,
    )
    counts = flops.positions(aot.workload(run, step), run.model, run.scenes.seconds)
    tokens = counts["head"] if step == aot.ROLLOUT else counts["decoder"]
    return {
        "flops_per_step": cost.flops * slice_.devices,
        "collective_bytes": cost.collective_bytes,
        "expected_step_seconds": cost.total,
        "expected_mfu": model_flops / (cost.total * slice_.chips * slice_.chip.flops),
        "seconds_by_bound": cost.seconds,
        "tokens_per_second": tokens / cost.total,
        "clips_per_second": aot.options_of(run, step).batch_size / cost.total,
    }


def _coordinates(device) -> tuple[int, ...]:
    """Position of a device in its slice, () if it has none."""
    coords = tuple(getattr(device, "coords", ()))
    # Two-dimensional slices have a third coordinate, which is always 0.
    return coords[:2] if "lite" in getattr(device, "device_kind", "") else coords


def _tpu_devices(name: str) -> Sequence:
    """Devices of a slice as libtpu describes it, without the hardware."""
    from jax.experimental import topologies

    # Otherwise libtpu queries the metadata server, which only a TPU host has.
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-256")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # libtpu's lock is for processes that share a TPU; two plans share nothing.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"--topology {name}: libtpu does not know it: {reason}") from None


def _emulated_devices(slice_: Topology) -> Sequence:
    expected = f"at most {_MAX_EMULATED_DEVICES} devices if libtpu is not installed"
    config.check(slice_.devices <= _MAX_EMULATED_DEVICES, "--topology", slice_.name, expected)
    with contextlib.suppress(RuntimeError):  # JAX has started: its number of devices is fixed.
        jax.config.update("jax_num_cpu_devices", slice_.devices)
    devices = jax.devices("cpu")
    expected = f"a topology of at most {len(devices)} devices in this process"
    config.check(len(devices) >= slice_.devices, "--topology", slice_.name, expected)
    return devices[: slice_.devices]


def _bytes_per_device(shape: jax.ShapeDtypeStruct) -> int:
    """Bytes of one device's shard of an array."""
    shard = shape.sharding.shard_shape(shape.shape)
    is_key = jax.dtypes.issubdtype(shape.dtype, jax.dtypes.prng_key)
    return math.prod(shard) * (8 if is_key else shape.dtype.itemsize)


def _compile(lowered: jax.stages.Lowered, arguments: int, devices: int, is_tpu: bool) -> Compiled:
    with tempfile.TemporaryDirectory(prefix="jaxasa-plan-") as folder:
        # as_text() fails on some programs for v5p, so the compiler also dumps the text.
        dumps = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True} if is_tpu else {}
        try:
            compiled = lowered.compile(compiler_options=dumps)
        except jax.errors.JaxRuntimeError as error:
            needed = re.search(
                r"temporaries \(([\d.]+)([KMGT])\)|Used ([\d.]+)([KMGT])", str(error)
            )
            if "RESOURCE_EXHAUSTED" not in str(error) or needed is None:
                raise
            number, unit = needed[1] or needed[3], needed[2] or needed[4]
            size = float(number) * 1024.0 ** ("KMGT".index(unit) + 1)
            return Compiled(arguments, round(size), None)
        try:
            text = compiled.as_text()
        except jax.errors.JaxRuntimeError:
            text = next(Path(folder).glob("*.after_optimizations.txt")).read_text()
    memory = compiled.memory_analysis()
    # Outputs that are aliased with arguments take no memory of their own.
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporaries = memory.temp_size_in_bytes + outputs + memory.generated_code_size_in_bytes
    return Compiled(memory.argument_size_in_bytes, temporaries, Program(text, devices))


def _advice(run: config.Run, step: str, device_mesh: Mesh, compiled: Compiled) -> list[str]:
    """Changes that reduce the memory of a step that does not fit, most promising first."""
    lines = []
    options, work = aot.options_of(run, step), aot.workload(run, step)
    stage = type(options).__name__
    data, fsdp, tensor = (device_mesh.shape[axis] for axis in mesh.AXES)
    decoder = run.model.decoder
    if data > 1 and decoder.width % (data * fsdp) == 0:
        lines.append(
            f"more fsdp: --gin.Mesh.data=1 --gin.Mesh.fsdp={data * fsdp} "
            "shards parameters over all devices"
        )
    if compiled.arguments > compiled.temporaries:
        if data % 2 == 0 and decoder.kv_heads % (2 * tensor) == 0:
            sizes = f"data={data // 2} --gin.Mesh.fsdp={fsdp} --gin.Mesh.tensor={2 * tensor}"
            lines.append(f"more tensor: --gin.Mesh.{sizes}, or a larger slice")
        else:
            lines.append("a larger slice: parameters and optimizer state take most of the memory")
    if work.trainable and work.prompts and run.model.remat != "full":
        lines.append("remat: --gin.Model.remat=\"'full'\" stores only the input of each layer")
    halved = options.batch_size % (2 * data * fsdp * options.grad_accum_steps) == 0
    if halved and work.trainable:
        microbatches = 2 * options.grad_accum_steps
        lines.append(
            f"microbatches: --gin.{stage}.grad_accum_steps={microbatches} accumulates gradients"
        )
    if halved:
        lines.append(f"smaller batch: --gin.{stage}.batch_size={options.batch_size // 2}")
    questions = getattr(options, "questions_per_scene", 1)
    if questions > 1:
        lines.append(f"smaller batch: --gin.{stage}.questions_per_scene={questions // 2}")
    generations = getattr(options, "num_generations", 1)
    if generations > 2:
        lines.append(f"smaller batch: --gin.{stage}.num_generations={generations // 2}")
    return lines or ["a larger slice, or chips with more memory"]


@contextlib.contextmanager
def _progress(message: str) -> Iterator[None]:
    """Prints `message` to stderr, and the elapsed seconds every ten seconds."""
    start, done = time.monotonic(), threading.Event()

    def report() -> None:
        while not done.wait(10.0):
            print(f"{message}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)

    print(message, file=sys.stderr, flush=True)
    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def format_table(result: dict) -> str:
    """Formats a plan for the terminal."""
    hbm = result["hbm_bytes"]
    used = hbm["arguments"] + hbm["temporaries"]
    mesh_text = " x ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
    rows = [
        (
            "step",
            f"{result['stage']} on {result['topology']}: {result['chips']} chips, {mesh_text}",
        ),
        ("compiled by", result["compiler"]),
        (
            "parameters",
            f"{result['parameters']:,}, {result['trainable_parameters']:,} trainable",
        ),
        (
            "HBM per chip",
            f"arguments {hbm['arguments'] / GIB:.2f} + temporaries {hbm['temporaries'] / GIB:.2f}"
            f" = {used / GIB:.2f} of {hbm['capacity'] / GIB:.0f} GiB",
        ),
    ]
    if result["flops_per_step"] is not None:
        model = result["model_flops_per_step"]
        rows += [
            (
                "FLOPs/step",
                f"{result['flops_per_step']:.3e} in matmuls; model FLOPs {model:.3e}",
            ),
            *(
                (f"over {axes}", ", ".join(f"{k} {v / 1e9:.2f} GB" for k, v in kinds.items()))
                for axes, kinds in result["collective_bytes"].items()
            ),
            ("step time", _step_time_text(result)),
            (
                "throughput",
                f"{result['tokens_per_second']:,.0f} tokens/s, "
                f"{result['clips_per_second']:,.0f} clips/s",
            ),
            ("MFU", f"{100 * result['expected_mfu']:.1f} % expected"),
        ]
    verdict = {True: "fits", False: "does not fit", None: "unknown (needs libtpu: jaxasa[plan])"}
    rows.append(("verdict", verdict[result["fits"]]))
    rows += [("to reduce", line) for line in result["advice"]]
    return "\n".join(f"{name:<13} {text}" for name, text in rows)


def _step_time_text(result: dict) -> str:
    parts = ", ".join(f"{name} {s:.3g}" for name, s in result["seconds_by_bound"].items())
    fractions = ", ".join(f"{n} {100 * e:.0f} %" for n, e in result["efficiencies"].items())
    return f"{result['expected_step_seconds']:.3g} s ({parts}; assumed efficiency: {fractions})"
