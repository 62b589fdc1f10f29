# SPDX-License-Identifier: Apache-2.0
"""L1, perception: which classes, how many, where, how far, when, in what room, how they move.

Each decorated function is a question type (question_type.py).
"""

import math

import numpy as np

from jaxasa.data import scene_text
from jaxasa.data.questions.context import (
    MIN_DISTANCE_RATIO,
    MIN_RT60_RATIO,
    MIN_TIME_GAP_S,
    SIDE_SIGNS,
    QuestionContext,
    class_and_sector,
    classes_and_sides,
    classes_on_side,
    find_extreme,
    positions_while_sounding,
)
from jaxasa.data.questions.drafts import (
    Draft,
    class_draft,
    count_draft,
    distance_draft,
    sector_draft,
)
from jaxasa.data.questions.question_type import QuestionLevel

L1 = QuestionLevel("L1")

LAST_ONSET_GAP_S = 0.4  # nothing starts within this time before the end of a scene
MOTIONS = ("stays", "clockwise", "anticlockwise", "nearer", "away")
LISTENER_TURNS = ("slightly left", "far left", "slightly right", "far right")


@L1.question_type(direction=False, allows_motion=True, rng_key="heard")
def class_present(scene: dict, ctx: QuestionContext) -> Draft | None:
    """Which of four classes is in the scene."""
    absent = ctx.absent_classes()
    if len(absent) < 3:
        return None
    answer = ctx.choose_source()["class"]
    question = ctx.phrase("which of these is heard ?", "what can you hear ?")
    return Draft(question, answer, ctx.shuffle(absent))


@L1.question_type(direction=False, allows_motion=True, rng_key="first")
def onset_order(scene: dict, ctx: QuestionContext) -> Draft | None:
    """Which class starts first or last."""
    match = first_or_last(scene, ctx)
    if match is None:
        return None
    which, source = match
    question = ctx.phrase("which sound starts {w} ?", "what is heard {w} ?", w=which)
    return class_draft(ctx, question, source)


def first_or_last(scene: dict, ctx: QuestionContext) -> tuple[str, dict] | None:
    """("first" | "last", that source), if its onset is audibly apart from the next one."""
    sources = scene["sources"]
    if len(sources) < 2:
        return None
    which = ctx.choose("which", ("first", "last"))
    source = find_extreme(ctx, sources, lambda s: s["onset"], which == "last", MIN_TIME_GAP_S)
    return None if source is None else (which, source)


@L1.question_type()
def azimuth(scene: dict, ctx: QuestionContext) -> Draft | None:
    """In which sector a class is."""
    source = ctx.choose_source()
    if not ctx.is_inside_sector(source["azimuth"]):
        return None
    question = ctx.phrase("where is the {c} ?", "from where does the {c} come ?", c=source["class"])
    return sector_draft(ctx, question, source["azimuth"], class_and_sector(source))


@L1.question_type()
def side_count(scene: dict, ctx: QuestionContext) -> Draft | None:
    """How many sources are on one side."""
    side = ctx.choose("side", tuple(SIDE_SIGNS))
    classes = classes_on_side(ctx, scene["sources"], side)
    if classes is None:
        return None
    question = ctx.phrase(
        "how many sounds are on the {s} ?", "count the sounds on the {s} .", s=side
    )
    steps = f"{side} : {classes_and_sides(scene['sources'])}"
    return count_draft(question, len(classes), steps)


