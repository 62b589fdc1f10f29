import jax
import pytest
from jax.sharding import AxisType

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.parallel import mesh


def test_what_is_left_goes_to_minus_one():
    made = mesh.make(config.Mesh(data=2, fsdp=-1, tensor=2))
    assert dict(made.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert made.axis_names == mesh.AXES and set(made.axis_types) == {AxisType.Auto}
    assert set(made.devices.flat) == set(jax.devices())


def test_given_devices():
    made = mesh.make(config.Mesh(), jax.devices()[3:4])
    assert made.size == 1 and list(made.devices.flat) == [jax.devices()[3]]


@pytest.mark.parametrize("sizes", [(3, -1, 1), (2, 2, 1), (16, 1, 1)])
def test_sizes_that_do_not_fit(sizes):
    with pytest.raises(ConfigError, match="Mesh.*8 devices"):
        mesh.make(config.Mesh(*sizes))
