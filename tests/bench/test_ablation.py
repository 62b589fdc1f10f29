# SPDX-License-Identifier: Apache-2.0
import io
import json

import numpy as np
import pytest
from rich.console import Console

from jaxasa.bench import ablation, figures, report
from jaxasa.config import ConfigError
from jaxasa.core import keys


@pytest.fixture(scope="module")
def right(small):
    """Answers of two variants: the second is right where the first is, and now and then more."""
    rng, count = np.random.default_rng(1), len(small.items)
    base = {seed: rng.random(count) < 0.5 for seed in (0, 1, 2)}
    better = {seed: hits | (rng.random(count) < 0.3) for seed, hits in base.items()}
    return {"p2": base, "p1": better}


def test_intervals_are_those_of_resampled_scenes(small, right):
    scores = ablation.compare(small.items, right, "p2", samples=300)
    scenes = list(dict.fromkeys(i.scene["id"] for i in small.items))
    of = [[n for n, i in enumerate(small.items) if i.scene["id"] == s] for s in scenes]
    even = np.full(len(scenes), 1 / len(scenes))
    drawn = keys.rng(0, "ablation scenes").multinomial(len(scenes), even, 300)
    seeds = keys.rng(0, "ablation seeds").multinomial(3, np.full(3, 1 / 3), 300)
    level = np.array([i.level for i in small.items])
    apart = np.stack([right["p1"][s].astype(float) - right["p2"][s] for s in (0, 1, 2)])
    for group in ("overall", "L1", "L3"):
        kept = np.ones(len(level), bool) if group == "overall" else level == group
        plain, both = [], []
        for weights, by_seed in zip(drawn, seeds, strict=True):
            # The resample written out, item by item.
            sample = [n for k, w in enumerate(weights) for _ in range(w) for n in of[k] if kept[n]]
            plain.append(apart[:, sample].mean())
            both.append(np.repeat(apart, by_seed, axis=0)[:, sample].mean())
        d = scores["p1"]["against"][group]
        assert d["difference"] == pytest.approx(apart[:, kept].mean())
        assert (d["low"], d["high"]) == pytest.approx(tuple(np.percentile(plain, [2.5, 97.5])))
        wide = d["low_seeds"], d["high_seeds"]
        assert wide == pytest.approx(tuple(np.percentile(both, [2.5, 97.5])))
        assert d["items"] == kept.sum() == scores["p2"][group]["items"]
    for seed in (0, 1, 2):
        by_seed = scores["p1"]["against"]["seeds"][str(seed)]["overall"]
        assert by_seed == pytest.approx(apart[seed].mean())
        own = scores["p2"]["seeds"][str(seed)]
        assert own["L2"] == pytest.approx(right["p2"][seed][level == "L2"].mean())
    assert "against" not in scores["p2"]
    assert scores["p1"]["overall"]["accuracy"] == pytest.approx(np.mean(list(right["p1"].values())))


def test_only_seeds_that_both_have_are_compared(small, right):
    some = {"p2": {0: right["p2"][0]}, "p1": right["p1"]}
    scores = ablation.compare(small.items, some, "p2", samples=100)["p1"]
    assert list(scores["seeds"]) == ["0", "1", "2"] and list(scores["against"]["seeds"]) == ["0"]
    d = scores["against"]["overall"]
    assert d["difference"] == pytest.approx((right["p1"][0] * 1.0 - right["p2"][0]).mean())
    assert d["low_seeds"] is None and d["low"] is not None
    assert "against" not in ablation.compare(small.items, {"p1": right["p1"]}, "p2", 100)["p1"]


def test_different_suites_are_refused(small):
    ablation.check_same_items(small.items, small.items, "mono")
    with pytest.raises(ConfigError, match="mono differs from the base's in item"):
        ablation.check_same_items(small.items[::-1], small.items, "mono")
    with pytest.raises(ConfigError, match="in their number"):
        ablation.check_same_items(small.items[:-1], small.items, "mono")


def about(kind, projector, **fields):
    whole = {"kind": kind, "drop_experts": [], "audio": "foa", "stages": ["sft"], "tokens": 16}
    whole |= {"scenes": {"sft": 10}, "parameters": {"projector": projector, "all": 10_000}}
    return whole | fields


