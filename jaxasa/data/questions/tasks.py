"""All tasks, by level, and how a question is put to a scene."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxasa.config import check
from jaxasa.data import scene_text
from jaxasa.data.questions import perception, reasoning, relations
from jaxasa.data.questions.context import MARGIN, Draft, Draw, Unanswerable, is_still

LETTERS = "ABCD"


@dataclass(frozen=True)
class Task:
    """draft: the function. direction: whether the answer depends on where sounds come from.

    moving: whether it may be asked of a scene in which something moves. far: whether distances
    must be known.
    """

    draft: Callable[[dict, Draw], Draft | None]
    level: str
    direction: bool = True
    moving: bool = False
    far: bool = False


@dataclass(frozen=True)
class Question:
    """A four-option question. `answer` is its letter; `trace` the reasoning that leads to it.

    direction: whether the answer depends on where sounds come from. about: what was chosen of
    the scene, with which `again` asks the same. open: kind and value of an answer without
    options (draw.Draft).
    """

    level: str
    task: str
    question: str
    options: tuple[str, str, str, str]
    answer: str
    trace: str
    direction: bool
    about: Mapping[str, str | int] | None = None
    open: tuple[str, float | None] | None = None

    @property
    def answer_text(self) -> str:
        return self.options[LETTERS.index(self.answer)]


TASKS: dict[str, Task] = {
    "heard": Task(perception.heard, "L1", direction=False, moving=True),
    "first": Task(perception.first, "L1", direction=False, moving=True),
    "azimuth": Task(perception.azimuth, "L1"),
    "side_count": Task(perception.side_count, "L1"),
    "how_many": Task(perception.how_many, "L1", direction=False, moving=True),
    "when": Task(perception.when, "L1", direction=False, moving=True),
    "order": Task(perception.order, "L1", direction=False, moving=True),
    "elevation": Task(perception.elevation, "L1"),
    "distance": Task(perception.distance, "L1", direction=False, far=True),
    "reverberance": Task(perception.reverberance, "L1", direction=False, moving=True),
    "motion": Task(perception.motion, "L1", moving=True),
    "listener_turn": Task(perception.listener_turn, "L1", moving=True),
    "at": Task(relations.at, "L2"),
    "where_in_time": Task(relations.where_in_time, "L2"),
    "nearest": Task(relations.nearest, "L2", direction=False, far=True),
    "where_nearest": Task(relations.where_nearest, "L2", far=True),
    "how_far": Task(relations.how_far, "L2", far=True),
    "nearer": Task(relations.nearer, "L2", direction=False, far=True),
    "left_of": Task(relations.left_of, "L2"),
    "highest": Task(relations.highest, "L2"),
    "loudest": Task(relations.loudest, "L2", direction=False, far=True),
    "earlier": Task(relations.earlier, "L2", direction=False, moving=True),
    "same_side": Task(relations.same_side, "L2"),
    "apart": Task(relations.apart, "L2"),
    "turn": Task(reasoning.turn, "L3"),
    "turn_at": Task(reasoning.turn_at, "L3"),
    "face": Task(reasoning.face, "L3"),
    "turn_count": Task(reasoning.turn_count, "L3"),
    "aim": Task(reasoning.aim, "L3"),
    "walk": Task(reasoning.walk, "L3", far=True),
    "move": Task(reasoning.move, "L3"),
    "without": Task(reasoning.without, "L3"),
    "hops": Task(reasoning.hops, "L3", far=True),
    "room": Task(reasoning.room, "L3", direction=False, moving=True),
    "place": Task(reasoning.place, "L3", direction=False, moving=True),
    "claim": Task(reasoning.claim, "L3"),
}


def chosen(weights: Mapping[str, int]) -> dict[str, int]:
    """The weights of the tasks asked, in the order of TASKS; none given is 1 for every task.

    Raises ConfigError for a name that is none of TASKS.
    """
    unknown = [name for name in weights if name not in TASKS]
    check(not unknown, "Questions.tasks", unknown, "names out of " + ", ".join(TASKS))
    return {name: weights.get(name, 1) for name in TASKS if not weights or name in weights}


def ask(
    scene: dict,
    classes: Sequence[str],
    rng: np.random.Generator,
    task: str,
    margin: float = MARGIN,
) -> Question | None:
    """A question of a task about `scene`, or None where the scene supports none.

    classes: all class names, from which wrong options come. margin: degrees from a bearing to a
    boundary (viz/plot_room.py).
    """
    return _put(scene, task, rng, Draw(scene, classes, rng, margin))


def again(
    task: str,
    about: Mapping[str, str | int],
    scene: dict,
    classes: Sequence[str],
    rng: np.random.Generator,
    lenient: bool = False,
) -> Question | None:
    """The question `task` with the choices `about` of another question, put to `scene`.

    None where the scene does not support it without ambiguity. lenient: any difference will do,
    as for the key of an item whose scene has since been measured. Wrong options are drawn anew.
    """
    try:
        return _put(scene, task, rng, Draw(scene, classes, rng, given=about, lenient=lenient))
    except (Unanswerable, KeyError):
        return None


def _put(scene: dict, name: str, rng: np.random.Generator, draw: Draw) -> Question | None:
    draft = drafted(scene, name, draw)
    return finished(scene, name, rng, draw, draft) if draft else None


def drafted(scene: dict, name: str, draw: Draw) -> Draft | None:
    """What task `name` asks of `scene`, with three wrong options; None where it asks nothing."""
    task = TASKS[name]
    if not task.moving and not all(map(is_still, scene["sources"])):
        return None
    if task.far and any(s["distance"] is None for s in scene["sources"]):
        return None
    draft = task.draft(scene, draw)
    return draft if draft and len(_wrong(draft)) == 3 else None


def finished(
    scene: dict, name: str, rng: np.random.Generator, draw: Draw, draft: Draft
) -> Question:
    """The question of a draft that `draw` led to: its options in random order, its trace."""
    task, offered = TASKS[name], [draft.answer, *_wrong(draft)]
    first, second, third, fourth = (offered[i] for i in rng.permutation(4))
    options = (first, second, third, fourth)
    steps = f" {draft.steps}" if draft.steps else ""
    return Question(
        level=task.level,
        task=name,
        question=draft.question,
        options=options,
        answer=LETTERS[options.index(draft.answer)],
        trace=f"{scene_text.caption(scene)}{steps} so {draft.answer}",
        direction=task.direction,
        about=draw.about,
        open=draft.open,
    )


def _wrong(draft: Draft) -> list[str]:
    """The three wrong options, or as many as there are."""
    return [o for o in draft.others if o != draft.answer][:3]
