"""L3, reasoning: what would be if the listener turned or walked, or a source moved or stopped;
which room or place fits, what is true, several hops.

Each function is a task (see viz/plot_room.py): `(scene, draw) -> Draft | None`.
"""

import itertools
import math

from jaxasa.data import scene_text
from jaxasa.data.questions.context import (
    LEVEL,
    RATIO,
    SIDES,
    TIME,
    Draft,
    Draw,
    beside,
    counts,
    difference,
    extreme,
    on_side,
    placed,
    received,
    sided,
)
from jaxasa.data.questions.relations import at, named

TURNS = {"left": 90.0, "right": -90.0, "around": 180.0}
# What brings an azimuth of 0, 90, 180 or 270 degrees to the front.
ACTS = ("stay", "turn left", "turn around", "turn right")
ARCS = {"a quarter": 90.0, "half": 180.0}
ON_THE_WAY = 7.5  # degrees from a boundary
ERROR = 1.25  # factor by which a distance may be misjudged without changing where a walk leads
# Rooms up to the first and from the second; those between (m3, s of RT60) are not asked about.
SMALL_LARGE, DRY_LIVE = (60.0, 110.0), (0.3, 0.4)
# Where classes are at home, by the names that sound banks give them.
PLACES = {
    "office": ("alarm", "clock", "footsteps", "keyboard", "phone", "speech", "steps", "typing"),
    "street": ("alarm", "bell", "engine", "footsteps", "rain", "siren", "speech", "steps"),
    "stage": ("bell", "drum", "music", "piano", "speech", "strings", "voice", "whistle"),
    "garden": ("bird", "dog", "footsteps", "rain", "steps", "water", "wind"),
    "quarry": ("blast", "engine", "fire", "siren", "steps", "footsteps", "whistle"),
}


def turn(scene: dict, draw: Draw) -> Draft | None:
    """Where a class would be after the listener turned."""
    source = draw.source()
    if not draw.clear(source["azimuth"]):
        return None
    name = draw.one("turn", tuple(TURNS))
    question = draw.say(
        "if you turn {t} , where is the {c} ?",
        "you turn {t} . where is the {c} then ?",
        t=name,
        c=source["class"],
    )
    steps = f"{placed(source)} turn {name}"
    return _placed(draw, question, source["azimuth"] - TURNS[name], steps)


def _placed(
    draw: Draw, question: str, azimuth: float, steps: str, places=scene_text.SECTORS
) -> Draft:
    """A draft whose answer is the sector of an azimuth in any range."""
    seen = difference(0.0, azimuth)
    others = draw.wrong_sectors(places)
    return Draft(question, scene_text.sector(seen), others, steps, ("azimuth", seen))


def turn_at(scene: dict, draw: Draw) -> Draft | None:
    """What would be in a sector after the listener turned."""
    draft = at(scene, draw)
    if draft is None:
        return None
    name = draw.one("turn", tuple(TURNS))
    source = next(s for s in scene["sources"] if s["class"] == draft.answer)
    now, after = (scene_text.sector(source["azimuth"] - a) for a in (0.0, TURNS[name]))
    question = draw.say(
        "if you turn {t} , what is at the {p} ?",
        "you turn {t} . which sound comes from the {p} then ?",
        t=name,
        p=after,
    )
    steps = f"{after} was {now} {draft.answer}"
    return Draft(question, draft.answer, draft.others, steps, ("name", None))


def face(scene: dict, draw: Draw) -> Draft | None:
    """Where one class would be if the listener faced another."""
    if len(scene["sources"]) < 2:
        return None
    a, b = draw.two("a", "b")
    if not _is_clear_from(draw, a, b):
        return None
    question = draw.say(
        "if you face the {a} , where is the {b} ?",
        "you turn to face the {a} . where is the {b} then ?",
        a=a["class"],
        b=b["class"],
    )
    return _faced(draw, question, a, b)


def _is_clear_from(draw: Draw, a: dict, b: dict) -> bool:
    """Whether the sector of b for one who faces a is clear, and follows from both sectors."""
    seen = difference(a["azimuth"], b["azimuth"])
    # What is only on the way to the answer may be less clear than what is asked.
    margins = [scene_text.sector_margin(s["azimuth"]) for s in (a, b)]
    clear = draw.clear(seen) and (draw.lenient or min(margins) >= ON_THE_WAY)
    before, after = (scene_text.SECTORS.index(scene_text.sector(s["azimuth"])) for s in (a, b))
    follows = scene_text.SECTORS[(after - before) % len(scene_text.SECTORS)] == scene_text.sector(
        seen
    )
    return clear and scene_text.sector(seen) != "front" and (follows or draw.lenient)


