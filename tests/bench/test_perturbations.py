# SPDX-License-Identifier: Apache-2.0
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
def test_rotation_gives_the_answers_of_the_rotated_scene(small, classes, yaw):
    rotated = perturbations.rotation(yaw)(small.items, classes)
    original = {item.id: item for item in small.items}
    assert len(rotated.items) > 0.8 * len(small.items)
    for item in rotated.items:
        old = original[item.id]
        angles = [(by_class(item.scene)[c] - a) % 360 for c, a in by_class(old.scene).items()]
        assert np.ptp(np.exp(1j * np.radians(angles))) < 1e-6
        if yaw is not None:
            np.testing.assert_allclose(angles, yaw, atol=1e-6)
        if item.task == "azimuth":
            (name,) = [c for c in by_class(item.scene) if c in item.question.split()]
            assert item.answer_text == place(by_class(item.scene)[name])
        assert len(set(item.options)) == 4 and old.answer_text in item.options
        if item.id in rotated.original_answer:
            letter = rotated.original_answer[item.id]
            assert item.options["ABCD".index(letter)] == old.answer_text
            assert item.question == old.question and item.answer_text != old.answer_text
        # The audio is rotated by the same angle, up to rounding: (X + iY) exp(i yaw).
        w, y, z, x = old.audio().astype(float).T
        audio = rotated.audio(item).astype(float).T
        expected = (x + 1j * y) * np.exp(1j * np.radians(angles[0]))
        fits = np.abs(expected.real) < 32_000
        np.testing.assert_allclose(audio[3][fits], expected.real[fits], atol=0.51)
        np.testing.assert_array_equal(audio[[0, 2]], [w, z])
    # Some items are about direction, and most of their answers change.
    assert len(rotated.original_answer) > 5


@pytest.mark.parametrize(
    "perturb", [perturbations.rotation(90.0), perturbations.rotation(180.0), perturbations.mirror]
)
def test_exactly_one_of_four_statements_about_a_perturbed_scene_is_true(
    small, classes, make, perturb
):
    """Original distractors may have become true."""
    template, items = small.items[0], []
    for n, scene in enumerate(make.describe(200, seed=5)):
        q = questions.sample_question(scene, classes, np.random.default_rng(n), "true_statement")
        if q is not None:
            names = ("level", "task", "question", "options", "answer", "template_args")
            fields = {name: getattr(q, name) for name in names} | {"scene": scene, "id": f"c-{n}"}
            items.append(dataclasses.replace(template, **fields))
    perturbed = perturb(items, classes)
    assert len(perturbed.items) > 30 and len(perturbed.original_answer) > 20
    for item in perturbed.items:
        true = {f"{c} {place(azimuth)}" for c, azimuth in by_class(item.scene).items()}
        assert [o for o in item.options if o in true] == [item.answer_text]
        if item.id in perturbed.original_answer:
            old = next(i for i in items if i.id == item.id)
            letter = perturbed.original_answer[item.id]
            assert item.options["ABCD".index(letter)] == old.answer_text


def test_mirroring_twice_restores_the_answers(small, classes):
    once = perturbations.mirror(small.items, classes)
    twice = perturbations.mirror(once.items, classes)
    answers = {item.id: item.answer_text for item in small.items}
    assert len(twice.items) > 0.8 * len(small.items)
    for item in twice.items:
        assert answers[item.id] == item.answer_text
    item = once.items[0]
    old = next(i for i in small.items if i.id == item.id).audio()
    np.testing.assert_array_equal(once.audio(item), old * [1, -1, 1, 1])


def test_swapped_audio_is_never_a_scenes_own(small, classes):
    perturbed = perturbations.swap_scenes(small.items, classes)
    own = {item.file: item.audio() for item in small.items}
    swapped = {item.file: perturbed.audio(item) for item in perturbed.items}
    assert not any(np.array_equal(own[file], swapped[file]) for file in own)
    assert {a.tobytes() for a in own.values()} == {a.tobytes() for a in swapped.values()}
    assert perturbed.items == small.items


def test_shuffled_channels_keep_w_and_move_the_others(small, classes):
    item = small.items[0]
    audio = perturbations.shuffle_channels(small.items, classes).audio(item)
    np.testing.assert_array_equal(audio, item.audio()[:, [0, 2, 3, 1]])


