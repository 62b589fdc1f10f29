# SPDX-License-Identifier: Apache-2.0
"""QuestionSampler: supported questions, balanced and reproducible."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from jaxasa import config
from jaxasa.acoustics.scenes import rotate_scene
from jaxasa.config import LEVELS
from jaxasa.data import questions
from jaxasa.data.questions import QUESTION_TYPES, QuestionSampler

CLASSES = ("alarm", "bell", "bird", "clock", "dog", "engine", "rain", "voice")
DEMO = (
    *("class_present", "onset_order", "azimuth", "side_count"),
    *("class_in_sector", "sector_by_onset", "nearest_source", "sector_of_nearest"),
    *("sector_after_turn", "class_after_turn", "sector_when_facing", "side_count_after_turn"),
)


def sample(sampler, scenes, **options):
    rng = np.random.default_rng(1)
    return [q for scene in scenes for q in sampler(scene, rng, 3, **options)]


@pytest.fixture(scope="module")
def unweighted():
    return QuestionSampler(CLASSES, config.Questions(tasks=dict.fromkeys(DEMO, 1)))


@pytest.fixture(scope="module")
def balanced(unweighted, described):
    rotated = [rotate_scene(scene, yaw) for scene in described(600) for yaw in (0, 75, 160, 235)]
    return unweighted.balanced(rotated, np.random.default_rng(0))


@pytest.fixture(scope="module")
def samples(unweighted, balanced, described):
    """Questions of the unweighted and of the balanced sampler about other scenes."""
    scenes = [rotate_scene(scene, 30 * i) for i, scene in enumerate(described(2000, seed=1))]
    return sample(unweighted, scenes), sample(balanced, scenes)


def shares(items):
    counts = Counter(items)
    return {name: n / counts.total() for name, n in counts.items()}


def test_levels_types_and_answers_are_equally_common(samples):
    before, after = samples
    assert max(abs(s - 1 / 3) for s in shares(q.level for q in after).values()) < 0.05
    assert max(abs(s - 1 / 3) for s in shares(q.level for q in before).values()) > 0.15
    for level in LEVELS:
        tasks = shares(q.task for q in after if q.level == level)
        assert len(tasks) == 4 and max(abs(s - 0.25) for s in tasks.values()) < 0.08
    answers = defaultdict(Counter)
    for q in after:
        answers[q.task][q.answer_text] += 1
    for counts in answers.values():
        assert max(counts.values()) < 1.7 * counts.total() / len(counts)


def test_most_common_answer_of_a_type_scores_little_above_chance(samples):
    """The best score without audio, except for hints in the words of a question."""
    accuracies = []
    for items in samples:
        common = defaultdict(Counter)
        for q in items:
            common[q.task][q.answer_text] += 1
        hits = [
            q.answer_text == max(q.options, key=lambda o, q=q: common[q.task][o]) for q in items
        ]
        accuracies.append(np.mean(hits))
    assert accuracies[1] < accuracies[0] - 0.03 and accuracies[1] < 0.33


def test_weights_of_types_hold_within_a_level(described):
    weights = {"class_present": 3, "class_count": 1, "turn_to_face": 1}
    unweighted = QuestionSampler(CLASSES, config.Questions(tasks=weights))
    balanced = unweighted.balanced(described(600, (2, 3)), np.random.default_rng(0))
    measured = shares(q.task for q in sample(balanced, described(900, (2, 3), seed=1)))
    expected = {"class_present": 0.375, "class_count": 0.125, "turn_to_face": 0.5}
    assert measured == pytest.approx(expected, abs=0.06)
    # Without weights of answers: three to one to one, as each of these scenes supports all types.
    measured = shares(q.task for q in sample(unweighted, described(600, (2, 3))))
    expected = {"class_present": 0.6, "class_count": 0.2, "turn_to_face": 0.2}
    assert measured == pytest.approx(expected, abs=0.05)


def test_task_weights_follow_the_order_of_question_types():
    assert questions.task_weights({}) == dict.fromkeys(QUESTION_TYPES, 1)
    weights = questions.task_weights({"turn_to_face": 2, "class_present": 1})
    assert list(weights.items()) == [("class_present", 1), ("turn_to_face", 2)]


def test_shares_of_levels(balanced, described):
    scenes = described(200, (3, 3))
    for level, row in zip(LEVELS, np.eye(3), strict=True):
        # A few of these scenes support no relation.
        assert shares(q.level for q in sample(balanced, scenes, shares=row))[level] > 0.9
    mixed = shares(q.level for q in sample(balanced, scenes, shares=np.array([0.1, 0.1, 0.8])))
    assert mixed["L3"] > 0.6
    one_each = balanced(scenes[0], np.random.default_rng(1), 3, np.eye(3))
    assert [q.level for q in one_each] == list(LEVELS)
    # A single source has no relations: the other levels get their share.
    single = sample(balanced, described(60, (1, 1)), shares=np.array([0.0, 1.0, 0.0]))
    assert len(single) > 0 and "L2" not in {q.level for q in single}


def test_types_are_spread_over_all_scenes_that_support_them(unweighted, balanced, described):
    """Not only over those that support little else, such as scenes with a single source."""
    scenes = described(1500, seed=2)
    rng = np.random.default_rng(0)
    pairs = [(len(s["sources"]) == 1, q) for s in scenes for q in balanced(s, rng, 3)]
    is_single = [single for single, q in pairs if q.task == "class_present"]
    assert np.mean(is_single) == pytest.approx(1 / 3, abs=0.1)
    assert np.mean([single for single, _ in pairs]) < 0.2
    accepted = np.mean([bool(balanced(s, rng)) for s in scenes])
    assert 0.4 < accepted < 0.5 and all(unweighted(s, rng) for s in scenes)


def test_questions_are_reproducible_and_supported_by_their_scene(balanced, described):
    for i, scene in enumerate(described(60)):
        one, two = (balanced(scene, np.random.default_rng(i), 4) for _ in range(2))
        assert one == two and len(one) in (0, 4)
        for q in one:
            rng = np.random.default_rng(0)
            same = questions.reinstantiate(q.task, q.template_args, scene, CLASSES, rng, True)
            assert same.answer_text == q.answer_text and q.task in DEMO
            assert q.direction == QUESTION_TYPES[q.task].direction


def test_a_scene_that_supports_no_type_gives_no_question(described):
    sampler = QuestionSampler(CLASSES, config.Questions(tasks={"nearest_source": 1}))
    assert sampler(described(1, (1, 1))[0], np.random.default_rng(0)) == []
