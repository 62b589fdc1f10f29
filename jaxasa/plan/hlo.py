# SPDX-License-Identifier: Apache-2.0
"""Parser of XLA's HLO text: trip counts, FLOPs, bytes accessed and collectives of a program.

XLA's own cost analysis counts the body of a loop once. Here each computation is counted as often
as it runs. The trip count of a loop is the compiler's `known_trip_count`, or is derived from the
condition (counter < constant, counter starting at 0) and from the increment of the counter. The
increment is 1 in loops of `jax.lax.scan`, and more in loops that XLA unrolls to overlap a
collective with matmuls.

The text is the program of one device after SPMD partitioning, so all sizes are per device.
"""

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from jaxasa.plan.replica_groups import parse_replica_groups

Shape = tuple[str, tuple[int, ...], bool]  # dtype, dimensions, True if in on-chip memory (VMEM)

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
# Opcodes that move nothing between HBM and the compute units by themselves.
_NO_TRAFFIC = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("async-start", "async-update", "async-done"),
    *("after-all", "copy-done", "slice-done", "partition-id", "call", "custom-call", "iota"),
}


@dataclass(frozen=True)
class Instruction:
    """An HLO instruction.

    shapes: of its result (several if it is a tuple). operands: names of instructions of the same
    computation. attributes: text after the operands; for a constant or parameter, its value.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    def attribute(self, name: str) -> str:
        """Text of the attribute `name`, "" if there is none."""
        match = re.search(rf"\b{name}=([^\s,]+(?:,[^\s=]+(?=[,}}]|$))*)", self.attributes)
        return match[1] if match else ""

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that run once with it: fusions, calls and branches.

        Bodies of loops (see Program.trip_count) and the scalar functions of reductions are not
        among them.
        """
        if self.opcode in ("while", "reduce", "reduce-window", "sort", "scatter", "map"):
            return ()
        if self.opcode in ("async-update", "async-done"):
            return ()  # Counted with the async-start that they belong to.
        if self.opcode.removesuffix("-start") in COLLECTIVES:
            return ()
        names: list[str] = []
        for match in _CALLED.finditer(self.attributes):
            rest = self.attributes[match.end() :]
            text = rest[: rest.index("}")] if rest.startswith("{") else rest.split(",")[0]
            names += _NAME.findall(text)
        return tuple(names)


@dataclass(frozen=True)
class Collective:
    """A collective operation of one device.

    bytes: of the gathered array for an all-gather, of the device's operand otherwise.
    groups: device numbers of the groups. is_async: it overlaps with compute.
    """

    kind: str
    bytes: int
    groups: tuple[tuple[int, ...], ...]
    is_async: bool


