"""Four-option questions about a scene: perception (L1), relations (L2), reasoning (L3).

A task is a function `(scene, classes, rng) -> Draft | None`: it reads the scene description
(see acoustics/scenes.py) and returns a question with its answer, or None where the scene
does not support one without ambiguity. `TASKS` lists them by level; to add a task, write
its function and name it there.

Ambiguity: a bearing asked about lies at least `MARGIN` degrees inside its sector; two
sources compared in time differ by 0.3 s, in distance by a factor of 1.7. Options come in
random order, so that each letter is right equally often, and the wrong ones are drawn so
that the question alone tells nothing: sectors and classes uniformly, counts balanced.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxasa.data import words

LETTERS = "ABCD"
MARGIN = 7.5
SIDES = {"left": 1, "right": -1}
TURNS = {"left": 90.0, "right": -90.0, "around": 180.0}
COUNTS = ("0", "1", "2", "3")


@dataclass(frozen=True)
class Draft:
    """What a task returns: wording, right answer, candidates for the wrong ones, the last steps.

    steps: the derivation between the caption and the answer, "" when the caption suffices.
    """

    question: str
    answer: str
    others: Sequence[str]
    steps: str = ""


@dataclass(frozen=True)
class Question:
    """A four-option question. `answer` is its letter; `trace` the reasoning that leads to it.

    direction: whether the answer depends on where sounds come from.
    """

    level: str
    task: str
    question: str
    options: tuple[str, str, str, str]
    answer: str
    trace: str
    direction: bool

    @property
    def answer_text(self) -> str:
        return self.options[LETTERS.index(self.answer)]


def _pick(rng: np.random.Generator, items: Sequence):
    return items[rng.integers(len(items))]


def _say(rng: np.random.Generator, *wordings: str, **names: str) -> str:
    return _pick(rng, wordings).format(**names)


def _clear(azimuth: float) -> bool:
    return words.sector_margin(azimuth) >= MARGIN


def _absent(scene: dict, classes: Sequence[str]) -> list[str]:
    heard = {s["class"] for s in scene["sources"]}
    return [c for c in classes if c not in heard]


def _class_options(scene: dict, classes: Sequence[str], answer: str, rng) -> list[str]:
    """Wrong classes: the others in the scene first, so that hearing *what* does not suffice."""
    heard = [s["class"] for s in scene["sources"] if s["class"] != answer]
    absent = _absent(scene, classes)
    return heard + [absent[i] for i in rng.permutation(len(absent))]


def _sector_options(rng, places: Sequence[str] = words.SECTORS) -> list[str]:
    return [places[i] for i in rng.permutation(len(places))]


def _difference(a: float, b: float) -> float:
    """Azimuth b as seen when facing azimuth a, degrees in [-180, 180)."""
    return (b - a + 180.0) % 360.0 - 180.0


def _order_in_time(scene: dict, rng) -> tuple[str, dict] | None:
    """("first" | "last", its source), when it is apart from its neighbour by 0.3 s."""
    sources = scene["sources"]
    if len(sources) < 2:
        return None
    which = _pick(rng, ("first", "last"))
    gap = (
        sources[1]["onset"] - sources[0]["onset"]
        if which == "first"
        else sources[-1]["onset"] - sources[-2]["onset"]
    )
    return (which, sources[0 if which == "first" else -1]) if gap >= 0.3 else None


def _on_side(scene: dict, side: str) -> list[str] | None:
    """Classes on the left or right, None when a source is too near the median plane."""
    azimuths = [s["azimuth"] for s in scene["sources"]]
    if any(min(abs(a), 180.0 - abs(a)) < 2 * MARGIN for a in azimuths):
        return None
    return [s["class"] for s in scene["sources"] if s["azimuth"] * SIDES[side] > 0]


def heard(scene: dict, classes: Sequence[str], rng) -> Draft | None:
    """Which of four classes is heard."""
    absent = _absent(scene, classes)
    if len(absent) < 3:
        return None
    answer = _pick(rng, scene["sources"])["class"]
    question = _say(rng, "which of these is heard ?", "what can you hear ?")
    return Draft(question, answer, [absent[i] for i in rng.permutation(len(absent))])


def first(scene: dict, classes: Sequence[str], rng) -> Draft | None:
    """Which class starts first or last."""
    found = _order_in_time(scene, rng)
    if found is None:
        return None
    which, source = found
    question = _say(rng, "which sound starts {w} ?", "what is heard {w} ?", w=which)
    return Draft(question, source["class"], _class_options(scene, classes, source["class"], rng))


def azimuth(scene: dict, classes: Sequence[str], rng) -> Draft | None:
    """In which sector a class is."""
    source = _pick(rng, scene["sources"])
    if not _clear(source["azimuth"]):
        return None
    question = _say(rng, "where is the {c} ?", "from where does the {c} come ?", c=source["class"])
    return Draft(question, words.sector(source["azimuth"]), _sector_options(rng))


def side_count(scene: dict, classes: Sequence[str], rng) -> Draft | None:
    """How many sources are on one side."""
    side = _pick(rng, tuple(SIDES))
    found = _on_side(scene, side)
    if found is None:
        return None
    question = _say(
        rng, "how many sounds are on the {s} ?", "count the sounds on the {s} .", s=side
    )
    return Draft(question, str(len(found)), COUNTS, " ".join([side, ":", *found]))


def at(scene: dict, classes: Sequence[str], rng) -> Draft | None:
    """What is in a sector."""
    source = _pick(rng, scene["sources"])
    place = words.sector(source["azimuth"])
    same = [s for s in scene["sources"] if words.sector(s["azimuth"]) == place]
    if len(scene["sources"]) < 2 or len(same) > 1 or not _clear(source["azimuth"]):
        return None
    question = _say(rng, "what is at the {p} ?", "which sound comes from the {p} ?", p=place)
    return Draft(question, source["class"], _class_options(scene, classes, source["class"], rng))


def where_in_time(scene: dict, classes: Sequence[str], rng) -> Draft | None:
    """Where the first or last sound is."""
    found = _order_in_time(scene, rng)
    if found is None or not _clear(found[1]["azimuth"]):
        return None
    which, source = found
    question = _say(
        rng, "where is the sound that starts {w} ?", "where is the {w} sound ?", w=which
    )
    place = words.sector(source["azimuth"])
    return Draft(question, place, _sector_options(rng), f"{which} : {source['class']}")


def _nearest(scene: dict) -> dict | None:
    ranked = sorted(scene["sources"], key=lambda s: s["distance"])
    apart = len(ranked) > 1 and ranked[1]["distance"] >= 1.7 * ranked[0]["distance"]
    names = [words.distance(s["distance"]) for s in ranked[:2]]
    return ranked[0] if apart and names == ["near", "far"] else None


def nearest(scene: dict, classes: Sequence[str], rng) -> Draft | None:
    """Which class is nearest."""
    source = _nearest(scene)
    if source is None:
        return None
    question = _say(rng, "which sound is nearest ?", "what is closest to you ?")
    return Draft(question, source["class"], _class_options(scene, classes, source["class"], rng))


def where_nearest(scene: dict, classes: Sequence[str], rng) -> Draft | None:
    """Where the nearest sound is."""
    source = _nearest(scene)
    if source is None or not _clear(source["azimuth"]):
        return None
    question = _say(rng, "where is the nearest sound ?", "where is the closest sound ?")
    place = words.sector(source["azimuth"])
    return Draft(question, place, _sector_options(rng), f"near : {source['class']}")


def turn(scene: dict, classes: Sequence[str], rng) -> Draft | None:
    """Where a class would be after the listener turned."""
    source = _pick(rng, scene["sources"])
    if not _clear(source["azimuth"]):
        return None
    name = _pick(rng, tuple(TURNS))
    question = _say(
        rng,
        "if you turn {t} , where is the {c} ?",
        "you turn {t} . where is the {c} then ?",
        t=name,
        c=source["class"],
    )
    place = words.sector(source["azimuth"])
    after = words.sector(source["azimuth"] - TURNS[name])
    return Draft(question, after, _sector_options(rng), f"{source['class']} {place} turn {name}")


def turn_at(scene: dict, classes: Sequence[str], rng) -> Draft | None:
    """What would be in a sector after the listener turned."""
    draft = at(scene, classes, rng)
    if draft is None:
        return None
    name = _pick(rng, tuple(TURNS))
    source = next(s for s in scene["sources"] if s["class"] == draft.answer)
    now, after = (words.sector(source["azimuth"] - a) for a in (0.0, TURNS[name]))
    question = _say(
        rng,
        "if you turn {t} , what is at the {p} ?",
        "you turn {t} . which sound comes from the {p} then ?",
        t=name,
        p=after,
    )
    return Draft(question, draft.answer, draft.others, f"{after} was {now}")


def face(scene: dict, classes: Sequence[str], rng) -> Draft | None:
    """Where one class would be if the listener faced another."""
    if len(scene["sources"]) < 2:
        return None
    a, b = (scene["sources"][i] for i in rng.permutation(len(scene["sources"]))[:2])
    seen = _difference(a["azimuth"], b["azimuth"])
    clear = _clear(a["azimuth"]) and _clear(b["azimuth"]) and _clear(seen)
    if not clear or words.sector(seen) == "front":
        return None
    by_sectors = words.SECTORS.index(words.sector(b["azimuth"])) - words.SECTORS.index(
        words.sector(a["azimuth"])
    )
    answer = words.sector(seen)
    if words.SECTORS[by_sectors % len(words.SECTORS)] != answer:
        return None
    question = _say(
        rng,
        "if you face the {a} , where is the {b} ?",
        "you turn to face the {a} . where is the {b} then ?",
        a=a["class"],
        b=b["class"],
    )
    steps = f"{a['class']} {words.sector(a['azimuth'])} {b['class']} {words.sector(b['azimuth'])}"
    # Sources are well apart, so "front" is never right and would give itself away.
    return Draft(question, answer, _sector_options(rng, words.SECTORS[1:]), steps)


def turn_count(scene: dict, classes: Sequence[str], rng) -> Draft | None:
    """How many sources would be on a side after the listener turned around."""
    side = _pick(rng, tuple(SIDES))
    now = "right" if side == "left" else "left"
    found = _on_side(scene, now)
    if found is None:
        return None
    question = _say(
        rng,
        "if you turn around , how many sounds are on the {s} ?",
        "you turn around . how many sounds are on the {s} then ?",
        s=side,
    )
    steps = " ".join([side, "was", now, ":", *found])
    return Draft(question, str(len(found)), COUNTS, steps)


TASKS: dict[str, tuple[Callable, ...]] = {
    "L1": (heard, first, azimuth, side_count),
    "L2": (at, where_in_time, nearest, where_nearest),
    "L3": (turn, turn_at, face, turn_count),
}
LEVELS = tuple(TASKS)
LEVEL_OF = {task.__name__: level for level, tasks in TASKS.items() for task in tasks}
WITHOUT_DIRECTION = ("heard", "first", "nearest")


def ask(
    scene: dict,
    classes: Sequence[str],
    rng: np.random.Generator,
    level: str | None = None,
    task: str | None = None,
) -> Question | None:
    """A question about `scene`, of a given level or task, or None where the scene supports none.

    classes: all class names, from which wrong options come. Tasks of a level are equally likely.
    """
    if task is None:
        tasks = TASKS[level or _pick(rng, LEVELS)]
        chosen = _pick(rng, tasks)
    else:
        chosen = next(t for t in TASKS[LEVEL_OF[task]] if t.__name__ == task)
    draft = chosen(scene, classes, rng)
    if draft is None:
        return None
    offered = [draft.answer, *[o for o in draft.others if o != draft.answer][:3]]
    first, second, third, fourth = (offered[i] for i in rng.permutation(4))
    options = (first, second, third, fourth)
    steps = f" {draft.steps}" if draft.steps else ""
    return Question(
        level=LEVEL_OF[chosen.__name__],
        task=chosen.__name__,
        question=draft.question,
        options=options,
        answer=LETTERS[options.index(draft.answer)],
        trace=f"{words.caption(scene)}{steps} so {draft.answer}",
        direction=chosen.__name__ not in WITHOUT_DIRECTION,
    )
