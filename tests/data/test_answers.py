# SPDX-License-Identifier: Apache-2.0
"""Every answer, derived independently from the scene and the words of the question.

The derivation shares nothing with jaxasa/data/questions: no function, no constant, and not the
arguments of a question.
"""

import math
import re
from collections import Counter

import numpy as np
import pytest

from jaxasa import config
from jaxasa.acoustics import scenes
from jaxasa.data import questions

CLASSES = ("bird", "blast", "drum", "engine", "music", "speech", "steps", "typing")
COMPASS = "front front-left left back-left back back-right right front-right".split()
HOMES = {
    "office": "speech steps typing",
    "street": "engine speech steps",
    "stage": "drum music speech",
    "garden": "bird steps",
    "quarry": "blast engine steps",
}
EXTREMES = {
    "first": ("onset", min),
    "last": ("onset", max),
    "nearest": ("distance", min),
    "closest": ("distance", min),
    "farthest": ("distance", max),
    "highest": ("elevation", max),
    "lowest": ("elevation", min),
    "loudest": ("power", max),
    "softest": ("power", min),
}


def compass(vector):
    degrees = np.degrees(np.arctan2(vector[1], vector[0]))
    return COMPASS[int((degrees + 22.5) % 360 // 45)]


def rotated(vector, facing):
    """A vector in the frame of a listener who faces `facing` degrees."""
    a = np.radians(facing)
    x, y, z = vector
    return np.array([x * np.cos(a) + y * np.sin(a), y * np.cos(a) - x * np.sin(a), z])


class World:
    """Sources as vectors (x front, y left, z up), and the sources that a question's words name."""

    def __init__(self, scene, question):
        self.scene, self.text = scene, question
        self.words = re.findall(r"[\w-]+", question)
        self.sources = {s["class"]: dict(s) for s in scene["sources"]}
        for s in self.sources.values():
            a, e = np.radians([s["azimuth"], s["elevation"]])
            unit = np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)])
            s["position"] = s["distance"] * unit
            s["power"] = 10 ** (s["level"] / 10) / s["distance"] ** 2 * (1 + 10 ** (-s["drr"] / 10))
        self.named = [w for w in self.words if w in self.sources]

    def extreme(self, word):
        key, pick = EXTREMES[word]
        return pick(self.sources, key=lambda c: self.sources[c][key])

    def extremes(self):
        return [self.extreme(w) for w in self.words if w in EXTREMES]

    def on_side(self, side, facing=0.0):
        sign = {"left": 1, "right": -1}[side]
        return {c for c, s in self.sources.items() if rotated(s["position"], facing)[1] * sign > 0}

    def side(self):
        return next(w for w in reversed(self.words) if w in ("left", "right"))

    def turn(self):
        match = re.search(r"turn (left|right|around)", self.text)
        return {"left": 90, "right": -90, "around": 180}[match[1]]

    def in_sector(self, sector, facing=0.0):
        (answer,) = [
            c for c, s in self.sources.items() if compass(rotated(s["position"], facing)) == sector
        ]
        return answer


def distance_name(metres):
    return min(("70 cm", "120 cm", "200 cm", "340 cm"), key=lambda n: _ratio(n, metres))


def _ratio(name, metres):
    there = float(name.split()[0]) / 100
    return max(there / metres, metres / there)


def step(value, edges, names):
    return names[sum(value >= e for e in edges)]


def total_turn(angles):
    """Sum of the steps of a row of angles (degrees), each taken the shorter way."""
    return sum((b - a + 180) % 360 - 180 for a, b in zip(angles, angles[1:], strict=False))


def motion_of(source):
    rows = [
        row
        for k, row in enumerate(source.get("doa_trajectory", []))
        if source["onset"] <= 0.1 * k + 0.05 <= source["offset"]
    ]
    if not rows:
        return "stays"
    angle, ratio = total_turn([r[0] for r in rows]), rows[-1][2] / rows[0][2]
    if abs(angle) >= 30:
        return "anticlockwise" if angle > 0 else "clockwise"
    if max(ratio, 1 / ratio) >= 1.5:
        return "away" if ratio > 1 else "nearer"
    return "stays"