class Program:
    """The computations of an HLO module, and the cost of each."""

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
            match = _LINE.match(line)
            if match:
                op = _parse_instruction(line[match.end() :], match[2], bool(match[1]))
                current[op.name] = op

        self._async_computations = {
            inner for op in self._all() if op.opcode == "async-start" for inner in op.called
        }

    def _all(self) -> Iterator[Instruction]:
        for computation in self.computations.values():
            yield from computation.values()

    def execution_counts(self, dynamic_trip_count: int = 1) -> dict[str, int]:
        """Number of executions of each computation, by name.

        Loops whose trip count depends on data run `dynamic_trip_count` times.
        """
        order: list[str] = []
        seen: set[str] = set()

        def visit(name: str) -> None:
            if name not in seen:
                seen.add(name)
                for inner, _ in self._callees(name, dynamic_trip_count):
                    visit(inner)
                order.append(name)

        visit(self.entry)
        counts = dict.fromkeys(order, 0)
        counts[self.entry] = 1
        for name in reversed(order):
            for inner, times in self._callees(name, dynamic_trip_count):
                counts[inner] += counts[name] * times
        return counts

    def _callees(self, name: str, dynamic_trip_count: int) -> Iterator[tuple[str, int]]:
        """Computations that `name` runs, and how many times per execution of `name`."""
        for op in self.computations[name].values():
            if op.opcode == "while":
                yield op.attribute("body").lstrip("%"), self.trip_count(op) or dynamic_trip_count
            for inner in op.called:
                yield inner, 1

    def trip_count(self, loop: Instruction) -> int | None:
        """Trip count of a `while` instruction, None if it depends on data."""
        match = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
        if match:
            return int(match[1])
        bounds = set(self._loop_bounds(loop.attribute("condition").lstrip("%")))
        return -(-max(bounds) // self._induction_step(loop)) if bounds else None

    def _induction_step(self, loop: Instruction) -> int:
        """Increment of a loop's counter per iteration; 1 if it cannot be determined."""
        condition = self.computations[loop.attribute("condition").lstrip("%")]
        body = self.computations[loop.attribute("body").lstrip("%")]
        counters = {
            int(op.attribute("index"))
            for op in condition.values()
            if op.opcode == "get-tuple-element" and _is_counter(op)
        }
        roots = [op for op in body.values() if op.is_root and op.opcode == "tuple"]
        increments = [
            self._increment(body, root.operands[index], index)
            for root in roots
            for index in counters
            if index < len(root.operands)
        ]
        return max((n for n in increments if n), default=1)

    def _increment(
        self, computation: Mapping[str, Instruction], name: str, index: int
    ) -> int | None:
        """Constant that `name` adds to element `index` of the loop state, None if not constant."""
        op = computation.get(name)
        if op is None:
            return None
        if op.opcode == "get-tuple-element":
            return 0 if op.attribute("index") == str(index) else None
        if op.opcode in ("copy", "bitcast"):
            return self._increment(computation, op.operands[0], index)
        if op.opcode == "add":
            constants = [_constant(computation.get(operand)) for operand in op.operands]
            for constant, other in zip(constants, reversed(op.operands), strict=True):
                before = None if constant is None else self._increment(computation, other, index)
                if before is not None and constant is not None:
                    return before + constant
        if op.opcode == "fusion" and len(op.operands) <= 2:
            # The operands of a fused addition are the counter and at most one constant.
            operands = [_constant(computation.get(operand)) for operand in op.operands]
            outer = [n for n in operands if n is not None]
            increments = [self._increment(computation, o, index) for o in op.operands]
            start = next((n for n in increments if n is not None), None)
            fused = self.computations[op.called[0]] if op.called else {}
            inner = [n for i in fused.values() if (n := _constant(i)) is not None]
            adds = sum(i.opcode == "add" for i in fused.values())
            if start is not None and adds and len(inner) + len(outer) == 1:
                return start + adds * (inner + outer)[0]
        return None

    def _loop_bounds(self, name: str) -> Iterator[int]:
        """Constants that the condition `name` compares a counter with (counter < constant)."""
        computation = self.computations[name]
        constants = {
            op.name: value for op in computation.values() if (value := _constant(op)) is not None
        }
        for op in computation.values():
            if op.opcode == "compare" and "direction=LT" in op.attributes:
                yield from (constants[n] for n in op.operands[1:] if n in constants)
            for called in op.called:
                # The constant of a fused comparison is an operand of the fusion.
                operands = [constants[n] for n in op.operands if n in constants]
                compares = any(
                    "direction=LT" in i.attributes for i in self.computations[called].values()
                )
                yield from (
                    operands if compares and len(operands) == 1 else self._loop_bounds(called)
                )

    def flops(self, name: str) -> int:
        """FLOPs of the dots and convolutions of a computation, without those of its callees."""
        return sum(self.instruction_flops(name, op) for op in self.computations[name].values())

    def instruction_flops(self, name: str, op: Instruction) -> int:
        """FLOPs of one instruction; 0 for anything but a dot or a convolution."""
        if op.opcode not in ("dot", "convolution"):
            return 0
        computation = self.computations[name]
        left, right = (computation[operand].shapes[0][1] for operand in op.operands[:2])
        out = op.shapes[0][1]
        if op.opcode == "dot":
            axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.attributes)
            contracted = [left[int(axis)] for axis in axes[1].split(",") if axis] if axes else []
            return 2 * math.prod(out) * math.prod(contracted)
        return _convolution_flops(op, left, right, out)

    def bytes_accessed(self, name: str, op: Instruction) -> int:
        """Bytes of HBM that one instruction reads and writes; only the slice of sliced arrays."""
        computation = self.computations[name]
        if (
            op.opcode in _NO_TRAFFIC
            or op.opcode.removesuffix("-start").removesuffix("-done") in COLLECTIVES
        ):
            return 0
        operands = [
            computation[operand].shapes for operand in op.operands if operand in computation
        ]
        out = _num_bytes(op.shapes)
        if op.opcode in ("copy-start", "slice-start"):
            return sum(_num_bytes(shapes) for shapes in operands[:1])
        if op.opcode in ("dynamic-slice", "gather", "slice"):
            return 2 * out
        if op.opcode == "dynamic-update-slice":
            return 2 * _num_bytes(operands[1])
        if op.opcode != "fusion" or not op.called:
            return out + sum(map(_num_bytes, operands))
        read, written = self._sliced_accesses(op.called[0])
        aliased_operands: set[int] = set()
        aliased_results: set[int] = set()
        if _has_collective_part(self.computations[op.called[0]]):
            # Buffers of the collective are aliased through the fusion; the collective moves them.
            pairs = re.findall(r"\{(\d*)\}: \((\d+),", op.attributes)
            aliased_operands = {int(index) for _, index in pairs}
            aliased_results = {int(index or 0) for index, _ in pairs}
        writes = sum(
            min(_num_bytes((shape,)), written.get(index, math.inf))
            for index, shape in enumerate(op.shapes)
            if index not in aliased_results
        )
        reads = sum(
            min(_num_bytes(shapes), read.get(index, math.inf))
            for index, shapes in enumerate(operands)
            if index not in aliased_operands
        )
        return int(reads + writes)

    @functools.cache  # noqa: B019
    def _sliced_accesses(self, name: str) -> tuple[Mapping[int, float], Mapping[int, float]]:
        """Bytes that a fusion accesses of operands it slices and of results it updates in place.

        Returns ({operand index: bytes read}, {result index: bytes written}).
        """
        computation = self.computations[name]
        users: dict[str, list[Instruction]] = {}
        for op in computation.values():
            for operand in op.operands:
                users.setdefault(operand, []).append(op)
        read: dict[int, float] = {}
        for op in computation.values():
            if op.opcode != "parameter":
                continue
            sizes = [
                self._sliced_bytes(computation, op.name, user)
                for user in _users_through_bitcasts(op, users)
            ]
            if sizes and all(size is not None for size in sizes):
                read[int(op.attributes.split(")")[0] or 0)] = sum(filter(None, sizes))
        root = next(op for op in computation.values() if op.is_root)
        results = [computation[n] for n in root.operands] if root.opcode == "tuple" else [root]
        written: dict[int, float] = {}
        for index, result in enumerate(results):
            while result.opcode == "bitcast":
                result = computation[result.operands[0]]
            if result.opcode == "dynamic-update-slice":
                written[index] = _num_bytes(computation[result.operands[1]].shapes)
        return read, written

    def _sliced_bytes(self, computation: Mapping, name: str, user: Instruction) -> int | None:
        if user.opcode in ("dynamic-slice", "slice", "gather"):
            return _num_bytes(user.shapes)
        if user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            return 0
        if user.opcode == "fusion" and user.operands.count(name) == 1:
            size = self._sliced_accesses(user.called[0])[0].get(user.operands.index(name))
            return None if size is None else round(size)
        return None

    def collectives(self, name: str) -> list[Collective]:
        """Collectives that start in a computation, without those of its callees.

        A collective that XLA spreads over several fusions counts in the first of them.
        """
        collectives = []
        computation = self.computations[name]
        is_start = name in self._async_computations or any(
            "AsyncCollectiveStart" in op.attributes for op in computation.values()
        )
        scatters = name.startswith("all-reduce-scatter")
        for op in computation.values():
            kind = op.opcode.removesuffix("-start")
            if kind not in COLLECTIVES or (_has_collective_part(computation) and not is_start):
                continue
            size = sum(_num_bytes(computation[o].shapes, any_memory=True) for o in op.operands)
            groups = parse_replica_groups(op.attributes, self.devices)
            if kind == "all-gather":
                size *= len(groups[0])
            kind = "reduce-scatter" if scatters and kind == "all-reduce" else kind
            collectives.append(Collective(kind, size, groups, is_start or op.opcode != kind))
        return collectives


