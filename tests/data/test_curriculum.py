import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxasa.config import ConfigError, GrpoStage, SftStage
from jaxasa.data import curriculum, pipeline
from jaxasa.data.curriculum import Pace, Promotion


def scene(spans, rt60=0.3, snr=30.0):
    return {"sources": [{"onset": a, "offset": b} for a, b in spans], "rt60": rt60, "snr": snr}


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), min_size=1, max_size=6))
def test_overlap_is_the_share_counted_sample_by_sample(spans):
    spans = [(a, a + length) for a, length in spans]
    count = np.zeros(100)
    for a, b in spans:
        count[a:b] += 1
    expected = (count > 1).sum() / (count > 0).sum()
    assert curriculum.overlap(scene(spans)) == pytest.approx(expected)


def test_the_easiest_scenes_come_first():
    easy = scene([(0, 1)], rt60=0.2, snr=40)
    middle = scene([(0, 1), (2, 3)], rt60=0.4, snr=30)
    hard = scene([(0, 2), (1, 3)], rt60=0.8, snr=10)
    assert list(curriculum.easiest_first([hard, easy, middle], tuple(curriculum.FACETS))) == [
        1,
        2,
        0,
    ]
    # By one facet only, that one decides.
    loud = scene([(0, 1)], snr=50)
    assert list(curriculum.easiest_first([easy, loud], ("snr",))) == [1, 0]


def test_pace_widens_from_the_easiest_share_to_all():
    pace = Pace(np.arange(100)[::-1], (0.2, 1.0))
    begin = [pace(i, 0.0) for i in range(100)]
    assert set(begin) == set(range(80, 100)) and len(begin) / len(set(begin)) == 5
    assert set(pace(i, 0.5) for i in range(100)) == set(range(40, 100))
    assert sorted(pace(i, 1.0) for i in range(100)) == list(range(100))


def rows(count):
    """Examples with a question of each level, in an order of their own."""
    level = np.stack([np.roll(np.arange(3), i) for i in range(count)])
    return {
        "audio": np.arange(count),
        "level": level,
        "prompt": level[..., None] * [1, 10],
        "reply": level,
    }


def test_pick_takes_the_question_of_the_level():
    made = curriculum.pick(rows(5), [2, 0, 1, 1, 2])
    assert made["level"].tolist() == [[2], [0], [1], [1], [2]]
    assert made["prompt"][:, 0].tolist() == [[2, 20], [0, 0], [1, 10], [1, 10], [2, 20]]
    assert made["audio"].tolist() == list(range(5))
    without = rows(1) | {"level": np.array([[1, 1, 0]])}
    assert curriculum.pick(without, [2])["level"].tolist() == [[1]]


class Stream:
    def __init__(self):
        self.count = 0

    def __next__(self):
        self.count += 1
        return rows(200)

    def get_state(self):
        return {"count": self.count}

    def set_state(self, state):
        self.count = state["count"]


def test_success_promotes_and_failure_does_not():
    made = Promotion(Stream(), ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0)), 0.7, 2, seed=0)
    assert (next(made)["level"] == 0).all()
    for success in (0.9, 0.4, 0.6, 0.6):  # means 0.65 and 0.6
        made.report(success)
    assert made.done == 0
    for _ in range(4):
        made.report(0.8)
    assert made.done == pytest.approx(0.4)
    assert (next(made)["level"] == 2).mean() == pytest.approx(0.4, abs=0.12)
    for _ in range(40):
        made.report(1.0)
    assert made.done == 1.0 and (next(made)["level"] == 2).all()


def test_where_the_promotion_stands_is_saved():
    levels = ((1.0, 0.0, 0.0), (0.0, 0.5, 0.5))
    made = Promotion(Stream(), levels, 0.5, 3, seed=1)
    for success in (1.0, 1.0, 1.0, 1.0, 0.2):
        next(made)
        made.report(success)
    saved = json.loads(json.dumps(made.get_state()))
    again = Promotion(Stream(), levels, 0.5, 3, seed=1)
    again.set_state(saved)
    for one in (made, again):
        one.report(0.4)  # closes the window 1.0, 0.2, 0.4: promoted once more
    assert made.done == again.done == pytest.approx(0.4)
    np.testing.assert_array_equal(next(made)["level"], next(again)["level"])


def test_processes_draw_the_levels_that_one_draws(monkeypatch):
    levels = ((0.3333333,) * 3, (0.3333333,) * 3)  # sums to 1 as far as a config asks
    draw = lambda: Promotion(Stream(), levels, 0.5, 3, seed=1)  # noqa: E731
    monkeypatch.setattr(Stream, "__next__", lambda self: rows(400))
    whole = next(draw())["level"]
    monkeypatch.setattr(Stream, "__next__", lambda self: rows(200))
    monkeypatch.setattr(curriculum.jax, "process_count", lambda: 2)
    parts = []
    for index in (0, 1):
        monkeypatch.setattr(curriculum.jax, "process_index", lambda index=index: index)
        parts.append(next(draw())["level"])
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(*parts)


def test_promotion_is_not_begun_or_given_up_half_way():
    levels = ((1.0, 0.0, 0.0), (0.0, 0.5, 0.5))
    made = Promotion(Stream(), levels, 0.5, 3, seed=1)
    with pytest.raises(ConfigError, match="GrpoStage.promote is 0.5, expected 0, with which"):
        made.set_state(Stream().get_state())
    make = lambda element, rng, done: {"n": np.int32(element)}  # noqa: E731
    plain = pipeline.Batches(range(8), make, 0, "t", 2, total=8)
    with pytest.raises(ConfigError, match="GrpoStage.promote is 0, expected above 0, with"):
        plain.set_state(made.get_state())


def options(**more):
    return {"steps": 1, "batch": 4, "learning_rate": 0.1, "trainable": ("lora/.*",)} | more


@pytest.mark.parametrize(
    "stage, more, named",
    [
        (SftStage, {"levels": ((1.0, 0.0), (0.0, 1.0))}, "SftStage.level_mix"),
        (SftStage, {"levels": ((0.5, 0.5, 0.5), (0, 0, 1))}, "SftStage.level_mix"),
        (GrpoStage, {"promote": 0.5}, "GrpoStage.promote is 0.5, expected 0 where"),
        (
            GrpoStage,
            {"promote": 0.5, "questions": 2, "levels": ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0))},
            "GrpoStage.questions_per_scene is 2, expected 1 where",
        ),
        (SftStage, {"easiest": (0.0, 1.0)}, "SftStage.easiest"),
        (SftStage, {"hard_by": ("loudness",)}, "SftStage.hard_by"),
        (SftStage, {"accumulate": 3}, "SftStage.grad_accum_steps is 3, expected a divisor"),
    ],
)
def test_options_that_make_no_sense_are_named(stage, more, named):
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")):
        stage(**options(**more))
