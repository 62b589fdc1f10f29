# SPDX-License-Identifier: Apache-2.0
"""goldens/seld.json: made-up inputs as csv lines, and what the public DCASE code says of them.

That code (sharathadavanne/seld-dcase2023 and partha2409/DCASE2024_seld_baseline) ran outside of
this repository, its `get_SELD_Results` with its own parameters, on these very lines; distances
of references in cm. None: NaN.
"""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxasa.bench import seld
from jaxasa.cli import main
from jaxasa.config import ConfigError
from jaxasa.data import dcase_csv
from jaxasa.data.dcase_csv import Event

GOLDENS = json.loads((Path(__file__).parent / "goldens" / "seld.json").read_text())
MEANS = ("F20", "ER20", "LE_CD", "LR_CD", "SELD")


def write(folder, files):
    folder.mkdir(parents=True)
    for name, lines in files.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder


def close(scores, expected):
    if isinstance(expected, dict):
        assert scores.keys() == expected.keys()
        for name, value in expected.items():
            close(scores[name], value)
    elif isinstance(expected, list):
        for pair in zip(scores, expected, strict=True):
            close(*pair)
    else:
        assert scores == (None if expected is None else pytest.approx(expected, rel=1e-6, abs=1e-6))


@pytest.mark.parametrize("year", seld.YEARS)
@pytest.mark.parametrize("name", GOLDENS)
def test_official_equals_the_public_code(tmp_path, name, year):
    case = GOLDENS[name]
    references = write(tmp_path / "ref" / "split", case["references"])
    predictions = write(tmp_path / "predictions", case[str(year)]["predictions"])
    truth, predictions = dcase_csv.read_pairs(references, predictions, ("cm", "m"), official=True)
    scores = seld.evaluate(truth, predictions, year=year, official=True)
    close(scores, case[str(year)]["expected"])


def events(frames, label, azimuth, *, source=0, elevation=0.0, distance=1.0):
    return [Event(f, label, source, azimuth, elevation, distance) for f in frames]


def score(truth, predictions, year=2024, **options):
    return seld.evaluate({"a": truth}, {"a": predictions}, year=year, **options)


def test_2024_metrics_computed_by_hand():
    """Class 0: 4 references, 2 right, 1 misplaced, 1 missed; class 1: only a false alarm."""
    truth = events(range(4), 0, 10.0)
    predictions = events(range(2), 0, 25.0, distance=1.5)
    predictions += events([2], 0, 40.0) + events([3], 1, 0.0)
    scores = score(truth, predictions)
    assert scores["classes"][0]["F20"] == pytest.approx(2 / (2 + 1 + 0.5))
    assert scores["F20"] == pytest.approx(2 / 3.5 / 2)
    assert scores["LE_CD"] == pytest.approx((15 + 15 + 30) / 3)
    assert scores["LR_CD"] == 3 / 4
    assert scores["RDE"] == pytest.approx((0.5 + 0.5 + 0) / 3)
    # Frame 2: a substitution. Frame 3: a miss and a false alarm, another one.
    assert scores["ER20"] == 2 / 4
    assert scores["SELD"] == pytest.approx((1 - 2 / 7 + 20 / 180 + 1 / 3) / 3)
    # The public code leaves the last frame out.
    assert score(truth, predictions, official=True)["ER20"] == pytest.approx(1 / 3)


def test_2023_metrics_computed_by_hand():
    """Second 0: right on the mean of its frames. Second 1: heard in other frames. Second 2: not."""
    truth = events(range(10), 0, 0.0) + events(range(10, 15), 0, 0.0) + events([25], 0, 0.0)
    predictions = events([0], 0, 30.0) + events([1, 2], 0, 6.0) + events([16], 0, 0.0)
    scores = score(truth, predictions, 2023)
    assert scores["LE_CD"] == pytest.approx(14) and scores["LR_CD"] == pytest.approx(1 / 3)
    assert scores["F20"] == pytest.approx(1 / (1 + 0.5 * (1 + 2)))
    assert scores["ER20"] == pytest.approx(2 / 3)
    assert scores["SELD"] == pytest.approx((2 / 3 + 0.6 + 14 / 180 + 2 / 3) / 4)


def test_each_distance_decides_in_2024_only():
    truth = events(range(30), 3, 0.0)
    for distance, right in ((2.0, 1.0), (2.01, 0.0), (0.0, 1.0)):
        predictions = events(range(30), 3, 0.0, distance=distance)
        assert score(truth, predictions)["F20"] == right
        assert score(truth, predictions, 2023)["F20"] == 1.0


