# SPDX-License-Identifier: Apache-2.0
"""L3, reasoning: the scene after the listener turned or walked, or after a source moved or
stopped; several hops; the fitting room or place; the true statement.

Each decorated function is a question type (question_type.py).
"""

import itertools
import math

from jaxasa.data import scene_text
from jaxasa.data.questions.context import (
    MIN_DISTANCE_RATIO,
    MIN_LEVEL_GAP_DB,
    MIN_TIME_GAP_S,
    SIDE_SIGNS,
    QuestionContext,
    class_and_sector,
    classes_and_sides,
    classes_on_side,
    find_extreme,
    level_at_listener,
    only_other_on_side,
    relative_azimuth,
)
from jaxasa.data.questions.drafts import Draft, class_draft, count_draft, sector_draft
from jaxasa.data.questions.question_type import QuestionLevel
from jaxasa.data.questions.relations import class_in_sector

L3 = QuestionLevel("L3")

TURNS = {"left": 90.0, "right": -90.0, "around": 180.0}  # degrees of the listener's turn
# The turns that bring an azimuth of 0, 90, 180 or 270 degrees to the front.
TURNS_TO_FACE = ("stay", "turn left", "turn around", "turn right")
ARCS = {"a quarter": 90.0, "half": 180.0}
MIN_STEP_MARGIN_DEG = 7.5  # between a boundary and a bearing that is only a step of reasoning
DISTANCE_ERROR = 1.25  # factor by which a distance may be misjudged without changing the answer
# Small rooms up to the first value and large ones from the second; dry and live alike. Rooms in
# between are not asked about.
ROOM_VOLUME_EDGES_M3, ROOM_RT60_EDGES_S = (60.0, 110.0), (0.3, 0.4)
# Classes that are at home in each place, by the names that sound banks give them.
PLACES = {
    "office": ("alarm", "clock", "footsteps", "keyboard", "phone", "speech", "steps", "typing"),
    "street": ("alarm", "bell", "engine", "footsteps", "rain", "siren", "speech", "steps"),
    "stage": ("bell", "drum", "music", "piano", "speech", "strings", "voice", "whistle"),
    "garden": ("bird", "dog", "footsteps", "rain", "steps", "water", "wind"),
    "quarry": ("blast", "engine", "fire", "siren", "steps", "footsteps", "whistle"),
}


@L3.question_type(rng_key="turn")
def sector_after_turn(scene: dict, ctx: QuestionContext) -> Draft | None:
    """In which sector a class would be after the listener turned."""
    source = ctx.choose_source()
    if not ctx.is_inside_sector(source["azimuth"]):
        return None
    turn = ctx.choose("turn", tuple(TURNS))
    question = ctx.phrase(
        "if you turn {t} , where is the {c} ?",
        "you turn {t} . where is the {c} then ?",
        t=turn,
        c=source["class"],
    )
    steps = f"{class_and_sector(source)} turn {turn}"
    azimuth = relative_azimuth(TURNS[turn], source["azimuth"])
    return sector_draft(ctx, question, azimuth, steps)


@L3.question_type(rng_key="turn_at")
def class_after_turn(scene: dict, ctx: QuestionContext) -> Draft | None:
    """Which class would be in a sector after the listener turned."""
    draft = class_in_sector(scene, ctx)
    if draft is None:
        return None
    turn = ctx.choose("turn", tuple(TURNS))
    source = next(s for s in scene["sources"] if s["class"] == draft.answer)
    before, after = (scene_text.sector_name(source["azimuth"] - a) for a in (0.0, TURNS[turn]))
    question = ctx.phrase(
        "if you turn {t} , what is at the {p} ?",
        "you turn {t} . which sound comes from the {p} then ?",
        t=turn,
        p=after,
    )
    steps = f"{after} was {before} {draft.answer}"
    return Draft(question, draft.answer, draft.distractors, steps, ("name", None))


@L3.question_type(rng_key="face")
def sector_when_facing(scene: dict, ctx: QuestionContext) -> Draft | None:
    """In which sector one class would be if the listener faced another."""
    if len(scene["sources"]) < 2:
        return None
    a, b = ctx.choose_two_sources("a", "b")
    if not _is_clear_when_facing(ctx, a, b):
        return None
    question = ctx.phrase(
        "if you face the {a} , where is the {b} ?",
        "you turn to face the {a} . where is the {b} then ?",
        a=a["class"],
        b=b["class"],
    )
    return _facing_draft(ctx, question, a, b)


def _is_clear_when_facing(ctx: QuestionContext, a: dict, b: dict) -> bool:
    """Whether the sector of b for a listener who faces a is clear, and follows from both sectors.

    It never is the front: sources are well apart, so that option would give itself away.
    """
    azimuth = relative_azimuth(a["azimuth"], b["azimuth"])
    answer = scene_text.sector_name(azimuth)
    # A bearing that is only a step of the reasoning may be less clear than the one asked for.
    margin = min(scene_text.sector_margin(s["azimuth"]) for s in (a, b))
    is_clear = ctx.is_inside_sector(azimuth) and (ctx.lenient or margin >= MIN_STEP_MARGIN_DEG)
    sectors = scene_text.SECTORS
    i, j = (sectors.index(scene_text.sector_name(s["azimuth"])) for s in (a, b))
    follows = sectors[(j - i) % len(sectors)] == answer
    return is_clear and answer != "front" and (follows or ctx.lenient)


