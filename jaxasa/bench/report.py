# SPDX-License-Identifier: Apache-2.0
"""The report: one self-contained HTML file about a work folder.

Every section reads its own files; if they are missing, the page says so in a sentence.
"""

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from jaxasa.bench import ablation as ablations
from jaxasa.bench import card, figures, scene_viewer, score, slots, suite
from jaxasa.bench.controls import CONTROLS, Control
from jaxasa.config import ConfigError, check
from jaxasa.core import text_files
from jaxasa.core.files import atomic_write_text
from jaxasa.core.workdir import WorkFolder
from jaxasa.stages.registry import ANSWERING, STAGES
from jaxasa.train import checkpoint

BASELINES = {
    "slots": "slots (rules)",
    "cascade": "cascade (tagger, histogram)",
    "oracle": "oracle (metadata)",
    "chance": "chance",
}
# Titles of the systems of results.json, in the order of the page.
TITLES = {
    **{name: stage.system for name, stage in STAGES.items() if stage.system},
    **{name: control.title for name, control in CONTROLS.items()},
    "four_yaws": "correct at all four yaws",
    **{f"{n}_sft": f"{c.title}, after SFT" for n, c in CONTROLS.items() if c.is_per_stage},
    **BASELINES,
}
HEADLINE = ("sft", "grpo", "question_only", "mono", "chance")
# What the checks of the controls allow, in percentage points.
MAX_FROM_CHANCE = 5.0
MAX_GEOMETRIC_LOSS = 3.0
# Metrics of the training loop, which are not plotted: by name, and by the part before the slash.
_NOT_CURVES = ("step", "data_wait", "mfu", "tokens", "seconds", "time", "learning_rate")
_NOT_CURVE_GROUPS = ("share", "seconds", "level")
_MAX_PANELS = 9