def test_exactly_20_degrees_is_a_hit():
    for azimuth, year in itertools.product(range(-180, 181, 7), seld.YEARS):
        truth = events(range(12), 0, float(azimuth))
        predictions = events(range(12), 0, (azimuth + 200.0) % 360 - 180)
        assert score(truth, predictions, year)["F20"] == 1.0
        away = events(range(12), 0, (azimuth + 200.001) % 360 - 180)
        assert score(truth, away, year)["F20"] == 0.0


def test_misplaced_pair_is_one_substitution():
    truth = events(range(21), 0, 0.0) + events(range(21), 1, 0.0)
    predictions = events(range(21), 0, 90.0)
    for year in seld.YEARS:
        assert score(truth, predictions, year)["ER20"] == 1.0
        assert score(truth, predictions, year, official=True)["ER20"] == 0.5


def test_jumping_prediction_matches_one_of_two():
    truth = events(range(10), 0, 0.0) + events(range(10), 0, 90.0, source=1)
    predictions = [e for f in range(10) for e in events([f], 0, 90.0 * (f % 2))]
    scores = score(truth, predictions, 2023)
    assert scores["LR_CD"] == 0.5 and scores["F20"] == pytest.approx(1 / 1.5)
    assert scores["ER20"] == 0.5


@pytest.mark.parametrize("year", seld.YEARS)
def test_undefined_metrics_are_none(year):
    silence = score([], [], year)
    assert all(silence[name] is None for name in MEANS)
    alarm = score([], events(range(3), 2, 0.0), year)
    assert alarm["F20"] == 0 and alarm["ER20"] is None and alarm["LR_CD"] is None
    deaf = score(events(range(3), 2, 0.0), [], year)
    assert deaf["F20"] == 0 and deaf["ER20"] == 1 and deaf["LR_CD"] == 0 and deaf["SELD"] == 1
    assert deaf["LE_CD"] == (180.0 if year == 2023 else None)


def test_invalid_events_are_refused():
    good = events(range(3), 2, 0.0)
    with pytest.raises(ConfigError, match="class 13"):
        score(good, events([4], 13, 0.0))
    with pytest.raises(ConfigError, match="no distance"):
        score(good, events([4], 1, 0.0, distance=None))
    with pytest.raises(ConfigError, match="distance 0"):
        score(events([4], 1, 0.0, distance=0.0), good)
    with pytest.raises(ConfigError, match="b: predictions without references"):
        seld.evaluate({"a": good}, {"b": good})
    with pytest.raises(ConfigError, match="public code cannot"):
        score([], good, official=True)
    with pytest.raises(ConfigError, match="2022"):
        score(good, good, 2022)
    assert score(events([4], 1, 0.0, distance=None), [], 2023)["ER20"] == 1


frames = st.integers(0, 24)
event = st.builds(
    Event,
    frames,
    st.integers(0, 3),
    st.integers(0, 2),
    st.integers(-180, 180).map(float),
    st.integers(-90, 90).map(float),
    st.integers(1, 50).map(lambda d: d / 10),
)
sides = st.lists(event, max_size=25)
years = st.sampled_from(seld.YEARS)


@given(sides, years)
def test_a_perfect_prediction_is_perfect(rows, year):
    scores = score(rows, [e._replace(source=0) for e in rows], year)
    if rows:
        assert scores["F20"] == scores["LR_CD"] == 1 and scores["ER20"] == 0
        assert scores["LE_CD"] == pytest.approx(0, abs=1e-9)
        assert scores["SELD"] == pytest.approx(0, abs=1e-9)
        assert scores.get("RDE", 0) == pytest.approx(0)


@given(sides, sides, years, st.booleans())
def test_bounds(truth, predictions, year, official):
    if official and not truth:
        return
    scores = score(truth, predictions, year, official=official)
    for row in (scores, *scores["classes"]):
        assert 0 <= (row["F20"] or 0) <= 1 and 0 <= (row["LR_CD"] or 0) <= 1
        assert 0 <= (row["LE_CD"] or 0) <= 180 and (row.get("RDE") or 0) >= 0
    assert (scores["ER20"] or 0) >= 0 and (scores["SELD"] is None or scores["SELD"] >= 0)


