# SPDX-License-Identifier: Apache-2.0
"""What question types are made of: recorded random choices, thresholds of audibility, geometry.

A question type (question_type.py) makes every random choice through its `QuestionContext`, by
name, so that the same question can be put to another scene (`questions.reinstantiate`).

Differences below these thresholds are not asked about. Bearings keep `MARGIN_DEG` from the
boundary that decides; 15 degrees leave a third of a sector of 45, and are some three times the
error of listeners to the side (Blauert, Spatial Hearing, 1997). The others are several times a
just noticeable difference: 0.3 s in time; a factor of 1.7 in distance, 4.6 dB of direct sound
(DRR is judged to within 2 to 6 dB, Larsen et al. 2008, and only between -12 and 15 dB); 6 dB in
level; 15 degrees in elevation; 10 % in RT60 (5 % is just noticeable, ISO 3382-1).
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxasa.acoustics.scenes import FRAME_S
from jaxasa.data import scene_text

MARGIN_DEG = 15.0
MIN_TIME_GAP_S = 0.3
MIN_DISTANCE_RATIO = 1.7
AUDIBLE_DRR_DB = (-12.0, 15.0)
MIN_LEVEL_GAP_DB = 6.0
MIN_ELEVATION_GAP_DEG = 15.0
MIN_RT60_RATIO = 1.1
SIDE_SIGNS = {"left": 1, "right": -1}  # sign of the azimuth


class Unanswerable(Exception):
    """A scene does not offer one of the arguments that a question template is filled with."""


class QuestionContext:
    """One scene to be asked about, and the random choices that fill a question template.

    classes: all class names. margin: degrees between a bearing and a boundary, see above.
    fixed_args: choices of an earlier question, taken instead of random ones. lenient: accept any
    difference, however small. `template_args` records the choices by name.
    """

    def __init__(
        self,
        scene: dict,
        classes: Sequence[str],
        rng: np.random.Generator,
        margin: float = MARGIN_DEG,
        fixed_args: Mapping | None = None,
        lenient: bool = False,
    ):
        self.classes, self.rng = classes, rng
        self.margin = 0.0 if lenient else margin
        self.fixed_args, self.lenient = fixed_args, lenient
        self.template_args: dict[str, str | int] = {}
        self._sources = {s["class"]: s for s in scene["sources"]}

    def choose(self, name: str, items: Sequence):
        """One of `items`, uniformly. Raises Unanswerable if a fixed choice is not among them."""
        if self.fixed_args is not None:
            if self.fixed_args[name] not in items:
                raise Unanswerable(name)
            self.template_args[name] = self.fixed_args[name]
        else:
            self.template_args[name] = items[self.rng.integers(len(items))]
        return self.template_args[name]

    def choose_source(self, name: str = "class") -> dict:
        """One of the sources of the scene."""
        return self._sources[self.choose(name, list(self._sources))]

    def choose_two_sources(self, a: str, b: str) -> tuple[dict, dict]:
        """Two different sources, in any order."""
        names = list(self._sources)
        if self.fixed_args is None:
            pair = [names[i] for i in self.rng.permutation(len(names))[:2]]
            self.template_args |= dict(zip((a, b), pair, strict=True))
        else:
            pair = [self.choose(name, names) for name in (a, b)]
        return self._sources[pair[0]], self._sources[pair[1]]

    def phrase(self, *wordings: str, **names: str) -> str:
        """One of the wordings, with its placeholders filled in."""
        return wordings[self.choose("wording", range(len(wordings)))].format(**names)

    def shuffle(self, items: Sequence) -> list:
        """A copy of `items` in random order."""
        return [items[i] for i in self.rng.permutation(len(items))]

    def is_inside_sector(self, azimuth: float) -> bool:
        """Whether a bearing (or an angle) keeps the margin from the boundaries of its sector."""
        return scene_text.sector_margin(azimuth) >= self.margin

    def is_audible_gap(self, gap: float, threshold: float) -> bool:
        """Whether a difference is above 0 and, unless lenient, reaches a threshold."""
        return gap > 0 and (self.lenient or gap >= threshold)

    def has_audible_distance(self, *sources: dict) -> bool:
        """Whether the DRR of each source, if known, lets its distance be judged."""
        low, high = AUDIBLE_DRR_DB
        return self.lenient or all(low <= s.get("drr", 0.0) <= high for s in sources)

    def absent_classes(self) -> list[str]:
        """Classes that are not in the scene."""
        return [c for c in self.classes if c not in self._sources]

    def class_distractors(self, answer: str, named: Sequence[str] = ()) -> list[str]:
        """Wrong classes: others of the scene first, so that detecting classes does not suffice.

        named: classes in the question. They are not offered, as they would never be right.
        """
        present = [c for c in self._sources if c != answer and c not in named]
        return present + self.shuffle([c for c in self.absent_classes() if c not in named])


def find_extreme(
    ctx: QuestionContext, sources: Sequence[dict], key: Callable, largest: bool, threshold: float
) -> dict | None:
    """The source with the largest (or smallest) `key`; None if the runner-up is too close."""
    ranked = sorted(sources, key=key, reverse=largest)
    if len(ranked) < 2 or not ctx.is_audible_gap(abs(key(ranked[0]) - key(ranked[1])), threshold):
        return None
    return ranked[0]


def only_source_beyond(
    ctx: QuestionContext, source: dict, sources: Sequence[dict], gap: Callable, threshold: float
) -> dict | None:
    """The only source s with gap(source, s) > 0, if at least one other has a negative gap.

    None if a gap is not audible, or if only one source is left to choose from.
    """
    gaps = [(gap(source, s), s) for s in sources if s is not source]
    if len(gaps) < 2 or not all(ctx.is_audible_gap(abs(g), threshold) for g, _ in gaps):
        return None
    above = [s for g, s in gaps if g > 0]
    return above[0] if len(above) == 1 else None


def classes_on_side(ctx: QuestionContext, sources: Sequence[dict], side: str) -> list[str] | None:
    """Classes on the left or right, None if a source is too close to the median plane."""
    for s in sources:
        lateral = min(abs(s["azimuth"]), 180.0 - abs(s["azimuth"]))
        if not ctx.is_audible_gap(lateral, MARGIN_DEG):
            return None
    return [s["class"] for s in sources if s["azimuth"] * SIDE_SIGNS[side] > 0]


def only_other_on_side(
    ctx: QuestionContext, sources: Sequence[dict], source: dict
) -> tuple[str, dict] | None:
    """The side of `source` and the only other source there, of three sources or more."""
    side = side_of(source)
    classes = classes_on_side(ctx, sources, side)
    if classes is None or len(classes) != 2 or len(sources) < 3:
        return None
    (other,) = (s for s in sources if s["class"] in classes and s is not source)
    return side, other


def side_of(source: dict) -> str:
    """ "left" or "right" of the median plane."""
    return "left" if source["azimuth"] > 0 else "right"


def class_and_sector(source: dict) -> str:
    """Reasoning step: the class of a source and its sector."""
    return f"{source['class']} {scene_text.sector_name(source['azimuth'])}"


def classes_and_sides(sources: Sequence[dict]) -> str:
    """Reasoning step: the class of each source and its side."""
    return " ".join(f"{s['class']} {side_of(s)}" for s in sources)


def relative_azimuth(a: float, b: float) -> float:
    """Azimuth b in the frame of a listener who faces azimuth a, degrees in [-180, 180)."""
    return (b - a + 180.0) % 360.0 - 180.0


def level_at_listener(source: dict) -> float:
    """Level (dB) of a source at the listener, direct and reverberant sound together."""
    direct = source["level"] - 20 * math.log10(source["distance"])
    return direct + 10 * math.log10(1 + 10 ** (-source["drr"] / 10))


def positions_while_sounding(source: dict) -> np.ndarray:
    """Azimuth, elevation (degrees) and distance (m) of a source while it sounds: [frames, 3].

    One row for a static source. An unknown distance is NaN.
    """
    # float: None becomes NaN.
    static = np.array([[source["azimuth"], source["elevation"], source["distance"]]], float)
    if "doa_trajectory" not in source:
        return static
    positions = np.array(source["doa_trajectory"], float)
    centres = (np.arange(len(positions)) + 0.5) * FRAME_S
    sounding = positions[(source["onset"] <= centres) & (centres <= source["offset"])]
    return sounding if len(sounding) else static


def is_static(source: dict) -> bool:
    """Whether a source, while it sounds, keeps its direction to 10 degrees and its distance,
    if known, to 15 %."""
    if "doa_trajectory" not in source:
        return True
    azimuth, elevation, distance = positions_while_sounding(source).T
    azimuth_range = np.ptp(np.unwrap(azimuth, period=360.0))
    near, far = distance.min(), distance.max()  # NaN if a distance is not known
    return bool(max(azimuth_range, np.ptp(elevation)) < 10 and not far >= 1.15 * near)
