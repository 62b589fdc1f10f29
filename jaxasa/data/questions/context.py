"""What tasks are made of: random choices that are recorded, audible differences, options.

A task is a function `(scene, draw) -> Draft | None`. Whatever it chooses at random it asks of
`draw`, by name, so that the same question can be put to another scene (`questions.again`).

Differences below these are not asked about. Bearings keep `MARGIN` degrees from the boundary
that decides; 15 leaves a third of a sector of 45 degrees, and is some three times what listeners
err by to the side (Blauert, Spatial Hearing, 1997). The others are several times a just
noticeable difference: 0.3 s in time; a factor of 1.7 in distance, 4.6 dB of direct sound (DRR is
told to 2 to 6 dB, Larsen et al. 2008, and only where it is between -12 and 15 dB); 6 dB in level;
15 degrees in elevation; 10 % in RT60 (5 % is just noticeable, ISO 3382-1).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxasa.acoustics.scenes import FRAME
from jaxasa.data import scene_text

MARGIN = 15.0
TIME = 0.3
RATIO = 1.7
AUDIBLE_DRR = (-12.0, 15.0)
LEVEL = 6.0
HEIGHT = 15.0
DECAY = 1.1
SIDES = {"left": 1, "right": -1}


@dataclass(frozen=True)
class Draft:
    """What a task returns: wording, right answer, candidates for the wrong ones, the last steps.

    steps: the derivation between the caption and the answer, "" when the caption suffices.
    open: (kind, value) of the answer to the question without options, None where that would
        not do: kinds are "azimuth" and "elevation" (degrees), "distance" (m), "time" (s),
        "count", and "name", whose value is None.
    """

    question: str
    answer: str
    others: Sequence[str]
    steps: str = ""
    open: tuple[str, float | None] | None = None


class Unanswerable(Exception):
    """A choice given to `Draw` is not one that this scene offers."""


class Draw:
    """The random choices of one question about `scene`; `about` holds them by name.

    classes: all class names. margin: degrees, see above. given: choices made before, taken
    instead of drawing. lenient: any difference will do, as for keys of items that are there.
    """

    def __init__(
        self,
        scene: dict,
        classes: Sequence[str],
        rng: np.random.Generator,
        margin: float = MARGIN,
        given: Mapping | None = None,
        lenient: bool = False,
    ):
        self.classes, self.rng = classes, rng
        self.margin = 0.0 if lenient else margin
        self.given, self.lenient = given, lenient
        self.about: dict[str, str | int] = {}
        self._sources = {s["class"]: s for s in scene["sources"]}

    def one(self, name: str, items: Sequence):
        """One of `items`, all equally likely."""
        if self.given is not None:
            if self.given[name] not in items:
                raise Unanswerable(name)
            self.about[name] = self.given[name]
        else:
            self.about[name] = items[self.rng.integers(len(items))]
        return self.about[name]

    def source(self, name: str = "class") -> dict:
        """One of the sources of the scene."""
        return self._sources[self.one(name, list(self._sources))]

    def two(self, a: str, b: str) -> tuple[dict, dict]:
        """Two different sources, in any order."""
        names = list(self._sources)
        if self.given is None:
            chosen = [names[i] for i in self.rng.permutation(len(names))[:2]]
            self.about |= dict(zip((a, b), chosen, strict=True))
        else:
            chosen = [self.one(name, names) for name in (a, b)]
        return self._sources[chosen[0]], self._sources[chosen[1]]

    def say(self, *wordings: str, **names: str) -> str:
        """One of the wordings, filled in."""
        return wordings[self.one("wording", range(len(wordings)))].format(**names)

    def shuffled(self, items: Sequence) -> list:
        return [items[i] for i in self.rng.permutation(len(items))]

    def clear(self, azimuth: float) -> bool:
        """Whether a bearing (or an angle) is well inside its sector."""
        return scene_text.sector_margin(azimuth) >= self.margin

    def apart(self, gap: float, audible: float) -> bool:
        """Whether a difference is above 0, and audible."""
        return gap > 0 and (self.lenient or gap >= audible)

    def audible(self, *sources: dict) -> bool:
        """Whether the distances of sources can be told from their DRR, where that is known."""
        low, high = AUDIBLE_DRR
        return self.lenient or all(low <= s.get("drr", 0.0) <= high for s in sources)

    def absent(self) -> list[str]:
        return [c for c in self.classes if c not in self._sources]

    def wrong_classes(self, answer: str, named: Sequence[str] = ()) -> list[str]:
        """Wrong classes: the others in the scene first, so that hearing *what* does not suffice.

        named: classes in the question, which are not offered, as they would never be right.
        """
        heard = [c for c in self._sources if c != answer and c not in named]
        return heard + self.shuffled([c for c in self.absent() if c not in named])

    def wrong_sectors(self, places: Sequence[str] = scene_text.SECTORS) -> list[str]:
        return self.shuffled(places)


def extreme(draw: Draw, sources: Sequence[dict], key, most: bool, audible: float) -> dict | None:
    """The source with the most (or least) `key`, where the next is audibly apart from it."""
    ranked = sorted(sources, key=key, reverse=most)
    if len(ranked) < 2 or not draw.apart(abs(key(ranked[0]) - key(ranked[1])), audible):
        return None
    return ranked[0]


def the_only(draw: Draw, source: dict, sources: Sequence[dict], gap, audible: float) -> dict | None:
    """The only source with a positive gap(source, it), one or more others having a negative one.

    None where a gap is not audible, or where hearing what sounds would suffice to answer.
    """
    gaps = [(gap(source, s), s) for s in sources if s is not source]
    if len(gaps) < 2 or not all(draw.apart(abs(g), audible) for g, _ in gaps):
        return None
    above = [s for g, s in gaps if g > 0]
    return above[0] if len(above) == 1 else None


def on_side(draw: Draw, sources: Sequence[dict], side: str) -> list[str] | None:
    """Classes on the left or right, None when a source is too near the median plane."""
    for s in sources:
        away = min(abs(s["azimuth"]), 180.0 - abs(s["azimuth"]))
        if not draw.apart(away, MARGIN):
            return None
    return [s["class"] for s in sources if s["azimuth"] * SIDES[side] > 0]


def counts(count: int) -> list[str]:
    """0 to 3, or the four numbers from another multiple of four on with `count` among them.

    All numbers of one four have the same options, so that these do not tell which it is.
    """
    first = count - count % 4
    return [str(first + i) for i in range(4)]


def placed(source: dict) -> str:
    """The step that says where a source is."""
    return f"{source['class']} {scene_text.sector(source['azimuth'])}"


def side_of(source: dict) -> str:
    """ "left" or "right" of the median plane."""
    return "left" if source["azimuth"] > 0 else "right"


def sided(sources: Sequence[dict]) -> str:
    """The steps that say on which side each source is."""
    return " ".join(f"{s['class']} {side_of(s)}" for s in sources)


def beside(draw: Draw, sources: Sequence[dict], source: dict) -> tuple[str, dict] | None:
    """The side that `source` is on and the only other one there, of three sources or more."""
    side = side_of(source)
    found = on_side(draw, sources, side)
    if found is None or len(found) != 2 or len(sources) < 3:
        return None
    (other,) = (s for s in sources if s["class"] in found and s is not source)
    return side, other


def difference(a: float, b: float) -> float:
    """Azimuth b as seen when facing azimuth a, degrees in [-180, 180)."""
    return (b - a + 180.0) % 360.0 - 180.0


def received(source: dict) -> float:
    """Level (dB) of a source where the listener is: direct sound and reverberation."""
    direct = source["level"] - 20 * math.log10(source["distance"])
    return direct + 10 * math.log10(1 + 10 ** (-source["drr"] / 10))


def while_heard(source: dict) -> np.ndarray:
    """Rows of azimuth, elevation (degrees) and distance (m) while a source sounds: [frames, 3]."""
    # float: an unknown distance, None, becomes NaN.
    rest = np.array([[source["azimuth"], source["elevation"], source["distance"]]], float)
    if "trajectory" not in source:
        return rest
    moved = np.array(source["trajectory"], float)
    middle = (np.arange(len(moved)) + 0.5) * FRAME
    heard = moved[(source["onset"] <= middle) & (middle <= source["offset"])]
    return heard if len(heard) else rest


def is_still(source: dict) -> bool:
    """Whether a source keeps to within 10 degrees and, where known, 15 % of its distance.

    While it sounds, that is.
    """
    if "trajectory" not in source:
        return True
    azimuth, elevation, distance = while_heard(source).T
    turned = np.ptp(np.unwrap(azimuth, period=360.0))
    near, far = distance.min(), distance.max()  # NaN where a distance is not known
    return bool(max(turned, np.ptp(elevation)) < 10 and not far >= 1.15 * near)
