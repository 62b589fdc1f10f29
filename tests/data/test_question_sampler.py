"""What draws training's questions: supported, balanced, repeatable."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from jaxasa import config
from jaxasa.acoustics.scenes import turn
from jaxasa.config import LEVELS
from jaxasa.data import questions
from jaxasa.data.questions import TASKS, Asking

CLASSES = ("alarm", "bell", "bird", "clock", "dog", "engine", "rain", "voice")
DEMO = (
    *("heard", "first", "azimuth", "side_count", "at", "where_in_time", "nearest"),
    *("where_nearest", "turn", "turn_at", "face", "turn_count"),
)


def asked(asking, scenes, **options):
    rng = np.random.default_rng(1)
    return [q for scene in scenes for q in asking(scene, rng, 3, **options)]


@pytest.fixture(scope="module")
def balanced(described):
    """What asks the demo's tasks with weights and without, and what each asks of other scenes."""
    plain = Asking(CLASSES, config.Questions(tasks=dict.fromkeys(DEMO, 1)))
    turned = [turn(scene, yaw) for scene in described(600) for yaw in (0, 75, 160, 235)]
    balanced = plain.balanced(turned, np.random.default_rng(0))
    others = [turn(scene, 30 * i) for i, scene in enumerate(described(2000, seed=1))]
    return (plain, asked(plain, others)), (balanced, asked(balanced, others))


def shares(items):
    counts = Counter(items)
    return {name: n / counts.total() for name, n in counts.items()}


def test_levels_tasks_and_answers_are_equally_common(balanced):
    (_, before), (_, after) = balanced
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


def test_the_commonest_answer_of_a_task_earns_little(balanced):
    """The best that can be done without listening, short of what a question's words tell."""
    (_, before), (_, after) = balanced
    earned = []
    for found in (before, after):
        common = defaultdict(Counter)
        for q in found:
            common[q.task][q.answer_text] += 1
        right = (
            q.answer_text == max(q.options, key=lambda o, q=q: common[q.task][o]) for q in found
        )
        earned.append(np.mean(list(right)))
    assert earned[1] < earned[0] - 0.03 and earned[1] < 0.33


def test_weights_of_tasks_hold_within_a_level(described):
    which = config.Questions(tasks={"heard": 3, "how_many": 1, "aim": 1})
    asking = Asking(CLASSES, which).balanced(described(600, (2, 3)), np.random.default_rng(0))
    found = shares(q.task for q in asked(asking, described(900, (2, 3), seed=1)))
    expected = {"heard": 0.375, "how_many": 0.125, "aim": 0.5}
    assert found == pytest.approx(expected, abs=0.06)
    # As they fall, too: three to one among the three that each of these scenes supports.
    plain = shares(q.task for q in asked(Asking(CLASSES, which), described(600, (2, 3))))
    assert plain == pytest.approx({"heard": 0.6, "how_many": 0.2, "aim": 0.2}, abs=0.05)
    assert questions.chosen({}) == dict.fromkeys(questions.TASKS, 1)
    assert questions.chosen({"aim": 2, "heard": 1}) == {"heard": 1, "aim": 2}


def test_shares_of_the_levels(balanced, described):
    _, (asking, _) = balanced
    scenes = described(200, (3, 3))
    for level, row in zip(LEVELS, np.eye(3), strict=True):
        # A few of these scenes have no relation that can be told.
        assert shares(q.level for q in asked(asking, scenes, shares=row))[level] > 0.9
    mixed = shares(q.level for q in asked(asking, scenes, shares=np.array([0.1, 0.1, 0.8])))
    assert mixed["L3"] > 0.6
    one_each = asking(scenes[0], np.random.default_rng(1), 3, np.eye(3))
    assert [q.level for q in one_each] == list(LEVELS)
    # One source alone has no relations: what it does support is asked.
    alone = asked(asking, described(60, (1, 1)), shares=np.array([0.0, 1.0, 0.0]))
    assert len(alone) > 0 and "L2" not in {q.level for q in alone}


def test_scenes_are_taken_as_they_are_asked_about(balanced, described):
    """A task is asked of all scenes that support it, not only of those that support little else."""
    (plain, _), (asking, _) = balanced
    scenes = described(1500, seed=2)
    rng = np.random.default_rng(0)
    of_one = [(len(s["sources"]) == 1, q) for s in scenes for q in asking(s, rng, 3)]
    heard = [alone for alone, q in of_one if q.task == "heard"]
    assert np.mean(heard) == pytest.approx(1 / 3, abs=0.1)
    assert np.mean([alone for alone, _ in of_one]) < 0.2
    # As many as that, as no scene is taken more than once.
    taken = np.mean([bool(asking(s, rng)) for s in scenes])
    assert 0.4 < taken < 0.5 and all(plain(s, rng) for s in scenes)


def test_a_question_is_one_that_its_scene_supports_and_comes_again(balanced, described):
    _, (asking, _) = balanced
    for i, scene in enumerate(described(60)):
        one, two = (asking(scene, np.random.default_rng(i), 4) for _ in range(2))
        assert one == two and len(one) in (0, 4)
        for q in one:
            again = questions.again(q.task, q.about, scene, CLASSES, np.random.default_rng(0), True)
            assert again.answer_text == q.answer_text and q.task in DEMO
            assert q.direction == TASKS[q.task].direction


def test_a_scene_that_supports_nothing_is_not_asked_about(described):
    asking = Asking(CLASSES, config.Questions(tasks={"nearest": 1}))
    assert asking(described(1, (1, 1))[0], np.random.default_rng(0)) == []
