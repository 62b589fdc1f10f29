# SPDX-License-Identifier: Apache-2.0
"""Absorption of what walls are made of, by name.

A coefficient is the share of the energy that a wall keeps of diffuse sound in an octave band; the
names and where the numbers are from stand in config/materials.py.

    >>> from jaxasa.acoustics import materials, rooms
    >>> office = materials.room_absorption("plasterboard", "carpet", "ceiling_tile")
    >>> office.shape  # walls by octave bands
    (6, 7)
    >>> rooms.decay_time((6, 5, 3), office).round(1)  # bare sides answer each other
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
    """Returns the absorption [6, 7] of a room's walls in the order of rooms.WALLS.

    sides: one material, or four (back, front, right, left). Raises ConfigError for unknown names.
    """
    four = (walls,) * 4 if isinstance(walls, str) else tuple(walls)
    check(len(four) == 4, "walls", walls, "a material, or four: back, front, right, left")
    return np.stack([absorption(material) for material in (*four, floor, ceiling)])
