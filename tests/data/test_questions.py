# SPDX-License-Identifier: Apache-2.0
import doctest
from collections import Counter, defaultdict

import numpy as np
import pytest

from jaxasa.acoustics import scenes
from jaxasa.config import LEVELS
from jaxasa.data import questions, scene_text
from jaxasa.data.questions import QUESTION_TYPES, sampler

CLASSES = ("alarm", "bell", "bird", "clock", "dog", "engine", "rain", "voice")

TASKS = {
    "L1": ("class_present", "onset_order", "azimuth", "side_count"),
    "L2": ("class_in_sector", "sector_by_onset", "nearest_source", "sector_of_nearest"),
    "L3": ("sector_after_turn", "class_after_turn", "sector_when_facing", "side_count_after_turn"),
}
DEMO = {name: 1 for names in TASKS.values() for name in names}


@pytest.fixture(scope="module")
def samples(described):
    """[(scene, question)] of the demo's question types, each about many scenes."""
    rng, samples = np.random.default_rng(0), []
    for scene in described(700):
        for task in DEMO:
            question = questions.sample_question(scene, CLASSES, rng, task)
            samples += [(scene, question)] if question else []
    return samples


@pytest.mark.parametrize("module", [questions, sampler])
def test_doctests(module):
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0


def test_question_types_come_by_level_with_distinct_random_streams():
    levels = [t.level for t in QUESTION_TYPES.values()]
    assert levels == sorted(levels) and set(levels) == set(LEVELS)
    assert all(name == t.name == t.draft.__name__ for name, t in QUESTION_TYPES.items())
    assert len({t.rng_key for t in QUESTION_TYPES.values()}) == len(QUESTION_TYPES) == 36


def test_four_different_options_contain_the_answer_once(samples):
    for _, q in samples:
        assert len(set(q.options)) == 4 and q.options.count(q.answer_text) == 1
        assert q.options["ABCD".index(q.answer)] == q.answer_text
        assert q.task in TASKS[q.level] and QUESTION_TYPES[q.task].level == q.level
        assert q.direction == (q.task not in ("class_present", "onset_order", "nearest_source"))


def test_each_letter_is_right_equally_often(samples):
    by_task = defaultdict(Counter)
    for _, q in samples:
        by_task[q.task][q.answer] += 1
    total = sum(by_task.values(), Counter())
    n = total.total()
    assert n > 2500
    for letter in "ABCD":
        assert abs(total[letter] - n / 4) < 4 * (n * 3 / 16) ** 0.5
    for task, letters in by_task.items():
        n = letters.total()
        for letter in "ABCD":
            assert abs(letters[letter] - n / 4) < 4.5 * (n * 3 / 16) ** 0.5, task


def test_distractors_are_plausible_answers(samples):
    """Most distractors are as frequent among the answers of their type as the answer itself."""
    answers = defaultdict(Counter)
    shown = defaultdict(Counter)
    for _, q in samples:
        answers[q.task][q.answer_text] += 1
        shown[q.task].update(q.options)
    for task in ("azimuth", "sector_by_onset", "sector_of_nearest", "sector_after_turn"):
        assert set(answers[task]) == set(scene_text.SECTORS) == set(shown[task])
        rates = [answers[task][o] / shown[task][o] for o in scene_text.SECTORS]
        assert max(rates) < 0.5
    assert "front" not in shown["sector_when_facing"]


@pytest.mark.parametrize("task", ["side_count", "side_count_after_turn"])
def test_options_do_not_reveal_a_count(task):
    """Every option of a set is the answer of some scene with the same set of options."""
    rng, options = np.random.default_rng(0), defaultdict(set)
    for count in range(8):
        spread = np.linspace(40, 140, 7)
        azimuths = np.concatenate([spread[:count], -spread[: 7 - count]])
        sources = [{"class": str(i), "azimuth": float(a)} for i, a in enumerate(azimuths)]
        scene = {"sources": [s | {"distance": 2.0, "onset": 0.0, "offset": 1.0} for s in sources]}
        for _ in range(20):
            q = questions.sample_question(scene, [str(i) for i in range(12)], rng, task)
            options[frozenset(q.options)].add(q.answer_text)
    assert all(set(shown) == answers for shown, answers in options.items()) and len(options) == 2