def turn_of_listener(scene):
    audible = [
        y
        for k, y in enumerate(scene["yaw"])
        if any(s["onset"] <= 0.1 * k + 0.05 <= s["offset"] for s in scene["sources"])
    ]
    angle = total_turn(audible)
    return f"{'far' if abs(angle) > 75 else 'slightly'} {'left' if angle > 0 else 'right'}"


def derive(scene, task, question, options):
    w = World(scene, question)
    one = w.sources[w.named[0]] if w.named else None
    two = w.sources[w.named[1]] if len(w.named) > 1 else None
    sectors = [x for x in w.words if x in COMPASS]
    match task:
        case "class_present":
            (answer,) = set(options) & set(w.sources)
            return answer
        case "class_count":
            return str(len(w.named))
        case "onset_order" | "nearest_source" | "highest_source" | "loudest_source":
            return w.extremes()[0]
        case "sector_by_onset" | "sector_of_nearest":
            return compass(w.sources[w.extremes()[0]]["position"])
        case "onset_time":
            return f"{math.floor(one['onset'] + 0.5)} s"
        case "temporal_relation":
            a, b = (one, two) if "does" in w.words or w.words[0] != "next" else (two, one)
            joined = a["onset"] < b["offset"] and b["onset"] < a["offset"]
            side = "before" if a["onset"] < b["onset"] else "after"
            return f"{side} {'joined' if joined else 'apart'}"
        case "azimuth":
            return compass(one["position"])
        case "elevation":
            height = np.degrees(np.arctan2(one["position"][2], np.hypot(*one["position"][:2])))
            return step(height, (-10, 15, 40), ("below", "level", "above", "overhead"))
        case "distance":
            return distance_name(np.linalg.norm(one["position"]))
        case "distance_in_sector":
            return distance_name(w.sources[w.in_sector(sectors[0])]["distance"])
        case "reverberance":
            return step(scene["rt60"], (0.22, 0.35, 0.5), ("dead", "dry", "live", "echoing"))
        case "side_count":
            return str(len(w.on_side(w.side())))
        case "side_count_after_turn":
            return str(len(w.on_side(w.side(), 180.0)))
        case "source_motion":
            return motion_of(one)
        case "listener_turn":
            return turn_of_listener(scene)
        case "class_in_sector":
            return w.in_sector(sectors[0])
        case "class_after_turn":
            return w.in_sector(sectors[-1], w.turn())
        case "relative_distance":
            a, b = (two, one) if w.words[0] in ("next", "against") else (one, two)
            ratio = a["distance"] / b["distance"]
            names = ("much nearer", "nearer", "alike", "farther", "much farther")
            return step(ratio, (1 / 2.57, 1 / 1.31, 1.31, 2.57), names)
        case "class_left_right":
            views = {c: rotated(s["position"], one["azimuth"])[1] for c, s in w.sources.items()}
            sign = {"left": 1, "right": -1}[next(x for x in w.words if x in ("left", "right"))]
            (answer,) = [c for c, y in views.items() if y * sign > 0 and c != one["class"]]
            return answer
        case "class_before_after":
            sign = 1 if "after" in w.words else -1
            (answer,) = [c for c, s in w.sources.items() if (s["onset"] - one["onset"]) * sign > 0]
            return answer
        case "class_on_same_side":
            same = w.on_side("left") if one["position"][1] > 0 else w.on_side("right")
            (answer,) = same - {one["class"]}
            return answer
        case "remaining_source":
            (answer,) = w.on_side(w.side()) - {one["class"]}
            return answer
        case "angular_separation":
            flat = [s["position"][:2] / np.linalg.norm(s["position"][:2]) for s in (one, two)]
            angle = np.degrees(np.arccos(np.clip(flat[0] @ flat[1], -1, 1)))
            return f"{45 * math.floor(angle / 45 + 0.5)} degrees"
        case "sector_after_turn":
            return compass(rotated(one["position"], w.turn()))
        case "sector_when_facing":
            return compass(rotated(two["position"], one["azimuth"]))
        case "multi_hop":
            a, b = (w.sources[c] for c in w.extremes())
            return compass(rotated(b["position"], a["azimuth"]))
        case "turn_to_face":
            turns = {"stay": 0, "turn left": 90, "turn right": -90, "turn around": 180}
            return max(turns, key=lambda t: rotated(one["position"], turns[t])[0])
        case "sector_after_walk":
            return compass(two["position"] - one["position"])
        case "sector_after_orbit":
            angle = 90 if "quarter" in w.words else 180
            return compass(rotated(one["position"], angle if "clockwise" in w.words else -angle))
        case "room_type":
            size = "large" if scene["volume"] > 85 else "small"
            return f"{size} {'live' if scene['rt60'] > 0.35 else 'dry'} room"
        case "place_type":
            (answer,) = [p for p in options if set(w.sources) <= set(HOMES[p].split())]
            return answer
        case "true_statement":
            true = {f"{c} {compass(s['position'])}" for c, s in w.sources.items()}
            (answer,) = true & set(options)
            return answer


