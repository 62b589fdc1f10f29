# SPDX-License-Identifier: Apache-2.0
"""Loads an HRTF by name.

>>> from jaxasa.acoustics.load_hrtf import load_hrtf
>>> load_hrtf("sphere").name
'sphere of 0.0875 m, ears at 100.0 degrees'
"""

import functools

from jaxasa.acoustics.hrtf import Hrtf
from jaxasa.acoustics.sofa import read_sofa
from jaxasa.acoustics.sphere_hrtf import SphereHrtf


@functools.lru_cache(maxsize=4)
def load_hrtf(name: str) -> Hrtf:
    """Returns the HRTF "sphere", or that of the SOFA file `name`; raises ConfigError."""
    return SphereHrtf() if name == "sphere" else read_sofa(name)
