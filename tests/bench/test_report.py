# SPDX-License-Identifier: Apache-2.0
import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jaxasa import config
from jaxasa.bench import controls, figures, report, run, scene_viewer, slots

BENCH = config.Bench(batch_size=44, bootstrap_samples=200)


@pytest.fixture
def plain(monkeypatch):
    """Figures and sounds without drawing and decoding, which are most of the time."""
    monkeypatch.setattr(figures, "_svg", lambda draw, size, title: f"[{title}]")
    monkeypatch.setattr(scene_viewer, "_ears", lambda audio, head: audio[:, :2] / 32768)
    monkeypatch.setattr(figures, "spectrogram_png", lambda level: b"")


@pytest.fixture(scope="module")
def page(written):
    return written.read_text()


def test_page_is_complete_and_self_contained(page, small):
    # Namespaces and licences apart, nothing in it points anywhere.
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page)
    assert links and all(link.startswith(("#", "data:")) for link in links)
    # Levels, systems, tasks, the sphere, what is hard, and two stages without a line of grpo.
    assert page.count('<svg role="img"') == 6
    for text in (
        "model after GRPO",
        "question only",
        "mirrored left to right",
        "made-up sounds",
        "1 min 23 s",
        "2.3 GB",
        "sound07",
        "claimed: sound",
        "-1.2°",
        "Step 50: what is heard first ?",
        "so B 10",
        "✓ as expected",
        "Results by jaxasa",
    ):
        assert text in page, text
    assert "so B 20" not in page  # the first, a middle and the last step only
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page
    assert "#010203" not in page and "currentColor" in page
    ids = re.findall(r'<clipPath id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    # Each task is there, in scenes that are each there once.
    scenes = page.count('<article class="scene">')
    assert 12 <= scenes <= scene_viewer.SCENES and page.count('class="source"') >= scenes
    tasks = set(re.findall(r'data-task="([^"]+)"', page))
    assert tasks == {i.task for i in small.items}
    assert set(re.findall(r'data-outcome="([^"]+)"', page)) == {"correct", "wrong"}
    assert page.count("<audio ") == page.count("data:image/png") == scenes


def test_text_is_escaped(workdir, plain):
    attack = "<script>alert('x')</script>"
    path = workdir / "benchmark" / "metadata.jsonl"
    lines = [json.loads(x) for x in path.read_text().splitlines()]
    for line in lines:
        line["question"] = line["options"][0] = attack
        line["task"] += attack
        line["scene"]["sources"][0]["class"] = attack
    path.write_text("\n".join(map(json.dumps, lines)))
    for name, field in (("predictions/grpo", "answer"), ("logs/grpo/samples", "completion")):
        path = workdir / f"{name}.jsonl"
        rows = [json.loads(x) for x in path.read_text().splitlines()]
        fields = {field: f"<think>{attack}</think>"}
        if "logs" in name:
            fields |= {"question": attack, "target": attack, "rewards": {attack: 1.0}}
        rows = [row | fields for row in rows]
        path.write_text("\n".join(map(json.dumps, rows)))
    results = json.loads((workdir / "results.json").read_text())
    results["systems"][attack] = results["systems"]["grpo"]
    results["benchmark"]["sounds"] = attack
    (workdir / "results.json").write_text(json.dumps(results))
    description = {"file_name": f"audio/{attack}", "scene": {"seconds": 1.0, "sources": []}}
    with (workdir / "predictions" / slots.FILE).open("a") as file:
        file.write(json.dumps(description) + "\n")
    html = report.write(workdir).read_text()
    # One script, the page's own, and the only one that its policy lets run.
    (script,) = re.findall(r"<script[^>]*>(.*?)</script>", html, re.DOTALL)
    assert script == Path(report.__file__).with_name("report.js").read_text()
    assert html.count("&lt;script&gt;") > 30 and "alert('x')" not in html
    assert "script-src 'sha256-" in html and "default-src 'none'" in html


def test_figures_escape_text():
    a = {"accuracy": 0.5, "low": 0.4, "high": 0.6}
    svg = figures.accuracy_dots({"x": {"<script>$x$": a}}, {"x": "<b>"}, 'a "title" <i>')
    assert "<script" not in svg and "<b>" not in svg and "<i>" not in svg
    assert "&lt;script&gt;$x$" in svg


MISSING = {
    "results.json": "There are no benchmark results in this folder yet",
    "benchmark": "There are no scenes to show",
    "predictions": "There are no answers",
    "predictions/slots.scenes.jsonl": "descriptions of the scenes are not in this folder",
    "benchmark/audio": "The audio is not in the benchmark",
    "logs": "There are no training logs",
    "logs/grpo/samples.jsonl": "Stage grpo writes them",
    "config.gin": "There is no config.gin",
}


def test_the_page_says_what_is_missing(page, workdir, plain):
    assert not any(sentence in page for sentence in MISSING.values())
    for path, sentence in MISSING.items():
        (workdir / path).rename(workdir / "away")
        assert sentence in report.write(workdir).read_text(), path
        (workdir / "away").rename(workdir / path)
    results = json.loads((workdir / "results.json").read_text())
    del results["doa"]
    (workdir / "results.json").write_text(json.dumps(results))
    assert "There is no comparison with classical" in report.write(workdir).read_text()


def test_empty_folder_and_malformed_files(tmp_path):
    html = report.write(tmp_path).read_text()
    assert "There are no training logs" in html and "No times were recorded" in html
    assert "<script" not in html
    samples = tmp_path / "logs" / "grpo" / "samples.jsonl"
    samples.parent.mkdir(parents=True)
    samples.write_text('{"step": 1, "question": "?"}\n')
    with pytest.raises(config.ConfigError, match=r"samples.jsonl:1 is \['target', 'completion'"):
        report.write(tmp_path)
    (tmp_path / "results.json").write_text("[")
    with pytest.raises(config.ConfigError, match="results.json: is not JSON"):
        report.write(tmp_path)


def test_page_without_controls(small, oracle, tmp_path, plain):
    sft = {"sft": controls.System("sft")}
    run.evaluate(sft, {"sft": oracle(small.items)}, small.folder, tmp_path, BENCH)
    html = report.write(tmp_path, benchmark=small.folder).read_text()
    assert "model after SFT" in html and "No control was run on a trained model" in html


@pytest.mark.parametrize("fallback", [True, False])
def test_the_page_says_how_invalid_answers_were_treated(workdir, plain, fallback):
    results = json.loads((workdir / "results.json").read_text())
    results["benchmark"]["option_fallback"] = fallback
    (workdir / "results.json").write_text(json.dumps(results))
    html = report.write(workdir).read_text()
    assert ("replaced by the option" in html) == fallback
    assert ("not replaced, and counts as wrong" in html) == (not fallback)


def test_paths_of_another_suite(workdir, plain):
    (workdir / "dev").mkdir()
    for part in ("results.json", "predictions"):
        shutil.move(workdir / part, workdir / "dev" / part)
    page = report.write(
        workdir, results=workdir / "dev" / "results.json", page=workdir / "report" / "dev.html"
    )
    assert page.name == "dev.html" and "model after GRPO" in page.read_text()


def shares(accuracy):
    return {"accuracy": accuracy, "low": accuracy - 0.02, "high": accuracy + 0.02, "items": 100}


def checks_of(accuracy=0.29, lost=0.26, low=0.21, original=0.8, perturbed=0.78, stale=0.2):
    values = (original, perturbed, 0.7, stale)
    kinds = ("original", "perturbed", "answer_changed", "stale_answer")
    difference = {"difference": lost, "low": low, "high": lost + 0.05, "items": 100}
    return report.checks(
        {
            "paired_differences": {"grpo": {"mono": {"against": "mono", "overall": difference}}},
            "systems": {
                "sft": {"overall": shares(0.1)},
                "grpo": {"overall": shares(0.76)},
                "question_only": {"overall": shares(accuracy)},
                "mono": {"overall": shares(0.5)},
                "rotated": {"geometric": dict(zip(kinds, map(shares, values), strict=True))},
            },
        }
    )


def test_checks_of_the_controls():
    checks = checks_of()
    assert [c.control.name for c in checks] == ["question_only", "mono", "rotated"]
    assert all(c.passed for c in checks)
    chance, loss, rotation = (c.finding for c in checks)
    assert chance == (
        "Accuracy is 29.0 % (27.0 to 31.0), chance is 25 %: within 5 points of chance."
    )
    assert loss == "The model loses 26.0 points (21.0 to 31.0) overall."
    assert "from 80.0 to 78.0 %" in rotation and "original one in 20.0 %" in rotation
    for number, fields in (
        (0, {"accuracy": 0.31}),
        (0, {"accuracy": 0.1}),
        (1, {"lost": 0.01, "low": -0.01}),
        (2, {"perturbed": 0.76}),
        (2, {"stale": 0.7}),
    ):
        assert [c.passed for c in checks_of(**fields)] == [n != number for n in range(3)], fields
    assert "6.0 points above it. The questions give answers away" in checks_of(0.31)[0].finding
    assert "15.0 points below it, too far" in checks_of(0.1)[0].finding
    assert "A loss is not established" in checks_of(low=-0.01)[1].finding
    assert report.checks({}) == []


def test_curves_leave_out_throughput(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rates = {"examples_per_s": 9.0, "steps_per_s": 1.0, "mfu": 0.2, "data_wait": 0.1}
    rates |= {"share/rollout": 0.5, "level/L1": 0.3, "learning_rate": 1e-3}
    parts = {"rewards/answer/mean": 0.2, "reward": 0.4, "loss": 1.0}
    rows = [{"step": s, **rates, **parts} for s in (1, 2)] + [{"step": 2, "eval/loss": 1.5}]
    path.write_text("\n".join(map(json.dumps, rows)))
    panels = report._panels(path)
    assert {name: set(lines) for name, lines in panels.items()} == {
        "reward": {"answer", "total"},
        "loss": {"training"},
    }
    assert panels["reward"]["answer"] == [(1, 0.2), (2, 0.2)]


def test_scenes_are_selected_with_both_outcomes(small):
    is_correct = {i.id: n % 3 > 0 for n, i in enumerate(small.items)}
    selection = scene_viewer._select(small.items, is_correct, 40)
    shown = [i for items in selection.values() for i in items]
    for task in {i.task for i in small.items}:
        outcomes = {is_correct[i.id] for i in small.items if i.task == task}
        assert {is_correct[i.id] for i in shown if i.task == task} == outcomes
    assert len(scene_viewer._select(small.items, is_correct, 5)) == 5


def test_plan_view_has_front_up_and_left_on_the_left():
    source = {"class": "bird", "azimuth": 90.0, "elevation": 0.0, "distance": 2.0}
    source |= {"onset": 1.0, "offset": 3.0}
    scene = {"seconds": 4.0, "sources": [source, source | {"class": "dog", "azimuth": 0.0}]}
    description = {"sources": [source | {"elevation": 60.0, "offset": 9.0}]}
    card = scene_viewer._scene(scene, description, 4.0)
    assert [(m["kind"], m["x"], m["y"]) for m in card["marks"]] == [
        ("source", -50.0, 0.0),
        ("source", 0.0, -50.0),
        ("slot", -25.0, 0.0),
    ]
    assert [(m["begin"], m["width"]) for m in card["marks"]] == [(25, 50), (25, 50), (25, 75)]
    bird, dog, slot = (m["colour"] for m in card["marks"])
    assert bird == slot != dog and card["near"] == 40.0
    card["questions"] = [{"reasoning": "dog right near . so"}]
    scene_viewer._add_claims(card, ("bird", "dog"))
    (claim,) = card["questions"][0]["claims"]
    assert claim["colour"] == dog
    numbers = [float(v) for v in re.findall(r"-?[\d.]+", claim["arc"])]
    assert numbers[0] == numbers[-2] > 100 and numbers[1] == -numbers[-1]


def test_a_sound_on_the_left_is_louder_in_the_left_ear(small):
    item = small.items[0]
    rng = np.random.default_rng(0)
    left = (3000 * rng.normal(size=16_000))[:, None] * [1, 1, 0, 0]
    fake = type(item)(**vars(item) | {"file": small.folder / "audio" / "left.flac"})
    soundfile.write(fake.file, left.astype(np.int16), 16_000)
    try:
        (card,) = scene_viewer.scene_cards([fake], {}, {}, ())
    finally:
        fake.file.unlink()
    kind, _, data = card["sound"].partition(",")
    assert kind == "data:audio/flac;base64"
    ears, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
    assert ears.shape == (16_000, 2) and rate == 16_000
    assert np.abs(ears).max() == pytest.approx(scene_viewer.PEAK, abs=1e-3)
    level = 10 * np.log10((ears**2).sum(0))
    assert level[0] - level[1] > 6
    assert card["questions"][0]["letter"] is None and not card["questions"][0]["is_correct"]


def test_audio_is_left_out_beyond_the_limit(small, monkeypatch):
    monkeypatch.setattr(scene_viewer, "MAX_AUDIO_CHARS", 1)
    cards = scene_viewer.scene_cards(small.items, {}, {}, (), most=3)
    assert [card["sound"] is None for card in cards] == [False, True, True]
    assert all(card["picture"] for card in cards)
