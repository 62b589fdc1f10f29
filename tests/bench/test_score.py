# SPDX-License-Identifier: Apache-2.0
import json
import types

import numpy as np
import pytest

from jaxasa.bench import score
from jaxasa.config import ConfigError


@pytest.mark.parametrize(
    ("right", "items", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_published_values(right, items, low, high):
    found = score.wilson_interval(right, items)
    assert np.allclose(found, (low, high), atol=5e-5)


def test_wilson_ends_solve_the_score_test():
    # The definition: |p - share| = z sqrt(p (1 - p) / n) at both ends.
    right, items = np.array([3, 50, 249]), np.array([40, 100, 250])
    for end in score.wilson_interval(right, items):
        z = np.abs(end - right / items) / np.sqrt(end * (1 - end) / items)
        assert np.allclose(z, 1.959964, atol=1e-5)


def make_items(recordings, per_scene=2, level="L1"):
    """Items over scenes whose sources are of the given recordings."""
    items = []
    for n, names in enumerate(recordings):
        scene = {"id": f"benchmark/{n:06d}"}
        for k in range(per_scene):
            items.append(
                types.SimpleNamespace(
                    id=f"{level}-{n}-{k}",
                    level=level,
                    task="sector_after_turn" if k else "class_present",
                    direction=bool(k),
                    options=("a1", "a2", "a3", "a4"),
                    answer="ABCD"[n % 4],
                    scene=scene,
                    recordings=tuple(("c", t) for t in names),
                )
            )
    return items


def say(items, right):
    wrong = dict(zip("ABCD", "BCDA", strict=True))
    return {i.id: i.answer if ok else wrong[i.answer] for i, ok in zip(items, right, strict=True)}


def test_score_counts_by_group():
    items = make_items([["a"]] * 4) + make_items([["b"]] * 2, level="L2")
    found = score.score(items, say(items, [True, False] * 4 + [True, True, False, False]))
    shares = {name: (found[name]["accuracy"], found[name]["items"]) for name in ("L1", "L2")}
    assert shares == {"L1": (0.5, 8), "L2": (0.5, 4)}
    assert found["overall"]["accuracy"] == 0.5 and found["overall"]["items"] == 12
    assert found["tasks"]["class_present"]["accuracy"] == 5 / 6
    assert found["direction"]["yes"]["accuracy"] == 1 / 6
    assert found["parsing"] == {"strict": 0, "lenient": 1, "text": 0, "none": 0}
    low, high = score.wilson_interval(4, 8)
    assert (found["L1"]["low"], found["L1"]["high"]) == (float(low), float(high))


def test_chance_is_a_quarter_without_an_interval():
    found = score.chance_scores(make_items([["a"]] * 4))
    assert found["overall"] == {"accuracy": 0.25, "low": 0.25, "high": 0.25, "items": 8}
    assert found["direction"]["no"]["items"] == 4


def test_paired_difference_and_its_sign():
    items = make_items([[f"t{n}", f"u{n}"] for n in range(60)])
    everything, nothing = say(items, [True] * 120), say(items, [False] * 120)
    for a, b, expected in ((everything, nothing, 1.0), (nothing, everything, -1.0)):
        found = score.paired_difference(items, a, b, samples=200)
        assert found == {"difference": expected, "low": expected, "high": expected, "items": 120}
    half = say(items, [True, False] * 60)
    found = score.paired_difference(items, half, nothing, samples=200)
    assert found["difference"] == 0.5 and found["low"] == found["high"] == 0.5


def test_paired_interval_covers_a_true_lead_and_is_repeatable():
    rng = np.random.default_rng(0)
    items = make_items([[f"t{n % 50}"] for n in range(500)])
    a, b = (say(items, rng.random(1000) < p) for p in (0.6, 0.4))
    found = score.paired_difference(items, a, b, samples=1000)
    assert 0.05 < found["low"] < 0.2 < found["high"] < 0.35
    assert found == score.paired_difference(items, a, b, samples=1000)
    mirrored = score.paired_difference(items, b, a, samples=1000)
    assert mirrored["low"] == pytest.approx(-found["high"], abs=1e-12)


def test_paired_interval_widens_with_one_recording():
    """An advantage on a single recording is as uncertain as a draw of that recording."""
    rng = np.random.default_rng(1)
    lucky = np.arange(300) % 10 == 0
    own = make_items([[f"t{n}"] for n in range(300)], per_scene=1)
    shared = make_items([["one"] if lucky[n] else [f"t{n}"] for n in range(300)], per_scene=1)
    coin = rng.random(300) < 0.25
    width = {}
    for name, items in (("own", own), ("shared", shared)):
        found = score.paired_difference(
            items, say(items, coin | lucky), say(items, coin & ~lucky), samples=800
        )
        width[name] = found["high"] - found["low"], found["low"]
    assert width["shared"][0] > 2 * width["own"][0]
    assert width["own"][1] > 0 and width["shared"][1] <= 0


def test_paired_width_matches_the_pigeonhole_variance():
    """With a recording of its own for each scene, weights are products of two multiplicities."""
    rng = np.random.default_rng(2)
    items = make_items([[f"t{n}"] for n in range(400)], per_scene=1)
    right = rng.random(400) < 0.5
    found = score.paired_difference(items, say(items, right), say(items, ~right), samples=4000)
    # Var of a weighted mean: sum of (E w^2 = 4) times squared deviations, less the mean's, / n.
    expected = 2 * 1.96 * np.sqrt(3 / 400)
    assert found["high"] - found["low"] == pytest.approx(expected, rel=0.1)


def test_paired_interval_widens_with_items_of_one_scene():
    rng = np.random.default_rng(3)
    right = np.repeat(rng.random(100) < 0.5, 4)
    together = make_items([[f"t{n}"] for n in range(100)], per_scene=4)
    apart = make_items([[f"t{n}"] for n in range(400)], per_scene=1)
    wide, narrow = (
        score.paired_difference(i, say(i, right), say(i, ~right), samples=1000)
        for i in (together, apart)
    )
    ratio = (wide["high"] - wide["low"]) / (narrow["high"] - narrow["low"])
    assert ratio == pytest.approx(2.0, rel=0.15)


def test_score_file_of_any_system(small, tmp_path):
    path = tmp_path / "predictions.jsonl"
    lines = [json.dumps({"id": i.id, "answer": i.answer_text}) for i in small.items]
    path.write_text("\n".join(reversed(lines)))
    found = score.score_file(path, small.folder)
    assert found["overall"]["accuracy"] == 1.0 and found["parsing"]["text"] == 1.0


def test_score_file_names_the_faulty_line(small, tmp_path):
    path = tmp_path / "predictions.jsonl"
    good = [{"id": i.id, "answer": "A"} for i in small.items]
    first, last = good[0]["id"], good[-1]["id"]
    cases = {
        f"1 of 44 items have no answer, the first {last}": good[:-1],
        f":45: id '{first}' is there twice": [*good, good[0]],
        r":45: id 'L9-x' is not in the benchmark": [*good, {"id": "L9-x", "answer": "A"}],
        r":1: .*expected id and answer": [{"id": first, "answer": 3}],
        r":1: .*expected id and answer, both": [{"id": [1], "answer": "A"}],
    }
    for message, lines in cases.items():
        path.write_text("\n".join(map(json.dumps, lines)))
        with pytest.raises(ConfigError, match=message):
            score.score_file(path, small.folder)
    # U+2028 is no line end in JSON.
    lines = [json.dumps(good[0] | {"answer": "B\u2028left"}, ensure_ascii=False)]
    path.write_text("\n".join([*lines, *map(json.dumps, good[1:])]), encoding="utf-8")
    assert score.score_file(path, small.folder)["overall"]["items"] == 44
    path.write_text("not json")
    with pytest.raises(ConfigError, match=r"predictions.jsonl:1: 'not json'"):
        score.score_file(path, small.folder)
    with pytest.raises(ConfigError, match="no such file"):
        score.score_file(tmp_path / "absent.jsonl", small.folder)


def test_table_for_a_terminal():
    a = {"accuracy": 0.5, "low": 0.4, "high": 0.605, "items": 10}
    nothing = {"accuracy": None, "low": None, "high": None, "items": 0}
    table = score.format_table(
        {"sft": {"overall": a, "L1": a}, "question_only": {"overall": nothing}}
    )
    assert table.splitlines() == [
        "Accuracy in %, with 95 % intervals.",
        "system         overall         L1              L2              L3",
        "sft             50.0 (40-60)    50.0 (40-60)   -               -",
        "question_only  -               -               -               -",
    ]
