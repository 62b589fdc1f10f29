# SPDX-License-Identifier: Apache-2.0
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxasa.bench import open_ended
from jaxasa.config import ConfigError


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("azimuth", "45", 45.0),
        ("azimuth", "-120 degrees", -120.0),
        ("azimuth", "about 30 degrees to the right", -30.0),
        ("azimuth", "<think>90</think><answer>40° left</answer>", 40.0),
        ("azimuth", "270", -90.0),
        ("azimuth", "front-left", 45.0),
        ("azimuth", "to the front and right", -45.0),
        ("azimuth", "behind you", 180.0),
        ("azimuth", "back left", 135.0),
        ("azimuth", "straight ahead", 0.0),
        ("azimuth", "left or right", None),
        ("azimuth", "30 degrees left or 60 degrees", None),
        ("azimuth", "<answer>left</answer><answer>back</answer>", None),
        ("azimuth", "somewhere", None),
        ("elevation", "20 degrees up", 20.0),
        ("elevation", "15 degrees below", -15.0),
        ("elevation", "at ear height", 0.0),
        ("distance", "1.5 m", 1.5),
        ("distance", "some 150 centimetres away", 1.5),
        ("distance", "the 2nd sound is 3 metres away", 3.0),
        ("distance", "10 feet", 3.048),
        ("distance", "far", None),
        ("time", "at 1.25 s", 1.25),
        ("time", "after 300 ms", 0.3),
        ("time", "2", 2.0),
        ("count", "three sounds", 3.0),
        ("count", "There are 2.", 2.0),
        ("count", "none", 0.0),
        ("count", "2 or 3", None),
        ("count", "2.0", 2.0),
        ("count", "2.5", None),
        ("name", "It is the dog.", "dog"),
        ("name", "dog and cat", None),
    ],
)
def test_parse_answer(kind, text, value):
    answer = open_ended.parse_answer(text, kind, ("dog", "cat"))
    assert answer == value if isinstance(value, str | None) else answer == pytest.approx(value)


@settings(max_examples=40)
@given(value=st.floats(-179, 180), digits=st.integers(0, 2))
def test_bearing_in_words_round_trips(value, digits):
    value = round(value, digits)
    form = {"kind": "azimuth", "value": value, "text": ""}
    side = "left" if value > 0 else "right"
    for text in (f"{value} degrees", f"{abs(value)}° to the {side}", f"{value + 360:.{digits}f}"):
        assert open_ended.is_within_tolerance(open_ended.parse_answer(text, "azimuth"), form), text


@settings(max_examples=40)
@given(text=st.text(max_size=60), kind=st.sampled_from(["name", *open_ended.TOLERANCES]))
def test_any_text_gives_a_value_or_none(text, kind):
    answer = open_ended.parse_answer(text, kind, ("dog",))
    assert answer is None or answer == "dog" or abs(float(answer)) >= 0


@pytest.mark.parametrize(
    ("kind", "value", "right", "wrong"),
    [
        ("azimuth", 175.0, -166.0, -160.0),
        ("elevation", 5.0, 14.0, 16.0),
        ("distance", 2.0, 1.41, 1.39),
        ("time", 1.0, 1.39, 1.41),
        ("count", 2.0, 2.0, 1.0),
    ],
)
def test_tolerances(kind, value, right, wrong):
    form = {"kind": kind, "value": value, "text": ""}
    assert open_ended.is_within_tolerance(right, form) and not open_ended.is_within_tolerance(
        wrong, form
    )
    assert not open_ended.is_within_tolerance(None, form)


def test_suite_is_scored_without_options(small, tmp_path):
    path = tmp_path / "predictions.jsonl"
    mine = [i for i in small.items if i.open_answer]
    assert len(mine) > 10
    assert {i.open_answer["kind"] for i in mine} >= {"azimuth", "name"}
    answers = [
        {
            "id": i.id,
            "answer": i.open_answer["text"]
            if i.open_answer["value"] is None
            else str(i.open_answer["value"]),
        }
        for i in mine
    ]
    path.write_text("\n".join(map(json.dumps, answers)))
    scores = open_ended.score_file(path, small.folder)
    assert scores["overall"]["accuracy"] == 1.0 and scores["unparsed"] == 0.0
    assert scores["kinds"]["azimuth"]["items"] == sum(
        i.open_answer["kind"] == "azimuth" for i in mine
    )
    answers[0]["answer"] = "no idea"
    path.write_text("\n".join(map(json.dumps, answers)))
    assert open_ended.score_file(path, small.folder)["unparsed"] == pytest.approx(1 / len(mine))
    closed = next(i for i in small.items if not i.open_answer)
    path.write_text("\n".join(map(json.dumps, [*answers, {"id": closed.id, "answer": "A"}])))
    with pytest.raises(ConfigError, match=f"id '{closed.id}' is not in the benchmark"):
        open_ended.score_file(path, small.folder)


def test_open_answers_equal_the_scene(large):
    """An azimuth lies in the sector of the right option; distances and times are a source's."""
    edges = "front front-left left back-left back back-right right front-right".split()
    kinds = set()
    for scene, q in large:
        if q.open_answer is None:
            continue
        kind, value = q.open_answer
        kinds.add(kind)
        if kind == "azimuth":
            assert edges[int((value + 22.5) % 360 // 45)] == q.answer_text and -180 <= value <= 180
            assert open_ended.is_within_tolerance(
                open_ended.parse_answer(q.answer_text, kind), {"kind": kind, "value": value}
            )
        elif kind in ("distance", "time", "elevation"):
            name = {"time": "onset"}.get(kind, kind)
            assert value in [s[name] for s in scene["sources"]]
    assert kinds == {*open_ended.TOLERANCES, "name"}
