import dataclasses
import itertools

import numpy as np
import pytest

from jaxasa import config
from jaxasa.bench import baselines, controls, perturbations, run, suite
from jaxasa.data import questions

BENCH = config.Bench(l1=20, l2=12, l3=12, batch_size=16, bootstrap_samples=50)
PLACES = "front front-left left back-left back back-right right front-right".split()


@pytest.fixture(scope="module")
def classes(small):
    return suite.manifest(small.folder)["classes"]


def place(azimuth):
    return PLACES[int(((azimuth + 22.5) % 360) // 45)]


def by_class(scene):
    return {s["class"]: s["azimuth"] for s in scene["sources"]}


@pytest.mark.parametrize("yaw", [90.0, 180.0, 270.0, None])
def test_turned_scenes_have_the_answers_of_the_turned_scene(small, classes, yaw):
    made = perturbations.turned(yaw)(small.items, classes)
    before = {item.id: item for item in small.items}
    assert len(made.items) > 0.8 * len(small.items)
    for item in made.items:
        old = before[item.id]
        turns = [(by_class(item.scene)[c] - a) % 360 for c, a in by_class(old.scene).items()]
        assert np.ptp(np.exp(1j * np.radians(turns))) < 1e-6
        if yaw is not None:
            np.testing.assert_allclose(turns, yaw, atol=1e-6)
        if item.task == "azimuth":
            (named,) = [c for c in by_class(item.scene) if c in item.question.split()]
            assert item.answer_text == place(by_class(item.scene)[named])
        assert len(set(item.options)) == 4 and old.answer_text in item.options
        if item.id in made.before:
            assert item.options["ABCD".index(made.before[item.id])] == old.answer_text
            assert item.question == old.question and item.answer_text != old.answer_text
        # The sound turns by the same angle, exactly but for rounding: (X + iY) exp(i yaw).
        w, y, z, x = old.audio().astype(float).T
        now = made.sound(item).astype(float).T
        expected = (x + 1j * y) * np.exp(1j * np.radians(turns[0]))
        fits = np.abs(expected.real) < 32_000
        np.testing.assert_allclose(now[3][fits], expected.real[fits], atol=0.51)
        np.testing.assert_array_equal(now[[0, 2]], [w, z])
    # Something is asked about direction, and most of that changes.
    assert len(made.before) > 5


@pytest.mark.parametrize(
    "change", [perturbations.turned(90.0), perturbations.turned(180.0), perturbations.mirrored]
)
def test_of_four_claims_about_a_changed_scene_one_is_true(small, classes, make, change):
    """The wrong ones of before may have become true."""
    item, asked = small.items[0], []
    for n, scene in enumerate(make.describe(200, seed=5)):
        q = questions.ask(scene, classes, np.random.default_rng(n), "claim")
        if q is not None:
            fields = {name: getattr(q, name) for name in ("level", "task", "question", "options")}
            new = fields | {"answer": q.answer, "about": q.about, "scene": scene, "id": f"c-{n}"}
            asked.append(dataclasses.replace(item, **new))
    made = change(asked, classes)
    assert len(made.items) > 30 and len(made.before) > 20
    for item in made.items:
        so = {f"{c} {place(azimuth)}" for c, azimuth in by_class(item.scene).items()}
        assert [o for o in item.options if o in so] == [item.answer_text]
        if item.id in made.before:
            old = next(i for i in asked if i.id == item.id)
            assert item.options["ABCD".index(made.before[item.id])] == old.answer_text


def test_mirrored_twice_is_as_before(small, classes):
    once = perturbations.mirrored(small.items, classes)
    twice = perturbations.mirrored(once.items, classes)
    answers = {item.id: item.answer_text for item in small.items}
    assert len(twice.items) > 0.8 * len(small.items)
    for item in twice.items:
        assert answers[item.id] == item.answer_text
    item = once.items[0]
    old = next(i for i in small.items if i.id == item.id).audio()
    np.testing.assert_array_equal(once.sound(item), old * [1, -1, 1, 1])


def test_other_audio_is_never_a_scenes_own(small, classes):
    made = perturbations.other(small.items, classes)
    own = {item.file: item.audio() for item in small.items}
    heard = {item.file: made.sound(item) for item in made.items}
    assert not any(np.array_equal(own[file], heard[file]) for file in own)
    assert {a.tobytes() for a in own.values()} == {a.tobytes() for a in heard.values()}
    assert made.items == small.items


def test_shuffled_keeps_w_and_moves_the_others(small, classes):
    item = small.items[0]
    made = perturbations.shuffled(small.items, classes).sound(item)
    np.testing.assert_array_equal(made, item.audio()[:, [0, 2, 3, 1]])


class Knows:
    """Answers the questions put to it as `letter_of(item, changed)` says."""

    def __init__(self, items, classes, letter_of):
        self.answers = {}
        for how in {system[1] for system in controls.CONTROLS.values()}:
            changed = how(items, classes)
            for item in changed.items:
                said = letter_of(item, changed)
                self.answers[item.question, item.options, item.scene["sources"][0]["azimuth"]] = (
                    said
                )
        self.by_text = {}
        for (question, options, _), letter in self.answers.items():
            self.by_text.setdefault((question, options), set()).add(letter)

    def respond(self, audio, questions, options, hearing):
        return [
            f"<answer>{min(self.by_text[q, tuple(o)])}</answer>"
            for q, o in zip(questions, options, strict=True)
        ]


def results(small, classes, out, letter_of):
    found = controls.systems(("sft",), tuple(controls.CONTROLS))
    responder = Knows(small.items, classes, letter_of)
    readers = {"oracle": baselines.oracle(classes)}
    return run.run(found, {"sft": responder}, small.folder, out, BENCH, readers=readers)


def test_who_follows_the_turn_is_right_and_who_does_not_is_found_out(small, classes, tmp_path):
    follows = results(small, classes, tmp_path / "a", lambda item, _: item.answer)["systems"]
    assert set(follows) == {"sft", "oracle", "chance", "four_yaws", *controls.CONTROLS}
    assert follows["oracle"]["overall"]["accuracy"] == 1.0
    beside = follows["rotated"]["beside"]
    assert beside["now"]["accuracy"] > 0.9 and beside["changed"]["accuracy"] > 0.9
    assert beside["before"]["accuracy"] < 0.1 and beside["still"]["accuracy"] == 1.0
    assert follows["four_yaws"]["overall"]["accuracy"] > 0.7
    deaf = results(
        small, classes, tmp_path / "b", lambda item, made: made.before.get(item.id, item.answer)
    )["systems"]
    beside = deaf["rotated_180"]["beside"]
    assert beside["before"]["accuracy"] > 0.9 and beside["changed"]["accuracy"] < 0.1
    # Right at all four yaws only where the question turns along, and its answer does not.
    found, expected = (s["four_yaws"]["direction"]["yes"]["accuracy"] for s in (deaf, follows))
    assert found < expected - 0.3


def test_rules_read_a_description(small, classes):
    """A description with errors leads to their answers; one without a class to a guess."""
    items = [i for i in small.items if i.task == "azimuth"]
    assert items
    for item, shift in itertools.product(items, (0.0, 180.0)):
        sources = [s | {"azimuth": s["azimuth"] + shift} for s in item.scene["sources"]]
        letter = baselines.by_rule(item, item.scene | {"sources": sources}, classes)
        (named,) = [c for c in by_class(item.scene) if c in item.question.split()]
        said = place(by_class(item.scene)[named] + shift)
        if said in item.options:
            assert item.options["ABCD".index(letter)] == said
    guesses = [baselines.by_rule(i, {"sources": []}, classes) for i in small.items]
    assert set(guesses) == set("ABCD")


def test_rules_are_told_no_more_than_the_question(small, classes):
    """What is at a place is read from bearings: where all are wrong, so is the answer."""
    rng, asked = np.random.default_rng(0), []
    for item, task in itertools.product(small.items, ("at", "turn_at", "claim")):
        q = questions.ask(item.scene, classes, rng, task)
        if q is not None:
            put = {n: getattr(q, n) for n in ("task", "question", "options", "answer", "about")}
            asked.append(dataclasses.replace(item, **put))
    right = {0.0: 0, 180.0: 0}
    for item, shift in itertools.product(asked, right):
        sources = [s | {"azimuth": s["azimuth"] + shift} for s in item.scene["sources"]]
        letter = baselines.by_rule(item, item.scene | {"sources": sources}, classes)
        right[shift] += letter == item.answer
    assert len(asked) >= 20 and right[0.0] == len(asked) and right[180.0] < len(asked) / 2


def test_the_cascade_points_where_its_tags_are():
    from jaxasa.acoustics import foa

    rng = np.random.default_rng(0)
    audio = np.zeros((1, 48_000, 4))
    audio[0, :24_000] = rng.normal(size=(24_000, 1)) * foa.encode(90.0, 0.0)
    audio[0, 24_000:] = rng.normal(size=(24_000, 1)) * foa.encode(-45.0, 0.0)
    tags = np.zeros((1, 12, 5))
    tags[0, :6, 3], tags[0, 6:, 1] = 0.9, 0.8
    describe = baselines.cascade(lambda _: (tags, 3.0), ("a", "b", "c", "d"), (0.5, 2.0))
    first, second = describe(audio)[0]["sources"]
    assert (first["class"], second["class"]) == ("d", "b")
    assert first["azimuth"] == pytest.approx(90, abs=3) and first["onset"] == 0.0
    assert second["azimuth"] == pytest.approx(-45, abs=3) and second["offset"] == 3.0
    assert first["distance"] == pytest.approx(1.0)
