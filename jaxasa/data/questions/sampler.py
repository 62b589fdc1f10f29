"""Which of the questions that scenes support training asks: so that no answer is common.

Scenes drawn at random support some tasks rarely, and some answers more rarely still: most sounds
are on neither side, few are the nearest of three. What is rewarded for right answers would learn
the common ones in place of listening. So all tasks are tried on a scene, and a question is taken
with a probability in proportion to the weight of its task and answer, which is the share that they
should have over how often scenes support them. A scene itself is taken in proportion to the sum of
those weights, as one source alone is soon asked about. Then levels, the tasks within a level and
the answers within a task are each equally common, and each of them on all scenes that support it
alike (inverse-probability weighting: Horvitz and Thompson, 1952).

    >>> import numpy as np
    >>> from jaxasa.data import questions
    >>> bird = {"class": "bird", "azimuth": 92.0, "elevation": 3.0, "distance": 1.2,
    ...         "onset": 0.5, "offset": 1.5}
    >>> classes = ("bird", "drum", "engine", "steps")
    >>> asking = questions.Asking(classes)
    >>> [question] = asking({"sources": [bird]}, np.random.default_rng(1))
    >>> question.level
    'L1'
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxasa import config
from jaxasa.data.questions.context import Draft, Draw
from jaxasa.data.questions.tasks import TASKS, Question, chosen, drafted, finished

ALL = config.Questions()
_EACH = 2  # questions of a scene for which all tasks are tried once
# What few scenes support is asked less often than its share: it would be the same scenes always.
_RARE = 3
_MOST = 2.0  # times the mean: a scene whose weights sum to as much is always taken


@dataclass(frozen=True)
class Asking:
    """Draws questions for training.

    weights: of (task, answer's text). Without any those of the tasks hold among what a scene
        supports, and every scene that supports some is taken.
    """

    classes: Sequence[str]
    which: config.Questions = ALL
    weights: Mapping[tuple[str, str], float] = dataclasses.field(default_factory=dict)

    def __call__(
        self,
        scene: dict,
        rng: np.random.Generator,
        count: int = 1,
        shares: np.ndarray | None = None,
    ) -> list[Question]:
        """`count` questions about `scene`; none where it supports none, or is passed over.

        shares: of the levels, [3] or [count, 3], all alike without; a level that the scene does
            not support leaves its share to the others.
        """
        drafts = self.drafts(scene, rng)
        if not drafts or self.weights and rng.random() * _MOST > self._weigh(drafts).sum():
            return []
        drafts += [d for _ in range(1, -(-count // _EACH)) for d in self.drafts(scene, rng)]
        weights, found = self._weigh(drafts), []
        level = [config.LEVELS.index(TASKS[name].level) for name, *_ in drafts]
        for row in np.broadcast_to(1.0 if shares is None else shares, (count, len(config.LEVELS))):
            wanted = weights * row[level]
            wanted = wanted if wanted.any() else weights
            name, draw, draft = drafts[rng.choice(len(drafts), p=wanted / wanted.sum())]
            found.append(finished(scene, name, rng, draw, draft))
        return found

    def drafts(self, scene: dict, rng: np.random.Generator) -> list[tuple[str, Draw, Draft]]:
        """What each task asks of the scene, of those that it supports: its name, its choices."""
        found = []
        for name in chosen(self.which.tasks):
            draw = Draw(scene, self.classes, rng, self.which.training_margin)
            draft = drafted(scene, name, draw)
            if draft:
                found.append((name, draw, draft))
        return found

    def balanced(self, scenes: Sequence[dict], rng: np.random.Generator) -> "Asking":
        """With weights under which, over such scenes, no level, task or answer is common."""
        found = (self.drafts(scenes[i], rng) for i in range(len(scenes)))
        seen = collections.Counter((name, d.answer) for drafts in found for name, _, d in drafts)
        weights = {
            cell: share * len(scenes) / (seen[cell] + _RARE)
            for cell, share in self._shares(seen).items()
        }
        return dataclasses.replace(self, weights=weights)

    def _weigh(self, drafts: Sequence[tuple[str, Draw, Draft]]) -> np.ndarray:
        if not self.weights:
            of_task = chosen(self.which.tasks)
            return np.array([float(of_task[name]) for name, *_ in drafts])
        return np.array([self.weights.get((name, d.answer), 0.0) for name, _, d in drafts])

    def _shares(self, cells: Iterable[tuple[str, str]]) -> dict[tuple[str, str], float]:
        """How common each (task, answer) should be; they sum to 1."""
        answers = collections.Counter(name for name, _ in cells)
        weights = {n: w for n, w in chosen(self.which.tasks).items() if n in answers}
        within: collections.Counter[str] = collections.Counter()
        for name, w in weights.items():
            within[TASKS[name].level] += w
        of_task = {n: w / within[TASKS[n].level] / len(within) for n, w in weights.items()}
        return {(name, text): of_task[name] / answers[name] for name, text in cells}