@L1.question_type(direction=False, allows_motion=True, rng_key="how_many")
def class_count(scene: dict, ctx: QuestionContext) -> Draft | None:
    """How many of three classes are in the scene."""
    present, absent = [s["class"] for s in scene["sources"]], ctx.absent_classes()
    possible = [k for k in range(4) if k <= len(present) and 3 - k <= len(absent)]
    if len(possible) < 2:
        return None
    k = ctx.choose("count", possible)
    if ctx.fixed_args is None:
        three = ctx.shuffle(ctx.shuffle(present)[:k] + ctx.shuffle(absent)[: 3 - k])
    else:
        three = ctx.fixed_args["classes"].split()
    ctx.template_args["classes"] = " ".join(three)
    matches = [c for c in three if c in present]
    question = ctx.phrase(
        "how many of these are heard : {t} ?",
        "of {t} , how many do you hear ?",
        "count what is heard of {t} .",
        t=" , ".join(three),
    )
    return count_draft(question, len(matches), " ".join([":", *matches]))


@L1.question_type(direction=False, allows_motion=True, rng_key="when")
def onset_time(scene: dict, ctx: QuestionContext) -> Draft | None:
    """In which second a class starts."""
    seconds = range(int(scene.get("seconds", 0) - LAST_ONSET_GAP_S + 0.2) + 1)
    source = ctx.choose_source()
    nearest = round(source["onset"])
    error = abs(source["onset"] - nearest)
    if len(seconds) < 4 or nearest not in seconds:
        return None
    if not ctx.is_audible_gap(0.5 - error, MIN_TIME_GAP_S):
        return None
    question = ctx.phrase(
        "when does the {c} start ?",
        "at what time is the {c} first heard ?",
        "after how long does the {c} begin ?",
        c=source["class"],
    )
    distractors = [f"{k} s" for k in ctx.shuffle(seconds)]
    return Draft(question, f"{nearest} s", distractors, open_answer=("time", source["onset"]))


@L1.question_type(direction=False, allows_motion=True, rng_key="order")
def temporal_relation(scene: dict, ctx: QuestionContext) -> Draft | None:
    """Whether one class starts before or after another, and whether they overlap."""
    if len(scene["sources"]) < 2:
        return None
    a, b = ctx.choose_two_sources("a", "b")
    early, late = (a, b) if a["onset"] < b["onset"] else (b, a)
    overlap = min(a["offset"], b["offset"]) - late["onset"]
    gaps = late["onset"] - early["onset"], abs(overlap)
    if not all(ctx.is_audible_gap(gap, MIN_TIME_GAP_S) for gap in gaps):
        return None
    question = ctx.phrase(
        "how does the {a} follow on the {b} in time ?",
        "when is the {a} heard , seen from the {b} ?",
        "does the {a} start before the {b} , and do they overlap ?",
        a=a["class"],
        b=b["class"],
    )
    side, joint = "before" if a is early else "after", "joined" if overlap > 0 else "apart"
    options = [f"{s} {j}" for s in ("before", "after") for j in ("joined", "apart")]
    return Draft(question, f"{side} {joint}", ctx.shuffle(options))


@L1.question_type()
def elevation(scene: dict, ctx: QuestionContext) -> Draft | None:
    """How high a class is."""
    source = ctx.choose_source()
    degrees = source["elevation"]
    gap = min(abs(degrees - e) for e in scene_text.ELEVATION_EDGES_DEG)
    if not ctx.is_audible_gap(gap, ctx.margin / 3):
        return None
    question = ctx.phrase(
        "how high is the {c} ?",
        "at what height does the {c} sound ?",
        "is the {c} above or below your ears ?",
        c=source["class"],
    )
    distractors = ctx.shuffle(scene_text.ELEVATION_NAMES)
    answer = scene_text.elevation_name(degrees)
    return Draft(question, answer, distractors, open_answer=("elevation", degrees))


@L1.question_type(direction=False, needs_distance=True)
def distance(scene: dict, ctx: QuestionContext) -> Draft | None:
    """How far a class is."""
    source = ctx.choose_source()
    if not is_clear_distance(ctx, source):
        return None
    question = ctx.phrase(
        "how far is the {c} ?",
        "at what distance is the {c} ?",
        "how near to you is the {c} ?",
        c=source["class"],
    )
    return distance_draft(ctx, question, source)


