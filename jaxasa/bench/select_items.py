# SPDX-License-Identifier: Apache-2.0
"""Selection of a suite's items: balanced so that texts reveal nothing, spread over scenes.

Within a question type the texts of the right answers are equally common as far as the scenes
allow, and each text is spread evenly over the arguments of the question (a class, a side, a
wording); each letter is right equally often for each text.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core import keys
from jaxasa.data import questions
from jaxasa.data.questions import QUESTION_TYPES, Question

MIN_DIRECTION_SHARE = 0.55  # of the items of each level, those that depend on direction
ITEMS_PER_SCENE = 2  # of one question type
_SAMPLES, _MAX_ROUNDS = 2, 6  # questions sampled of each type and scene in a round; rounds
_ENOUGH = 4  # candidates per item from which on no further round is sampled
_SLACK = 0.1  # by which a text may be more common among right answers than an equal share


def quotas(bench: config.Bench, weights: Mapping[str, int]) -> dict[str, int]:
    """Number of items of each question type, by weight within its level.

    At least MIN_DIRECTION_SHARE of a level goes to types that depend on direction. Raises
    ConfigError for a level without any.
    """
    counts: dict[str, int] = {}
    for level, total in zip(config.LEVELS, (bench.l1, bench.l2, bench.l3), strict=True):
        of_level = {t: w for t, w in weights.items() if QUESTION_TYPES[t].level == level}
        spatial = {t: w for t, w in of_level.items() if QUESTION_TYPES[t].direction}
        other = {t: w for t, w in of_level.items() if not QUESTION_TYPES[t].direction}
        expected = f"a question type of {level} that depends on direction"
        config.check(len(spatial) > 0, "Questions.tasks", list(weights), expected)
        share = max(MIN_DIRECTION_SHARE, sum(spatial.values()) / sum(of_level.values()))
        num_spatial = math.ceil(total * share - 1e-9)
        counts |= _split(num_spatial, spatial) | _split(total - num_spatial, other)
    return {task: counts[task] for task in weights}


def _split(total: int, weights: Mapping[str, int]) -> dict[str, int]:
    """Splits `total` into integers in proportion to the weights, the first ones rounded up."""
    ends = np.cumsum([0, *weights.values()])
    cuts = [-(-total * int(e) // max(int(ends[-1]), 1)) for e in ends]
    return {n: b - a for n, a, b in zip(weights, cuts, cuts[1:], strict=False)}


def select_items(
    scenes: Sequence[dict],
    classes: Sequence[str],
    bench: config.Bench,
    which: config.Questions,
    seed: int,
    split: str,
    accept: Callable[[int, Question], bool] = lambda index, question: True,
    allow_fewer: bool = False,
) -> tuple[list[tuple[int, Question]], list[str]]:
    """Selects the items of a suite: [(index into scenes, question)] by level and type.

    Also returns the question types that were left out because fewer than four different answers
    occur in these scenes; those that `which.tasks` names are not left out.

    accept(index, question): rejects questions by more than `scenes` tells. allow_fewer: return as
    many items as the scenes give, and leave out named types too, for scenes of which no more can
    be made. Raises ConfigError, with the number of scenes needed, if they give too few items.
    """
    weights = questions.task_weights(which.tasks)
    counts = quotas(bench, weights)
    candidates = {
        task: _candidates(scenes, classes, task, counts[task], which.margin, seed, split, accept)
        for task in weights
    }
    too_uniform = [t for t, c in candidates.items() if len({q.answer_text for _, q in c}) < 4]
    may_leave_out = allow_fewer or not which.tasks
    if may_leave_out:
        counts = quotas(bench, {t: w for t, w in weights.items() if t not in too_uniform})
    load = np.zeros(len(scenes), int)
    items: list[tuple[int, Question]] = []
    for task, quota in counts.items():
        rng = keys.rng(seed, "benchmark", split, QUESTION_TYPES[task].rng_key)
        picked = _pick(candidates[task], quota, load, rng)
        if len(picked) < quota and not allow_fewer:
            needed = math.ceil(1.1 * len(scenes) * quota / max(len(picked), 1))
            raise ConfigError(
                f"Scenes.{split} is {len(scenes)}, expected about {needed}: task {task} has "
                f"{len(picked)} balanced items in these scenes, and the suite needs {quota} "
                "(Questions.tasks selects tasks)"
            )
        # Sorting by answer, then dealing letters in turn, balances them within each answer too.
        for index, question in sorted(picked, key=lambda p: (p[1].answer_text, p[0])):
            letter = questions.LETTERS[len(items) % 4]
            items.append((index, _with_letter(question, letter)))
    return items, too_uniform if may_leave_out else []


def _candidates(
    scenes, classes, task: str, quota: int, margin: float, seed: int, split: str, accept
) -> list[tuple[int, Question]]:
    """Distinct questions of a type on every scene, by scene."""
    key = QUESTION_TYPES[task].rng_key
    rngs = [keys.rng(seed, "benchmark", split, key, index) for index in range(len(scenes))]
    distinct: dict[tuple[int, str], Question] = {}
    for _ in range(_MAX_ROUNDS):
        for index, (scene, rng) in enumerate(zip(scenes, rngs, strict=True)):
            for _ in range(_SAMPLES):
                q = questions.sample_question(scene, classes, rng, task, margin)
                if q is not None and accept(index, q):
                    # Equal traces: the same question but for its wording.
                    distinct[index, q.trace] = q
        if not distinct or len(distinct) >= _ENOUGH * quota:
            break
    return [(index, q) for (index, _), q in distinct.items()]


def _pick(candidates, quota: int, load: np.ndarray, rng: np.random.Generator):
    """Picks up to `quota` candidates greedily: the rarest answer next, with the rarest arguments.

    load [scenes]: number of items on each scene, updated in place.
    """
    candidates = [candidates[i] for i in rng.permutation(len(candidates))]
    texts: dict[str, int] = {}
    cells: dict[tuple, int] = {}
    text = np.array([texts.setdefault(q.answer_text, len(texts)) for _, q in candidates], int)
    scene = np.array([index for index, _ in candidates], int)
    # A cell is an answer with one argument of the question.
    rows = [
        [cells.setdefault((q.answer_text, *arg), len(cells)) for arg in q.template_args.items()]
        for _, q in candidates
    ]
    width = max(map(len, rows), default=0)
    cell = np.array([row + [len(cells)] * (width - len(row)) for row in rows], int)
    per_cell = np.zeros(len(cells) + 1, int)
    per_text, per_scene = np.zeros(len(texts), int), np.zeros(len(load), int)
    is_free = np.ones(len(candidates), bool)
    share = quota / max(len(texts), 1)
    most_per_text = math.ceil(share) + max(1, round(_SLACK * share))
    picked: list[tuple[int, Question]] = []
    while len(picked) < quota:
        is_left = np.bincount(text[is_free], minlength=len(texts)) > 0
        is_left &= per_text < most_per_text
        if not is_left.any():
            break
        rarest = np.where(is_left, per_text, quota + 1).argmin()
        options = np.flatnonzero(is_free & (text == rarest))
        # Padding of rows that have fewer arguments costs nothing.
        cost = np.where(cell == len(cells), 0, per_cell[cell])[options].sum(1)
        best = options[(cost + load[scene[options]]).argmin()]
        picked.append(candidates[best])
        per_cell[cell[best]] += 1
        per_text[rarest] += 1
        load[scene[best]] += 1
        per_scene[scene[best]] += 1
        is_free[best] = False
        if per_scene[scene[best]] >= ITEMS_PER_SCENE:
            is_free[scene == scene[best]] = False
    return picked


def _with_letter(question: Question, letter: str) -> Question:
    """The question with its right answer moved to `letter`."""
    options = [o for o in question.options if o != question.answer_text]
    options.insert(questions.LETTERS.index(letter), question.answer_text)
    a, b, c, d = options
    return dataclasses.replace(question, options=(a, b, c, d), answer=letter)
