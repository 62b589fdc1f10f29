"""Reads XLA's text of a compiled program: loops, products, memory traffic, collectives.

XLA's own cost analysis counts the body of a loop once. Here each computation is counted as often
as it runs: a loop's turns are read from what the compiler notes, or from its condition, in which
a counter that starts at 0 meets a constant. It grows by 1 in loops of `jax.lax.scan`, and by as
many parts as one turn works off in those with which the compiler hides a collective.

The text is that of one device after partitioning, so all sizes are a device's own.
"""

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from jaxasa.plan.groups import groups_of

Shape = tuple[str, tuple[int, ...], bool]  # dtype, dimensions, whether in the chip's own memory

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
_BITS = {"pred": 8, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"([a-z]+[0-9a-z]*)\[([0-9,<=]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(r"(?:calls|to_apply|called_computations|branch_computations)=")
# What moves nothing between memory and the units that compute.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("async-start", "async-update", "async-done"),
    *("after-all", "copy-done", "slice-done", "partition-id", "call", "custom-call", "iota"),
}


@dataclass(frozen=True)
class Instruction:
    """One line: `shapes` of what it makes, names of what it takes, attributes as text."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    def attribute(self, name: str) -> str:
        """Text of a simple attribute, "" where it has none."""
        found = re.search(rf"\b{name}=([^\s,]+(?:,[^\s=]+(?=[,}}]|$))*)", self.attributes)
        return found[1] if found else ""

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that run with it, loops and reductions apart."""
        if self.opcode in ("while", "reduce", "reduce-window", "sort", "scatter", "map"):
            return ()
        if self.opcode in ("async-update", "async-done"):
            return ()  # Later moments of what their async-start has begun.
        if self.opcode.removesuffix("-start") in COLLECTIVES:
            return ()
        found: list[str] = []
        for match in _CALLED.finditer(self.attributes):
            rest = self.attributes[match.end() :]
            text = rest[: rest.index("}")] if rest.startswith("{") else rest.split(",")[0]
            found += _NAME.findall(text)
        return tuple(found)


@dataclass(frozen=True)
class Collective:
    """What one device puts into a collective, how often, and among whom.

    bytes: of the whole array that is gathered, or of the device's part that is reduced or sent.
    groups: device numbers of the groups; is_async: products go on while it runs.
    """

    kind: str
    bytes: int
    groups: tuple[tuple[int, ...], ...]
    is_async: bool


