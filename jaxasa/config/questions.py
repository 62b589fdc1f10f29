# SPDX-License-Identifier: Apache-2.0
"""Options of the questions of training and benchmark."""

from dataclasses import dataclass, field

from jaxasa.config.changes import DATA
from jaxasa.config.checks import check


@dataclass(frozen=True)
class Questions:
    """Types of questions, and their distance from ambiguity.

    tasks: name of a question type (data/questions) -> its weight within its level, an integer;
        empty: all types that the scenes support, with equal weights.
    margin: least angle (degrees) between a direction and the boundary of a sector in benchmark
        questions. training_margin: the same in training, where doubtful cases teach as well.
    """

    tasks: dict[str, int] = field(default_factory=dict, metadata=DATA)
    margin: float = field(default=15.0, metadata=DATA)
    training_margin: float = 7.5

    def __post_init__(self):
        ok = isinstance(self.tasks, dict)
        ok = ok and all(isinstance(w, int) and w > 0 for w in self.tasks.values())
        check(ok, "Questions.tasks", self.tasks, "task -> a whole number of at least 1")
        for name in ("margin", "training_margin"):
            value = getattr(self, name)
            ok = isinstance(value, (int, float)) and 0 <= value < 22.5
            check(ok, f"Questions.{name}", value, "0 to below 22.5, half a sector")