def _facing_draft(ctx: QuestionContext, question: str, a: dict, b: dict) -> Draft:
    steps = f"{class_and_sector(a)} {class_and_sector(b)}"
    azimuth = relative_azimuth(a["azimuth"], b["azimuth"])
    return sector_draft(ctx, question, azimuth, steps, scene_text.SECTORS[1:])


@L3.question_type(rng_key="turn_count")
def side_count_after_turn(scene: dict, ctx: QuestionContext) -> Draft | None:
    """How many sources would be on a side after the listener turned around."""
    side = ctx.choose("side", tuple(SIDE_SIGNS))
    before = "right" if side == "left" else "left"
    classes = classes_on_side(ctx, scene["sources"], before)
    if classes is None:
        return None
    question = ctx.phrase(
        "if you turn around , how many sounds are on the {s} ?",
        "you turn around . how many sounds are on the {s} then ?",
        s=side,
    )
    steps = f"{side} was {before} : {classes_and_sides(scene['sources'])}"
    return count_draft(question, len(classes), steps)


@L3.question_type(rng_key="aim")
def turn_to_face(scene: dict, ctx: QuestionContext) -> Draft | None:
    """Which turn of the listener brings a class to the front."""
    source = ctx.choose_source()
    quarter = round(source["azimuth"] / 90) % 4
    error = abs(relative_azimuth(90 * quarter, source["azimuth"]))
    if not ctx.is_audible_gap(45 - error, ctx.margin):
        return None
    question = ctx.phrase(
        "how do you get the {c} in front of you ?",
        "what brings the {c} to the front ?",
        "which turn makes you face the {c} ?",
        c=source["class"],
    )
    distractors = ctx.shuffle(TURNS_TO_FACE)
    return Draft(question, TURNS_TO_FACE[quarter], distractors, class_and_sector(source))


@L3.question_type(needs_distance=True, rng_key="walk")
def sector_after_walk(scene: dict, ctx: QuestionContext) -> Draft | None:
    """In which sector one class would be if the listener walked to another without turning."""
    if len(scene["sources"]) < 2:
        return None
    a, b = ctx.choose_two_sources("a", "b")
    factors = itertools.product((1 / DISTANCE_ERROR, 1.0, DISTANCE_ERROR), repeat=2)
    sectors = {scene_text.sector_name(_bearing_from(a, b, p, q)) for p, q in factors}
    bearing = _bearing_from(a, b, 1.0, 1.0)
    is_clear = ctx.is_inside_sector(bearing) and len(sectors) == 1
    if not ((is_clear and ctx.has_audible_distance(a, b)) or ctx.lenient):
        return None
    question = ctx.phrase(
        "you walk to the {a} and do not turn . where is the {b} then ?",
        "where the {a} is , facing as now , where would the {b} be ?",
        "if you stood at the {a} , facing as now , where is the {b} ?",
        a=a["class"],
        b=b["class"],
    )
    steps = " ".join(
        f"{class_and_sector(s)} {scene_text.nearest_distance_step(s['distance'])}" for s in (a, b)
    )
    return sector_draft(ctx, question, relative_azimuth(0.0, bearing), steps)


def _bearing_from(a: dict, b: dict, scale_a: float, scale_b: float) -> float:
    """Azimuth of b from the position of a in plan view, their distances scaled."""
    (ax, ay), (bx, by) = _plan_position(a, scale_a), _plan_position(b, scale_b)
    return math.degrees(math.atan2(by - ay, bx - ax))


def _plan_position(source: dict, scale: float) -> tuple[float, float]:
    """x to the front and y to the left (m) of a source, its distance scaled."""
    azimuth, elevation = (math.radians(source[name]) for name in ("azimuth", "elevation"))
    radius = scale * source["distance"] * math.cos(elevation)
    return radius * math.cos(azimuth), radius * math.sin(azimuth)


@L3.question_type(rng_key="move")
def sector_after_orbit(scene: dict, ctx: QuestionContext) -> Draft | None:
    """In which sector a class would be after it went part of a circle around the listener."""
    source = ctx.choose_source()
    if not ctx.is_inside_sector(source["azimuth"]):
        return None
    arc, way = ctx.choose("arc", tuple(ARCS)), ctx.choose("way", ("clockwise", "anticlockwise"))
    question = ctx.phrase(
        "the {c} goes {a} circle {w} around you . where is it then ?",
        "after {a} circle {w} around you , where is the {c} ?",
        "if the {c} walks {a} circle {w} around you , where does it end ?",
        c=source["class"],
        a=arc,
        w=way,
    )
    angle = ARCS[arc] if way == "anticlockwise" else -ARCS[arc]
    steps = f"{class_and_sector(source)} {way}"
    azimuth = relative_azimuth(-angle, source["azimuth"])
    return sector_draft(ctx, question, azimuth, steps)


