"""Which questions enter a suite: balanced so that their words tell nothing, spread over scenes.

Within a task the right answers' texts are equally common as far as the scenes allow, and each
of them is spread evenly over what the questions name (a class, a side, a wording); each letter
is right equally often for each text.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core import keys
from jaxasa.data import questions
from jaxasa.data.questions import TASKS, Question

DIRECTION_SHARE = 0.55  # least share of each level's items to which direction matters
PER_SCENE = 2  # items of one task on one scene
_DRAWS, _ROUNDS = 2, 6  # questions tried for each task on each scene, at most so often
_PLENTY = 4  # candidates for each item with which no more are looked for
_SLACK = 0.1  # a right answer's text may be so much more common than an equal share


def quotas(bench: config.Bench, weights: Mapping[str, int]) -> dict[str, int]:
    """Items of each task by weight within its level, 55 % or more to those of direction.

    Raises ConfigError for a level without tasks to which direction matters.
    """
    counts: dict[str, int] = {}
    for level, total in zip(config.LEVELS, (bench.l1, bench.l2, bench.l3), strict=True):
        here = {n: w for n, w in weights.items() if TASKS[n].level == level}
        spatial = {n: w for n, w in here.items() if TASKS[n].direction}
        other = {n: w for n, w in here.items() if not TASKS[n].direction}
        expected = f"a task of {level} to which direction matters"
        config.check(len(spatial) > 0, "Questions.tasks", list(weights), expected)
        share = max(DIRECTION_SHARE, sum(spatial.values()) / sum(here.values()))
        most = math.ceil(total * share - 1e-9)
        counts |= _shared_out(most, spatial) | _shared_out(total - most, other)
    return {name: counts[name] for name in weights}


def _shared_out(total: int, weights: Mapping[str, int]) -> dict[str, int]:
    """`total` in whole numbers in proportion to the weights, the first ones rounded up."""
    ends = np.cumsum([0, *weights.values()])
    cuts = [-(-total * int(e) // max(int(ends[-1]), 1)) for e in ends]
    return {n: b - a for n, a, b in zip(weights, cuts, cuts[1:], strict=False)}


def choose(
    scenes: Sequence[dict],
    classes: Sequence[str],
    bench: config.Bench,
    which: config.Questions,
    seed: int,
    split: str,
    holds: Callable[[int, Question], bool] = lambda index, question: True,
    fewer: bool = False,
) -> tuple[list[tuple[int, Question]], list[str]]:
    """Draws the items: (index into `scenes`, question), in order of level and task.

    holds(index, question): whether it may be asked, where more is known than `scenes` says.
    Also returns the tasks left out, of all where `which.tasks` names none: those that have
    fewer than four different answers in these scenes. Raises ConfigError, saying how many scenes
    are needed, where these cannot give the counts; with fewer=True, as for scenes of which no
    more can be made, they give what they can, and named tasks may be left out too.
    """
    weights = questions.chosen(which.tasks)
    counts = quotas(bench, weights)
    found = {
        task: _candidates(scenes, classes, task, counts[task], which.margin, seed, split, holds)
        for task in weights
    }
    poor = [t for t, c in found.items() if len({q.answer_text for _, q in c}) < 4]
    may_lack = fewer or not which.tasks
    if may_lack:
        counts = quotas(bench, {t: w for t, w in weights.items() if t not in poor})
    load = np.zeros(len(scenes), int)
    chosen: list[tuple[int, Question]] = []
    for task, quota in counts.items():
        rng = keys.rng(seed, "benchmark", split, task)
        picked = _pick(found[task], quota, load, rng)
        if len(picked) < quota and not fewer:
            need = math.ceil(1.1 * len(scenes) * quota / max(len(picked), 1))
            raise ConfigError(
                f"Scenes.{split} is {len(scenes)}, expected about {need}: task {task} has "
                f"{len(picked)} balanced items in these scenes, and the suite asks for {quota} "
                "(Questions.tasks says which tasks)"
            )
        # Sorting by answer, then dealing letters in turn, balances them within each answer too.
        for index, question in sorted(picked, key=lambda p: (p[1].answer_text, p[0])):
            letter = questions.LETTERS[len(chosen) % 4]
            chosen.append((index, _with_letter(question, letter)))
    return chosen, poor if may_lack else []


def _candidates(
    scenes, classes, task: str, quota: int, margin: float, seed: int, split: str, holds
) -> list[tuple[int, Question]]:
    """Distinct questions of a task on every scene, by scene."""
    rngs = [keys.rng(seed, "benchmark", split, task, index) for index in range(len(scenes))]
    found: dict[tuple[int, str], Question] = {}
    for _ in range(_ROUNDS):
        for index, (scene, rng) in enumerate(zip(scenes, rngs, strict=True)):
            for _ in range(_DRAWS):
                q = questions.ask(scene, classes, rng, task, margin)
                if q is not None and holds(index, q):
                    # One trace is one derivation: wordings aside, the same question.
                    found[index, q.trace] = q
        if not found or len(found) >= _PLENTY * quota:
            break
    return [(index, q) for (index, _), q in found.items()]


def _pick(candidates, quota: int, load: np.ndarray, rng: np.random.Generator):
    """Up to `quota` candidates: the rarest answer next, of what has least been asked with it.

    load [scenes]: items on each scene, counted up.
    """
    candidates = [candidates[i] for i in rng.permutation(len(candidates))]
    names: dict[str, int] = {}
    cells: dict[tuple, int] = {}
    text = np.array([names.setdefault(q.answer_text, len(names)) for _, q in candidates], int)
    scene = np.array([index for index, _ in candidates], int)
    # A cell is an answer with one thing that the question names.
    rows = [
        [cells.setdefault((q.answer_text, *pair), len(cells)) for pair in q.about.items()]
        for _, q in candidates
    ]
    width = max(map(len, rows), default=0)
    cell = np.array([row + [len(cells)] * (width - len(row)) for row in rows], int)
    asked = np.zeros(len(cells) + 1, int)
    taken, here = np.zeros(len(names), int), np.zeros(len(load), int)
    is_open = np.ones(len(candidates), bool)
    share = quota / max(len(names), 1)
    most = math.ceil(share) + max(1, round(_SLACK * share))
    picked = []
    while len(picked) < quota:
        left = (np.bincount(text[is_open], minlength=len(names)) > 0) & (taken < most)
        if not left.any():
            break
        rarest = np.where(left, taken, quota + 1).argmin()
        options = np.flatnonzero(is_open & (text == rarest))
        # Cells that many candidates lack count nothing.
        cost = np.where(cell == len(cells), 0, asked[cell])[options].sum(1) + load[scene[options]]
        best = options[cost.argmin()]
        picked.append(candidates[best])
        asked[cell[best]] += 1
        taken[rarest] += 1
        load[scene[best]] += 1
        here[scene[best]] += 1
        is_open[best] = False
        if here[scene[best]] >= PER_SCENE:
            is_open[scene == scene[best]] = False
    return picked


def _with_letter(question: Question, letter: str) -> Question:
    options = [o for o in question.options if o != question.answer_text]
    options.insert(questions.LETTERS.index(letter), question.answer_text)
    a, b, c, d = options
    return dataclasses.replace(question, options=(a, b, c, d), answer=letter)
