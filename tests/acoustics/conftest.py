# SPDX-License-Identifier: Apache-2.0
"""A scene for tests of specs and descriptions."""

import pytest

from jaxasa.acoustics import spec


@pytest.fixture(scope="session")
def bell() -> spec.SceneSpec:
    """A bell 2 m to the left (along y) of a listener who faces 30 degrees to the left of x."""
    source = spec.Source("bell", "c", "t", 0.5, 1.0, 1.0, 3.0, (3.0, 4.0, 1.5))
    return spec.SceneSpec(
        seed=0,
        split="train",
        index=12,
        seconds=4.0,
        room=(6.0, 5.0, 3.0),
        absorption=(0.3,) * 7,
        rt60=0.4,
        listener=(3.0, 2.0, 1.5),
        yaw=30.0,
        sources=(source,),
        snr=30.0,
    )
