# SPDX-License-Identifier: Apache-2.0
"""Absorption coefficients of wall materials, by name.

An absorption coefficient is the fraction of the energy of diffuse sound in an octave band that a
wall does not reflect. The table of names and its sources are in config/materials.py.

    >>> from jaxasa.acoustics import materials, rooms
    >>> office = materials.room_absorption("plasterboard", "carpet", "ceiling_tile")
    >>> office.shape  # walls by octave bands
    (6, 7)
    >>> rooms.decay_time(rooms.Shoebox((6, 5, 3), office)).round(1)  # bare walls: flutter echoes
    array([1.1, 1.6, 2.5, 3.7, 3.4, 2.1, 1.1])
"""

import numpy as np

from jaxasa.config import check
from jaxasa.config.materials import TABLE


def absorption(material: str) -> np.ndarray:
    """Returns the absorption [7] of a material of TABLE; raises ConfigError for another name."""
    check(material in TABLE, "material", material, "one of " + ", ".join(TABLE))
    return np.array(TABLE[material])


def room_absorption(walls: str | tuple[str, str, str, str], floor: str, ceiling: str) -> np.ndarray:
    """Returns the absorption [6, 7] of a room by materials, in the order of rooms.WALLS.

    walls: one material, or four (back, front, right, left). Raises ConfigError for unknown names.
    """
    four = (walls,) * 4 if isinstance(walls, str) else tuple(walls)
    check(len(four) == 4, "walls", walls, "a material, or four: back, front, right, left")
    return np.stack([absorption(material) for material in (*four, floor, ceiling)])
