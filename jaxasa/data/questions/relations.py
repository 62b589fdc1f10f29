"""L2, relations: what is at a place, where and how far; nearest, higher, louder, earlier, beside.

Each function is a task (see viz/plot_room.py): `(scene, draw) -> Draft | None`.
"""

import bisect
import math

from jaxasa.data import scene_text
from jaxasa.data.questions.context import (
    HEIGHT,
    LEVEL,
    MARGIN,
    RATIO,
    SIDES,
    TIME,
    Draft,
    Draw,
    beside,
    difference,
    extreme,
    placed,
    received,
    the_only,
)
from jaxasa.data.questions.perception import clear_distance, distance_draft, order_in_time

NEARER, NEARER_EDGES = ("much nearer", "nearer", "alike", "farther", "much farther"), (1.31, 2.57)


def named(draw: Draw, question: str, source: dict, asked: str = "", steps: str = "") -> Draft:
    """A draft whose answer is the class of `source`; `asked` is the class in the question."""
    answer = source["class"]
    others = draw.wrong_classes(answer, [asked])
    return Draft(question, answer, others, steps, open=("name", None))


def at(scene: dict, draw: Draw) -> Draft | None:
    """What is in a sector."""
    source = _alone_in_sector(scene, draw)
    if source is None:
        return None
    place = scene_text.sector(source["azimuth"])
    question = draw.say("what is at the {p} ?", "which sound comes from the {p} ?", p=place)
    return named(draw, question, source, steps=f"{place} {source['class']}")


def _alone_in_sector(scene: dict, draw: Draw) -> dict | None:
    source = draw.source()
    place = scene_text.sector(source["azimuth"])
    same = [s for s in scene["sources"] if scene_text.sector(s["azimuth"]) == place]
    alone = len(scene["sources"]) > 1 and len(same) == 1 and draw.clear(source["azimuth"])
    return source if alone else None


def where_in_time(scene: dict, draw: Draw) -> Draft | None:
    """Where the first or last sound is."""
    found = order_in_time(scene, draw)
    if found is None or not draw.clear(found[1]["azimuth"]):
        return None
    which, source = found
    question = draw.say("where is the sound that starts {w} ?", "where is the {w} sound ?", w=which)
    return _placed(draw, question, source, f"{which} : {placed(source)}")


def _placed(draw: Draw, question: str, source: dict, steps: str) -> Draft:
    place = scene_text.sector(source["azimuth"])
    return Draft(question, place, draw.wrong_sectors(), steps, ("azimuth", source["azimuth"]))


def find_nearest(scene: dict, draw: Draw) -> dict | None:
    """The nearest source, where it alone is near."""
    sources = scene["sources"]
    found = extreme(draw, sources, lambda s: math.log(s["distance"]), False, math.log(RATIO))
    near = [s for s in sources if scene_text.distance(s["distance"]) == "near"]
    return found if near == [found] else None


def nearest(scene: dict, draw: Draw) -> Draft | None:
    """Which class is nearest."""
    source = find_nearest(scene, draw)
    if source is None:
        return None
    question = draw.say("which sound is nearest ?", "what is closest to you ?")
    return named(draw, question, source, steps=f"near {source['class']}")


def where_nearest(scene: dict, draw: Draw) -> Draft | None:
    """Where the nearest sound is."""
    source = find_nearest(scene, draw)
    if source is None or not draw.clear(source["azimuth"]):
        return None
    question = draw.say("where is the nearest sound ?", "where is the closest sound ?")
    return _placed(draw, question, source, f"near {placed(source)}")


def how_far(scene: dict, draw: Draw) -> Draft | None:
    """How far the sound in a sector is."""
    source = _alone_in_sector(scene, draw)
    if source is None or not clear_distance(draw, source):
        return None
    question = draw.say(
        "how far is the sound at the {p} ?",
        "at what distance is what comes from the {p} ?",
        "how near is the {p} sound ?",
        p=scene_text.sector(source["azimuth"]),
    )
    return distance_draft(draw, question, source, source["class"])