@pytest.fixture(scope="module")
def samples():
    """[(scene, question)] of every question type, static and moving scenes, thousands."""
    clips = [
        scenes.Clip(f"{c}/{t}", c, f"{c}-{t}", 0.5 + 0.3 * t) for c in CLASSES for t in range(5)
    ]
    static = {"train": 1, "dev": 1, "benchmark": 1, "seconds": 4.0}
    walking = static | {"moving_source_prob": 0.5, "walk_speed": (0.5, 2.0)}
    turning = static | {"listener_turn_prob": 1.0}
    samples = []
    for ranges, count, tasks in (
        (static, 320, questions.QUESTION_TYPES),
        (walking, 200, ("source_motion", "azimuth", "class_present", "sector_when_facing")),
        (turning, 120, ("listener_turn", "sector_after_turn", "temporal_relation")),
    ):
        for i in range(count):
            spec = scenes.sample_scene(config.Scenes(**ranges), clips, 0, "test", i)
            scene, rng = scenes.describe(spec), np.random.default_rng(i)
            for task in tasks:
                for _ in range(2):
                    q = questions.sample_question(scene, CLASSES, rng, task)
                    samples += [(scene, q)] if q else []
    return samples


def test_every_answer_follows_from_the_scene(samples):
    for scene, q in samples:
        answer = derive(scene, q.task, q.question, q.options)
        assert answer == q.answer_text, (q, scene)
        # No other option is right: the derived answer is one of the four, and they differ.
        assert len(set(q.options)) == 4
    counts = Counter(q.task for _, q in samples)
    assert set(counts) == set(questions.QUESTION_TYPES) and len(counts) >= 20
    assert min(counts.values()) >= 12, counts
    assert len(samples) > 4000


def test_reinstantiating_on_the_same_scene_gives_the_same_question(samples):
    rng = np.random.default_rng(0)
    for scene, q in samples[::7]:
        same = questions.reinstantiate(q.task, q.template_args, scene, CLASSES, rng)
        assert (same.question, same.answer_text) == (q.question, q.answer_text)
        same = questions.reinstantiate(q.task, q.template_args, scene, CLASSES, rng, lenient=True)
        assert same.answer_text == q.answer_text
    silent, args = {**samples[0][0], "sources": []}, {"class": "bird", "wording": 0}
    assert questions.reinstantiate("azimuth", args, silent, CLASSES, rng) is None


@pytest.mark.parametrize("yaw", [90.0, 180.0, -37.0])
def test_reinstantiating_on_a_rotated_scene_gives_its_answer(samples, yaw):
    """As in the rotation control: the same arguments, on the scene rotated about the listener."""
    num_same = num_different = 0
    for scene, q in samples[::5]:
        if q.task in ("source_motion", "listener_turn"):
            continue
        rotated_scene, rng = scenes.rotate_scene(scene, yaw), np.random.default_rng(0)
        new = questions.reinstantiate(q.task, q.template_args, rotated_scene, CLASSES, rng)
        if new is None:
            assert q.direction or q.task == "true_statement", q
            continue
        assert new.answer_text == derive(rotated_scene, q.task, new.question, new.options)
        if not q.direction:
            assert new.answer_text == q.answer_text and new.question == q.question
        num_same += new.answer_text == q.answer_text
        num_different += new.answer_text != q.answer_text
    assert num_different > 100 and num_same > 100