class LookUp:
    """A model that answers each question of each perturbed suite by letter_of(item, suite)."""

    def __init__(self, items, classes, letter_of):
        letters = {}
        for perturb in {control.perturb for control in controls.CONTROLS.values()}:
            perturbed = perturb(items, classes)
            for item in perturbed.items:
                key = item.question, item.options, item.scene["sources"][0]["azimuth"]
                letters[key] = letter_of(item, perturbed)
        self.letters = {}
        for (question, options, _), letter in letters.items():
            self.letters.setdefault((question, options), set()).add(letter)

    def respond(self, audio, questions, options, audio_condition):
        return [
            f"<answer>{min(self.letters[q, tuple(o)])}</answer>"
            for q, o in zip(questions, options, strict=True)
        ]


def scores_of(small, classes, out, letter_of):
    systems = controls.systems(("sft",), controls.select(("all",)))
    models = {"sft": LookUp(small.items, classes, letter_of)}
    oracle = {"oracle": baselines.oracle(classes)}
    return run.evaluate(systems, models, small.folder, out, BENCH, baselines=oracle)["systems"]


def test_rotation_tells_a_model_that_uses_direction_from_one_that_does_not(
    small, classes, tmp_path
):
    spatial = scores_of(small, classes, tmp_path / "a", lambda item, _: item.answer)
    assert set(spatial) == {"sft", "oracle", "chance", "four_yaws", *controls.CONTROLS}
    assert spatial["oracle"]["overall"]["accuracy"] == 1.0
    by_kind = {kind: a["accuracy"] for kind, a in spatial["rotated"]["geometric"].items()}
    assert by_kind["perturbed"] > 0.9 and by_kind["answer_changed"] > 0.9
    assert by_kind["stale_answer"] < 0.1 and by_kind["original"] == 1.0
    assert spatial["four_yaws"]["overall"]["accuracy"] > 0.7

    def original_letter(item, perturbed):
        return perturbed.original_answer.get(item.id, item.answer)

    blind = scores_of(small, classes, tmp_path / "b", original_letter)
    by_kind = {kind: a["accuracy"] for kind, a in blind["rotated_180"]["geometric"].items()}
    assert by_kind["stale_answer"] > 0.9 and by_kind["answer_changed"] < 0.1
    # Correct at all four yaws only if the question rotates with the scene.
    low, high = (s["four_yaws"]["direction"]["yes"]["accuracy"] for s in (blind, spatial))
    assert low < high - 0.3


def test_rules_answer_from_a_description(small, classes):
    """A wrong description leads to a wrong answer; one without the class to a random one."""
    items = [i for i in small.items if i.task == "azimuth"]
    assert items
    for item, shift in itertools.product(items, (0.0, 180.0)):
        sources = [s | {"azimuth": s["azimuth"] + shift} for s in item.scene["sources"]]
        letter = baselines.answer_by_rule(item, item.scene | {"sources": sources}, classes)
        (name,) = [c for c in by_class(item.scene) if c in item.question.split()]
        expected = place(by_class(item.scene)[name] + shift)
        if expected in item.options:
            assert item.options["ABCD".index(letter)] == expected
    guesses = [baselines.answer_by_rule(i, {"sources": []}, classes) for i in small.items]
    assert set(guesses) == set("ABCD")


def test_rules_use_the_question_and_not_its_template_arguments(small, classes):
    """If all bearings are wrong, then so is the class that is at a place."""
    rng, items = np.random.default_rng(0), []
    tasks = ("class_in_sector", "class_after_turn", "true_statement")
    for item, task in itertools.product(small.items, tasks):
        q = questions.sample_question(item.scene, classes, rng, task)
        if q is not None:
            names = ("task", "question", "options", "answer", "template_args")
            items.append(dataclasses.replace(item, **{name: getattr(q, name) for name in names}))
    correct = {0.0: 0, 180.0: 0}
    for item, shift in itertools.product(items, correct):
        sources = [s | {"azimuth": s["azimuth"] + shift} for s in item.scene["sources"]]
        letter = baselines.answer_by_rule(item, item.scene | {"sources": sources}, classes)
        correct[shift] += letter == item.answer
    assert len(items) >= 20 and correct[0.0] == len(items) and correct[180.0] < len(items) / 2


def test_cascade_localizes_each_tag_in_its_frames():
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