def write(
    workdir: str | Path,
    *,
    benchmark: str | Path | None = None,
    results: str | Path | None = None,
    page: str | Path | None = None,
    ablation: str | Path | None = None,
) -> Path:
    """Writes the report of a work folder and returns its path.

    The paths default to those in `workdir`; others are for a development suite. benchmark: the
    suite. results: results.json, with predictions/ in the same folder. page: the file to write.
    ablation: ablation.json.
    """
    work = WorkFolder(workdir)
    results, page = Path(results or work.results), Path(page or work.report)
    scores = _read_results(results)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxasa.bench", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "signed": _signed,
        "interval": _interval,
        "duration": _duration,
    }
    script = Path(__file__).with_name("report.js").read_text(encoding="utf-8")
    # The page's content security policy allows this script and no other.
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    scene_source = scores.get("benchmark", {}).get("scene_source", "jaxasa")
    html = environment.get_template("report.html.j2").render(
        workdir=work.path.resolve().name,
        benchmark=scores.get("benchmark"),
        scene_source=card.SCENE_SOURCES[scene_source][0],
        script=Markup(script),
        script_hash=script_hash,
        groups=_groups(scores),
        rows=_table(scores),
        accuracy_bars=_headline_figure(scores),
        accuracy_dots=_system_figure(scores),
        checks=checks(scores),
        geometric=_geometric_table(scores),
        doa=scores.get("doa"),
        ablation=_ablation(Path(ablation or work.ablation_result)),
        tasks=_task_figure(scores),
        directions=_directions(scores),
        parsing=_parsing(scores),
        stages=_curves(work),
        rollouts=_rollouts(work),
        viewer=_viewer(Path(benchmark or work.benchmark), WorkFolder(results.parent)),
        seconds=scores.get("seconds"),
        peak=scores.get("peak_memory_gb"),
        made_by=scores.get("made_by"),
        config=_config(work),
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(page, html)
    return page


def _read_results(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ConfigError(f"{path}: is not JSON, expected results of `jaxasa bench`") from None


def _percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f}"


def _signed(share: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    return "–" if share is None else f"{100 * share:+.1f}"


def _interval(a: Mapping) -> str:
    return "" if a["low"] in (None, a["high"]) else f"{_percent(a['low'])} to {_percent(a['high'])}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _systems(scores: Mapping) -> dict[str, dict]:
    systems = scores.get("systems", {})
    order = [*TITLES, *sorted(set(systems) - set(TITLES))]
    return {name: systems[name] for name in order if name in systems}


def _groups(scores: Mapping) -> list[str]:
    return ["overall", *scores.get("benchmark", {}).get("levels", {})]


def _kind(name: str) -> str:
    if name in ANSWERING:
        return "trained models"
    return "baselines" if name in BASELINES else "controls"


def _table(scores: Mapping) -> list[dict]:
    """Rows of the headline table: a system with its A for each group, None if it has none."""
    groups = _groups(scores)
    return [
        {
            "name": TITLES.get(name, name),
            "kind": _kind(name),
            "cells": [a.get(g) for g in groups],
        }
        for name, a in _systems(scores).items()
    ]


def _headline_figure(scores: Mapping):
    systems = {n: a for n, a in _systems(scores).items() if n in HEADLINE}
    if not systems:
        return None
    rows = {n: {g: a[g] for g in _groups(scores)} for n, a in systems.items()}
    return figures.accuracy_bars(rows, TITLES, "accuracy by level with 95 % intervals")


@dataclass(frozen=True)
class Check:
    """Whether a control came out as it does for a sound benchmark and a model that uses space."""

    control: Control
    passed: bool
    finding: str


def checks(scores: Mapping) -> list[Check]:
    """The checks of the controls that were run, of the last trained model."""
    systems = scores.get("systems", {})
    model = next((name for name in ("grpo", "sft") if name in systems), None)
    differences = scores.get("paired_differences", {}).get(model, {})
    result = []
    for name, control in CONTROLS.items():
        if control.audio_condition == "none" and name in systems:
            result.append(_check_chance(control, systems[name]["overall"]))
        elif control.is_geometric and "geometric" in systems.get(name, {}):
            result.append(_check_geometric(control, systems[name]["geometric"]))
        elif name in differences:
            result.append(_check_loss(control, differences[name]["overall"]))
    return result


def _check_chance(control: Control, a: Mapping) -> Check:
    gap = 100 * (a["accuracy"] - score.CHANCE)
    passed = abs(gap) <= MAX_FROM_CHANCE
    finding = f"Accuracy is {_percent(a['accuracy'])} % ({_interval(a)}), chance is 25 %: "
    if passed:
        finding += f"within {MAX_FROM_CHANCE:g} points of chance."
    elif gap > 0:
        finding += f"{gap:.1f} points above it. The questions give answers away."
    else:
        finding += f"{-gap:.1f} points below it, too far for random answers."
    return Check(control, passed, finding)


def _check_loss(control: Control, d: Mapping) -> Check:
    """A control that removes information must cost accuracy: the interval lies above 0."""
    lost, low, high = (100 * d[k] for k in ("difference", "low", "high"))
    passed = low > 0
    finding = f"The model loses {lost:.1f} points ({low:.1f} to {high:.1f}) overall."
    if not passed:
        finding += " A loss is not established, since the interval includes 0."
    return Check(control, passed, finding)


def _check_geometric(control: Control, by_kind: Mapping) -> Check:
    """Accuracy must not fall, and new answers must be more frequent than the original ones."""
    original, perturbed, changed, stale = (
        by_kind[k]["accuracy"] for k in ("original", "perturbed", "answer_changed", "stale_answer")
    )
    if None in (original, changed):
        return Check(control, False, "There are no items about direction to compare.")
    passed = 100 * (original - perturbed) <= MAX_GEOMETRIC_LOSS and stale < changed
    return Check(
        control,
        passed,
        f"On items about direction, accuracy goes from {_percent(original)} to "
        f"{_percent(perturbed)} % (a loss of up to {MAX_GEOMETRIC_LOSS:g} points is allowed). "
        f"On those whose answer changes, the model gives the new one in {_percent(changed)} % and "
        f"the original one in {_percent(stale)} %.",
    )


def _system_figure(scores: Mapping):
    systems = {n: a for n, a in _systems(scores).items() if n != "chance"}
    titles = {n: TITLES.get(n, n) for n in systems}
    if not systems:
        return None
    # A geometric control can leave a level without items.
    rows = {
        g: {titles[n]: a[g] for n, a in systems.items() if a.get(g, {}).get("items")}
        for g in _groups(scores)
    }
    title = "accuracy by system and level with 95 % intervals"
    return figures.accuracy_dots(rows, dict(zip(rows, rows, strict=True)), title)


def _geometric_table(scores: Mapping) -> list[dict]:
    systems = _systems(scores)
    return [{"name": TITLES[n], **a["geometric"]} for n, a in systems.items() if "geometric" in a]


def _ablation(path: Path) -> dict | None:
    """The content of ablation.json with a figure and sentences for the page; None if not there."""
    if not path.is_file():
        return None
    result = text_files.read_json(path, "a file written by `jaxasa bench ablate`")
    variants = result.get("variants", {})
    differences = {name: v["against"]["overall"] for name, v in variants.items() if "against" in v}
    title = f"difference in accuracy from {result['base']}, with 95 % intervals"
    return result | {
        "variants": variants,
        "figure": figures.difference_plot(differences, title) if differences else None,
        "matching": ablations.describe_matching(result.get("matched", {})),
        "suite": ablations.describe_suite(result["suite"]) if variants else "",
    }


def _task_figure(scores: Mapping):
    systems = _systems(scores)
    names = [n for n in ("grpo", "sft", "slots", "mono", "question_only") if n in systems]
    if not names:
        return None
    rows: dict[str, dict] = {n: systems[n]["tasks"] for n in names}
    return figures.accuracy_dots(rows, TITLES, "accuracy by task with 95 % intervals")


def _directions(scores: Mapping) -> list[dict]:
    return [
        {"name": TITLES.get(name, name), "yes": a["direction"]["yes"], "no": a["direction"]["no"]}
        for name, a in _systems(scores).items()
        if "direction" in a
    ]


def _parsing(scores: Mapping) -> list[dict]:
    return [
        {"name": TITLES.get(name, name), "shares": a["parsing"]}
        for name, a in _systems(scores).items()
        if "parsing" in a
    ]


def _curves(work: WorkFolder) -> list[dict]:
    """A figure for each stage that has logs, in the order of the stages."""
    stages = []
    for stage in STAGES:
        path = work.logs(stage) / "metrics.jsonl"
        panels = _panels(path) if path.is_file() else {}
        if panels:
            figure = figures.training_curves(panels, f"stage {stage}")
            stages.append({"name": stage, "figure": figure})
    return stages


def _panels(path: Path) -> dict[str, dict[str, list[tuple]]]:
    """Panel -> line -> [(step, value)]: a metric in training and evaluation, or all rewards."""
    series: dict[str, dict[str, list[tuple]]] = {}
    for _, record in suite.read_lines(path):
        for name, value in record.items():
            is_number = isinstance(value, (int, float)) and math.isfinite(value)
            group, metric = name.split("/", 1) if "/" in name else ("", name)
            if not is_number or group in _NOT_CURVE_GROUPS or "step" not in record:
                continue
            if metric in _NOT_CURVES or metric.endswith("_per_s"):
                continue
            line = "evaluation" if group == "eval" else "training"
            if metric == "reward" or group == "rewards":
                metric, line = "reward", metric.split("/")[0] if group else "total"
            series.setdefault(metric, {}).setdefault(line, []).append((record["step"], value))
    # A training line needs two points. The loss comes first, then metrics with an evaluation.
    panels = {
        metric: {k: v for k, v in lines.items() if len(v) > 1 or "training" not in lines}
        for metric, lines in series.items()
    }
    names = [metric for metric, lines in panels.items() if lines]
    names.sort(key=lambda name: (name not in ("loss", "reward"), "evaluation" not in panels[name]))
    return {name: panels[name] for name in names[:_MAX_PANELS]}


def _rollouts(work: WorkFolder) -> list[dict]:
    """Groups of completions from the first, a middle and the last step that recorded any."""
    path = work.logs("grpo") / "samples.jsonl"
    steps: dict[int, list[dict]] = {}
    for n, row in suite.read_lines(path) if path.is_file() else ():
        names = ("step", "question", "target", "completion", "rewards", "advantage")
        missing = [name for name in names if name not in row]
        check(not missing, f"{path}:{n}", missing, "a line with these fields too")
        steps.setdefault(row["step"], []).append(row)
    every = sorted(steps)
    shown = dict.fromkeys(every[i] for i in (0, len(every) // 2, -1)) if every else {}
    return [{"step": step, "rows": steps[step], **steps[step][0]} for step in shown]


def _viewer(folder: Path, work: WorkFolder) -> dict:
    """Scene cards and slot errors; no cards without the suite. "system": title of whose answers."""
    if not (folder / "metadata.jsonl").is_file():
        return {"cards": [], "system": None, "slots": None}
    items = suite.load(folder)
    paths = {n: work.predictions / f"{n}.jsonl" for n in ("grpo", "sft")}
    name = next((n for n, path in paths.items() if path.is_file()), None)
    predictions = score.read_predictions(paths[name], items) if name else {}
    descriptions = slots.read_descriptions(work.predictions / slots.FILE)
    classes = suite.manifest(folder)["classes"]
    columns = slots.match_sources(items, descriptions)
    summary = slots.error_summary(columns)
    cards = scene_viewer.scene_cards(items, predictions, descriptions, classes)
    shown = [question["item"] for card in cards for question in card["questions"]]
    return {
        "cards": cards,
        "system": TITLES[name] if name else None,
        "slots": summary,
        "num_sources": len(columns["error"]),
        "scatter": figures.direction_scatter(columns, "directions of the slots") if summary else "",
        "difficulty": figures.error_by_difficulty(columns, "angular error") if summary else "",
        "levels": sorted({item.level for item in shown}),
        "tasks": sorted({item.task for item in shown}),
        "num_questions": len(shown),
    }


def _config(work: WorkFolder) -> str | None:
    """The resolved gin: the work folder's, else the last trained stage's."""
    paths = [work.config]
    paths += [work.checkpoint(stage) / checkpoint.CONFIG for stage in reversed(STAGES)]
    path = next((p for p in paths if p.is_file()), None)
    return path.read_text(encoding="utf-8") if path else None