class Program:
    """The computations of a module's text, and what each of them costs."""

    def __init__(self, text: str, devices: int):
        self.devices = devices
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            head = _HEAD.match(line)
            if head:
                current = self.computations[head[2]] = {}
                self.entry = head[2] if head[1] else self.entry
                continue
            started = _LINE.match(line)
            if started:
                made = _instruction(line[started.end() :], started[2], bool(started[1]))
                current[made.name] = made

        self._started = {
            inner for made in self._all() if made.opcode == "async-start" for inner in made.called
        }

    def _all(self) -> Iterator[Instruction]:
        for inside in self.computations.values():
            yield from inside.values()

    def runs(self, unknown: int = 1) -> dict[str, int]:
        """How often each computation runs; loops without a known end make `unknown` turns."""
        order: list[str] = []
        seen: set[str] = set()

        def visit(name: str) -> None:
            if name not in seen:
                seen.add(name)
                for inner, _ in self._inner(name, unknown):
                    visit(inner)
                order.append(name)

        visit(self.entry)
        counts = dict.fromkeys(order, 0)
        counts[self.entry] = 1
        for name in reversed(order):
            for inner, times in self._inner(name, unknown):
                counts[inner] += counts[name] * times
        return counts

    def _inner(self, name: str, unknown: int) -> Iterator[tuple[str, int]]:
        for made in self.computations[name].values():
            if made.opcode == "while":
                yield made.attribute("body").lstrip("%"), self.turns(made) or unknown
            for inner in made.called:
                yield inner, 1

    def turns(self, loop: Instruction) -> int | None:
        """Turns of a `while`, None where they depend on data."""
        noted = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
        if noted:
            return int(noted[1])
        limits = set(self._limits(loop.attribute("condition").lstrip("%")))
        return -(-max(limits) // self._stride(loop)) if limits else None

    def _stride(self, loop: Instruction) -> int:
        """By how much the counter of a loop grows in a turn; 1 where that cannot be read."""
        condition = self.computations[loop.attribute("condition").lstrip("%")]
        body = self.computations[loop.attribute("body").lstrip("%")]
        counters = {
            int(made.attribute("index"))
            for made in condition.values()
            if made.opcode == "get-tuple-element" and _is_counter(made)
        }
        roots = [made for made in body.values() if made.is_root and made.opcode == "tuple"]
        grown = [
            self._growth(body, root.operands[index], index)
            for root in roots
            for index in counters
            if index < len(root.operands)
        ]
        return max((n for n in grown if n), default=1)

    def _growth(self, inside: Mapping[str, Instruction], name: str, index: int) -> int | None:
        """What is added to element `index` of a loop's state to make `name`, None if it is more."""
        made = inside.get(name)
        if made is None:
            return None
        if made.opcode == "get-tuple-element":
            return 0 if made.attribute("index") == str(index) else None
        if made.opcode in ("copy", "bitcast"):
            return self._growth(inside, made.operands[0], index)
        if made.opcode == "add":
            parts = [_constant(inside.get(operand)) for operand in made.operands]
            for number, other in zip(parts, reversed(made.operands), strict=True):
                before = None if number is None else self._growth(inside, other, index)
                if before is not None and number is not None:
                    return before + number
        if made.opcode == "fusion" and len(made.operands) <= 2:
            # A fused addition takes the counter, and at most a constant, from outside.
            passed = [_constant(inside.get(operand)) for operand in made.operands]
            given = [n for n in passed if n is not None]
            grown = [self._growth(inside, o, index) for o in made.operands]
            start = next((n for n in grown if n is not None), None)
            fused = self.computations[made.called[0]] if made.called else {}
            own = [n for i in fused.values() if (n := _constant(i)) is not None]
            adds = sum(i.opcode == "add" for i in fused.values())
            if start is not None and adds and len(own) + len(given) == 1:
                return start + adds * (own + given)[0]
        return None

    def _limits(self, name: str) -> Iterator[int]:
        """Constants that a counter of a condition must stay below."""
        inside = self.computations[name]
        constants = {
            made.name: int(found[1])
            for made in inside.values()
            if made.opcode == "constant" and (found := re.match(r"(-?\d+)$", made.attributes))
        }
        for made in inside.values():
            if made.opcode == "compare" and "direction=LT" in made.attributes:
                yield from (constants[n] for n in made.operands[1:] if n in constants)
            for called in made.called:
                # A fused comparison takes its constant from outside.
                passed = [constants[n] for n in made.operands if n in constants]
                compares = any(
                    "direction=LT" in i.attributes for i in self.computations[called].values()
                )
                yield from passed if compares and len(passed) == 1 else self._limits(called)

    def flops(self, name: str) -> int:
        """Of the products (dot, convolution) that stand in a computation itself."""
        return sum(self.instruction_flops(name, made) for made in self.computations[name].values())

    def instruction_flops(self, name: str, made: Instruction) -> int:
        """Of one instruction, 0 where it is no product."""
        if made.opcode not in ("dot", "convolution"):
            return 0
        inside = self.computations[name]
        left, right = (inside[operand].shapes[0][1] for operand in made.operands[:2])
        out = made.shapes[0][1]
        if made.opcode == "dot":
            axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", made.attributes)
            contracted = [left[int(axis)] for axis in axes[1].split(",") if axis] if axes else []
            return 2 * math.prod(out) * math.prod(contracted)
        return _convolution_flops(made, left, right, out)

    def traffic(self, name: str) -> int:
        """Bytes that a computation's own instructions read from and write to the chip's memory."""
        return sum(self.moved(name, made) for made in self.computations[name].values())

    def moved(self, name: str, made: Instruction) -> int:
        """Bytes that one instruction reads and writes; of slices only what they touch."""
        inside = self.computations[name]
        if (
            made.opcode in _FREE
            or made.opcode.removesuffix("-start").removesuffix("-done") in COLLECTIVES
        ):
            return 0
        taken = [inside[operand].shapes for operand in made.operands if operand in inside]
        out = _bytes(made.shapes)
        if made.opcode in ("copy-start", "slice-start"):
            return sum(_bytes(shapes) for shapes in taken[:1])
        if made.opcode in ("dynamic-slice", "gather", "slice"):
            return 2 * out
        if made.opcode == "dynamic-update-slice":
            return 2 * _bytes(taken[1])
        if made.opcode != "fusion" or not made.called:
            return out + sum(map(_bytes, taken))
        read, written = self._touched(made.called[0])
        kept: set[int] = set()
        left: set[int] = set()
        if _is_spread(self.computations[made.called[0]]):
            # Arrays of the collective that it helps along are the collective's to move.
            pairs = re.findall(r"\{(\d*)\}: \((\d+),", made.attributes)
            kept = {int(index) for _, index in pairs}
            left = {int(place or 0) for place, _ in pairs}
        writes = sum(
            min(_bytes((shape,)), written.get(place, math.inf))
            for place, shape in enumerate(made.shapes)
            if place not in left
        )
        reads = sum(
            min(_bytes(shapes), read.get(index, math.inf))
            for index, shapes in enumerate(taken)
            if index not in kept
        )
        return int(reads + writes)

    @functools.cache  # noqa: B019
    def _touched(self, name: str) -> tuple[Mapping[int, float], Mapping[int, float]]:
        """Bytes that a fusion touches of arguments it only slices, and of results it updates."""
        inside = self.computations[name]
        users: dict[str, list[Instruction]] = {}
        for made in inside.values():
            for operand in made.operands:
                users.setdefault(operand, []).append(made)
        read: dict[int, float] = {}
        for made in inside.values():
            if made.opcode != "parameter":
                continue
            sizes = [self._part(inside, made.name, user) for user in _past_bitcasts(made, users)]
            if sizes and all(size is not None for size in sizes):
                read[int(made.attributes.split(")")[0] or 0)] = sum(filter(None, sizes))
        root = next(made for made in inside.values() if made.is_root)
        results = [inside[n] for n in root.operands] if root.opcode == "tuple" else [root]
        written: dict[int, float] = {}
        for place, result in enumerate(results):
            while result.opcode == "bitcast":
                result = inside[result.operands[0]]
            if result.opcode == "dynamic-update-slice":
                written[place] = _bytes(inside[result.operands[1]].shapes)
        return read, written

    def _part(self, inside: Mapping, name: str, user: Instruction) -> int | None:
        if user.opcode in ("dynamic-slice", "slice", "gather"):
            return _bytes(user.shapes)
        if user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            return 0
        if user.opcode == "fusion" and user.operands.count(name) == 1:
            part = self._touched(user.called[0])[0].get(user.operands.index(name))
            return None if part is None else round(part)
        return None

    def collectives(self, name: str) -> list[Collective]:
        """Those that begin in a computation, in loops and fusions of which they are counted there.

        One that the compiler spreads over several fusions counts in the first of them.
        """
        found = []
        inside = self.computations[name]
        is_start = name in self._started or any(
            "AsyncCollectiveStart" in made.attributes for made in inside.values()
        )
        scatters = name.startswith("all-reduce-scatter")
        for made in inside.values():
            kind = made.opcode.removesuffix("-start")
            if kind not in COLLECTIVES or (_is_spread(inside) and not is_start):
                continue
            size = sum(_bytes(inside[o].shapes, everywhere=True) for o in made.operands)
            groups = groups_of(made.attributes, self.devices)
            if kind == "all-gather":
                size *= len(groups[0])
            kind = "reduce-scatter" if scatters and kind == "all-reduce" else kind
            found.append(Collective(kind, size, groups, is_start or made.opcode != kind))
        return found


def _is_spread(inside: Mapping[str, Instruction]) -> bool:
    """Whether a fusion holds a piece of a collective that runs beside products."""
    return any(
        "AsyncCollective" in made.attributes
        or (made.opcode in COLLECTIVES and "chain_id=" in made.attributes)
        for made in inside.values()
    )


def _past_bitcasts(made: Instruction, users: Mapping[str, list[Instruction]]) -> list[Instruction]:
    found = []
    for user in users.get(made.name, []):
        found += _past_bitcasts(user, users) if user.opcode == "bitcast" else [user]
    return found


def _constant(made: Instruction | None) -> int | None:
    """The whole number that an instruction is, None for others."""
    if made is None or made.opcode != "constant":
        return None
    found = re.match(r"(-?\d+)$", made.attributes)
    return int(found[1]) if found else None


def _is_counter(made: Instruction) -> bool:
    return [(dtype, dims) for dtype, dims, _ in made.shapes] in ([("s32", ())], [("u32", ())])


def _instruction(text: str, name: str, is_root: bool) -> Instruction:
    """`TYPE opcode(operands), attributes`; a constant's or parameter's value leads the latter."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opens = text.index("(", end)
    closes = _closing(text, opens)
    opcode, inside = text[end:opens].strip(), text[opens + 1 : closes]
    rest = text[closes + 1 :].lstrip(", ")
    if opcode in ("constant", "parameter"):
        return Instruction(name, opcode, _shapes(text[:end]), (), inside, is_root)
    operands = tuple(_NAME.findall(inside))
    return Instruction(name, opcode, _shapes(text[:end]), operands, rest, is_root)


def _closing(text: str, start: int) -> int:
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"HLO: no closing parenthesis in {text[:80]!r}")


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(
        (kind, tuple(int(d.lstrip("<=")) for d in dims.split(",") if d), "S(1)" in (layout or ""))
        for kind, dims, layout in _SHAPE.findall(text)
    )


def _bytes(shapes: tuple[Shape, ...], everywhere: bool = False) -> int:
    """Bytes in the chip's main memory, or `everywhere`."""
    total = 0.0
    for kind, dims, is_near in shapes:
        if everywhere or not is_near:
            digits = re.search(r"\d+", kind)
            bits = _BITS.get(kind, int(digits[0]) if digits else 32)
            total += math.prod(dims) * bits / 8
    return round(total)


def _convolution_flops(made: Instruction, left, right, out) -> int:
    """Products that fall on an input that is there: XLA writes a batched dot as a convolution
    whose window is as long as its batch, dilated so that each place meets one input."""
    window = made.attributes.partition("window={")[2].partition("}")[0]
    fields = dict(part.split("=") for part in window.split()) if window else {}
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", made.attributes)
    if labels is None:
        raise ValueError(f"HLO: convolution {made.name} has no dim_labels")
    of_left, of_right, of_out = labels.groups()
    sizes = [int(n) for n in fields.get("size", "").split("x") if n]
    places = [d for d in range(len(sizes))]

    def values(name: str, default: int) -> list[int]:
        text = fields.get(name)
        return [int(n) for n in text.split("x")] if text else [default] * len(sizes)

    pads = fields.get("pad", "x".join(["0_0"] * len(sizes))).split("x")
    stride, spread = values("stride", 1), values("lhs_dilate", 1)
    kernel_spread = values("rhs_dilate", 1)
    pairs = 1
    for d in places:
        here, there = left[of_left.index(str(d))], out[of_out.index(str(d))]
        low = int(pads[d].split("_")[0])
        pairs *= _valid(here, there, sizes[d], stride[d], low, spread[d], kernel_spread[d])
    features = right[of_right.index("i")] * out[of_out.index("f")] * out[of_out.index("b")]
    return 2 * features * pairs


@functools.cache
def _valid(here: int, there: int, size: int, stride: int, low: int, spread: int, taps: int) -> int:
    """Pairs of an output place and a kernel tap that meet an input, along one dimension."""
    count = 0
    for place in range(there):
        for tap in range(size):
            at = place * stride + tap * taps - low
            count += at >= 0 and at % spread == 0 and at // spread < here
    return count
