# SPDX-License-Identifier: Apache-2.0
"""TPU topologies by the compiler's names ("v5p:4x4x8"), and the specifications of their chips.

Figures are the vendor's public ones per chip (Google Cloud TPU documentation, "System
architecture" of each version): bf16 peak, HBM size and bandwidth, and the bandwidth of all of a
chip's links to other chips (ICI) in one direction. A v5p or v6e chip is one device; a tpu7x chip
is two, each with half of its resources.
"""

import math
from dataclasses import dataclass

from jaxasa.config import ConfigError


@dataclass(frozen=True)
class Chip:
    """flops: bf16 FLOP/s; hbm: bytes; hbm_bandwidth, ici_bandwidth: bytes per second.

    devices: JAX devices per chip. torus_wraparound: a dimension of the topology whose length is a
    multiple of it is a ring; otherwise it is a line, with half the bandwidth.
    """

    flops: float
    hbm: float
    hbm_bandwidth: float
    ici_bandwidth: float
    devices: int
    torus_wraparound: int


GIB = 2.0**30
CHIPS = {
    "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9, 1, 16),
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 600e9, 1, 4),
    "v6e": Chip(918e12, 32 * GIB, 1640e9, 448e9, 1, 16),
    "tpu7x": Chip(2307e12, 192 * GIB, 7380e9, 1200e9, 2, 4),
}


# Dense bf16 FLOP/s of a JAX device, by the beginning of its `device_kind`; public figures.
_PEAKS = {
    "TPU v5 lite": CHIPS["v5e"].flops,
    "TPU v5": CHIPS["v5p"].flops,
    "TPU v6 lite": CHIPS["v6e"].flops,
    "TPU7x": CHIPS["tpu7x"].flops / 2,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Peak FLOP/s of a device in bf16; None if it is unknown."""
    names = [name for name in _PEAKS if device_kind.startswith(name)]
    return _PEAKS[max(names, key=len)] if names else None


@dataclass(frozen=True)
class Topology:
    """A slice of chips of one kind."""

    name: str
    chip: Chip
    dims: tuple[int, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.dims)

    @property
    def devices(self) -> int:
        return self.chips * self.chip.devices


def topology(name: str) -> Topology:
    """The topology of a name CHIP:AxB or CHIP:AxBxC. Raises ConfigError for any other."""
    kind, _, text = name.partition(":")
    expected = f"one of {', '.join(CHIPS)}, a colon and its shape, as in v5e:16x16 or v5p:4x4x8"
    parts = text.split("x")
    if kind not in CHIPS or not all(p.isdecimal() and int(p) > 0 for p in parts):
        raise ConfigError(f"--topology is {name!r}, expected {expected}")
    rank = 2 if kind in ("v5e", "v6e") else 3
    if len(parts) != rank:
        raise ConfigError(f"--topology is {name!r}, expected {rank} dimensions for {kind}")
    return Topology(name, CHIPS[kind], tuple(map(int, parts)))
