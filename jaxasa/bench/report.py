"""The report: one HTML file, nothing loaded from elsewhere, from what a work folder holds.

Every part reads its own files; where they are missing, the page says so in a sentence.
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

from jaxasa.bench import ablation as ablating
from jaxasa.bench import card, controls, figures, scene_viewer, score, slots, suite
from jaxasa.config import STAGES, ConfigError, check
from jaxasa.core.files import write_text

NAMES = {
    "sft": "full model after SFT",
    "grpo": "full model after GRPO",
    "question_only": "question only",
    "mono": "mono (W only)",
    "question_only_sft": "question only, SFT checkpoint",
    "mono_sft": "mono, SFT checkpoint",
    "spatial_nulled": "spatial path nulled",
    "channels_shuffled": "Y, Z, X exchanged",
    "other_audio": "another scene's sound",
    "rotated": "turned by a random yaw",
    **{f"rotated_{yaw}": f"turned by {yaw}°" for yaw in controls.YAWS},
    "four_yaws": "right at all four yaws",
    "mirrored": "mirrored left to right",
    "slots": "slots read by rules",
    "cascade": "cascade: tagger and intensity histogram",
    "oracle": "oracle: metadata read by rules",
    "chance": "chance",
}
BASELINES = ("slots", "cascade", "oracle", "chance")
HEADLINE = ("sft", "grpo", "question_only", "mono", "chance")
OVERALL = 75.0  # % that the full model must reach
LEAD, LEAST = 25.0, 20.0  # points by which it must lead mono, and above which the interval must be
NEAR_CHANCE = 5.0  # points within which question only must stay
HELD = 3.0  # points within which accuracy must hold when scenes are turned
# Rates of the loop, not of learning: they have no place among the curves.
_NOT_CURVES = ("step", "data_wait", "mfu", "tokens", "seconds", "time", "learning_rate")
_GROUPED = ("share", "seconds", "level")  # likewise, by what stands before the slash
_PANELS = 9


def write(
    workdir: str | Path,
    *,
    benchmark: str | Path | None = None,
    results: str | Path | None = None,
    page: str | Path | None = None,
    ablation: str | Path | None = None,
) -> Path:
    """Writes the report of a work folder and returns its path.

    benchmark: the suite (WORKDIR/benchmark). results: results.json, with predictions/ beside it
    (WORKDIR/results.json). page: the file to write (WORKDIR/report/index.html). Name others
    for a development suite. ablation: what `bench ablate` found (WORKDIR/ablation.json).
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
    environment.filters |= {
        "points": _points,
        "signed": _signed,
        "interval": _interval,
        "seconds": _duration,
    }
    script = Path(__file__).with_name("report.js").read_text(encoding="utf-8")
    # Of all scripts the page's own runs alone, whatever a text in it may try.
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = environment.get_template("report.html.j2").render(
        workdir=workdir.resolve().name,
        benchmark=found.get("benchmark"),
        made_by=card.MADE_BY[found.get("benchmark", {}).get("made_by", "jaxasa")][0],
        script=Markup(script),
        allowed=allowed,
        groups=_groups(found),
        rows=_table(found),
        bars=_headline_figure(found),
        verdicts=verdicts(found),
        controls=_control_figure(found),
        beside=_beside(found),
        doa=found.get("doa"),
        ablation=_ablation(Path(ablation or workdir / ablating.FILE)),
        tasks=_task_figure(found),
        directions=_directions(found),
        parsing=_parsing(found),
        stages=_curves(workdir),
        rollouts=_rollouts(workdir),
        explored=_explored(Path(benchmark or workdir / "benchmark"), results.parent),
        seconds=found.get("seconds"),
        peak=found.get("peak_memory_gb"),
        config=_config(workdir),
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


def _signed(share: float | None) -> str:
    """A difference of shares as points out of 100, with its sign."""
    return "–" if share is None else f"{100 * share:+.1f}"


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


def _kind(name: str) -> str:
    if name in ("sft", "grpo"):
        return "trained"
    return "baselines" if name in BASELINES else "controls"


def _table(found: Mapping) -> list[dict]:
    """Rows of the headline table: a system with its A for each group, None where it has none."""
    groups = _groups(found)
    return [
        {
            "name": NAMES.get(name, name),
            "kind": _kind(name),
            "cells": [a.get(g) for g in groups],
        }
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
    """What the scores of the last trained model and its controls say against the targets."""
    systems = found.get("systems", {})
    last = next((n for n in ("grpo", "sft") if n in systems), None)
    said = []
    if last:
        a = systems[last]["overall"]
        text = f"The {NAMES[last]} answers {_points(a['accuracy'])} % right ({_interval(a)})"
        met = 100 * a["accuracy"] >= OVERALL
        said.append(Verdict(met, f"{text}: {OVERALL:g} % or more were asked for."))
    by_control = found.get("paired", {}).get(last, {})
    if "mono" in by_control:
        d = by_control["mono"]["overall"]
        lead, low, high = (100 * d[k] for k in ("difference", "low", "high"))
        met = lead >= LEAD and low > LEAST
        text = f"It leads mono by {lead:.1f} points ({low:.1f} to {high:.1f})"
        asked = f"{LEAD:g} or more, with the interval above {LEAST:g}, were asked for"
        said.append(Verdict(met, f"{text}: {asked}."))
    if "question_only" in systems:
        gap = 100 * (systems["question_only"]["overall"]["accuracy"] - score.CHANCE)
        met = abs(gap) <= NEAR_CHANCE
        reason = "the questions do not give themselves away" if met else "the questions leak"
        if gap < -NEAR_CHANCE:
            reason = "too far below chance for guessing"
        where = "above" if gap >= 0 else "below"
        text = f"Question only is {abs(gap):.1f} points {where} chance"
        said.append(Verdict(met, f"{text} (at most {NEAR_CHANCE:g} allowed): {reason}."))
    turned = systems.get("rotated", {}).get("beside")
    if turned and turned["now"]["items"] and turned["before"]["items"]:
        still, now, before = (100 * turned[k]["accuracy"] for k in ("still", "now", "before"))
        text = f"Turned by a random yaw, accuracy on items of direction goes from {still:.1f} to "
        text += f"{now:.1f} % (within {HELD:g} points allowed); by the answers before the turn it "
        met = abs(now - still) <= HELD and before < now
        said.append(Verdict(met, f"{text}is {before:.1f} %."))
    rows = found.get("doa", [])
    if rows:
        better = sum(row["difference"] < 0 for row in rows)
        sure = sum(row["high"] < 0 for row in rows)
        text = f"The slots' median error is below the best classical estimator's in {better} of "
        text += f"{len(rows)} cells of RT60 and number of sources, with its interval in {sure}."
        said.append(Verdict(better == len(rows), text))
    return said


def _control_figure(found: Mapping):
    systems = {n: a for n, a in _systems(found).items() if n != "chance"}
    names = {n: NAMES.get(n, n) for n in systems}
    if not systems:
        return None
    # Turning can leave a level without items.
    rows = {
        g: {names[n]: a[g] for n, a in systems.items() if a.get(g, {}).get("items")}
        for g in _groups(found)
    }
    title = "accuracy by system and level with 95 % intervals"
    return figures.dots(rows, dict(zip(rows, rows, strict=True)), title)


def _beside(found: Mapping) -> list[dict]:
    """Rows of the table of turned and mirrored scenes."""
    systems = _systems(found)
    return [{"name": NAMES[n], **a["beside"]} for n, a in systems.items() if "beside" in a]


def _ablation(path: Path) -> dict | None:
    """An ablation.json with a figure and words (`matched`, `asked`) for the page; None for none."""
    if not path.is_file():
        return None
    found = suite.read_json(path, "what `jaxasa bench ablate` writes")
    variants = found.get("variants", {})
    apart = {name: v["against"]["overall"] for name, v in variants.items() if "against" in v}
    title = f"accuracy less that of {found['base']}, with 95 % intervals"
    return found | {
        "variants": variants,
        "figure": figures.differences(apart, title) if apart else None,
        "matched": ablating.said_of(found.get("matched", {})),
        "asked": ablating.suite_said(found["suite"]) if variants else "",
    }


def _task_figure(found: Mapping):
    systems = _systems(found)
    shown = [n for n in ("grpo", "sft", "slots", "mono", "question_only") if n in systems]
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
    """Panel -> line -> [(step, value)]: one quantity in training and evaluation, or all rewards."""
    series: dict[str, dict[str, list[tuple]]] = {}
    for _, record in suite.read_lines(path):
        for name, value in record.items():
            ok = isinstance(value, (int, float)) and math.isfinite(value)
            kind, _, base = name.rpartition("/")
            if not ok or kind in _GROUPED or "step" not in record:
                continue
            if base in _NOT_CURVES or base.endswith("_per_s"):
                continue
            line = "evaluation" if kind else "training"
            if kind == "reward":
                base, line = kind, base
            series.setdefault(base, {}).setdefault(line, []).append((record["step"], value))
    # A line needs two points; the loss comes first, then what is also evaluated.
    kept = {
        base: {k: v for k, v in lines.items() if len(v) > 1 or "training" not in lines}
        for base, lines in series.items()
    }
    names = [base for base, lines in kept.items() if lines]
    names.sort(key=lambda base: (base not in ("loss", "reward"), "evaluation" not in kept[base]))
    return {base: kept[base] for base in names[:_PANELS]}


def _rollouts(workdir: Path) -> list[dict]:
    """Groups of completions from the first, a middle and the last step that recorded any."""
    path = workdir / "logs" / "grpo" / "samples.jsonl"
    steps: dict[int, list[dict]] = {}
    for n, row in suite.read_lines(path) if path.is_file() else ():
        names = ("step", "question", "right", "said", "rewards", "advantage")
        missing = [name for name in names if name not in row]
        check(not missing, f"{path}:{n}", missing, "a line with these fields too")
        steps.setdefault(row["step"], []).append(row)
    every = sorted(steps)
    shown = dict.fromkeys(every[i] for i in (0, len(every) // 2, -1)) if every else {}
    return [{"step": step, "rows": steps[step], **steps[step][0]} for step in shown]


def _explored(folder: Path, results: Path) -> dict:
    """{"cards": [...], "system": whose answers, or None}; no cards without the suite."""
    if not (folder / "metadata.jsonl").is_file():
        return {"cards": [], "system": None, "heard": None}
    items = suite.load(folder)
    paths = {n: results / "predictions" / f"{n}.jsonl" for n in ("grpo", "sft")}
    name = next((n for n, path in paths.items() if path.is_file()), None)
    predictions = score.read(paths[name], items) if name else {}
    heard = slots.read(results / slots.FILE)
    classes = suite.manifest(folder)["classes"]
    columns = slots.beside(items, heard)
    summary = slots.summary(columns)
    cards = scene_viewer.scenes(items, predictions, heard, classes)
    asked = [question for card in cards for question in card["questions"]]
    return {
        "cards": cards,
        "system": NAMES[name] if name else None,
        "heard": summary,
        "sources": len(columns["error"]),
        "sphere": figures.sphere(columns, "directions by the slots") if summary else None,
        "against": figures.against(columns, "error of directions") if summary else None,
        "levels": sorted({q["item"].level for q in asked}),
        "tasks": sorted({q["item"].task for q in asked}),
        "asked": len(asked),
    }


def _config(workdir: Path) -> str | None:
    """The resolved gin: the work folder's, else the last trained stage's."""
    paths = [workdir / "config.gin"]
    paths += [workdir / "checkpoints" / stage / "config.gin" for stage in reversed(STAGES)]
    path = next((p for p in paths if p.is_file()), None)
    return path.read_text(encoding="utf-8") if path else None
