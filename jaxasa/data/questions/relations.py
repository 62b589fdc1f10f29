# SPDX-License-Identifier: Apache-2.0
"""L2, relations: class, direction or distance of the sound in a sector, the nearest one, the
first one; higher, louder, earlier, left of, on the same side as another.

Each decorated function is a question type (question_type.py).
"""

import bisect
import math

from jaxasa.data import scene_text
from jaxasa.data.questions.context import (
    MARGIN_DEG,
    MIN_DISTANCE_RATIO,
    MIN_ELEVATION_GAP_DEG,
    MIN_LEVEL_GAP_DB,
    MIN_TIME_GAP_S,
    SIDE_SIGNS,
    QuestionContext,
    class_and_sector,
    find_extreme,
    level_at_listener,
    only_other_on_side,
    only_source_beyond,
    relative_azimuth,
)
from jaxasa.data.questions.drafts import Draft, class_draft, distance_draft, sector_draft
from jaxasa.data.questions.perception import first_or_last, is_clear_distance
from jaxasa.data.questions.question_type import QuestionLevel

L2 = QuestionLevel("L2")

RELATIVE_DISTANCES = ("much nearer", "nearer", "alike", "farther", "much farther")
RELATIVE_DISTANCE_EDGES = (1.31, 2.57)  # ratios up to "alike" and from "much" on


@L2.question_type(rng_key="at")
def class_in_sector(scene: dict, ctx: QuestionContext) -> Draft | None:
    """Which class is in a sector."""
    source = _only_source_in_sector(scene, ctx)
    if source is None:
        return None
    sector = scene_text.sector_name(source["azimuth"])
    question = ctx.phrase("what is at the {p} ?", "which sound comes from the {p} ?", p=sector)
    return class_draft(ctx, question, source, steps=f"{sector} {source['class']}")


def _only_source_in_sector(scene: dict, ctx: QuestionContext) -> dict | None:
    """A source that is well inside its sector, if no other one is in it; of two or more."""
    source = ctx.choose_source()
    sector = scene_text.sector_name(source["azimuth"])
    same = [s for s in scene["sources"] if scene_text.sector_name(s["azimuth"]) == sector]
    is_only = len(scene["sources"]) > 1 and len(same) == 1
    return source if is_only and ctx.is_inside_sector(source["azimuth"]) else None


@L2.question_type(rng_key="where_in_time")
def sector_by_onset(scene: dict, ctx: QuestionContext) -> Draft | None:
    """In which sector the first or last sound is."""
    match = first_or_last(scene, ctx)
    if match is None or not ctx.is_inside_sector(match[1]["azimuth"]):
        return None
    which, source = match
    question = ctx.phrase(
        "where is the sound that starts {w} ?", "where is the {w} sound ?", w=which
    )
    return sector_draft(ctx, question, source["azimuth"], f"{which} : {class_and_sector(source)}")


def _nearest(scene: dict, ctx: QuestionContext) -> dict | None:
    """The nearest source, if no other one is near."""
    sources, key = scene["sources"], lambda s: math.log(s["distance"])
    nearest = find_extreme(ctx, sources, key, False, math.log(MIN_DISTANCE_RATIO))
    near = [s for s in sources if scene_text.distance_name(s["distance"]) == "near"]
    return nearest if near == [nearest] else None


@L2.question_type(direction=False, needs_distance=True, rng_key="nearest")
def nearest_source(scene: dict, ctx: QuestionContext) -> Draft | None:
    """Which class is nearest."""
    source = _nearest(scene, ctx)
    if source is None:
        return None
    question = ctx.phrase("which sound is nearest ?", "what is closest to you ?")
    return class_draft(ctx, question, source, steps=f"near {source['class']}")


@L2.question_type(needs_distance=True, rng_key="where_nearest")
def sector_of_nearest(scene: dict, ctx: QuestionContext) -> Draft | None:
    """In which sector the nearest sound is."""
    source = _nearest(scene, ctx)
    if source is None or not ctx.is_inside_sector(source["azimuth"]):
        return None
    question = ctx.phrase("where is the nearest sound ?", "where is the closest sound ?")
    return sector_draft(ctx, question, source["azimuth"], f"near {class_and_sector(source)}")


@L2.question_type(needs_distance=True, rng_key="how_far")
def distance_in_sector(scene: dict, ctx: QuestionContext) -> Draft | None:
    """How far the sound in a sector is."""
    source = _only_source_in_sector(scene, ctx)
    if source is None or not is_clear_distance(ctx, source):
        return None
    question = ctx.phrase(
        "how far is the sound at the {p} ?",
        "at what distance is what comes from the {p} ?",
        "how near is the {p} sound ?",
        p=scene_text.sector_name(source["azimuth"]),
    )
    return distance_draft(ctx, question, source, source["class"])


