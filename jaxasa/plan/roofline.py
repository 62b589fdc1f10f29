# SPDX-License-Identifier: Apache-2.0
"""Roofline estimate of a step's time: matmul FLOP/s, HBM bandwidth, ICI bandwidth.

Each instruction takes the longer of its matmul time and its HBM time.

EFFICIENCY holds the assumed fraction of each peak that good kernels reach. These are
assumptions, printed with each plan, not measurements. Published training runs of dense models on
these chips reach 60 to 68 % of peak overall (MaxText's tables for v5e and v5p), overheads included.

Asynchronous copies from HBM to on-chip memory overlap with matmuls that leave HBM idle; time
beyond that counts as HBM time.

A collective over some mesh axes uses the links of as many torus dimensions as its groups extend
in. Asynchronous collectives overlap with the compute of their own loop, and time beyond that
counts as ICI time; synchronous ones overlap with nothing.

Not modelled: latency of kernels and links, and waiting for input data. Loops whose iterations
take microseconds, as rollouts of small models, take longer than estimated here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxasa.parallel.chips import Topology
from jaxasa.plan.hlo import Collective, Instruction, Program

EFFICIENCY = {"matmul": 0.8, "hbm": 0.8, "ici": 0.7}


@dataclass
class StepCost:
    """Cost of one step on one device: matmul FLOPs, seconds by bound, collectives.

    collective_bytes: {mesh axes joined by "+": {kind: bytes}}; an all-gather counts its result.
    """

    flops: float = 0.0
    seconds: dict[str, float] = field(
        default_factory=lambda: {"matmul": 0.0, "hbm": 0.0, "ici": 0.0}
    )
    collective_bytes: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def step_cost(
    program: Program,
    mesh_axes: Mapping[str, int],
    topology: Topology,
    coords: Sequence[tuple[int, ...]] | None = None,
    dynamic_trip_count: int = 1,
) -> StepCost:
    """Estimates the cost of one execution of `program` on one device.

    mesh_axes: sizes of the mesh's axes, in the order in which devices are numbered. coords:
    position of each device in the slice (None: row-major). dynamic_trip_count: trip count of loops
    for which it depends on data.
    """
    chip, per_chip = topology.chip, topology.chip.devices
    flops_per_s = chip.flops / per_chip * EFFICIENCY["matmul"]
    hbm_per_s = chip.hbm_bandwidth / per_chip * EFFICIENCY["hbm"]
    cost = StepCost()
    coords = coords or [
        tuple(np.unravel_index(n // per_chip, topology.dims)) for n in range(topology.devices)
    ]
    counts = program.execution_counts(dynamic_trip_count)
    fused = {
        inner
        for name in counts
        for op in program.computations[name].values()
        for inner in op.called
    }
    for name, times in counts.items():
        if name in fused:
            continue
        compute_s, hbm_idle_s, prefetch_s, async_ici_s = 0.0, 0.0, 0.0, 0.0
        for op in program.computations[name].values():
            nested = _nested_computations(program, op)
            flops = program.instruction_flops(name, op) + sum(map(program.flops, nested))
            matmul_s, hbm_s = flops / flops_per_s, program.bytes_accessed(name, op) / hbm_per_s
            if op.opcode in ("copy-start", "slice-start"):
                prefetch_s += hbm_s
                continue
            bound = "matmul" if matmul_s >= hbm_s else "hbm"
            cost.seconds[bound] += times * max(matmul_s, hbm_s)
            cost.flops += times * flops
            compute_s += max(matmul_s, hbm_s)
            hbm_idle_s += max(0.0, matmul_s - hbm_s)
        exposed_s = max(0.0, prefetch_s - hbm_idle_s)
        cost.seconds["hbm"] += times * exposed_s
        compute_s += exposed_s
        for inner in [name, *_all_nested_computations(program, name)]:
            for collective in program.collectives(inner):
                seconds = ici_seconds(collective, topology, coords)
                if collective.is_async:
                    async_ici_s += seconds
                else:
                    cost.seconds["ici"] += times * seconds
                axes = mesh_axes_of(collective, mesh_axes)
                kinds = cost.collective_bytes.setdefault(axes, {})
                kinds[collective.kind] = kinds.get(collective.kind, 0) + times * collective.bytes
        cost.seconds["ici"] += times * max(0.0, async_ici_s - compute_s)
    return cost


def _nested_computations(program: Program, op: Instruction) -> list[str]:
    """Computations that run with an instruction, at any depth."""
    names = list(op.called)
    for name in names:
        for inner in program.computations[name].values():
            names += [n for n in inner.called if n not in names]
    return names


def _all_nested_computations(program: Program, name: str) -> list[str]:
    return [
        n for op in program.computations[name].values() for n in _nested_computations(program, op)
    ]


def mesh_axes_of(collective: Collective, axes: Mapping[str, int]) -> str:
    """Names of the mesh axes along which the groups of a collective extend, "+" between them."""
    varying: set[int] = set()
    for group in collective.groups:
        indices = np.stack(np.unravel_index(np.array(group), tuple(axes.values())), 1)
        varying |= set(np.flatnonzero((indices != indices[0]).any(0)).tolist())
    return "+".join(name for i, name in enumerate(axes) if i in varying) or "none"


def ici_seconds(collective: Collective, topology: Topology, coords: Sequence) -> float:
    """Seconds of a collective without overlap: rings over the dimensions its groups extend in."""
    size = max(map(len, collective.groups))
    group = collective.groups[0] if collective.kind != "collective-permute" else None
    members = [coords[n] for n in (group or {n for g in collective.groups for n in g})]
    extends = [len({m[d] for m in members}) for d in range(len(topology.dims))]
    rate = 0.0
    for length, full in zip(extends, topology.dims, strict=True):
        if length > 1:
            wraps = length == full and full % topology.chip.torus_wraparound == 0
            rate += topology.chip.ici_bandwidth / len(topology.dims) * (1.0 if wraps else 0.5)
    rate = (rate or topology.chip.ici_bandwidth) / topology.chip.devices * EFFICIENCY["ici"]
    others = (size - 1) / size
    factor = {
        "all-reduce": 2 * others,
        "all-to-all": others * max(extends) / 4,  # most of the data crosses several links
        "collective-permute": 1.0,
    }.get(collective.kind, others)
    return collective.bytes * factor / rate
