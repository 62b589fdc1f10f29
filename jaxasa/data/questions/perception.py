"""L1, perception: what sounds, how many, where, how far, in what room, when, how it moves.

Each function is a task (see viz/plot_room.py): `(scene, draw) -> Draft | None`.
"""

import math

import numpy as np

from jaxasa.data import scene_text
from jaxasa.data.questions.context import (
    DECAY,
    RATIO,
    SIDES,
    TIME,
    Draft,
    Draw,
    counts,
    extreme,
    on_side,
    placed,
    sided,
    while_heard,
)

SPARE = 0.4  # s before the end of a scene within which nothing starts
MOVES = ("stays", "clockwise", "anticlockwise", "nearer", "away")
TURNED = ("slightly left", "far left", "slightly right", "far right")


def heard(scene: dict, draw: Draw) -> Draft | None:
    """Which of four classes is heard."""
    absent = draw.absent()
    if len(absent) < 3:
        return None
    answer = draw.source()["class"]
    question = draw.say("which of these is heard ?", "what can you hear ?")
    return Draft(question, answer, draw.shuffled(absent))


def how_many(scene: dict, draw: Draw) -> Draft | None:
    """How many of three classes are heard."""
    present, absent = [s["class"] for s in scene["sources"]], draw.absent()
    possible = [k for k in range(4) if k <= len(present) and 3 - k <= len(absent)]
    if len(possible) < 2:
        return None
    k = draw.one("count", possible)
    if draw.given is None:
        three = draw.shuffled(draw.shuffled(present)[:k] + draw.shuffled(absent)[: 3 - k])
    else:
        three = draw.given["three"].split()
    draw.about["three"] = " ".join(three)
    found = [c for c in three if c in present]
    question = draw.say(
        "how many of these are heard : {t} ?",
        "of {t} , how many do you hear ?",
        "count what is heard of {t} .",
        t=" , ".join(three),
    )
    steps, count = " ".join([":", *found]), len(found)
    return Draft(question, str(count), counts(count), steps, ("count", float(count)))


def first(scene: dict, draw: Draw) -> Draft | None:
    """Which class starts first or last."""
    found = order_in_time(scene, draw)
    if found is None:
        return None
    which, source = found
    question = draw.say("which sound starts {w} ?", "what is heard {w} ?", w=which)
    answer = source["class"]
    return Draft(question, answer, draw.wrong_classes(answer), open=("name", None))


def order_in_time(scene: dict, draw: Draw) -> tuple[str, dict] | None:
    """("first" | "last", its source), when it is audibly apart from its neighbour."""
    sources = scene["sources"]
    if len(sources) < 2:
        return None
    which = draw.one("which", ("first", "last"))
    source = extreme(draw, sources, lambda s: s["onset"], which == "last", TIME)
    return None if source is None else (which, source)


def when(scene: dict, draw: Draw) -> Draft | None:
    """In which second a class starts."""
    seconds = range(int(scene.get("seconds", 0) - SPARE + 0.2) + 1)
    source = draw.source()
    nearest = round(source["onset"])
    off = abs(source["onset"] - nearest)
    if len(seconds) < 4 or nearest not in seconds or not draw.apart(0.5 - off, TIME):
        return None
    question = draw.say(
        "when does the {c} start ?",
        "at what time is the {c} first heard ?",
        "after how long does the {c} begin ?",
        c=source["class"],
    )
    others = [f"{k} s" for k in draw.shuffled(seconds)]
    return Draft(question, f"{nearest} s", others, open=("time", source["onset"]))


def order(scene: dict, draw: Draw) -> Draft | None:
    """Whether one class starts before another, and whether they overlap."""
    if len(scene["sources"]) < 2:
        return None
    a, b = draw.two("a", "b")
    early, late = (a, b) if a["onset"] < b["onset"] else (b, a)
    shared = min(a["offset"], b["offset"]) - late["onset"]
    if not draw.apart(late["onset"] - early["onset"], TIME) or not draw.apart(abs(shared), TIME):
        return None
    question = draw.say(
        "how does the {a} follow on the {b} in time ?",
        "when is the {a} heard , seen from the {b} ?",
        "does the {a} start before the {b} , and do they overlap ?",
        a=a["class"],
        b=b["class"],
    )
    side, joined = "before" if a is early else "after", "joined" if shared > 0 else "apart"
    every = [f"{s} {j}" for s in ("before", "after") for j in ("joined", "apart")]
    return Draft(question, f"{side} {joined}", draw.shuffled(every))


def azimuth(scene: dict, draw: Draw) -> Draft | None:
    """In which sector a class is."""
    source = draw.source()
    if not draw.clear(source["azimuth"]):
        return None
    question = draw.say("where is the {c} ?", "from where does the {c} come ?", c=source["class"])
    place = scene_text.sector(source["azimuth"])
    return Draft(
        question, place, draw.wrong_sectors(), placed(source), ("azimuth", source["azimuth"])
    )


