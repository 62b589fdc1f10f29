# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import numpy as np
import pytest

from jaxasa.acoustics import materials, rooms
from jaxasa.config import ConfigError

# Names of the same materials in pyroomacoustics, which quotes the same book.
PYROOM_NAMES = {
    "brick": "brick_wall_rough",
    "rendered_brick": "brickwork",
    "rough_concrete": "rough_concrete",
    "smooth_concrete": "unpainted_concrete",
    "limestone": "limestone_wall",
    "ceramic_tiles": "ceramic_tiles",
    "marble": "marble_floor",
    "hard_surface": "hard_surface",
    "plasterboard": "plasterboard",
    "wood_panel": "wood_16mm",
    "wooden_lining": "wooden_lining",
    "wooden_door": "wooden_door",
    "window": "glass_window",
    "double_glazing": "double_glazing_30mm",
    "linoleum": "linoleum_on_concrete",
    "thin_carpet": "carpet_thin",
    "carpet": "carpet_tufted_9m",
    "curtains": "curtains_0.2",
    "acoustic_plaster": "acoustical_plaster_25mm",
    "mineral_wool": "mineral_wool_50mm_40kgm3",
    "ceiling_tile": "ceiling_fissured_tile",
    "plasterboard_ceiling": "ceiling_plasterboard",
}


def test_table_equals_that_of_pyroomacoustics():
    pra = pytest.importorskip("pyroomacoustics")
    path = Path(pra.__file__).parent / "data" / "materials.json"
    groups = json.loads(path.read_text())["absorption"].values()
    quoted = {name: m["coeffs"] for group in groups for name, m in group.items()}
    assert set(PYROOM_NAMES) == set(materials.TABLE)
    for name, pyroom_name in PYROOM_NAMES.items():
        expected = [*quoted[pyroom_name], quoted[pyroom_name][-1]][:7]
        np.testing.assert_allclose(materials.absorption(name), expected)


def test_every_material_is_valid_in_a_room():
    for name in materials.TABLE:
        rooms.Shoebox((6, 5, 3), materials.room_absorption(name, name, name))


def test_walls_are_in_the_order_of_rooms_walls():
    walls = ("brick", "window", "curtains", "wooden_door")
    absorption = materials.room_absorption(walls, "carpet", "ceiling_tile")
    by_wall = dict(zip(rooms.WALLS, absorption, strict=True))
    expected = dict(zip(("back", "front", "right", "left"), walls, strict=True))
    for wall, name in {**expected, "floor": "carpet", "ceiling": "ceiling_tile"}.items():
        np.testing.assert_array_equal(by_wall[wall], materials.TABLE[name])


def test_unknown_material_raises():
    with pytest.raises(ConfigError, match="material is 'velvet', expected one of brick, "):
        materials.absorption("velvet")
    with pytest.raises(ConfigError, match="walls is"):
        materials.room_absorption(("brick", "brick"), "carpet", "brick")
