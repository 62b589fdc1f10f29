# SPDX-License-Identifier: Apache-2.0
"""Draft of a question, and builders of drafts by the kind of their answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxasa.data import scene_text
from jaxasa.data.questions.context import QuestionContext


@dataclass(frozen=True)
class Draft:
    """A question before its options are shuffled, as a question type returns it.

    distractors: candidates for wrong options; the first three that differ from `answer` are used.
    steps: reasoning between the caption and the answer, "" if the caption suffices.
    open_answer: (kind, value) of the answer if no options are shown, None if the question needs
        them. Kinds are "azimuth" and "elevation" (degrees), "distance" (m), "time" (s), "count",
        and "name", whose value is None.
    """

    question: str
    answer: str
    distractors: Sequence[str]
    steps: str = ""
    open_answer: tuple[str, float | None] | None = None


def class_draft(
    ctx: QuestionContext, question: str, source: dict, named: str = "", steps: str = ""
) -> Draft:
    """A draft whose answer is the class of `source`. named: the class in the question, if any."""
    answer = source["class"]
    distractors = ctx.class_distractors(answer, [named])
    return Draft(question, answer, distractors, steps, open_answer=("name", None))


def sector_draft(
    ctx: QuestionContext,
    question: str,
    azimuth: float,
    steps: str,
    sectors: Sequence[str] = scene_text.SECTORS,
) -> Draft:
    """A draft whose answer is the sector of an azimuth. sectors: those that may be options."""
    answer = scene_text.sector_name(azimuth)
    return Draft(question, answer, ctx.shuffle(sectors), steps, ("azimuth", azimuth))


def distance_draft(ctx: QuestionContext, question: str, source: dict, steps: str = "") -> Draft:
    """A draft whose answer is the distance step of `source`."""
    answer = scene_text.nearest_distance_step(source["distance"])
    options = [scene_text.nearest_distance_step(s) for s in scene_text.DISTANCE_STEPS_M]
    open_answer = ("distance", source["distance"])
    return Draft(question, answer, ctx.shuffle(options), steps, open_answer)


def count_draft(question: str, count: int, steps: str) -> Draft:
    """A draft whose answer is a number: one of four from a multiple of four on (0 to 3, 4 to 7).

    All counts of one set have the same options, so that the options do not reveal the count.
    """
    first = count - count % 4
    options = [str(first + i) for i in range(4)]
    return Draft(question, str(count), options, steps, ("count", float(count)))
