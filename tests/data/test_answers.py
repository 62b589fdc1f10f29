"""Every answer derived again from the scene and the words of the question, by code of its own.

It shares nothing with jaxasa/data/questions: no function, no constant, and not what a question
says it is about.
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


def seen(vector, facing):
    """A vector in the frame of one who faces `facing` degrees."""
    a = np.radians(facing)
    x, y, z = vector
    return np.array([x * np.cos(a) + y * np.sin(a), y * np.cos(a) - x * np.sin(a), z])


class World:
    """Sources as vectors (x front, y left, z up), and what the words of a question point to."""

    def __init__(self, scene, question):
        self.scene, self.text = scene, question
        self.words = re.findall(r"[\w-]+", question)
        self.sources = {s["class"]: dict(s) for s in scene["sources"]}
        for s in self.sources.values():
            a, e = np.radians([s["azimuth"], s["elevation"]])
            unit = np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)])
            s["at"] = s["distance"] * unit
            s["power"] = 10 ** (s["level"] / 10) / s["distance"] ** 2 * (1 + 10 ** (-s["drr"] / 10))
        self.named = [w for w in self.words if w in self.sources]

    def most(self, word):
        key, which = EXTREMES[word]
        return which(self.sources, key=lambda c: self.sources[c][key])

    def extremes(self):
        return [self.most(w) for w in self.words if w in EXTREMES]

    def on(self, side, facing=0.0):
        sign = {"left": 1, "right": -1}[side]
        return {c for c, s in self.sources.items() if seen(s["at"], facing)[1] * sign > 0}

    def side(self):
        return next(w for w in reversed(self.words) if w in ("left", "right"))

    def turn(self):
        found = re.search(r"turn (left|right|around)", self.text)
        return {"left": 90, "right": -90, "around": 180}[found[1]]

    def at(self, place, facing=0.0):
        (found,) = [c for c, s in self.sources.items() if compass(seen(s["at"], facing)) == place]
        return found


def distance_name(metres):
    return min(("70 cm", "120 cm", "200 cm", "340 cm"), key=lambda n: _ratio(n, metres))


def _ratio(name, metres):
    there = float(name.split()[0]) / 100
    return max(there / metres, metres / there)


def step(value, edges, names):
    return names[sum(value >= e for e in edges)]


def around(angles):
    """Degrees turned along a row of angles, taking the shorter way at each step."""
    return sum((b - a + 180) % 360 - 180 for a, b in zip(angles, angles[1:], strict=False))


def moved(source):
    rows = [
        row
        for k, row in enumerate(source.get("trajectory", []))
        if source["onset"] <= 0.1 * k + 0.05 <= source["offset"]
    ]
    if not rows:
        return "stays"
    angle, ratio = around([r[0] for r in rows]), rows[-1][2] / rows[0][2]
    if abs(angle) >= 30:
        return "anticlockwise" if angle > 0 else "clockwise"
    if max(ratio, 1 / ratio) >= 1.5:
        return "away" if ratio > 1 else "nearer"
    return "stays"


def turned(scene):
    heard = [
        y
        for k, y in enumerate(scene["yaw"])
        if any(s["onset"] <= 0.1 * k + 0.05 <= s["offset"] for s in scene["sources"])
    ]
    angle = around(heard)
    return f"{'far' if abs(angle) > 75 else 'slightly'} {'left' if angle > 0 else 'right'}"


def derive(scene, task, question, options):
    w = World(scene, question)
    one = w.sources[w.named[0]] if w.named else None
    two = w.sources[w.named[1]] if len(w.named) > 1 else None
    places = [x for x in w.words if x in COMPASS]
    match task:
        case "heard":
            (found,) = set(options) & set(w.sources)
            return found
        case "how_many":
            return str(len(w.named))
        case "first" | "nearest" | "highest" | "loudest":
            return w.extremes()[0]
        case "where_in_time" | "where_nearest":
            return compass(w.sources[w.extremes()[0]]["at"])
        case "when":
            return f"{math.floor(one['onset'] + 0.5)} s"
        case "order":
            a, b = (one, two) if "does" in w.words or w.words[0] != "next" else (two, one)
            joined = a["onset"] < b["offset"] and b["onset"] < a["offset"]
            side = "before" if a["onset"] < b["onset"] else "after"
            return f"{side} {'joined' if joined else 'apart'}"
        case "azimuth":
            return compass(one["at"])
        case "elevation":
            height = np.degrees(np.arctan2(one["at"][2], np.hypot(*one["at"][:2])))
            return step(height, (-10, 15, 40), ("below", "level", "above", "overhead"))
        case "distance":
            return distance_name(np.linalg.norm(one["at"]))
        case "how_far":
            place = next(x for x in places)
            return distance_name(w.sources[w.at(place)]["distance"])
        case "reverberance":
            return step(scene["rt60"], (0.22, 0.35, 0.5), ("dead", "dry", "live", "echoing"))
        case "side_count":
            return str(len(w.on(w.side())))
        case "turn_count":
            return str(len(w.on(w.side(), 180.0)))
        case "motion":
            return moved(one)
        case "listener_turn":
            return turned(scene)
        case "at":
            return w.at(places[0])
        case "turn_at":
            return w.at(places[-1], w.turn())
        case "nearer":
            a, b = (two, one) if w.words[0] in ("next", "against") else (one, two)
            ratio = a["distance"] / b["distance"]
            names = ("much nearer", "nearer", "alike", "farther", "much farther")
            return step(ratio, (1 / 2.57, 1 / 1.31, 1.31, 2.57), names)
        case "left_of":
            views = {c: seen(s["at"], one["azimuth"])[1] for c, s in w.sources.items()}
            sign = {"left": 1, "right": -1}[next(x for x in w.words if x in ("left", "right"))]
            (found,) = [c for c, y in views.items() if y * sign > 0 and c != one["class"]]
            return found
        case "earlier":
            sign = 1 if "after" in w.words else -1
            (found,) = [c for c, s in w.sources.items() if (s["onset"] - one["onset"]) * sign > 0]
            return found
        case "same_side":
            same = w.on("left") if one["at"][1] > 0 else w.on("right")
            (found,) = same - {one["class"]}
            return found
        case "without":
            (found,) = w.on(w.side()) - {one["class"]}
            return found
        case "apart":
            flat = [s["at"][:2] / np.linalg.norm(s["at"][:2]) for s in (one, two)]
            angle = np.degrees(np.arccos(np.clip(flat[0] @ flat[1], -1, 1)))
            return f"{45 * math.floor(angle / 45 + 0.5)} degrees"
        case "turn":
            return compass(seen(one["at"], w.turn()))
        case "face":
            return compass(seen(two["at"], one["azimuth"]))
        case "hops":
            a, b = (w.sources[c] for c in w.extremes())
            return compass(seen(b["at"], a["azimuth"]))
        case "aim":
            turns = {"stay": 0, "turn left": 90, "turn right": -90, "turn around": 180}
            return max(turns, key=lambda t: seen(one["at"], turns[t])[0])
        case "walk":
            return compass(two["at"] - one["at"])
        case "move":
            angle = 90 if "quarter" in w.words else 180
            return compass(seen(one["at"], angle if "clockwise" in w.words else -angle))
        case "room":
            size = "large" if scene["volume"] > 85 else "small"
            return f"{size} {'live' if scene['rt60'] > 0.35 else 'dry'} room"
        case "place":
            (found,) = [p for p in options if set(w.sources) <= set(HOMES[p].split())]
            return found
        case "claim":
            true = {f"{c} {compass(s['at'])}" for c, s in w.sources.items()}
            (found,) = true & set(options)
            return found


@pytest.fixture(scope="module")
def asked():
    """[(scene, question)] of every task, resting and moving scenes, thousands."""
    clips = [
        scenes.Clip(f"{c}/{t}", c, f"{c}-{t}", 0.5 + 0.3 * t) for c in CLASSES for t in range(5)
    ]
    rest = {"train": 1, "dev": 1, "benchmark": 1, "seconds": 4.0}
    found = []
    for ranges, count, tasks in (
        (rest, 320, questions.TASKS),
        (rest | {"moving": 0.5, "pace": (0.5, 2.0)}, 200, ("motion", "azimuth", "heard", "face")),
        (rest | {"turning": 1.0}, 120, ("listener_turn", "turn", "order")),
    ):
        for i in range(count):
            spec = scenes.draw(config.Scenes(**ranges), clips, 0, "test", i)
            scene, rng = scenes.describe(spec), np.random.default_rng(i)
            for task in tasks:
                for _ in range(2):
                    q = questions.ask(scene, CLASSES, rng, task)
                    found += [(scene, q)] if q else []
    return found


def test_every_answer_follows_from_the_scene(asked):
    for scene, q in asked:
        right = derive(scene, q.task, q.question, q.options)
        assert right == q.answer_text, (q, scene)
        # No other option would do: what is derived is one of the four, and they differ.
        assert len(set(q.options)) == 4
    counts = Counter(q.task for _, q in asked)
    assert set(counts) == set(questions.TASKS) and len(counts) >= 20
    assert min(counts.values()) >= 12, counts
    assert len(asked) > 4000


def test_a_question_is_asked_again_of_the_same_scene(asked):
    for scene, q in asked[::7]:
        rng = np.random.default_rng(0)
        found = questions.again(q.task, q.about, scene, CLASSES, rng)
        assert (found.question, found.answer_text) == (q.question, q.answer_text)
        found = questions.again(q.task, q.about, scene, CLASSES, rng, lenient=True)
        assert found.answer_text == q.answer_text
    other = {**asked[0][0], "sources": []}
    assert questions.again("azimuth", {"class": "bird", "wording": 0}, other, CLASSES, rng) is None


@pytest.mark.parametrize("yaw", [90.0, 180.0, -37.0])
def test_answers_to_the_turned_scene_are_its_own(asked, yaw):
    """What the rotation control asks: the same choices, of the scene turned about the listener."""
    same = differing = 0
    for scene, q in asked[::5]:
        if q.task in ("motion", "listener_turn"):
            continue
        view = scenes.turn(scene, yaw)
        found = questions.again(q.task, q.about, view, CLASSES, np.random.default_rng(0))
        if found is None:
            assert q.direction or q.task == "claim", q
            continue
        assert found.answer_text == derive(view, q.task, found.question, found.options)
        if not q.direction:
            assert found.answer_text == q.answer_text and found.question == q.question
        same += found.answer_text == q.answer_text
        differing += found.answer_text != q.answer_text
    assert differing > 100 and same > 100
