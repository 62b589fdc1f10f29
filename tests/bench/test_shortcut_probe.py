"""Texts alone tell nothing: classifiers of words on items drawn without audio."""

import types

import numpy as np
import pytest

from jaxasa import config
from jaxasa.acoustics import scenes
from jaxasa.bench import select_items, shortcut_probe

COUNT = 1000


@pytest.fixture(scope="module")
def drawn(make):
    """Two sets of COUNT questions of all tasks on different scenes, each scene turned twice."""
    found, which = [], config.Questions()
    sizes = {n: round(COUNT * share) for n, share in (("l1", 0.385), ("l2", 0.279), ("l3", 0.336))}
    for seed in (1, 2):
        described = make.describe(420, seed=seed)
        rng = np.random.default_rng(seed)
        described += [scenes.turn(s, rng.uniform(-180, 180)) for s in described]
        bench = config.Bench(**sizes)
        chosen, _ = select_items.choose(described, make.Bank.classes, bench, which, seed, "leak")
        found.append([q for _, q in chosen])
    return found


def test_no_reader_of_texts_passes_chance(drawn):
    train, test = drawn
    for reader, hits in shortcut_probe.measure(train, test).items():
        for level in ("L1", "L2", "L3"):
            mine = np.array([q.level == level for q in test])
            # Two points, and 3.3 standard errors: one run of 2,000 without a leak would fail.
            most = 0.25 + 0.02 + 3.3 * (0.25 * 0.75 / mine.sum()) ** 0.5
            assert hits[mine].mean() < most, (reader, level)


def test_leaks_of_either_kind_are_found(drawn):
    """The same questions with priors of answers, as they would be without a choice."""

    def spoilt(q, n):
        """Wrong options that are seldom right; or right ones that follow from the question."""
        place = "ABCD".index(q.answer)
        options = [o if k == place else f"x{n % 7} {k}" for k, o in enumerate(q.options)]
        linked = [f"{q.question.split()[0]} way"] * 4
        if n % 2:
            options = [linked[k] if k == place else o for k, o in enumerate(q.options)]
        return types.SimpleNamespace(question=q.question, options=tuple(options), answer=q.answer)

    train, test = ([spoilt(q, n) for n, q in enumerate(items[:400])] for items in drawn)
    for reader in (shortcut_probe.of_text, shortcut_probe.of_options):
        assert shortcut_probe.fit(train, reader)(test).mean() > 0.9
    moved = [
        types.SimpleNamespace(question="", options=q.options, answer="B") for q in drawn[0][:40]
    ]
    assert shortcut_probe.fit(moved, shortcut_probe.of_position)(moved).all()