def is_clear_distance(ctx: QuestionContext, source: dict) -> bool:
    """Whether a distance is audible, and well inside the range of its step."""
    error = min(abs(math.log(source["distance"] / s)) for s in scene_text.DISTANCE_STEPS_M)
    gap = math.log(MIN_DISTANCE_RATIO) / 2 - error
    return ctx.is_audible_gap(gap, math.log(1.15)) and ctx.has_audible_distance(source)


@L1.question_type(direction=False, allows_motion=True)
def reverberance(scene: dict, ctx: QuestionContext) -> Draft | None:
    """How the room decays, by RT60."""
    if "rt60" not in scene:
        return None
    gap = min(abs(math.log(scene["rt60"] / e)) for e in scene_text.RT60_EDGES_S)
    if not ctx.is_audible_gap(gap, math.log(MIN_RT60_RATIO)):
        return None
    question = ctx.phrase(
        "how does the room sound ?", "what kind of room is this ?", "how long does the room ring ?"
    )
    answer = scene_text.reverberance_name(scene["rt60"])
    return Draft(question, answer, ctx.shuffle(scene_text.REVERBERANCE_NAMES))


@L1.question_type(allows_motion=True, rng_key="motion")
def source_motion(scene: dict, ctx: QuestionContext) -> Draft | None:
    """How a class moves, in plan view and for a listener who keeps still."""
    if "yaw" in scene or not any("doa_trajectory" in s for s in scene["sources"]):
        return None
    source = ctx.choose_source()
    answer = _motion_of(source)
    if answer is None:
        return None
    question = ctx.phrase(
        "how does the {c} move ?",
        "seen from above , what does the {c} do ?",
        "where does the {c} go ?",
        c=source["class"],
    )
    return Draft(question, answer, ctx.shuffle(MOTIONS))


def _motion_of(source: dict) -> str | None:
    """One of MOTIONS: at least 30 degrees around, or a factor of 1.5 in distance, not both."""
    azimuths, _, distances = positions_while_sounding(source).T
    azimuths = np.unwrap(azimuths, period=360.0)
    angle, log_ratio = azimuths[-1] - azimuths[0], math.log(distances[-1] / distances[0])
    if np.ptp(azimuths) < 5 and abs(log_ratio) < math.log(1.1):
        return "stays"
    if abs(angle) >= 30 and abs(log_ratio) < math.log(1.3):
        return "anticlockwise" if angle > 0 else "clockwise"
    if abs(log_ratio) >= math.log(1.5) and abs(angle) < 20:
        return "away" if log_ratio > 0 else "nearer"
    return None


@L1.question_type(allows_motion=True)
def listener_turn(scene: dict, ctx: QuestionContext) -> Draft | None:
    """Which way the listener turns while anything sounds: 20 to 60 degrees, or 90 and more."""
    if "yaw" not in scene:
        return None
    times = (np.arange(len(scene["yaw"])) + 0.5) * scene["seconds"] / len(scene["yaw"])
    is_sounding = np.zeros(len(times), bool)
    for s in scene["sources"]:
        is_sounding |= (s["onset"] <= times) & (times <= s["offset"])
    yaw = np.unwrap(scene["yaw"], period=360.0)
    audible = yaw[is_sounding]
    total, angle = abs(yaw[-1] - yaw[0]), audible[-1] - audible[0] if len(audible) else 0.0
    is_far, is_slight = abs(angle) >= 90, 20 <= abs(angle) <= 60
    # A turn in silence cannot be heard.
    if not (is_far or is_slight) or abs(angle) < 0.8 * total:
        return None
    question = ctx.phrase(
        "how do you turn ?", "which way do you turn , and how far ?", "how does your head turn ?"
    )
    answer = f"{'far' if is_far else 'slightly'} {'left' if angle > 0 else 'right'}"
    return Draft(question, answer, ctx.shuffle(LISTENER_TURNS))