def _faced(draw: Draw, question: str, a: dict, b: dict) -> Draft:
    steps = f"{placed(a)} {placed(b)}"
    # Sources are well apart, so "front" is never right and would give itself away.
    return _placed(draw, question, b["azimuth"] - a["azimuth"], steps, scene_text.SECTORS[1:])


def turn_count(scene: dict, draw: Draw) -> Draft | None:
    """How many sources would be on a side after the listener turned around."""
    side = draw.one("side", tuple(SIDES))
    now = "right" if side == "left" else "left"
    found = on_side(draw, scene["sources"], now)
    if found is None:
        return None
    question = draw.say(
        "if you turn around , how many sounds are on the {s} ?",
        "you turn around . how many sounds are on the {s} then ?",
        s=side,
    )
    steps, count = f"{side} was {now} : {sided(scene['sources'])}", len(found)
    return Draft(question, str(count), counts(count), steps, ("count", float(count)))


def aim(scene: dict, draw: Draw) -> Draft | None:
    """Which turn brings a class to the front."""
    source = draw.source()
    quarter = round(source["azimuth"] / 90) % 4
    off = abs(difference(90 * quarter, source["azimuth"]))
    if not draw.apart(45 - off, draw.margin):
        return None
    question = draw.say(
        "how do you get the {c} in front of you ?",
        "what brings the {c} to the front ?",
        "which turn makes you face the {c} ?",
        c=source["class"],
    )
    return Draft(question, ACTS[quarter], draw.shuffled(ACTS), placed(source))


def walk(scene: dict, draw: Draw) -> Draft | None:
    """Where one class would be if the listener walked to another without turning."""
    if len(scene["sources"]) < 2:
        return None
    a, b = draw.two("a", "b")
    bearings = [
        _bearing_from(a, b, p, q) for p, q in itertools.product((1 / ERROR, 1.0, ERROR), repeat=2)
    ]
    bearing = _bearing_from(a, b, 1.0, 1.0)
    sure = draw.clear(bearing) and len({scene_text.sector(x) for x in bearings}) == 1
    if not (sure and draw.audible(a, b) or draw.lenient):
        return None
    question = draw.say(
        "you walk to the {a} and do not turn . where is the {b} then ?",
        "where the {a} is , facing as now , where would the {b} be ?",
        "if you stood at the {a} , facing as now , where is the {b} ?",
        a=a["class"],
        b=b["class"],
    )
    steps = " ".join(
        f"{s['class']} {scene_text.sector(s['azimuth'])} {scene_text.metres(s['distance'])}"
        for s in (a, b)
    )
    return _placed(draw, question, bearing, steps)


def _bearing_from(a: dict, b: dict, scale_a: float, scale_b: float) -> float:
    """Azimuth of b from the place of a in the plan, their distances scaled."""
    (ax, ay), (bx, by) = _in_plan(a, scale_a), _in_plan(b, scale_b)
    return math.degrees(math.atan2(by - ay, bx - ax))


def _in_plan(source: dict, scale: float) -> tuple[float, float]:
    """x to the front and y to the left (m) of a source, its distance scaled."""
    azimuth, elevation = (math.radians(source[name]) for name in ("azimuth", "elevation"))
    away = scale * source["distance"] * math.cos(elevation)
    return away * math.cos(azimuth), away * math.sin(azimuth)


def move(scene: dict, draw: Draw) -> Draft | None:
    """Where a class would be after it went around the listener."""
    source = draw.source()
    if not draw.clear(source["azimuth"]):
        return None
    arc, way = draw.one("arc", tuple(ARCS)), draw.one("way", ("clockwise", "anticlockwise"))
    question = draw.say(
        "the {c} goes {a} circle {w} around you . where is it then ?",
        "after {a} circle {w} around you , where is the {c} ?",
        "if the {c} walks {a} circle {w} around you , where does it end ?",
        c=source["class"],
        a=arc,
        w=way,
    )
    turned = ARCS[arc] if way == "anticlockwise" else -ARCS[arc]
    steps = f"{placed(source)} {way}"
    return _placed(draw, question, source["azimuth"] + turned, steps)