def elevation(scene: dict, draw: Draw) -> Draft | None:
    """How high a class is."""
    source = draw.source()
    height = source["elevation"]
    edge = min(abs(height - e) for e in scene_text.ELEVATION_EDGES)
    if not draw.apart(edge, draw.margin / 3):
        return None
    question = draw.say(
        "how high is the {c} ?",
        "at what height does the {c} sound ?",
        "is the {c} above or below your ears ?",
        c=source["class"],
    )
    others = draw.shuffled(scene_text.ELEVATIONS)
    return Draft(question, scene_text.elevation(height), others, open=("elevation", height))


def distance(scene: dict, draw: Draw) -> Draft | None:
    """How far a class is."""
    source = draw.source()
    if not clear_distance(draw, source):
        return None
    question = draw.say(
        "how far is the {c} ?",
        "at what distance is the {c} ?",
        "how near to you is the {c} ?",
        c=source["class"],
    )
    return distance_draft(draw, question, source)


def clear_distance(draw: Draw, source: dict) -> bool:
    """Whether a distance can be heard, and is well inside the range of its name."""
    off = min(abs(math.log(source["distance"] / s)) for s in scene_text.STEPS)
    return draw.apart(math.log(RATIO) / 2 - off, math.log(1.15)) and draw.audible(source)


def distance_draft(draw: Draw, question: str, source: dict, steps: str = "") -> Draft:
    answer, every = (
        scene_text.metres(source["distance"]),
        [scene_text.metres(s) for s in scene_text.STEPS],
    )
    return Draft(question, answer, draw.shuffled(every), steps, ("distance", source["distance"]))


def reverberance(scene: dict, draw: Draw) -> Draft | None:
    """How the room decays, by RT60."""
    if "rt60" not in scene:
        return None
    off = min(abs(math.log(scene["rt60"] / e)) for e in scene_text.DECAY_EDGES)
    if not draw.apart(off, math.log(DECAY)):
        return None
    question = draw.say(
        "how does the room sound ?", "what kind of room is this ?", "how long does the room ring ?"
    )
    return Draft(question, scene_text.decay(scene["rt60"]), draw.shuffled(scene_text.DECAYS))


def side_count(scene: dict, draw: Draw) -> Draft | None:
    """How many sources are on one side."""
    side = draw.one("side", tuple(SIDES))
    found = on_side(draw, scene["sources"], side)
    if found is None:
        return None
    question = draw.say("how many sounds are on the {s} ?", "count the sounds on the {s} .", s=side)
    steps, count = f"{side} : {sided(scene['sources'])}", len(found)
    return Draft(question, str(count), counts(count), steps, ("count", float(count)))


def motion(scene: dict, draw: Draw) -> Draft | None:
    """How a class moves, seen from above and from a listener who keeps still."""
    if "yaw" in scene or not any("trajectory" in s for s in scene["sources"]):
        return None
    source = draw.source()
    move = _move(source)
    if move is None:
        return None
    question = draw.say(
        "how does the {c} move ?",
        "seen from above , what does the {c} do ?",
        "where does the {c} go ?",
        c=source["class"],
    )
    return Draft(question, move, draw.shuffled(MOVES))


def _move(source: dict) -> str | None:
    """One of MOVES: around by 30 degrees at least, or nearer or away by half, and not both."""
    bearing, _, far = while_heard(source).T
    bearing = np.unwrap(bearing, period=360.0)
    around, away = bearing[-1] - bearing[0], math.log(far[-1] / far[0])
    if np.ptp(bearing) < 5 and abs(away) < math.log(1.1):
        return "stays"
    if abs(around) >= 30 and abs(away) < math.log(1.3):
        return "anticlockwise" if around > 0 else "clockwise"
    if abs(away) >= math.log(1.5) and abs(around) < 20:
        return "away" if away > 0 else "nearer"
    return None


def listener_turn(scene: dict, draw: Draw) -> Draft | None:
    """Which way the listener turns while anything sounds, by 20 to 60 or by 90 degrees and more."""
    if "yaw" not in scene:
        return None
    times = (np.arange(len(scene["yaw"])) + 0.5) * scene["seconds"] / len(scene["yaw"])
    sounding = np.zeros(len(times), bool)
    for s in scene["sources"]:
        sounding |= (s["onset"] <= times) & (times <= s["offset"])
    yaw = np.unwrap(scene["yaw"], period=360.0)
    heard = yaw[sounding]
    total, angle = abs(yaw[-1] - yaw[0]), heard[-1] - heard[0] if len(heard) else 0.0
    far, slight = abs(angle) >= 90, 20 <= abs(angle) <= 60
    # What was turned in silence is not heard.
    if not (far or slight) or abs(angle) < 0.8 * total:
        return None
    question = draw.say(
        "how do you turn ?", "which way do you turn , and how far ?", "how does your head turn ?"
    )
    answer = f"{'far' if far else 'slightly'} {'left' if angle > 0 else 'right'}"
    return Draft(question, answer, draw.shuffled(TURNED))