@L3.question_type(rng_key="without")
def remaining_source(scene: dict, ctx: QuestionContext) -> Draft | None:
    """Which class remains on a side if one of two there stops."""
    source = ctx.choose_source()
    match = only_other_on_side(ctx, scene["sources"], source)
    if match is None:
        return None
    side, other = match
    question = ctx.phrase(
        "the {c} stops . what is left on the {s} ?",
        "without the {c} , which sound is on the {s} ?",
        "if the {c} were gone , what is heard on the {s} ?",
        c=source["class"],
        s=side,
    )
    both = [s["class"] for s in scene["sources"] if s is source or s is other]
    return class_draft(ctx, question, other, source["class"], " ".join([side, ":", *both]))


@L3.question_type(needs_distance=True, rng_key="hops")
def multi_hop(scene: dict, ctx: QuestionContext) -> Draft | None:
    """As sector_when_facing, but the two classes are named by what they are the most of."""
    extremes = {
        "first": (lambda s: s["onset"], False, MIN_TIME_GAP_S),
        "last": (lambda s: s["onset"], True, MIN_TIME_GAP_S),
        "nearest": (lambda s: math.log(s["distance"]), False, math.log(MIN_DISTANCE_RATIO)),
        "farthest": (lambda s: math.log(s["distance"]), True, math.log(MIN_DISTANCE_RATIO)),
    }
    if all("level" in s and "drr" in s for s in scene["sources"]):
        extremes |= {
            "loudest": (level_at_listener, True, MIN_LEVEL_GAP_DB),
            "softest": (level_at_listener, False, MIN_LEVEL_GAP_DB),
        }
    names = ctx.choose("a", tuple(extremes)), ctx.choose("b", tuple(extremes))
    a, b = (find_extreme(ctx, scene["sources"], *extremes[name]) for name in names)
    if a is None or b is None or a is b or not _is_clear_when_facing(ctx, a, b):
        return None
    question = ctx.phrase(
        "if you face the {a} sound , where is the {b} sound ?",
        "you turn to the {a} sound . where is the {b} one then ?",
        "facing the {a} sound , where do you hear the {b} one ?",
        a=names[0],
        b=names[1],
    )
    return _facing_draft(ctx, question, a, b)


@L3.question_type(direction=False, allows_motion=True, rng_key="room")
def room_type(scene: dict, ctx: QuestionContext) -> Draft | None:
    """Which room fits: small or large by its volume, dry or live by its RT60."""
    if "rt60" not in scene or "volume" not in scene:
        return None
    measures = (scene["volume"], *ROOM_VOLUME_EDGES_M3), (scene["rt60"], *ROOM_RT60_EDGES_S)
    if not (ctx.lenient or all(v <= low or v >= high for v, low, high in measures)):
        return None
    question = ctx.phrase(
        "which room fits what you hear ?", "where could this be ?", "in what room are you ?"
    )
    is_large, is_live = (value > (low * high) ** 0.5 for value, low, high in measures)
    options = [f"{size} {kind} room" for size in ("small", "large") for kind in ("dry", "live")]
    return Draft(question, options[2 * is_large + is_live], ctx.shuffle(options))


@L3.question_type(direction=False, allows_motion=True, rng_key="place")
def place_type(scene: dict, ctx: QuestionContext) -> Draft | None:
    """Which place fits all classes of the scene, if only one does."""
    present = {s["class"] for s in scene["sources"]}
    matches = [name for name, classes in PLACES.items() if present <= set(classes)]
    if len(matches) != 1:
        return None
    question = ctx.phrase(
        "which place fits all the sounds ?",
        "where would you hear all this ?",
        "in what place are you likely to be ?",
    )
    return Draft(question, matches[0], ctx.shuffle(list(PLACES)))


@L3.question_type(rng_key="claim")
def true_statement(scene: dict, ctx: QuestionContext) -> Draft | None:
    """Which of four statements, each a class and a sector, is true."""
    source = ctx.choose_source()
    absent = ctx.absent_classes()
    is_clear = ctx.is_inside_sector(source["azimuth"])
    if not is_clear or len(scene["sources"]) + len(absent) < 4:
        return None

    def false_statement(s: dict) -> str:
        """A source with a sector more than 90 degrees away from it."""
        width = scene_text.SECTOR_WIDTH
        sectors = [
            sector
            for i, sector in enumerate(scene_text.SECTORS)
            if abs(relative_azimuth(i * width, s["azimuth"])) > 2 * width
        ]
        return f"{s['class']} {sectors[ctx.rng.integers(len(sectors))]}"

    false = [false_statement(s) for s in ctx.shuffle(scene["sources"]) if s is not source]
    for name in ctx.shuffle(absent)[:3]:
        false.append(f"{name} {scene_text.SECTORS[ctx.rng.integers(len(scene_text.SECTORS))]}")
    question = ctx.phrase(
        "which of these is true ?", "what is so ?", "which claim fits the scene ?"
    )
    return Draft(question, class_and_sector(source), false)
