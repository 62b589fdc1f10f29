# SPDX-License-Identifier: Apache-2.0
"""Texts alone reveal no answers: the shortcut probe on items selected without audio."""

import types

import numpy as np
import pytest

from jaxasa import config
from jaxasa.acoustics import scenes
from jaxasa.bench import shortcut_probe
from jaxasa.bench.select_items import select_items

COUNT = 1000


@pytest.fixture(scope="module")
def splits(make):
    """Train and test items of all question types, on different scenes, each rotated once."""
    splits, which = [], config.Questions()
    sizes = {n: round(COUNT * share) for n, share in (("l1", 0.385), ("l2", 0.279), ("l3", 0.336))}
    for seed in (1, 2):
        pool = make.describe(420, seed=seed)
        rng = np.random.default_rng(seed)
        pool += [scenes.rotate_scene(s, rng.uniform(-180, 180)) for s in pool]
        bench = config.Bench(**sizes)
        items, _ = select_items(pool, make.Bank.classes, bench, which, seed, "leak")
        splits.append([q for _, q in items])
    return splits


def test_no_probe_exceeds_chance(splits):
    train, test = splits
    for name, hits in shortcut_probe.measure(train, test).items():
        for level in ("L1", "L2", "L3"):
            mask = np.array([q.level == level for q in test])
            # Two points, and 3.3 standard errors: one of 2,000 runs without a shortcut would fail.
            most = 0.25 + 0.02 + 3.3 * (0.25 * 0.75 / mask.sum()) ** 0.5
            assert hits[mask].mean() < most, (name, level)


def test_probes_detect_shortcuts_of_both_kinds(splits):
    """The same questions with options that reveal the answer."""

    def biased(q, n):
        """Distractors that are rarely right; or answers that follow from the question."""
        index = "ABCD".index(q.answer)
        options = [o if k == index else f"x{n % 7} {k}" for k, o in enumerate(q.options)]
        linked = f"{q.question.split()[0]} way"
        if n % 2:
            options = [linked if k == index else o for k, o in enumerate(q.options)]
        return types.SimpleNamespace(question=q.question, options=tuple(options), answer=q.answer)

    train, test = ([biased(q, n) for n, q in enumerate(items[:400])] for items in splits)
    for features in (shortcut_probe.text_features, shortcut_probe.option_features):
        assert shortcut_probe.fit(train, features)(test).mean() > 0.9
    always_b = [
        types.SimpleNamespace(question="", options=q.options, answer="B") for q in splits[0][:40]
    ]
    assert shortcut_probe.fit(always_b, shortcut_probe.position_features)(always_b).all()