def without(scene: dict, draw: Draw) -> Draft | None:
    """What is left on a side when one of two there has stopped."""
    source = draw.source()
    found = beside(draw, scene["sources"], source)
    if found is None:
        return None
    side, left = found
    question = draw.say(
        "the {c} stops . what is left on the {s} ?",
        "without the {c} , which sound is on the {s} ?",
        "if the {c} were gone , what is heard on the {s} ?",
        c=source["class"],
        s=side,
    )
    here = [s["class"] for s in scene["sources"] if s is source or s is left]
    return named(draw, question, left, source["class"], " ".join([side, ":", *here]))


def hops(scene: dict, draw: Draw) -> Draft | None:
    """Where one sound is for one who faces another, both named by what is most about them."""
    ranks = {
        "first": (lambda s: s["onset"], False, TIME),
        "last": (lambda s: s["onset"], True, TIME),
        "nearest": (lambda s: math.log(s["distance"]), False, math.log(RATIO)),
        "farthest": (lambda s: math.log(s["distance"]), True, math.log(RATIO)),
    }
    if all("level" in s and "drr" in s for s in scene["sources"]):
        ranks |= {"loudest": (received, True, LEVEL), "softest": (received, False, LEVEL)}
    one, two = draw.one("one", tuple(ranks)), draw.one("two", tuple(ranks))
    a, b = (extreme(draw, scene["sources"], *ranks[name]) for name in (one, two))
    if a is None or b is None or a is b or not _is_clear_from(draw, a, b):
        return None
    question = draw.say(
        "if you face the {a} sound , where is the {b} sound ?",
        "you turn to the {a} sound . where is the {b} one then ?",
        "facing the {a} sound , where do you hear the {b} one ?",
        a=one,
        b=two,
    )
    return _faced(draw, question, a, b)


def room(scene: dict, draw: Draw) -> Draft | None:
    """Which room fits: small or large by its volume, dry or live by its RT60."""
    if "rt60" not in scene or "volume" not in scene:
        return None
    sizes = (scene["volume"], *SMALL_LARGE), (scene["rt60"], *DRY_LIVE)
    clear = draw.lenient or all(v <= low or v >= high for v, low, high in sizes)
    if not clear:
        return None
    question = draw.say(
        "which room fits what you hear ?", "where could this be ?", "in what room are you ?"
    )
    large, live = (value > (low * high) ** 0.5 for value, low, high in sizes)
    every = [f"{size} {kind} room" for size in ("small", "large") for kind in ("dry", "live")]
    return Draft(question, every[2 * large + live], draw.shuffled(every))


def place(scene: dict, draw: Draw) -> Draft | None:
    """In which place all that is heard could be, where that is one only."""
    present = {s["class"] for s in scene["sources"]}
    fitting = [name for name, home in PLACES.items() if present <= set(home)]
    if len(fitting) != 1:
        return None
    question = draw.say(
        "which place fits all the sounds ?",
        "where would you hear all this ?",
        "in what place are you likely to be ?",
    )
    return Draft(question, fitting[0], draw.shuffled(list(PLACES)))


def claim(scene: dict, draw: Draw) -> Draft | None:
    """Which of four claims about what is where is true."""
    source = draw.source()
    absent = draw.absent()
    if not draw.clear(source["azimuth"]) or len(scene["sources"]) + len(absent) < 4:
        return None

    def elsewhere(s: dict) -> str:
        far = [
            p
            for i, p in enumerate(scene_text.SECTORS)
            if abs(difference(i * scene_text.SECTOR_WIDTH, s["azimuth"]))
            > 2 * scene_text.SECTOR_WIDTH
        ]
        return f"{s['class']} {far[draw.rng.integers(len(far))]}"

    wrong = [elsewhere(s) for s in draw.shuffled(scene["sources"]) if s is not source]
    for name in draw.shuffled(absent)[:3]:
        wrong.append(f"{name} {scene_text.SECTORS[draw.rng.integers(len(scene_text.SECTORS))]}")
    question = draw.say("which of these is true ?", "what is so ?", "which claim fits the scene ?")
    return Draft(question, f"{source['class']} {scene_text.sector(source['azimuth'])}", wrong)
