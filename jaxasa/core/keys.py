# SPDX-License-Identifier: Apache-2.0
"""Keyed randomness: every draw is a function of (seed, purpose, index), never of global state.

>>> from jaxasa.core import keys
>>> keys.rng(0, "yaw", 3).random() == keys.rng(0, "yaw", 3).random()
True
>>> keys.rng(0, "yaw", 3).random() == keys.rng(0, "gain", 3).random()
False
"""

import zlib

import numpy as np

from jaxasa.config import check


def rng(seed: int, *purpose: str | int) -> np.random.Generator:
    """Returns the generator of (`seed`, *`purpose`); strings enter by their CRC-32.

    The same key gives the same stream under any number of workers or hosts. Raises
    ConfigError if an integer is negative.
    """
    key = [seed, *(zlib.crc32(p.encode()) if isinstance(p, str) else p for p in purpose)]
    check(all(k >= 0 for k in key), "seed", key, "integers of at least 0")
    return np.random.default_rng([int(k) for k in key])