def _has_collective_part(computation: Mapping[str, Instruction]) -> bool:
    """True if a fusion holds a part of an asynchronous collective, overlapped with matmuls."""
    return any(
        "AsyncCollective" in op.attributes
        or (op.opcode in COLLECTIVES and "chain_id=" in op.attributes)
        for op in computation.values()
    )


def _users_through_bitcasts(
    op: Instruction, users: Mapping[str, list[Instruction]]
) -> list[Instruction]:
    consumers = []
    for user in users.get(op.name, []):
        consumers += _users_through_bitcasts(user, users) if user.opcode == "bitcast" else [user]
    return consumers


def _constant(op: Instruction | None) -> int | None:
    """Value of an integer constant, None for any other instruction."""
    if op is None or op.opcode != "constant":
        return None
    match = re.match(r"(-?\d+)$", op.attributes)
    return int(match[1]) if match else None


def _is_counter(op: Instruction) -> bool:
    return [(dtype, dims) for dtype, dims, _ in op.shapes] in ([("s32", ())], [("u32", ())])


def _parse_instruction(text: str, name: str, is_root: bool) -> Instruction:
    """Parses `TYPE opcode(operands), attributes`, or `TYPE opcode(value)` of a constant."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opens = text.index("(", end)
    closes = _closing(text, opens)
    opcode, arguments = text[end:opens].strip(), text[opens + 1 : closes]
    rest = text[closes + 1 :].lstrip(", ")
    if opcode in ("constant", "parameter"):
        return Instruction(name, opcode, _parse_shapes(text[:end]), (), arguments, is_root)
    operands = tuple(_NAME.findall(arguments))
    return Instruction(name, opcode, _parse_shapes(text[:end]), operands, rest, is_root)


def _closing(text: str, start: int) -> int:
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"HLO: no closing parenthesis in {text[:80]!r}")


def _parse_shapes(text: str) -> tuple[Shape, ...]:
    return tuple(
        (kind, tuple(int(d.lstrip("<=")) for d in dims.split(",") if d), "S(1)" in (layout or ""))
        for kind, dims, layout in _SHAPE.findall(text)
    )


def _num_bytes(shapes: tuple[Shape, ...], any_memory: bool = False) -> int:
    """Bytes in HBM, or in HBM and on-chip memory if `any_memory`."""
    total = 0.0
    for kind, dims, on_chip in shapes:
        if any_memory or not on_chip:
            digits = re.search(r"\d+", kind)
            bits = _BITS.get(kind, int(digits[0]) if digits else 32)
            total += math.prod(dims) * bits / 8
    return round(total)


def _convolution_flops(op: Instruction, left, right, out) -> int:
    """FLOPs of a convolution, without multiplications by padding.

    XLA writes a batched dot as a convolution whose window spans the batch, dilated so that each
    output position sees one input.
    """
    window = op.attributes.partition("window={")[2].partition("}")[0]
    fields = dict(part.split("=") for part in window.split()) if window else {}
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.attributes)
    if labels is None:
        raise ValueError(f"HLO: convolution {op.name} has no dim_labels")
    left_dims, right_dims, out_dims = labels.groups()
    sizes = [int(n) for n in fields.get("size", "").split("x") if n]

    def values(name: str, default: int) -> list[int]:
        text = fields.get(name)
        return [int(n) for n in text.split("x")] if text else [default] * len(sizes)

    pads = fields.get("pad", "x".join(["0_0"] * len(sizes))).split("x")
    stride, dilation = values("stride", 1), values("lhs_dilate", 1)
    kernel_dilation = values("rhs_dilate", 1)
    pairs = 1
    for d in range(len(sizes)):
        inputs, outputs = left[left_dims.index(str(d))], out[out_dims.index(str(d))]
        pad = int(pads[d].split("_")[0])
        pairs *= _valid_pairs(
            inputs, outputs, sizes[d], stride[d], pad, dilation[d], kernel_dilation[d]
        )
    features = right[right_dims.index("i")] * out[out_dims.index("f")] * out[out_dims.index("b")]
    return 2 * features * pairs


@functools.cache
def _valid_pairs(
    inputs: int,
    outputs: int,
    size: int,
    stride: int,
    pad: int,
    dilation: int,
    kernel_dilation: int,
) -> int:
    """Number of (output position, kernel tap) pairs along one dimension that read an input."""
    count = 0
    for output in range(outputs):
        for tap in range(size):
            position = output * stride + tap * kernel_dilation - pad
            count += position >= 0 and position % dilation == 0 and position // dilation < inputs
    return count
