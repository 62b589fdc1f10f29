from collections import Counter, defaultdict

import numpy as np
import pytest

from jaxasa.acoustics import scenes
from jaxasa.data import questions, scene_text

CLASSES = ("alarm", "bell", "bird", "clock", "dog", "engine", "rain", "voice")

TASKS = {
    "L1": ("heard", "first", "azimuth", "side_count"),
    "L2": ("at", "where_in_time", "nearest", "where_nearest"),
    "L3": ("turn", "turn_at", "face", "turn_count"),
}
DEMO = {name: 1 for names in TASKS.values() for name in names}


@pytest.fixture(scope="module")
def asked(described):
    """[(scene, question)] of every task, each of many scenes."""
    rng, found = np.random.default_rng(0), []
    for scene in described(700):
        for task in DEMO:
            question = questions.ask(scene, CLASSES, rng, task)
            found += [(scene, question)] if question else []
    return found


def test_options_are_four_and_the_answer_is_one(asked):
    for _, q in asked:
        assert len(set(q.options)) == 4 and q.options.count(q.answer_text) == 1
        assert q.options["ABCD".index(q.answer)] == q.answer_text
        assert q.task in TASKS[q.level] and questions.TASKS[q.task].level == q.level
        assert q.direction == (q.task not in ("heard", "first", "nearest"))


def test_each_letter_is_right_equally_often(asked):
    by_task = defaultdict(Counter)
    for _, q in asked:
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


def test_a_question_does_not_give_its_answer_away(asked):
    """Most of the wrong options are as likely answers of their task as the right one."""
    answers = defaultdict(Counter)
    shown = defaultdict(Counter)
    for _, q in asked:
        answers[q.task][q.answer_text] += 1
        shown[q.task].update(q.options)
    for task in ("azimuth", "where_in_time", "where_nearest", "turn"):
        assert set(answers[task]) == set(scene_text.SECTORS) == set(shown[task])
        rates = [answers[task][o] / shown[task][o] for o in scene_text.SECTORS]
        assert max(rates) < 0.5
    assert "front" not in shown["face"]


@pytest.mark.parametrize("task", ["side_count", "turn_count"])
def test_options_do_not_tell_a_count_however_many_sound(task):
    """All counts of one set of options have the same ones, and are all possible answers."""
    rng, options = np.random.default_rng(0), defaultdict(set)
    for count in range(8):
        spread = np.linspace(40, 140, 7)
        azimuths = np.concatenate([spread[:count], -spread[: 7 - count]])
        sources = [{"class": str(i), "azimuth": float(a)} for i, a in enumerate(azimuths)]
        scene = {"sources": [s | {"distance": 2.0, "onset": 0.0, "offset": 1.0} for s in sources]}
        for _ in range(20):
            q = questions.ask(scene, [str(i) for i in range(12)], rng, task)
            options[frozenset(q.options)].add(q.answer_text)
    assert all(set(shown) == answers for shown, answers in options.items()) and len(options) == 2


def test_traces_begin_with_the_caption_and_end_with_the_answer(asked):
    for scene, q in asked:
        assert q.trace.startswith(scene_text.caption(scene))
        assert q.trace.endswith(f"so {q.answer_text}")
        # A derivation's other steps are not claims about the scene.
        assert len(scene_text.claims(q.trace, CLASSES)) == len(scene["sources"])


def test_the_steps_of_a_trace_are_true_and_lead_to_its_answer(asked):
    """Each step that looks something up, read back and held against the scene."""
    seen = Counter()
    for scene, q in asked:
        place = {s["class"]: scene_text.sector(s["azimuth"]) for s in scene["sources"]}
        side = {s["class"]: "left" if s["azimuth"] > 0 else "right" for s in scene["sources"]}
        near = {
            s["class"] for s in scene["sources"] if scene_text.distance(s["distance"]) == "near"
        }
        steps = q.trace.removeprefix(scene_text.caption(scene)).rpartition(" so ")[0].split()
        pairs = [p for p in zip(steps, steps[1:], strict=False) if p[0] in place]
        if q.task in ("side_count", "turn_count"):
            assert dict(pairs) == side
            wanted = steps[steps.index(":") - 1]
            assert q.answer_text == str(list(side.values()).count(wanted))
        elif q.task in ("azimuth", "where_in_time", "where_nearest", "turn", "face"):
            assert len(pairs) == 1 + (q.task == "face") and all(place[c] == p for c, p in pairs)
        elif q.task in ("at", "turn_at"):
            assert place[steps[-1]] == steps[-2] and q.answer_text == steps[-1]
        elif q.task == "nearest":
            assert steps == ["near", q.answer_text] and near == {q.answer_text}
        if q.task == "where_nearest":
            assert steps[0] == "near" and near == {steps[1]}
        seen[q.task] += bool(steps)
    assert set(DEMO) - set(+seen) == {"heard", "first"}


@pytest.mark.parametrize("yaw", [45.0, 90.0, -135.0, 180.0])
def test_answers_turn_with_the_scene(described, yaw):
    steps = round(yaw / 45)
    checked = 0
    for i, scene in enumerate(described(150)):
        turned = scenes.turn(scene, yaw)
        for task in ("azimuth", "turn", "face", "heard"):
            before, after = (
                questions.ask(s, CLASSES, np.random.default_rng(i), task) for s in (scene, turned)
            )
            if before is None or after is None:
                assert before is after is None
                continue
            assert before.question == after.question
            if task in ("azimuth", "turn"):
                place = scene_text.SECTORS.index(before.answer_text)
                assert after.answer_text == scene_text.SECTORS[(place + steps) % 8]
            else:
                assert after.answer_text == before.answer_text
            checked += 1
    assert checked > 200


def test_ambiguous_scenes_are_not_asked_about(described):
    scene = described(1, (2, 2))[0]
    one, two = scene["sources"]

    def ask(task, first, second):
        changed = {**scene, "sources": [{**one, **first}, {**two, **second}]}
        found = [questions.ask(changed, CLASSES, np.random.default_rng(i), task) for i in range(8)]
        return any(q is not None for q in found)

    edge, clear, apart = {"azimuth": 20.0}, {"azimuth": 90.0}, {"azimuth": -45.0}
    assert ask("azimuth", clear, apart) and not ask("azimuth", edge, edge)
    assert ask("at", clear, apart) and not ask("at", clear, clear)
    assert ask("side_count", clear, apart) and not ask("side_count", clear, {"azimuth": -170.0})
    assert ask("first", {"onset": 0.1}, {"onset": 0.5})
    assert not ask("first", {"onset": 0.1}, {"onset": 0.3})
    assert ask("nearest", {"distance": 1.0}, {"distance": 2.0})
    assert not ask("nearest", {"distance": 1.5}, {"distance": 2.0})
    assert ask("face", clear, apart) and not ask("face", clear, {"azimuth": 100.0})
    alone = {**scene, "sources": [one]}
    for task in ("first", "at", "nearest", "face", "turn_at"):
        assert questions.ask(alone, CLASSES, np.random.default_rng(0), task) is None
