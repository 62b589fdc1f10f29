"""Captions of a scene in many phrasings, so that stage 2 does not tie meaning to one form.

Every phrasing follows from the description: bearings by sector, distances in words or metres,
elevation where it is clear, order in time, how many sources there are, and how live the room is.

>>> import numpy as np
>>> scene = {"rt60": 0.9, "sources": [
...     {"class": "bird", "azimuth": 90.0, "elevation": 30.0, "distance": 3.2, "onset": 0.0},
...     {"class": "bell", "azimuth": 0.0, "elevation": 0.0, "distance": 0.9, "onset": 1.0}]}
>>> phrased(scene, np.random.default_rng(1))
'far on the left , a bird , then near in front , a bell . much reverberation .'
"""

import numpy as np

from jaxasa.data import scene_text

PLACES = {
    "front": ("in front", "ahead", "straight ahead"),
    "front-left": ("front-left", "in front to the left", "ahead on the left"),
    "left": ("left", "on the left", "to your left"),
    "back-left": ("back-left", "behind to the left", "behind on the left"),
    "back": ("behind", "at the back", "behind you"),
    "back-right": ("back-right", "behind to the right", "behind on the right"),
    "right": ("right", "on the right", "to your right"),
    "front-right": ("front-right", "in front to the right", "ahead on the right"),
}
NEAR = ("near", "close", "close by")
FAR = ("far", "far away", "distant")
HIGH, LOW = ("up high", "above", "overhead"), ("down low", "below", "low down")
CLEAR_ELEVATION = 20.0  # degrees from which a source is called high or low
COUNTS = ("no sound", "one sound", "two sounds", "three sounds", "four sounds")
DRY, LIVE = 0.3, 0.6  # seconds of RT60
ROOMS = {
    "dry": ("a dry room", "little reverberation", "a room without echo"),
    "live": ("a live room", "much reverberation", "a room that rings"),
}
CLAUSES = (
    "{a} {name} {place} {how}",
    "{a} {name} , {how} , {place}",
    "{place} {a} {name} , {how}",
    "{how} {place} , {a} {name}",
    "{name} : {place} , {how}",
    "i hear {a} {name} {place} , {how}",
    "there is {a} {name} {place} , {how}",
    "{how} , {place} , {a} {name}",
)
JOINS = (" ; ", " , then ", " . then ", " and after that ", " . ")


def phrased(scene: dict, rng: np.random.Generator) -> str:
    """A caption of `scene` (acoustics.scenes.describe) in a phrasing drawn by `rng`.

    Its sources come in order of arrival.
    """
    clause = _pick(rng, CLAUSES)
    said = [_clause(source, clause, rng) for source in scene["sources"]]
    text = _pick(rng, JOINS).join(said)
    if rng.random() < 0.5 and len(said) < len(COUNTS):
        text = f"{COUNTS[len(said)]} : {text}"
    kind = "dry" if scene["rt60"] < DRY else "live" if scene["rt60"] > LIVE else None
    if kind is not None and rng.random() < 0.5:
        text = f"{text} . {_pick(rng, ROOMS[kind])}"
    return f"{text} ."


def _clause(source: dict, clause: str, rng: np.random.Generator) -> str:
    place = _pick(rng, PLACES[scene_text.sector(source["azimuth"])])
    if abs(source["elevation"]) > CLEAR_ELEVATION and rng.random() < 0.7:
        place = f"{place} , {_pick(rng, HIGH if source['elevation'] > 0 else LOW)}"
    how = _pick(rng, NEAR if scene_text.distance(source["distance"]) == "near" else FAR)
    if rng.random() < 0.3:
        how = f"{source['distance']:.1f} metres away"
    name = source["class"]
    return clause.format(a="an" if name[0] in "aeiou" else "a", name=name, place=place, how=how)


def _pick(rng: np.random.Generator, choices):
    return choices[int(rng.integers(len(choices)))]
