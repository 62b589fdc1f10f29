# SPDX-License-Identifier: Apache-2.0
"""The device mesh, with the axes (data, fsdp, tensor)."""

import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType

from jaxasa import config

AXES = ("data", "fsdp", "tensor")


def make_mesh(mesh: config.Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Mesh over `devices`, by default all of every process; one size may be -1 for the rest.

    Raises ConfigError if the sizes do not multiply to the number of devices, and if the tensor
    axis would span processes, which have different rows of a batch.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [mesh.data, mesh.fsdp, mesh.tensor]
    fixed = math.prod(s for s in sizes if s != -1)
    if -1 in sizes and len(devices) % fixed == 0:
        sizes[sizes.index(-1)] = len(devices) // fixed
    expected = f"sizes that multiply to the {len(devices)} devices here"
    config.check(math.prod(sizes) == len(devices), f"Mesh {AXES}", tuple(sizes), expected)
    here = sum(device.process_index == devices[0].process_index for device in devices)
    expected = f"a divisor of the {here} devices of a process"
    config.check(here % sizes[2] == 0, "Mesh.tensor", sizes[2], expected)
    # jax's default is Explicit, which would make every array's type carry its sharding.
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
