# SPDX-License-Identifier: Apache-2.0
"""Sampling of training questions, balanced so that no answer is common.

Random scenes support some question types rarely, and some answers more rarely still: most sounds
are on neither side, few are the nearest of three. A policy rewarded for right answers would learn
the common ones instead of listening. So every type drafts a question about a scene, and a draft
is sampled with a probability proportional to the weight of its (type, answer): the share that it
should have over its frequency among scenes. The scene itself is accepted with a probability
proportional to the sum of those weights, as a single source supports few types. Then levels,
types within a level and answers within a type are equally common, and each of them is spread
evenly over the scenes that support it (inverse-probability weighting: Horvitz and Thompson, 1952).

    >>> import numpy as np
    >>> from jaxasa.data import questions
    >>> bird = {"class": "bird", "azimuth": 92.0, "elevation": 3.0, "distance": 1.2,
    ...         "onset": 0.5, "offset": 1.5}
    >>> classes = ("bird", "drum", "engine", "steps")
    >>> sampler = questions.QuestionSampler(classes)
    >>> [question] = sampler({"sources": [bird]}, np.random.default_rng(1))
    >>> question.level, question.task
    ('L3', 'sector_after_turn')
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxasa import config
from jaxasa.data.questions.context import QuestionContext
from jaxasa.data.questions.drafts import Draft
from jaxasa.data.questions.question import (
    QUESTION_TYPES,
    Question,
    draft_question,
    finalize_question,
    task_weights,
)

ALL = config.Questions()
_QUESTIONS_PER_ROUND = 2  # questions of a scene for which all types draft once
# Added to the number of scenes with an answer: rare ones are asked less often than their share,
# as it would always be about the same scenes.
_SMOOTHING = 3
_SURE_ACCEPTANCE = (
    2.0  # sum of weights from which on a scene is always accepted; the mean is about 1
)


class _Candidate(NamedTuple):
    """A draft that a question type made of a scene, and its random choices."""

    task: str
    ctx: QuestionContext
    draft: Draft


@dataclass(frozen=True)
class QuestionSampler:
    """Samples questions about scenes for training.

    weights: of (task, text of the answer), see `balanced`. If empty, those in `questions.tasks`
        hold among the types that a scene supports, and every scene with any is accepted.
    """

    classes: Sequence[str]
    questions: config.Questions = ALL
    weights: Mapping[tuple[str, str], float] = dataclasses.field(default_factory=dict)

    def __call__(
        self,
        scene: dict,
        rng: np.random.Generator,
        count: int = 1,
        shares: np.ndarray | None = None,
    ) -> list[Question]:
        """`count` questions about a scene; [] if it supports none or is rejected.

        shares: of the levels, [3] or [count, 3], equal if None. If a scene does not support a
            level, the others get its share.
        """
        candidates = self.candidates(scene, rng)
        if not candidates:
            return []
        if self.weights and rng.random() * _SURE_ACCEPTANCE > self._weigh(candidates).sum():
            return []
        for _ in range(1, -(-count // _QUESTIONS_PER_ROUND)):
            candidates += self.candidates(scene, rng)
        weights, sample = self._weigh(candidates), []
        level = [config.LEVELS.index(QUESTION_TYPES[c.task].level) for c in candidates]
        for row in np.broadcast_to(1.0 if shares is None else shares, (count, len(config.LEVELS))):
            p = weights * row[level]
            p = p if p.any() else weights
            task, ctx, draft = candidates[rng.choice(len(candidates), p=p / p.sum())]
            sample.append(finalize_question(scene, task, ctx, draft))
        return sample

    def candidates(self, scene: dict, rng: np.random.Generator) -> list[_Candidate]:
        """One draft of each question type that the scene supports."""
        candidates = []
        for task in task_weights(self.questions.tasks):
            ctx = QuestionContext(scene, self.classes, rng, self.questions.training_margin)
            draft = draft_question(scene, task, ctx)
            if draft:
                candidates.append(_Candidate(task, ctx, draft))
        return candidates

    def balanced(self, scenes: Sequence[dict], rng: np.random.Generator) -> "QuestionSampler":
        """A copy with weights that balance levels, types and answers over such scenes."""
        candidates = (c for i in range(len(scenes)) for c in self.candidates(scenes[i], rng))
        counts = collections.Counter((c.task, c.draft.answer) for c in candidates)
        weights = {
            key: share * len(scenes) / (counts[key] + _SMOOTHING)
            for key, share in self._shares(counts).items()
        }
        return dataclasses.replace(self, weights=weights)

    def _weigh(self, candidates: Sequence[_Candidate]) -> np.ndarray:
        if not self.weights:
            by_task = task_weights(self.questions.tasks)
            return np.array([float(by_task[c.task]) for c in candidates])
        return np.array([self.weights.get((c.task, c.draft.answer), 0.0) for c in candidates])

    def _shares(self, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], float]:
        """The share that each (task, answer) should have; they sum to 1."""
        answers = collections.Counter(task for task, _ in keys)
        weights = {t: w for t, w in task_weights(self.questions.tasks).items() if t in answers}
        by_level: collections.Counter[str] = collections.Counter()
        for task, w in weights.items():
            by_level[QUESTION_TYPES[task].level] += w
        by_task = {
            t: w / by_level[QUESTION_TYPES[t].level] / len(by_level) for t, w in weights.items()
        }
        return {(task, text): by_task[task] / answers[task] for task, text in keys}
