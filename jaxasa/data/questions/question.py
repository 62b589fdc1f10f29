# SPDX-License-Identifier: Apache-2.0
"""Four-option questions: a question type put to a scene, with options, answer and reasoning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxasa.config import check
from jaxasa.data import scene_text
from jaxasa.data.questions import perception, reasoning, relations
from jaxasa.data.questions.context import (
    MARGIN_DEG,
    QuestionContext,
    Unanswerable,
    is_static,
)
from jaxasa.data.questions.drafts import Draft
from jaxasa.data.questions.question_type import QuestionType

LETTERS = "ABCD"
QUESTION_TYPES: dict[str, QuestionType] = {**perception.L1, **relations.L2, **reasoning.L3}


@dataclass(frozen=True)
class Question:
    """A four-option question. `answer` is a letter; `trace` is the reasoning that leads to it.

    task: name of the question type. direction: whether the answer depends on the directions of
    sounds. template_args: the random choices that filled the template, for `reinstantiate`.
    open_answer: (kind, value) of the answer if no options are shown (drafts.Draft).
    """

    level: str
    task: str
    question: str
    options: tuple[str, str, str, str]
    answer: str
    trace: str
    direction: bool
    template_args: Mapping[str, str | int] | None = None
    open_answer: tuple[str, float | None] | None = None

    @property
    def answer_text(self) -> str:
        return self.options[LETTERS.index(self.answer)]


def task_weights(weights: Mapping[str, int]) -> dict[str, int]:
    """Weights of the question types in use, in the order of QUESTION_TYPES; empty: 1 for each.

    Raises ConfigError if a name is not in QUESTION_TYPES.
    """
    unknown = [name for name in weights if name not in QUESTION_TYPES]
    check(not unknown, "Questions.tasks", unknown, "names out of " + ", ".join(QUESTION_TYPES))
    return {name: weights.get(name, 1) for name in QUESTION_TYPES if not weights or name in weights}


def sample_question(
    scene: dict,
    classes: Sequence[str],
    rng: np.random.Generator,
    task: str,
    margin: float = MARGIN_DEG,
) -> Question | None:
    """A random question of a type about a scene, or None if the scene does not support it.

    classes: all class names, from which distractors come. margin: degrees between a bearing and
    a boundary (context.py).
    """
    return _question(scene, task, QuestionContext(scene, classes, rng, margin))


def reinstantiate(
    task: str,
    template_args: Mapping[str, str | int],
    scene: dict,
    classes: Sequence[str],
    rng: np.random.Generator,
    lenient: bool = False,
) -> Question | None:
    """The question that a type and the `template_args` of another question make of `scene`.

    None if the scene does not support it without ambiguity. lenient: accept any difference,
    however small, as for an item whose scene has been measured since. Distractors are new.
    """
    ctx = QuestionContext(scene, classes, rng, fixed_args=template_args, lenient=lenient)
    try:
        return _question(scene, task, ctx)
    except (Unanswerable, KeyError):
        return None


def _question(scene: dict, task: str, ctx: QuestionContext) -> Question | None:
    draft = draft_question(scene, task, ctx)
    return finalize_question(scene, task, ctx, draft) if draft else None


def draft_question(scene: dict, task: str, ctx: QuestionContext) -> Draft | None:
    """A draft with three distractors or more; None if the scene does not support the type."""
    kind = QUESTION_TYPES[task]
    if not kind.allows_motion and not all(map(is_static, scene["sources"])):
        return None
    if kind.needs_distance and any(s["distance"] is None for s in scene["sources"]):
        return None
    draft = kind.draft(scene, ctx)
    return draft if draft and len(_wrong_options(draft)) == 3 else None


def finalize_question(scene: dict, task: str, ctx: QuestionContext, draft: Draft) -> Question:
    """Shuffles the options of a draft, picks the letter of the answer and writes the trace."""
    kind, options = QUESTION_TYPES[task], [draft.answer, *_wrong_options(draft)]
    a, b, c, d = ctx.shuffle(options)
    steps = f" {draft.steps}" if draft.steps else ""
    return Question(
        level=kind.level,
        task=task,
        question=draft.question,
        options=(a, b, c, d),
        answer=LETTERS[(a, b, c, d).index(draft.answer)],
        trace=f"{scene_text.caption(scene)}{steps} so {draft.answer}",
        direction=kind.direction,
        template_args=ctx.template_args,
        open_answer=draft.open_answer,
    )


def _wrong_options(draft: Draft) -> list[str]:
    """The first three distractors that differ from the answer, fewer if there are fewer."""
    return [o for o in draft.distractors if o != draft.answer][:3]
