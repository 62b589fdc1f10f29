# SPDX-License-Identifier: Apache-2.0
"""Words of scenes: names of directions, distances and decays; captions, and how to read them.

A caption names the class, direction and distance of each source in order of arrival:
`bird left near , engine back-right far .` Stage 2 trains on captions, every reasoning trace begins
with one, and the evidence reward reads them.

Directions are eight sectors of 45 degrees in the frame of the listener; azimuth is
counter-clockwise, front 0, left +90 degrees.
"""

import bisect
import math
import re
from collections.abc import Sequence

SECTORS = (
    "front",
    "front-left",
    "left",
    "back-left",
    "back",
    "back-right",
    "right",
    "front-right",
)
SECTOR_WIDTH = 360.0 / len(SECTORS)
NEAR_M = 1.6
DISTANCE_NAMES = ("near", "far")
# Names of ranges, and the edges between them.
ELEVATION_NAMES, ELEVATION_EDGES_DEG = ("below", "level", "above", "overhead"), (-10.0, 15.0, 40.0)
REVERBERANCE_NAMES, RT60_EDGES_S = ("dead", "dry", "live", "echoing"), (0.22, 0.35, 0.5)
DISTANCE_STEPS_M = (0.7, 1.2, 2.0, 3.4)  # each 1.7 times the one before


def sector_name(azimuth: float) -> str:
    """The sector of 45 degrees around an azimuth (degrees)."""
    return SECTORS[round(azimuth / SECTOR_WIDTH) % len(SECTORS)]


def sector_margin(azimuth: float) -> float:
    """Degrees between an azimuth and the nearest boundary of two sectors, 0 to 22.5."""
    offset = azimuth / SECTOR_WIDTH
    return SECTOR_WIDTH * (0.5 - abs(offset - round(offset)))


def distance_name(metres: float) -> str:
    """ "near" below 1.6 m, otherwise "far"."""
    return DISTANCE_NAMES[metres >= NEAR_M]


def elevation_name(degrees: float) -> str:
    """The range of an elevation."""
    return ELEVATION_NAMES[bisect.bisect(ELEVATION_EDGES_DEG, degrees)]


def reverberance_name(rt60: float) -> str:
    """The range of an RT60 (s)."""
    return REVERBERANCE_NAMES[bisect.bisect(RT60_EDGES_S, rt60)]


def nearest_distance_step(metres: float) -> str:
    """The nearest of DISTANCE_STEPS_M by ratio, in centimetres ("120 cm")."""
    return f"{100 * min(DISTANCE_STEPS_M, key=lambda s: abs(math.log(metres / s))):.0f} cm"


def caption(scene: dict) -> str:
    """One clause per source, in order of arrival; unknown distances (None) are left out."""
    clauses = []
    for s in scene["sources"]:
        far = "" if s["distance"] is None else f" {distance_name(s['distance'])}"
        clauses.append(f"{s['class']} {sector_name(s['azimuth'])}{far}")
    return " , ".join(clauses) + " ."


def scene_to_text(scene: dict, rng) -> str:
    """A scene in words for stage 0: a caption with the words of each clause in random order."""
    clauses = []
    for s in scene["sources"]:
        words = [s["class"], sector_name(s["azimuth"]), distance_name(s["distance"])]
        clauses.append(" ".join(words[i] for i in rng.permutation(3)))
    return " , ".join(clauses) + " ."


def normalize_text(text: str) -> str:
    """A user's question as in training: lower case, blanks around punctuation."""
    return " ".join(re.sub(r"([?.,:])", r" \1 ", text.lower()).split())


def parse_caption(text: str, classes: Sequence[str]) -> list[dict]:
    """Reads a caption: {"class", "sector", "distance"} for each clause that names one class.

    Sector and distance are None if a clause lacks them. Only the text up to the first full stop is
    read, so that reasoning steps after the caption do not count as evidence again.
    """
    clauses = []
    for clause in text.split(".")[0].split(","):
        words = clause.split()
        named = [w for w in words if w in classes]
        if len(named) != 1:
            continue
        clauses.append(
            {
                "class": named[0],
                "sector": next((w for w in words if w in SECTORS), None),
                "distance": next((w for w in words if w in DISTANCE_NAMES), None),
            }
        )
    return clauses
