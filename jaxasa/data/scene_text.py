"""The words for a scene: sectors, distances, captions, and claims read back from text.

A caption names each source in order of arrival by class, bearing and distance:
`bird left near , engine back-right far .` Captions are what stage 2 learns to say, the first
part of every reasoning trace, and what the evidence reward reads.

Bearings are eight sectors of 45 degrees, named from the listener's seat; azimuth is
counter-clockwise with front at 0 and left at +90 degrees.
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
NEAR = 1.6
DISTANCES = ("near", "far")
# Names of ranges, and the edges (degrees, then seconds of RT60) between them.
ELEVATIONS, ELEVATION_EDGES = ("below", "level", "above", "overhead"), (-10.0, 15.0, 40.0)
DECAYS, DECAY_EDGES = ("dead", "dry", "live", "echoing"), (0.22, 0.35, 0.5)
STEPS = (0.7, 1.2, 2.0, 3.4)  # m: distances by name, each 1.7 times the one before


def sector(azimuth: float) -> str:
    """The name of the sector of 45 degrees around `azimuth` (degrees)."""
    return SECTORS[round(azimuth / SECTOR_WIDTH) % len(SECTORS)]


def sector_margin(azimuth: float) -> float:
    """Degrees from `azimuth` to the nearest boundary between two sectors, 0 to 22.5."""
    offset = azimuth / SECTOR_WIDTH
    return SECTOR_WIDTH * (0.5 - abs(offset - round(offset)))


def distance(metres: float) -> str:
    """ "near" below 1.6 m, else "far"."""
    return DISTANCES[metres >= NEAR]


def elevation(degrees: float) -> str:
    """The name of the range of elevation."""
    return ELEVATIONS[bisect.bisect(ELEVATION_EDGES, degrees)]


def decay(rt60: float) -> str:
    """The name of the range of RT60 (s)."""
    return DECAYS[bisect.bisect(DECAY_EDGES, rt60)]


def metres(distance: float) -> str:
    """The nearest of STEPS by ratio, in centimetres ("120 cm")."""
    return f"{100 * min(STEPS, key=lambda s: abs(math.log(distance / s))):.0f} cm"


def caption(scene: dict) -> str:
    """One clause a source, in order of arrival; without its distance where that is None."""
    clauses = []
    for s in scene["sources"]:
        far = "" if s["distance"] is None else f" {distance(s['distance'])}"
        clauses.append(f"{s['class']} {sector(s['azimuth'])}{far}")
    return " , ".join(clauses) + " ."


def written(scene: dict, rng) -> str:
    """The scene as text for stage 0: a caption whose clauses have their words in any order."""
    clauses = []
    for s in scene["sources"]:
        parts = [s["class"], sector(s["azimuth"]), distance(s["distance"])]
        clauses.append(" ".join(parts[i] for i in rng.permutation(3)))
    return " , ".join(clauses) + " ."


def plain(text: str) -> str:
    """A user's question in the words of the trained ones: lower case, punctuation apart."""
    return " ".join(re.sub(r"([?.,:])", r" \1 ", text.lower()).split())


def claims(text: str, classes: Sequence[str]) -> list[dict]:
    """The claims of a caption: one {"class", "sector", "distance"} for each class named in `text`.

    A clause may lack its bearing or its distance (None then). Reading stops at the first full
    stop, so that the steps of a derivation are not counted as evidence twice.
    """
    found = []
    for clause in text.split(".")[0].split(","):
        words = clause.split()
        named = [w for w in words if w in classes]
        if len(named) != 1:
            continue
        found.append(
            {
                "class": named[0],
                "sector": next((w for w in words if w in SECTORS), None),
                "distance": next((w for w in words if w in DISTANCES), None),
            }
        )
    return found
