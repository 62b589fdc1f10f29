"""Expected time of a step: each instruction as slow as its products or its memory traffic.

The efficiencies are assumptions, printed with each plan, and not measurements: what share of
a chip's peak good kernels reach. Published training runs of dense models on these chips reach 60
to 68 % of peak overall (MaxText's tables for v5e and v5p), overheads included.

Copies into the cores' own memory that the compiler starts early take place while products leave
the chip's memory idle; what is longer than that waits.

A collective over some axes of the mesh moves by as many dimensions of the slice as its groups
extend in. Those that the compiler starts early overlap the products of their own loop, and what
is longer than these waits; the others stop everything.

The latency of kernels and links is not in it, nor is the wait for data: what takes microseconds a
turn, as the rollouts of small models, will take longer than expected here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxasa.parallel.chips import Topology
from jaxasa.plan.hlo import Collective, Program

EFFICIENCY = {"products": 0.8, "memory": 0.8, "links": 0.7}


@dataclass
class Cost:
    """Of one device and step: FLOPs of products, seconds by what they wait for, collectives.

    collective_bytes: {axes, "+" between them: {kind: bytes}}; a gathered array counts whole.
    """

    flops: float = 0.0
    seconds: dict[str, float] = field(
        default_factory=lambda: {"products": 0.0, "memory": 0.0, "links": 0.0}
    )
    collective_bytes: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def cost(
    program: Program,
    axes: Mapping[str, int],
    slice_: Topology,
    coords: Sequence[tuple[int, ...]] | None = None,
    unknown: int = 1,
) -> Cost:
    """What one device does in a step of `program`.

    axes: sizes of the mesh's axes, in the order in which devices are numbered. coords: where each
    device lies in the slice (None: in the order of its dimensions). unknown: turns of loops whose
    end depends on data.
    """
    chip, shares = slice_.chip, slice_.chip.devices
    peak = chip.flops / shares * EFFICIENCY["products"]
    rate = chip.hbm_rate / shares * EFFICIENCY["memory"]
    found = Cost()
    coords = coords or [
        tuple(np.unravel_index(n // shares, slice_.dims)) for n in range(slice_.devices)
    ]
    counts = program.runs(unknown)
    fused = {
        inner
        for name in counts
        for made in program.computations[name].values()
        for inner in made.called
    }
    for name, times in counts.items():
        if name in fused:
            continue
        busy, idle, early, hidden = 0.0, 0.0, 0.0, 0.0
        for made in program.computations[name].values():
            within = _below(program, made)
            flops = program.instruction_flops(name, made) + sum(map(program.flops, within))
            products, memory = flops / peak, program.moved(name, made) / rate
            if made.opcode in ("copy-start", "slice-start"):
                early += memory
                continue
            bound = "products" if products >= memory else "memory"
            found.seconds[bound] += times * max(products, memory)
            found.flops += times * flops
            busy += max(products, memory)
            idle += max(0.0, products - memory)
        late = max(0.0, early - idle)
        found.seconds["memory"] += times * late
        busy += late
        for inner in [name, *_all_below(program, name)]:
            for collective in program.collectives(inner):
                seconds = link_seconds(collective, slice_, coords)
                if collective.is_async:
                    hidden += seconds
                else:
                    found.seconds["links"] += times * seconds
                over = over_axes(collective, axes)
                kinds = found.collective_bytes.setdefault(over, {})
                kinds[collective.kind] = kinds.get(collective.kind, 0) + times * collective.bytes
        found.seconds["links"] += times * max(0.0, hidden - busy)
    return found


def _below(program: Program, made) -> list[str]:
    """Computations that run with an instruction, at any depth."""
    names = list(made.called)
    for name in names:
        for inner in program.computations[name].values():
            names += [n for n in inner.called if n not in names]
    return names


def _all_below(program: Program, name: str) -> list[str]:
    return [n for made in program.computations[name].values() for n in _below(program, made)]


def over_axes(collective: Collective, axes: Mapping[str, int]) -> str:
    """Names of the mesh axes along which the groups of a collective extend, "+" between them."""
    varies = set()
    for group in collective.groups:
        places = np.stack(np.unravel_index(np.array(group), tuple(axes.values())), 1)
        varies |= set(np.flatnonzero((places != places[0]).any(0)).tolist())
    return "+".join(name for i, name in enumerate(axes) if i in varies) or "none"


def link_seconds(collective: Collective, slice_: Topology, coords: Sequence) -> float:
    """Time that a collective needs alone: rings over the dimensions that its groups extend in."""
    size = max(map(len, collective.groups))
    group = collective.groups[0] if collective.kind != "collective-permute" else None
    members = [coords[n] for n in (group or {n for g in collective.groups for n in g})]
    extends = [len({m[d] for m in members}) for d in range(len(slice_.dims))]
    rate = 0.0
    for length, whole in zip(extends, slice_.dims, strict=True):
        if length > 1:
            closes = length == whole and whole % slice_.chip.ring == 0
            rate += slice_.chip.link_rate / len(slice_.dims) * (1.0 if closes else 0.5)
    rate = (rate or slice_.chip.link_rate) / slice_.chip.devices * EFFICIENCY["links"]
    others = (size - 1) / size
    share = {
        "all-reduce": 2 * others,
        "all-to-all": others * max(extends) / 4,  # most of it crosses several links
        "collective-permute": 1.0,
    }.get(collective.kind, others)
    return collective.bytes * share / rate
