# SPDX-License-Identifier: Apache-2.0
"""Question types, and the levels that collect them.

A question type is a function `(scene, ctx) -> Draft | None` with a decorator of its level:

    @L1.question_type(direction=False, allows_motion=True)
    def class_present(scene, ctx): ...

The name of the function is the id of the type: in `Questions.tasks` of a config, in the ids of
items, in metadata.jsonl and in reports.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxasa.data.questions.context import QuestionContext
from jaxasa.data.questions.drafts import Draft

DraftFunction = Callable[[dict, QuestionContext], Draft | None]


@dataclass(frozen=True)
class QuestionType:
    """A kind of question: the function that drafts it, and the scenes that it fits.

    direction: whether the answer depends on the directions of sounds.
    allows_motion: whether scenes with a moving source or a turning listener may be asked about.
    needs_distance: whether the distances of all sources must be known.
    rng_key: name of its random streams when the items of a suite are drawn and perturbed. It
        stays when the type is renamed, so that suites keep their items.
    """

    name: str
    level: str
    draft: DraftFunction
    direction: bool
    allows_motion: bool
    needs_distance: bool
    rng_key: str


class QuestionLevel(dict[str, QuestionType]):
    """The question types of one level by name, in the order of definition."""

    def __init__(self, level: str):
        super().__init__()
        self._level = level

    def question_type(
        self,
        *,
        direction: bool = True,
        allows_motion: bool = False,
        needs_distance: bool = False,
        rng_key: str = "",
    ) -> Callable[[DraftFunction], DraftFunction]:
        """Decorator: adds a function as a question type. Fields as in QuestionType.

        rng_key: the function's name if empty.
        """

        def add(draft: DraftFunction) -> DraftFunction:
            name = draft.__name__
            self[name] = QuestionType(
                name, self._level, draft, direction, allows_motion, needs_distance, rng_key or name
            )
            return draft

        return add
