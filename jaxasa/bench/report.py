"""The report: one HTML file, nothing loaded from elsewhere, from what a work folder holds.

Every part reads its own files; where they are missing, the page says so in a sentence.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from jaxasa.acoustics import keys
from jaxasa.bench import figures, score, suite
from jaxasa.config import STAGES, ConfigError
from jaxasa.data import words
from jaxasa.workdir import write_text

NAMES = {
    "sft": "full model after SFT",
    "grpo": "full model after GRPO",
    "question_only": "question only",
    "mono": "mono (W only)",
    "question_only_sft": "question only, SFT checkpoint",
    "mono_sft": "mono, SFT checkpoint",
    "chance": "chance",
}
HEADLINE = ("sft", "grpo", "question_only", "mono", "chance")
TARGETS = {"question_only": 15.0, "mono": 10.0}  # points by which the full model must lead
NEAR_CHANCE = 5.0  # points within which question only must stay
# Rates of the loop, not of learning: they have no place among the curves.
_NOT_CURVES = ("step", "steps_per_s", "data_wait", "seconds", "time", "learning_rate")
_PANELS = 6
_THINK = re.compile(r"<think>(.*?)(?:</think>|<answer>|$)", re.DOTALL)
_PLAN = 100.0  # radius of the plan view, in its own units
_REACH = 4.0  # metres at its rim


def write(
    workdir: str | Path,
    *,
    benchmark: str | Path | None = None,
    results: str | Path | None = None,
    page: str | Path | None = None,
) -> Path:
    """Writes the report of a work folder and returns its path.

    benchmark: the suite (WORKDIR/benchmark). results: results.json, with predictions/ beside it
    (WORKDIR/results.json). page: the file to write (WORKDIR/report/index.html). Name others
    for a development suite.
    """
    workdir = Path(workdir)
    results = Path(results or workdir / "results.json")
    page = Path(page or workdir / "report" / "index.html")
    found = _read_results(results)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxasa.bench", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"points": _points, "interval": _interval, "seconds": _duration}
    html = environment.get_template("report.html.j2").render(
        workdir=workdir.resolve().name,
        benchmark=found.get("benchmark"),
        rows=_table(found),
        bars=_headline_figure(found),
        verdicts=verdicts(found),
        tasks=_task_figure(found),
        directions=_directions(found),
        parsing=_parsing(found),
        stages=_curves(workdir),
        examples=_examples(Path(benchmark or workdir / "benchmark"), results.parent, found),
        seconds=found.get("seconds"),
        peak=found.get("peak_memory_gb"),
        config=_config(workdir),
        reach=_REACH,
        near=words.NEAR / _REACH * _PLAN,
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, html)
    return page


def _read_results(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ConfigError(f"{path}: is not JSON, expected results of `jaxasa bench`") from None


def _points(share: float | None, digits: int = 1) -> str:
    """A share as points out of 100."""
    return "–" if share is None else f"{100 * share:.{digits}f}"


def _interval(a: Mapping) -> str:
    return "" if a["low"] in (None, a["high"]) else f"{_points(a['low'])} to {_points(a['high'])}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _systems(found: Mapping) -> dict[str, dict]:
    systems = found.get("systems", {})
    order = [*NAMES, *sorted(set(systems) - set(NAMES))]
    return {name: systems[name] for name in order if name in systems}


def _groups(found: Mapping) -> list[str]:
    return ["overall", *found.get("benchmark", {}).get("levels", {})]


def _table(found: Mapping) -> list[dict]:
    """Rows of the headline table: a system with its A for each group."""
    groups = _groups(found)
    return [
        {"name": NAMES.get(name, name), "cells": [(g, a[g]) for g in groups if g in a]}
        for name, a in _systems(found).items()
    ]


def _headline_figure(found: Mapping):
    systems = {n: a for n, a in _systems(found).items() if n in HEADLINE}
    if not systems:
        return None
    rows = {n: {g: a[g] for g in _groups(found)} for n, a in systems.items()}
    return figures.bars(rows, NAMES, "accuracy by level with 95 % intervals")


@dataclass(frozen=True)
class Verdict:
    """A target in plain words, and whether it is met."""

    met: bool
    text: str


def verdicts(found: Mapping) -> list[Verdict]:
    """What the paired differences and the question-only score say against the targets."""
    said = []
    for system, by_control in found.get("paired", {}).items():
        for control, target in TARGETS.items():
            if control not in by_control:
                continue
            d = by_control[control]["overall"]
            lead, low, high = (100 * d[k] for k in ("difference", "low", "high"))
            met = lead >= target and low > 0
            reason = (
                f"at least {target:g} points were asked for"
                if lead < target
                else f"{target:g} points or more, and the interval is above zero"
                if met
                else "the lead is large enough, but the interval reaches zero"
            )
            against = NAMES.get(by_control[control]["against"], control)
            said.append(
                Verdict(
                    met,
                    f"The {NAMES[system]} leads {against} by {lead:.1f} points "
                    f"({low:.1f} to {high:.1f}): {reason}.",
                )
            )
    alone = found.get("systems", {}).get("question_only")
    if alone:
        gap = 100 * (alone["overall"]["accuracy"] - score.CHANCE)
        met = abs(gap) <= NEAR_CHANCE
        reason = "the questions do not give themselves away" if met else "the questions leak"
        if gap < -NEAR_CHANCE:
            reason = "too far below chance for guessing"
        where = "above" if gap >= 0 else "below"
        said.append(
            Verdict(
                met,
                f"Question only is {abs(gap):.1f} points {where} chance "
                f"(at most {NEAR_CHANCE:g} allowed): {reason}.",
            )
        )
    return said


def _task_figure(found: Mapping):
    systems = _systems(found)
    shown = [n for n in ("grpo", "sft", "mono", "question_only") if n in systems]
    if not shown:
        return None
    rows: dict[str, dict] = {n: systems[n]["tasks"] for n in shown}
    return figures.dots(rows, NAMES, "accuracy by task with 95 % intervals")


def _directions(found: Mapping) -> list[dict]:
    return [
        {"name": NAMES.get(name, name), "yes": a["direction"]["yes"], "no": a["direction"]["no"]}
        for name, a in _systems(found).items()
        if "direction" in a
    ]


def _parsing(found: Mapping) -> list[dict]:
    return [
        {"name": NAMES.get(name, name), "shares": a["parsing"]}
        for name, a in _systems(found).items()
        if "parsing" in a
    ]


def _curves(workdir: Path) -> list[dict]:
    """A figure for each stage that has logs, in the order of the stages."""
    stages = []
    for stage in STAGES:
        path = workdir / "logs" / stage / "metrics.jsonl"
        panels = _panels(path) if path.is_file() else {}
        if panels:
            stages.append({"name": stage, "figure": figures.curves(panels, f"stage {stage}")})
    return stages


def _panels(path: Path) -> dict[str, dict[str, list[tuple]]]:
    """Panel -> line -> [(step, value)]; training and evaluation of one quantity share a panel."""
    series: dict[str, dict[str, list[tuple]]] = {}
    for _, record in suite.read_lines(path):
        for name, value in record.items():
            ok = isinstance(value, (int, float)) and math.isfinite(value)
            kind, _, base = name.rpartition("/")
            if not ok or base in _NOT_CURVES or "step" not in record:
                continue
            line = "evaluation" if kind else "training"
            series.setdefault(base, {}).setdefault(line, []).append((record["step"], value))
    # A line needs two points; the loss comes first, then what is also evaluated.
    kept = {
        base: {k: v for k, v in lines.items() if len(v) > 1 or "training" not in lines}
        for base, lines in series.items()
    }
    names = [base for base, lines in kept.items() if lines]
    names.sort(key=lambda base: (base != "loss", "evaluation" not in kept[base]))
    return {base: kept[base] for base in names[:_PANELS]}


def _examples(folder: Path, results: Path, found: Mapping) -> list[dict]:
    """One item of each task, drawn by chance, with the last trained stage's reasoning."""
    name = next((n for n in ("grpo", "sft") if n in found.get("systems", {})), None)
    path = results / "predictions" / f"{name}.jsonl"
    if name is None or not (folder / "metadata.jsonl").is_file() or not path.is_file():
        return []
    items = suite.load(folder)
    predictions = score.read(path, items)
    classes = found["benchmark"]["classes"]
    rng = keys.rng(0, "report")
    tasks = dict.fromkeys(i.task for i in items)
    chosen = [[i for i in items if i.task == task] for task in tasks]
    return [
        _example(group[rng.integers(len(group))], predictions, NAMES[name], classes)
        for group in chosen
    ]