@L2.question_type(direction=False, needs_distance=True, rng_key="nearer")
def relative_distance(scene: dict, ctx: QuestionContext) -> Draft | None:
    """How far a class is compared with another: alike (within 14 %), 1.5 to 2.2, or 3 times."""
    if len(scene["sources"]) < 2:
        return None
    a, b = ctx.choose_two_sources("a", "b")
    log_ratio = math.log(a["distance"] / b["distance"])
    edges = [math.log(e) for e in RELATIVE_DISTANCE_EDGES]
    degree = bisect.bisect(edges, abs(log_ratio))
    gap = min(abs(abs(log_ratio) - e) for e in edges)
    if not ctx.is_audible_gap(gap, math.log(1.15)) or not ctx.has_audible_distance(a, b):
        return None
    question = ctx.phrase(
        "is the {a} nearer or farther than the {b} ?",
        "how far is the {a} against the {b} ?",
        "next to the {b} , how near to you is the {a} ?",
        a=a["class"],
        b=b["class"],
    )
    answer = RELATIVE_DISTANCES[2 + degree if log_ratio > 0 else 2 - degree]
    steps = " ".join(
        f"{s['class']} {scene_text.nearest_distance_step(s['distance'])}" for s in (a, b)
    )
    return Draft(question, answer, ctx.shuffle(RELATIVE_DISTANCES), steps)


@L2.question_type(rng_key="left_of")
def class_left_right(scene: dict, ctx: QuestionContext) -> Draft | None:
    """Which class is left or right of another, for a listener who faces that one."""
    source, side = ctx.choose_source(), ctx.choose("side", tuple(SIDE_SIGNS))

    def gap(a: dict, b: dict) -> float:
        angle = SIDE_SIGNS[side] * relative_azimuth(a["azimuth"], b["azimuth"])
        # Straight behind is on neither side either.
        return math.copysign(min(abs(angle), 180 - abs(angle)), angle)

    match = only_source_beyond(ctx, source, scene["sources"], gap, MARGIN_DEG)
    if match is None:
        return None
    question = ctx.phrase(
        "what is to the {s} of the {c} ?",
        "facing the {c} , what is on your {s} ?",
        "which sound is {s} of the {c} ?",
        s=side,
        c=source["class"],
    )
    return class_draft(ctx, question, match, source["class"])


@L2.question_type(rng_key="highest")
def highest_source(scene: dict, ctx: QuestionContext) -> Draft | None:
    """Which class is highest or lowest."""
    which = ctx.choose("which", ("highest", "lowest"))
    sources, key = scene["sources"], lambda s: s["elevation"]
    match = find_extreme(ctx, sources, key, which == "highest", MIN_ELEVATION_GAP_DEG)
    if match is None:
        return None
    question = ctx.phrase(
        "which sound is {w} ?", "what comes from the {w} place ?", "what sounds {w} up ?", w=which
    )
    steps = " ".join(f"{s['class']} {scene_text.elevation_name(s['elevation'])}" for s in sources)
    return class_draft(ctx, question, match, steps=steps)


@L2.question_type(direction=False, needs_distance=True, rng_key="loudest")
def loudest_source(scene: dict, ctx: QuestionContext) -> Draft | None:
    """Which class is loudest or softest at the listener."""
    which, sources = ctx.choose("which", ("loudest", "softest")), scene["sources"]
    if not all("level" in s and "drr" in s for s in sources):
        return None
    match = find_extreme(ctx, sources, level_at_listener, which == "loudest", MIN_LEVEL_GAP_DB)
    if match is None:
        return None
    question = ctx.phrase(
        "which sound is {w} ?", "what do you hear {w} ?", "what is {w} in your ears ?", w=which
    )
    return class_draft(ctx, question, match)


@L2.question_type(direction=False, allows_motion=True, rng_key="earlier")
def class_before_after(scene: dict, ctx: QuestionContext) -> Draft | None:
    """Which class starts before, or after, another."""
    source, which = ctx.choose_source(), ctx.choose("which", ("before", "after"))
    sign = 1 if which == "after" else -1

    def gap(a: dict, b: dict) -> float:
        return sign * (b["onset"] - a["onset"])

    match = only_source_beyond(ctx, source, scene["sources"], gap, MIN_TIME_GAP_S)
    if match is None:
        return None
    question = ctx.phrase(
        "what starts {w} the {c} ?",
        "which sound begins {w} the {c} ?",
        "what is heard {w} the {c} starts ?",
        w=which,
        c=source["class"],
    )
    return class_draft(ctx, question, match, source["class"])


@L2.question_type(rng_key="same_side")
def class_on_same_side(scene: dict, ctx: QuestionContext) -> Draft | None:
    """Which class is on the same side of the listener as another."""
    source = ctx.choose_source()
    match = only_other_on_side(ctx, scene["sources"], source)
    if match is None:
        return None
    side, other = match
    question = ctx.phrase(
        "what is on the same side as the {c} ?",
        "which sound comes from the side of the {c} ?",
        "what shares its side with the {c} ?",
        c=source["class"],
    )
    return class_draft(ctx, question, other, source["class"], side)


@L2.question_type(rng_key="apart")
def angular_separation(scene: dict, ctx: QuestionContext) -> Draft | None:
    """The angle between two classes in azimuth."""
    if len(scene["sources"]) < 2:
        return None
    a, b = ctx.choose_two_sources("a", "b")
    angle = abs(relative_azimuth(a["azimuth"], b["azimuth"]))
    sectors = round(angle / scene_text.SECTOR_WIDTH)
    if not ctx.is_inside_sector(angle) or sectors == 0:
        return None
    question = ctx.phrase(
        "how far apart are the {a} and the {b} ?",
        "what angle is between the {a} and the {b} ?",
        "from the {a} to the {b} , how far do you turn ?",
        a=a["class"],
        b=b["class"],
    )
    options = [f"{45 * k} degrees" for k in range(1, 5)]
    return Draft(question, options[sectors - 1], ctx.shuffle(options))