def nearer(scene: dict, draw: Draw) -> Draft | None:
    """How far a class is against another: alike (within 14 %), 1.5 to 2.2 times, or 3 times."""
    if len(scene["sources"]) < 2:
        return None
    a, b = draw.two("a", "b")
    away = math.log(a["distance"] / b["distance"])
    edges = [math.log(e) for e in NEARER_EDGES]
    degree = bisect.bisect(edges, abs(away))
    off = min(abs(abs(away) - e) for e in edges)
    if not draw.apart(off, math.log(1.15)) or not draw.audible(a, b):
        return None
    question = draw.say(
        "is the {a} nearer or farther than the {b} ?",
        "how far is the {a} against the {b} ?",
        "next to the {b} , how near to you is the {a} ?",
        a=a["class"],
        b=b["class"],
    )
    answer = NEARER[2 + degree] if away > 0 else NEARER[2 - degree]
    steps = " ".join(f"{s['class']} {scene_text.metres(s['distance'])}" for s in (a, b))
    return Draft(question, answer, draw.shuffled(NEARER), steps)


def left_of(scene: dict, draw: Draw) -> Draft | None:
    """What is left, or right, of a class when that is faced."""
    source, side = draw.source(), draw.one("side", tuple(SIDES))

    def gap(c, s):
        turned = SIDES[side] * difference(c["azimuth"], s["azimuth"])
        # Straight behind is on neither side either.
        return math.copysign(min(abs(turned), 180 - abs(turned)), turned)

    found = the_only(draw, source, scene["sources"], gap, MARGIN)
    if found is None:
        return None
    question = draw.say(
        "what is to the {s} of the {c} ?",
        "facing the {c} , what is on your {s} ?",
        "which sound is {s} of the {c} ?",
        s=side,
        c=source["class"],
    )
    return named(draw, question, found, source["class"])


def highest(scene: dict, draw: Draw) -> Draft | None:
    """Which class is highest or lowest."""
    which = draw.one("which", ("highest", "lowest"))
    sources = scene["sources"]
    found = extreme(draw, sources, lambda s: s["elevation"], which == "highest", HEIGHT)
    if found is None:
        return None
    question = draw.say(
        "which sound is {w} ?", "what comes from the {w} place ?", "what sounds {w} up ?", w=which
    )
    heights = " ".join(f"{s['class']} {scene_text.elevation(s['elevation'])}" for s in sources)
    return named(draw, question, found, steps=heights)


def loudest(scene: dict, draw: Draw) -> Draft | None:
    """Which class is loudest or softest where the listener is."""
    which, sources = draw.one("which", ("loudest", "softest")), scene["sources"]
    if not all("level" in s and "drr" in s for s in sources):
        return None
    found = extreme(draw, sources, received, which == "loudest", LEVEL)
    if found is None:
        return None
    question = draw.say(
        "which sound is {w} ?", "what do you hear {w} ?", "what is {w} in your ears ?", w=which
    )
    return named(draw, question, found)


def earlier(scene: dict, draw: Draw) -> Draft | None:
    """What starts before, or after, a class."""
    source, which = draw.source(), draw.one("which", ("before", "after"))
    sign = 1 if which == "after" else -1
    found = the_only(
        draw, source, scene["sources"], lambda c, s: sign * (s["onset"] - c["onset"]), TIME
    )
    if found is None:
        return None
    question = draw.say(
        "what starts {w} the {c} ?",
        "which sound begins {w} the {c} ?",
        "what is heard {w} the {c} starts ?",
        w=which,
        c=source["class"],
    )
    return named(draw, question, found, source["class"])


def same_side(scene: dict, draw: Draw) -> Draft | None:
    """What is on the same side of the listener as a class."""
    source = draw.source()
    found = beside(draw, scene["sources"], source)
    if found is None:
        return None
    side, other = found
    question = draw.say(
        "what is on the same side as the {c} ?",
        "which sound comes from the side of the {c} ?",
        "what shares its side with the {c} ?",
        c=source["class"],
    )
    return named(draw, question, other, source["class"], side)


def apart(scene: dict, draw: Draw) -> Draft | None:
    """How far apart two classes are in azimuth."""
    if len(scene["sources"]) < 2:
        return None
    a, b = draw.two("a", "b")
    angle = abs(difference(a["azimuth"], b["azimuth"]))
    steps = round(angle / scene_text.SECTOR_WIDTH)
    if not draw.clear(angle) or steps == 0:
        return None
    question = draw.say(
        "how far apart are the {a} and the {b} ?",
        "what angle is between the {a} and the {b} ?",
        "from the {a} to the {b} , how far do you turn ?",
        a=a["class"],
        b=b["class"],
    )
    every = [f"{45 * k} degrees" for k in range(1, 5)]
    return Draft(question, every[steps - 1], draw.shuffled(every))
