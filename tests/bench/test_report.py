import json
import re
import shutil

import pytest

from jaxasa import config
from jaxasa.bench import report, run
from jaxasa.config import ConfigError

BENCH = config.Bench(batch=44, bootstrap=200)
NAMES = ("sft", "grpo", "question_only", "mono", "question_only_sft", "mono_sft")


def wrong(item, hearing):
    number = int(item.id[-3:])
    return (hearing == "none" and number % 4 > 0) or (hearing == "mono" and item.direction)


@pytest.fixture
def workdir(small, oracle, tmp_path):
    folder = tmp_path / "work"
    shutil.copytree(small.folder, folder / "benchmark")
    responder = oracle(small.items, wrong)
    run.run(dict.fromkeys(NAMES, responder), folder / "benchmark", folder, BENCH)
    results = json.loads((folder / "results.json").read_text())
    results |= {"seconds": {"sft": 83.2, "total": 700.0}, "peak_memory_gb": 2.34}
    (folder / "results.json").write_text(json.dumps(results))
    logs = folder / "logs" / "sft"
    logs.mkdir(parents=True)
    rows = [{"step": s, "loss": 3.0 / s, "steps_per_s": 4.0} for s in (10, 20, 30)]
    rows += [{"step": s, "eval/loss": 3.2 / s, "eval/accuracy": 0.3} for s in (15, 30)]
    (logs / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "config.gin").write_text("Run.name = '<script>gin</script>'\n")
    return folder


def test_the_page_is_whole_and_self_contained(workdir):
    page = report.write(workdir)
    assert page == workdir / "report" / "index.html"
    html = page.read_text()
    # Namespaces and licences apart, nothing in it points anywhere.
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", html)
    assert links and all(link.startswith("#") for link in links)
    assert html.count("<svg role=") == 3 and 'class="card"' in html
    assert html.count('<div class="card">') == 12
    for said in (
        "full model after GRPO",
        "100.0",
        "question only",
        "made-up sounds",
        "1 min 23 s",
        "2.3 GB",
        "sound07",
        "claimed: sound",
    ):
        assert said in html, said
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html
    assert "#010203" not in html and "currentColor" in html
    ids = re.findall(r'<clipPath id="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_text_is_escaped(workdir):
    attack = "<script>alert('x')</script>"
    path = workdir / "benchmark" / "metadata.jsonl"
    lines = [json.loads(x) for x in path.read_text().splitlines()]
    for line in lines:
        line["question"] = attack
        line["scene"]["sources"][0]["class"] = attack
        line["options"][0] = attack
    path.write_text("\n".join(map(json.dumps, lines)))
    results = json.loads((workdir / "results.json").read_text())
    results["systems"]["grpo"]["tasks"][attack] = results["systems"]["grpo"]["L1"]
    for name in NAMES:
        results["systems"][name]["tasks"] = {attack + " $x$": results["systems"][name]["L1"]}
    results["benchmark"]["sounds"] = attack
    (workdir / "results.json").write_text(json.dumps(results))
    answers = workdir / "predictions" / "grpo.jsonl"
    said = [json.loads(x) | {"answer": f"<think>{attack}</think>"} for x in answers.open()]
    answers.write_text("\n".join(map(json.dumps, said)))
    html = report.write(workdir).read_text()
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 30


def test_what_is_missing_is_said(workdir):
    whole = report.write(workdir).read_text()
    for gone, said in {
        "results.json": "There are no benchmark results in this folder yet",
        "benchmark": "No examples",
        "predictions": "No examples",
        "logs": "No training logs",
        "config.gin": "No config was saved",
    }.items():
        (workdir / gone).rename(workdir / "away")
        assert said not in whole and said in report.write(workdir).read_text()
        (workdir / "away").rename(workdir / gone)


def test_an_empty_folder_and_a_broken_one(tmp_path):
    html = report.write(tmp_path).read_text()
    assert "No training logs" in html and "No times were recorded" in html
    (tmp_path / "results.json").write_text("[")
    with pytest.raises(ConfigError, match="results.json: is not JSON"):
        report.write(tmp_path)


def test_only_some_systems(small, oracle, tmp_path):
    run.run({"sft": oracle(small.items)}, small.folder, tmp_path, BENCH)
    html = report.write(tmp_path, benchmark=small.folder).read_text()
    assert "No paired differences" in html and html.count('<div class="card">') == 12


def test_another_suite(workdir):
    (workdir / "dev").mkdir()
    shutil.move(workdir / "results.json", workdir / "dev" / "results.json")
    shutil.move(workdir / "predictions", workdir / "dev" / "predictions")
    page = report.write(
        workdir, results=workdir / "dev" / "results.json", page=workdir / "report" / "dev.html"
    )
    assert page.name == "dev.html" and page.read_text().count('<div class="card">') == 12


def lead(difference, low, against="mono"):
    overall = {"difference": difference, "low": low, "high": difference + 0.05, "items": 100}
    return {"against": against, "overall": overall}


def test_verdicts_in_plain_words():
    found = {
        "paired": {
            "grpo": {"question_only": lead(0.2, 0.1, "question_only"), "mono": lead(0.09, 0.04)},
            "sft": {"question_only": lead(0.2, -0.01, "question_only_sft")},
        },
        "systems": {"question_only": {"overall": {"accuracy": 0.31}}},
    }
    said = report.verdicts(found)
    assert [v.met for v in said] == [True, False, False, False]
    assert said[0].text == (
        "The full model after GRPO leads question only by 20.0 points (10.0 to 25.0): "
        "15 points or more, and the interval is above zero."
    )
    assert "at least 10 points were asked for" in said[1].text
    assert "question only, SFT checkpoint" in said[2].text and "reaches zero" in said[2].text
    assert "6.0 points above chance" in said[3].text and "the questions leak" in said[3].text
    found["systems"]["question_only"]["overall"]["accuracy"] = 0.21
    assert report.verdicts(found)[-1].met
    found["systems"]["question_only"]["overall"]["accuracy"] = 0.1
    assert not report.verdicts(found)[-1].met


def test_plan_view_has_left_on_the_left_and_front_above():
    source = {"class": "bird", "azimuth": 90.0, "elevation": 0.0, "distance": 2.0}
    scene = {"sources": [source, source | {"class": "dog", "azimuth": 0.0}]}
    marks = report._marks(scene, "bird left near , dog back far . so", ("bird", "dog"))
    assert [(m["claim"], m["x"], m["y"]) for m in marks] == [
        (False, -50.0, 0.0),
        (False, 0.0, -50.0),
        (True, -25.0, 0.0),
        (True, 0.0, 70.0),
    ]
    assert marks[0]["colour"] == marks[2]["colour"] != marks[1]["colour"]
