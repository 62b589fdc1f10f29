# SPDX-License-Identifier: Apache-2.0
import jax
import pytest
from jax.sharding import AxisType

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.parallel import mesh


def test_size_minus_one_takes_the_remaining_devices():
    devices = mesh.make_mesh(config.Mesh(data=2, fsdp=-1, tensor=2))
    assert dict(devices.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert devices.axis_names == mesh.AXES and set(devices.axis_types) == {AxisType.Auto}
    assert set(devices.devices.flat) == set(jax.devices())


def test_mesh_over_some_devices():
    device = mesh.make_mesh(config.Mesh(), jax.devices()[3:4])
    assert device.size == 1 and list(device.devices.flat) == [jax.devices()[3]]


@pytest.mark.parametrize("sizes", [(3, -1, 1), (2, 2, 1), (16, 1, 1)])
def test_sizes_that_do_not_multiply_to_the_devices_are_refused(sizes):
    with pytest.raises(ConfigError, match="Mesh.*8 devices"):
        mesh.make_mesh(config.Mesh(*sizes))
