# SPDX-License-Identifier: Apache-2.0
"""Parser of the replica groups of HLO collectives: the devices that take part in each group."""

import math
import re

Groups = tuple[tuple[int, ...], ...]

# Axes and sizes of a mesh, optionally an order of its devices, and the axes of the groups.
_NAMED = re.compile(
    r"replica_groups=@?mesh\w*\[([^\]]*)\]"
    r"(?:, ?device_ids=\(?\[([\d,]+)\](?:T\(([\d,]+)\))?\)?)?"
    r" ?\{([^}]*)\}"
)


def parse_replica_groups(text: str, devices: int) -> Groups:
    """Groups of device numbers of a collective.

    XLA writes them as source-target pairs, as lists, as a transposed iota, or by the axes of a
    named mesh. Raises ValueError for anything else.
    """
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", text)
    if pairs:
        return tuple(tuple(map(int, p.split(","))) for p in re.findall(r"\{(\d+,\d+)\}", pairs[1]))
    listed = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", text)
    if listed:
        groups = [tuple(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", listed[1])]
        return tuple(groups) or (tuple(range(devices)),)
    tiled = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if tiled:
        order = _iota(tiled[3], tiled[4])
        return _rows(order, int(tiled[2]))
    named = _NAMED.search(text)
    if named:
        axes = [(name, int(size)) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])]
        order = _iota(named[2], named[3]) if named[2] else list(range(devices))
        return _named_groups(axes, order, named[4])
    raise ValueError(f"HLO: groups of a collective not understood: {text[:200]}")


def _named_groups(axes, order: list[int], group_axes: str) -> Groups:
    """Groups along axes of a named mesh.

    group_axes: 'x' for all of axis x, or 'x':(2)4 for a sub-axis of size 4 inside 2 blocks.
    """
    selected = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", group_axes)
    # An axis with a sub-axis is split in three: blocks around it, the sub-axis, positions within.
    dims: list[int] = []
    varying: list[bool] = []
    for name, size in axes:
        part = next((p for p in selected if p[0] == name), None)
        if part is None or not part[1]:
            dims.append(size)
            varying.append(part is not None)
        else:
            blocks, width = int(part[1]), int(part[2])
            dims += [blocks, width, size // blocks // width]
            varying += [False, True, False]
    groups: dict[tuple[int, ...], list[int]] = {}
    for position, device in enumerate(order):
        indices = []
        for size in reversed(dims):
            position, index = divmod(position, size)
            indices.append(index)
        indices.reverse()
        rest = tuple(i for i, v in zip(indices, varying, strict=True) if not v)
        groups.setdefault(rest, []).append(device)
    return tuple(map(tuple, groups.values()))


def _iota(dims_text: str, order_text: str | None) -> list[int]:
    """arange(prod(dims)).reshape(dims).transpose(order), flattened."""
    dims = [int(d) for d in dims_text.split(",")]
    axes = [int(a) for a in order_text.split(",")] if order_text else list(range(len(dims)))
    strides = [math.prod(dims[a + 1 :]) for a in range(len(dims))]
    numbers = [0]
    for axis in axes:
        numbers = [n + i * strides[axis] for n in numbers for i in range(dims[axis])]
    return numbers


def _rows(numbers: list[int], width: int) -> Groups:
    return tuple(tuple(numbers[i : i + width]) for i in range(0, len(numbers), width))
