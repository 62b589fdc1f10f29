"""`jaxasa plan`: what a stage's step needs of a pod, before there is one.

The real step is compiled for the topology ahead of time, by TPU's own compiler where libtpu is
installed (extra `plan`). Its memory is the compiler's figure and the verdict rests on it; FLOPs,
traffic and collectives are read from the compiled program (hlo.py), and the time is expected by a
roofline (roofline.py). Without libtpu the step is compiled for as many emulated CPU devices:
then what XLA's TPU compiler would do is not known, and neither is whether the step fits.
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

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core import trees
from jaxasa.models import flops
from jaxasa.parallel import mesh
from jaxasa.parallel.chips import GIB, Topology, topology
from jaxasa.plan import aot, roofline
from jaxasa.plan.hlo import Program

WHAT = ("text", "spatial", "align", "sft", "grpo", aot.ROLLOUT)
_MOST_EMULATED = 1024


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Of one device: bytes that the step's arguments and temporaries take, and its program.

    program: None where the compiler gave up for want of memory; `needed` then is what it said.
    """

    arguments: int
    temporaries: int
    program: Program | None


def plan(run: config.Run, name: str, what: str | None = None) -> dict:
    """The plan of `what` (a stage or "rollout"; None: the last of Run.stages) on topology `name`.

    Raises ConfigError for an unknown topology, and for a mesh, model or batch that does not
    divide over it.
    """
    pod = topology(name)
    what = what or run.stages[-1]
    config.check(what in WHAT, "--stage", what, "one of " + ", ".join(WHAT))
    is_tpu = importlib.util.find_spec("libtpu") is not None
    devices = _tpu(name) if is_tpu else _emulated(pod)
    config.check(len(devices) == pod.devices, "--topology", name, f"{pod.devices} devices")
    over = mesh.make(run.mesh, devices)
    with _progress(f"compiling {what} for {name}{'' if is_tpu else ' (emulated CPU devices)'}"):
        lowered, given = aot.lower(run, what, over)
        arguments = sum(map(_own_bytes, jax.tree.leaves(given)))
        found = _compile(lowered, arguments, pod.devices, is_tpu)
    shapes = aot.params_shapes(run)
    result = {
        "topology": name,
        "chips": pod.chips,
        "stage": what,
        "mesh": dict(over.shape),
        "compiler": "libtpu" if is_tpu else "emulated CPU devices",
        "parameters": sum(math.prod(s.shape) for s in jax.tree.leaves(shapes)),
        "trainable_parameters": _trainable(run, what, shapes),
        "fits": None,
        "hbm_bytes": {
            "arguments": found.arguments * pod.chip.devices,
            "temporaries": found.temporaries * pod.chip.devices,
            "capacity": int(pod.chip.hbm),
        },
        "flops_per_step": None,
        "model_flops_per_step": flops.model_flops(run, what, shapes),
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
        result["fits"] = found.program is not None and used <= pod.chip.hbm
    if found.program is not None:
        result |= _expected(run, what, pod, over, found.program, result["model_flops_per_step"])
    result["advice"] = _advice(run, what, over, found) if result["fits"] is False else []
    return result


def _expected(run, what: str, pod: Topology, over, program: Program, model_flops: float) -> dict:
    """What the roofline makes of a program."""
    coords = [_place(device) for device in over.devices.flat]
    known = coords if all(len(c) == len(pod.dims) for c in coords) else None
    unknown = run.model.reply_tokens if what == aot.ROLLOUT else 1
    cost = roofline.cost(program, dict(over.shape), pod, known, unknown)
    stage = getattr(run, "grpo" if what == aot.ROLLOUT else what)
    counts = flops.positions(run, what)
    tokens = counts["head"] if what == aot.ROLLOUT else counts["decoder"]
    return {
        "flops_per_step": cost.flops * pod.devices,
        "collective_bytes": cost.collective_bytes,
        "expected_step_seconds": cost.total,
        "expected_mfu": model_flops / (cost.total * pod.chips * pod.chip.flops),
        "seconds_by_bound": cost.seconds,
        "tokens_per_second": tokens / cost.total,
        "clips_per_second": stage.batch_size / cost.total,
    }


def _place(device) -> tuple[int, ...]:
    coords = tuple(getattr(device, "coords", ()))
    # Two-dimensional slices have a third coordinate, which is always 0.
    return coords[:2] if "lite" in getattr(device, "device_kind", "") else coords


def _trainable(run: config.Run, what: str, shapes) -> int:
    if what == aot.ROLLOUT:
        return 0
    learns, _ = trees.split(shapes, getattr(run, what).trainable)
    return sum(math.prod(s.shape) for s in learns.values())


def _tpu(name: str) -> Sequence:
    """Devices of a slice that is not there."""
    from jax.experimental import topologies

    # Asked of the machine's metadata otherwise, which only a TPU's host has.
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-256")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # Its lock keeps processes apart that share a TPU; two plans share nothing.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"--topology {name}: libtpu knows none such: {reason}") from None


def _emulated(pod: Topology) -> Sequence:
    expected = f"at most {_MOST_EMULATED} devices where libtpu is not installed"
    config.check(pod.devices <= _MOST_EMULATED, "--topology", pod.name, expected)
    try:
        jax.config.update("jax_num_cpu_devices", pod.devices)
    except RuntimeError:
        pass  # Started already: the devices that are there must do.
    devices = jax.devices("cpu")
    expected = f"a topology of at most {len(devices)} devices in this process"
    config.check(len(devices) >= pod.devices, "--topology", pod.name, expected)
    return devices[: pod.devices]


def _own_bytes(shape: jax.ShapeDtypeStruct) -> int:
    """Bytes of an array that lie on one device."""
    own = shape.sharding.shard_shape(shape.shape)
    is_key = jax.dtypes.issubdtype(shape.dtype, jax.dtypes.prng_key)
    return math.prod(own) * (8 if is_key else shape.dtype.itemsize)


def _compile(lowered: jax.stages.Lowered, arguments: int, devices: int, is_tpu: bool) -> Compiled:
    with tempfile.TemporaryDirectory(prefix="jaxasa-plan-") as folder:
        # Written by the compiler too: as_text() cannot read all that it makes for v5p.
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
    # What is given back in the place of an argument takes no room of its own.
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporaries = memory.temp_size_in_bytes + made + memory.generated_code_size_in_bytes
    return Compiled(memory.argument_size_in_bytes, temporaries, Program(text, devices))


def _advice(run: config.Run, what: str, over, found: Compiled) -> list[str]:
    """What to change where a step does not fit, the likeliest first."""
    lines = []
    stage = "GrpoStage" if what == aot.ROLLOUT else f"{what.capitalize()}Stage"
    data, fsdp, tensor = (over.shape[axis] for axis in mesh.AXES)
    decoder = run.model.decoder
    if data > 1 and decoder.width % (data * fsdp) == 0:
        lines.append(
            f"more fsdp: --gin.Mesh.data=1 --gin.Mesh.fsdp={data * fsdp} "
            "splits parameters over all of it"
        )
    if found.arguments > found.temporaries:
        if data % 2 == 0 and decoder.kv_heads % (2 * tensor) == 0:
            sizes = f"data={data // 2} --gin.Mesh.fsdp={fsdp} --gin.Mesh.tensor={2 * tensor}"
            lines.append(f"more tensor: --gin.Mesh.{sizes}, or a larger slice")
        else:
            lines.append("a larger slice: parameters and optimizer take most of the room")
    options = getattr(run, "grpo" if what == aot.ROLLOUT else what)
    if what not in ("spatial", aot.ROLLOUT) and run.model.remat != "full":
        lines.append("remat: --gin.Model.remat=\"'full'\" keeps only the input of each layer")
    halved = options.batch_size % (2 * data * fsdp * options.grad_accum_steps) == 0
    if halved and what != aot.ROLLOUT:
        parts = 2 * options.grad_accum_steps
        lines.append(
            f"in parts: --gin.{stage}.grad_accum_steps={parts} takes the batch part by part"
        )
    if halved:
        lines.append(f"smaller batch: --gin.{stage}.batch_size={options.batch_size // 2}")
    questions = getattr(options, "questions", 1)
    if questions > 1:
        lines.append(f"smaller batch: --gin.{stage}.questions={questions // 2}")
    if what in ("grpo", aot.ROLLOUT) and run.grpo.num_generations > 2:
        lines.append(
            f"smaller batch: --gin.GrpoStage.num_generations={run.grpo.num_generations // 2}"
        )
    return lines or ["a larger slice, or chips with more memory"]


@contextlib.contextmanager
def _progress(what: str) -> Iterator[None]:
    """Says on stderr every ten seconds that it is still at work."""
    began, done = time.monotonic(), threading.Event()

    def say() -> None:
        while not done.wait(10.0):
            print(f"{what}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

    print(what, file=sys.stderr, flush=True)
    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def table(result: dict) -> str:
    """The plan in lines for reading."""
    hbm = result["hbm_bytes"]
    used = hbm["arguments"] + hbm["temporaries"]
    over = " x ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
    rows = [
        ("step", f"{result['stage']} on {result['topology']}: {result['chips']} chips, {over}"),
        ("compiled by", result["compiler"]),
        (
            "parameters",
            f"{result['parameters']:,}, of which learn {result['trainable_parameters']:,}",
        ),
        (
            "HBM a chip",
            f"arguments {hbm['arguments'] / GIB:.2f} + temporaries {hbm['temporaries'] / GIB:.2f}"
            f" = {used / GIB:.2f} of {hbm['capacity'] / GIB:.0f} GiB",
        ),
    ]
    if result["flops_per_step"] is not None:
        model = result["model_flops_per_step"]
        rows += [
            (
                "FLOPs a step",
                f"{result['flops_per_step']:.3e} of products; the model's own {model:.3e}",
            ),
            *(
                (f"over {axes}", ", ".join(f"{k} {v / 1e9:.2f} GB" for k, v in kinds.items()))
                for axes, kinds in result["collective_bytes"].items()
            ),
            ("step time", _times(result)),
            (
                "throughput",
                f"{result['tokens_per_second']:,.0f} tokens/s, "
                f"{result['clips_per_second']:,.0f} clips/s",
            ),
            ("MFU", f"{100 * result['expected_mfu']:.1f} % expected"),
        ]
    verdict = {True: "fits", False: "does not fit", None: "unknown (needs libtpu: jaxasa[plan])"}
    rows.append(("verdict", verdict[result["fits"]]))
    rows += [("change", line) for line in result["advice"]]
    return "\n".join(f"{name:<13} {text}" for name, text in rows)


def _times(result: dict) -> str:
    parts = ", ".join(f"{name} {s:.3g}" for name, s in result["seconds_by_bound"].items())
    shares = ", ".join(f"{n} {100 * e:.0f} %" for n, e in result["efficiencies"].items())
    return f"{result['expected_step_seconds']:.3g} s (waits: {parts}; assumed of peak: {shares})"