def test_traces_begin_with_the_caption_and_end_with_the_answer(samples):
    for scene, q in samples:
        assert q.trace.startswith(scene_text.caption(scene))
        assert q.trace.endswith(f"so {q.answer_text}")
        # A derivation's other steps are not claims about the scene.
        assert len(scene_text.parse_caption(q.trace, CLASSES)) == len(scene["sources"])


def test_reasoning_steps_are_true_and_lead_to_the_answer(samples):
    """Reads each step of a trace back and compares it with the scene."""
    seen = Counter()
    for scene, q in samples:
        sector = {s["class"]: scene_text.sector_name(s["azimuth"]) for s in scene["sources"]}
        side = {s["class"]: "left" if s["azimuth"] > 0 else "right" for s in scene["sources"]}
        near = {s["class"] for s in scene["sources"] if s["distance"] < scene_text.NEAR_M}
        steps = q.trace.removeprefix(scene_text.caption(scene)).rpartition(" so ")[0].split()
        pairs = [p for p in zip(steps, steps[1:], strict=False) if p[0] in sector]
        if q.task in ("side_count", "side_count_after_turn"):
            assert dict(pairs) == side
            before_colon = steps[steps.index(":") - 1]
            assert q.answer_text == str(list(side.values()).count(before_colon))
        elif q.task == "azimuth" or q.task.startswith("sector_"):
            assert len(pairs) == 1 + (q.task == "sector_when_facing")
            assert all(sector[c] == s for c, s in pairs)
        elif q.task in ("class_in_sector", "class_after_turn"):
            assert sector[steps[-1]] == steps[-2] and q.answer_text == steps[-1]
        elif q.task == "nearest_source":
            assert steps == ["near", q.answer_text] and near == {q.answer_text}
        if q.task == "sector_of_nearest":
            assert steps[0] == "near" and near == {steps[1]}
        seen[q.task] += bool(steps)
    assert set(DEMO) - set(+seen) == {"class_present", "onset_order"}


@pytest.mark.parametrize("yaw", [45.0, 90.0, -135.0, 180.0])
def test_answers_rotate_with_the_scene(described, yaw):
    steps = round(yaw / 45)
    checked = 0
    for i, scene in enumerate(described(150)):
        rotated = scenes.rotate_scene(scene, yaw)
        for task in ("azimuth", "sector_after_turn", "sector_when_facing", "class_present"):
            before, after = (
                questions.sample_question(s, CLASSES, np.random.default_rng(i), task)
                for s in (scene, rotated)
            )
            if before is None or after is None:
                assert before is after is None
                continue
            assert before.question == after.question
            if task in ("azimuth", "sector_after_turn"):
                index = scene_text.SECTORS.index(before.answer_text)
                assert after.answer_text == scene_text.SECTORS[(index + steps) % 8]
            else:
                assert after.answer_text == before.answer_text
            checked += 1
    assert checked > 200


def test_ambiguous_scenes_are_not_asked_about(described):
    scene = described(1, (2, 2))[0]
    one, two = scene["sources"]

    def is_supported(task, first, second):
        changed = {**scene, "sources": [{**one, **first}, {**two, **second}]}
        rngs = [np.random.default_rng(i) for i in range(8)]
        return any(questions.sample_question(changed, CLASSES, rng, task) for rng in rngs)

    left, right = {"azimuth": 90.0}, {"azimuth": -45.0}
    near_edge, near_back, far = {"azimuth": 20.0}, {"azimuth": -170.0}, {"distance": 2.0}
    for task, supported, ambiguous in (
        ("azimuth", (left, right), (near_edge, near_edge)),
        ("class_in_sector", (left, right), (left, left)),
        ("side_count", (left, right), (left, near_back)),
        ("onset_order", ({"onset": 0.1}, {"onset": 0.5}), ({"onset": 0.1}, {"onset": 0.3})),
        ("nearest_source", ({"distance": 1.0}, far), ({"distance": 1.5}, far)),
        ("sector_when_facing", (left, right), (left, {"azimuth": 100.0})),
    ):
        assert is_supported(task, *supported) and not is_supported(task, *ambiguous), task
    alone = {**scene, "sources": [one]}
    for task in (
        *("onset_order", "class_in_sector", "nearest_source"),
        *("sector_when_facing", "class_after_turn"),
    ):
        rng = np.random.default_rng(0)
        assert questions.sample_question(alone, CLASSES, rng, task) is None