def _example(item: suite.Item, predictions: Mapping, system: str, classes: Sequence[str]) -> dict:
    text = predictions[item.id]
    letter, kind = score.parse(text, item.options)
    thought = _THINK.search(text)
    return {
        "item": item,
        "system": system,
        "text": text,
        "reasoning": thought[1].strip() if thought else "",
        "letter": letter,
        "kind": kind,
        "right": letter == item.answer,
        "options": list(zip(score.LETTERS, item.options, strict=True)),
        "marks": _marks(item.scene, thought[1] if thought else "", classes),
    }


def _marks(scene: dict, reasoning: str, classes: Sequence[str]) -> list[dict]:
    """Dots of the plan view: each source (filled) and each claim (hollow), x right, y down."""
    marks, colours = [], {}
    for n, s in enumerate(scene["sources"]):
        colours[s["class"]] = figures.colour("", n)
        flat = s["distance"] * math.cos(math.radians(s["elevation"]))
        at = _place(s["azimuth"], min(flat / _REACH, 1.0))
        said = f"{s['class']} {s['azimuth']:.0f}° {s['distance']:.1f} m"
        marks.append({"label": said, "claim": False, "colour": colours[s["class"]]} | at)
    for claim in words.claims(reasoning, classes):
        if claim["sector"] is None:
            continue
        azimuth = words.SECTORS.index(claim["sector"]) * words.SECTOR_WIDTH
        at = _place(azimuth, 0.25 if claim["distance"] == words.DISTANCES[0] else 0.7)
        colour = colours.get(claim["class"], figures.COLOURS["chance"])
        said = " ".join(v for v in (claim["class"], claim["sector"], claim["distance"]) if v)
        marks.append({"label": said, "claim": True, "colour": colour} | at)
    return marks


def _place(azimuth: float, radius: float) -> dict:
    angle = math.radians(azimuth)
    x, y = -math.sin(angle) * radius * _PLAN, -math.cos(angle) * radius * _PLAN
    return {"x": round(x, 1), "y": round(y, 1)}


def _config(workdir: Path) -> str | None:
    """The resolved gin: the work folder's, else the last trained stage's."""
    paths = [workdir / "config.gin"]
    paths += [workdir / "checkpoints" / stage / "config.gin" for stage in reversed(STAGES)]
    path = next((p for p in paths if p.is_file()), None)
    return path.read_text(encoding="utf-8") if path else None