@given(sides, sides, years, st.randoms(use_true_random=False), st.permutations(range(4)))
def test_order_and_source_numbers_have_no_effect(truth, predictions, year, random, turned):
    """Lines in another order, sources and classes renumbered, recordings renamed."""
    before = score(truth, predictions, year)
    shuffled = [random.sample(rows, len(rows)) for rows in (truth, predictions)]
    sources = random.sample(range(10), 3)
    moved = [
        [e._replace(source=sources[e.source], label=turned[e.label]) for e in rows]
        for rows in shuffled
    ]
    after = seld.evaluate(*({"b": rows} for rows in moved), year=year)
    close({n: after[n] for n in MEANS}, {n: before[n] for n in MEANS})


@given(sides, sides, years)
def test_recordings_add_up(truth, predictions, year):
    """Two recordings alike mean the same, and one of them cut at a second is no other."""
    once = score(truth, predictions, year)
    twice = seld.evaluate({"a": truth, "b": truth}, {"a": predictions, "b": predictions}, year=year)
    close({n: twice[n] for n in MEANS}, {n: once[n] for n in MEANS})
    parts = [
        [[e for e in rows if (e.frame < 10) == first] for rows in (truth, predictions)]
        for first in (1, 0)
    ]
    cut = seld.evaluate(*({"a": a, "b": b} for a, b in zip(*parts, strict=True)), year=year)
    close({n: cut[n] for n in MEANS}, {n: once[n] for n in MEANS})


@settings(max_examples=50)
@given(st.integers(2, 4), st.integers(1, 4), years)
def test_simultaneous_events_of_one_class_stay_apart(many, found_of_them, year):
    """Of `many` events of a class 40 degrees apart some are predicted, each where it is."""
    azimuths = [40.0 * n - 60 for n in range(many)]
    truth = [e for n, a in enumerate(azimuths) for e in events(range(20), 5, a, source=n)]
    kept = azimuths[:found_of_them]
    predictions = [e for a in kept for e in events(range(20), 5, a + 4.0)]
    scores = score(truth, predictions, year)
    assert scores["LE_CD"] == pytest.approx(4)
    assert scores["LR_CD"] == pytest.approx(len(kept) / many)
    assert scores["ER20"] == pytest.approx((many - len(kept)) / many)


@given(st.floats(-180, 180), st.floats(-90, 90), st.floats(-180, 180), st.floats(-90, 90))
def test_angles_of_great_circles(az1, el1, az2, el2):
    """Against Vincenty's formula on the sphere, and the public code's two within rounding."""
    a, b = (np.radians([[az], [el]]) for az, el in ((az1, el1), (az2, el2)))
    (p1, p2), d = np.radians([el1, el2]), math.radians(az1 - az2)
    y = math.hypot(
        math.cos(p2) * math.sin(d),
        math.cos(p1) * math.sin(p2) - math.sin(p1) * math.cos(p2) * math.cos(d),
    )
    x = math.sin(p1) * math.sin(p2) + math.cos(p1) * math.cos(p2) * math.cos(d)
    right = math.degrees(math.atan2(y, x))
    assert seld._angle(a, b)[0, 0] == pytest.approx(right, abs=1e-9)
    assert seld._angle_2023(a, b)[0, 0] == pytest.approx(right, abs=3e-6)
    assert seld._angle_2024(a, b)[0, 0] == pytest.approx(right, abs=1e-3)


def test_bench_seld_command(tmp_path, capsys):
    references = write(tmp_path / "ref" / "split", {"a.csv": ["0,1,0,10,0,100", "1,1,0,10,0,100"]})
    predictions = write(tmp_path / "predictions", {"a.csv": ["0,1,0,15,0,1.1", "1,1,0,40,0,1.1"]})
    out = tmp_path / "out.json"
    assert main.main(["bench", "seld", str(references), str(predictions), "--json", str(out)]) == 0
    scores = json.loads(out.read_text())
    assert scores["F20"] == 0.5 and scores["RDE"] == pytest.approx(0.1)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0][:3] == ["class", "ER20", "F20"]
    assert [r[0] for r in rows[1:]] == ["1", "all"] and "17.5" in rows[2]
    words = ["bench", "seld", str(references), str(predictions), "--prediction_unit", "cm"]
    assert main.main([*words, "--json", str(out)]) == 0
    assert json.loads(out.read_text())["RDE"] == pytest.approx(0.989)
    write(tmp_path / "bad", {"a.csv": ["0,1,0,15,0,1.1", "0,one,0,15,0,1.1"]})
    assert main.main(["bench", "seld", str(references), str(tmp_path / "bad")]) == 2
    assert "a.csv:2: class 'one'" in capsys.readouterr().err
