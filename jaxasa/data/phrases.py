# SPDX-License-Identifier: Apache-2.0
"""Paraphrases of captions, so that stage 2 does not tie meaning to one form.

A paraphrase follows from the scene's description: directions by sector, distances in words or
metres, elevation if it is clear, order in time, number of sources, reverberance of the room.

>>> import numpy as np
>>> scene = {"rt60": 0.9, "sources": [
...     {"class": "bird", "azimuth": 90.0, "elevation": 30.0, "distance": 3.2, "onset": 0.0},
...     {"class": "bell", "azimuth": 0.0, "elevation": 0.0, "distance": 0.9, "onset": 1.0}]}
>>> paraphrase(scene, np.random.default_rng(1))
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
CLEAR_ELEVATION_DEG = 20.0  # from which a source is called high or low
COUNTS = ("no sound", "one sound", "two sounds", "three sounds", "four sounds")
DRY_S, LIVE_S = 0.3, 0.6  # RT60 below and above which a room is called dry or live
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


def paraphrase(scene: dict, rng: np.random.Generator) -> str:
    """A caption of a scene (acoustics.scenes.describe) in a random phrasing.

    Its sources come in order of arrival.
    """
    template = _choose(rng, CLAUSES)
    clauses = [_clause(source, template, rng) for source in scene["sources"]]
    text = _choose(rng, JOINS).join(clauses)
    if rng.random() < 0.5 and len(clauses) < len(COUNTS):
        text = f"{COUNTS[len(clauses)]} : {text}"
    kind = "dry" if scene["rt60"] < DRY_S else "live" if scene["rt60"] > LIVE_S else None
    if kind is not None and rng.random() < 0.5:
        text = f"{text} . {_choose(rng, ROOMS[kind])}"
    return f"{text} ."


def _clause(source: dict, template: str, rng: np.random.Generator) -> str:
    place = _choose(rng, PLACES[scene_text.sector_name(source["azimuth"])])
    if abs(source["elevation"]) > CLEAR_ELEVATION_DEG and rng.random() < 0.7:
        place = f"{place} , {_choose(rng, HIGH if source['elevation'] > 0 else LOW)}"
    how = _choose(rng, NEAR if scene_text.distance_name(source["distance"]) == "near" else FAR)
    if rng.random() < 0.3:
        how = f"{source['distance']:.1f} metres away"
    name = source["class"]
    return template.format(a="an" if name[0] in "aeiou" else "a", name=name, place=place, how=how)


def _choose(rng: np.random.Generator, choices):
    return choices[int(rng.integers(len(choices)))]