def test_projectors_are_matched_within_5_percent_at_equal_tokens():
    variants = {"p2": about("p2", 1000), "p1": about("p1", 1040)}
    less = {"without_count": about("p2", 500, drop_experts=["count"])}
    matching = ablation.compare_projectors(variants | less)
    assert matching["met"] and matching["spread"] == pytest.approx(0.04)
    assert matching["variants"] == {"p2": 1000, "p1": 1040}
    sentence = ablation.describe_matching(matching)
    assert "matched: p2 1,000, p1 1,040 parameters, a spread of 4.0 % (at most 5 %)" in sentence
    for odd in (about("p0", 1060), about("p0", 1000, tokens=20), about("p0", 1, scenes={})):
        matching = ablation.compare_projectors(variants | {"p0": odd})
        assert not matching["met"] and "NOT matched" in ablation.describe_matching(matching)
    assert ablation.compare_projectors(less) == {} and ablation.describe_matching({}) == ""


def test_the_report_shows_an_ablation(small, right, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "_svg", lambda draw, size, title: f"[{title}]")
    assert "<h2>Ablations</h2>" not in report.write(tmp_path).read_text()
    scores = ablation.compare(small.items, right, "p2", samples=100)
    attack = "<script>x</script>"
    variants = {"p2": scores["p2"] | about("p2", 1000), attack: scores["p1"] | about("p1", 1040)}
    result = {
        "base": "p2", "seeds": [0, 1, 2], "suite": {"items": len(small.items), "split": "dev"},
        "variants": variants, "matched": ablation.compare_projectors(variants),
        "failed": {"grpo": attack},
    }  # fmt: skip
    path = tmp_path / "elsewhere.json"
    path.write_text(json.dumps(result))
    page = report.write(tmp_path, ablation=path).read_text()
    d = scores["p1"]["against"]["overall"]
    for text in (
        "<h2>Ablations</h2>",
        f"{100 * d['difference']:+.1f}",
        f"{100 * d['low']:+.1f} to {100 * d['high']:+.1f}",
        f"{100 * d['low_seeds']:+.1f} to {100 * d['high_seeds']:+.1f}",
        "1,040",
        "The projectors are matched",
        "✗ failed",
        "difference in accuracy from p2",
        f"{len(small.items)} items of the development suite",
        f"{100 * scores['p1']['against']['L3']['difference']:+.1f}",
    ):
        assert text in page, text
    assert attack not in page
    # A variant that lacks seeds says which it has; without answers the reasons are left.
    some = ablation.compare(small.items, {**right, "p1": {2: right["p1"][2]}}, "p2", samples=100)
    variants = {"p2": some["p2"] | about("p2", 1000), "p1": some["p1"] | about("p1", 1000)}
    levels = {"L1": 20, "L2": 12, "L3": 12}
    fewer = result | {
        "suite": result["suite"] | {"levels": levels},
        "variants": variants,
        "matched": ablation.compare_projectors(variants),
    }
    path.write_text(json.dumps(fewer))
    page = report.write(tmp_path, ablation=path).read_text()
    assert "<td>p1 (seed 2)</td>" in page and "<td>p2</td>" in page
    console = Console(width=200, record=True, file=io.StringIO())
    ablation.print_table(fewer, console)
    assert console.export_text().count("seed 2") == 1
    path.write_text(
        json.dumps({"base": "p2", "seeds": [0], "seconds": {}, "failed": {"p2": "lost"}})
    )
    assert "p2: lost" in report.write(tmp_path, ablation=path).read_text()
    # A suite without a split is the benchmark.
    path.write_text(json.dumps(result | {"suite": {"items": len(small.items)}}))
    assert "items of the benchmark" in report.write(tmp_path, ablation=path).read_text()
    path.rename(tmp_path / "ablation.json")
    assert "<h2>Ablations</h2>" in report.write(tmp_path).read_text()


def test_difference_plot_is_labelled():
    rows = {"p1": {"difference": -0.02, "low": -0.05, "high": 0.01, "low_seeds": None}}
    svg = figures.difference_plot(rows, "difference from p2")
    assert 'aria-label="difference from p2"' in svg and "p1" in svg
