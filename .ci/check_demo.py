# SPDX-License-Identifier: Apache-2.0
"""Checks the outputs of `jaxasa demo` in a work folder; exits with 1 at the first fault."""

import json
import sys
from pathlib import Path

import numpy as np

from jaxasa.bench.controls import CONTROLS
from jaxasa.hf import load

# Even the report of a small run holds figures; an empty page would be shorter.
REPORT_BYTES = 20_000
SYSTEMS = ("sft", "grpo", "question_only", "mono", "chance")
LEVELS = ("L1", "L2", "L3")


def expect(condition: bool, claim: str) -> None:
    print(f"{'ok  ' if condition else 'FAIL'} {claim}")
    if not condition:
        sys.exit(1)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_results(work: Path) -> dict:
    results = json.loads((work / "results.json").read_text())
    expect(
        {"benchmark", "systems", "seconds", "peak_memory_gb"} <= set(results),
        "results.json has benchmark, systems, seconds, peak_memory_gb",
    )
    levels = results["benchmark"]["levels"]
    expect(
        sum(levels[level] for level in LEVELS) == results["benchmark"]["items"],
        f"levels {levels} add up to {results['benchmark']['items']} items",
    )
    expect(set(SYSTEMS) <= set(results["systems"]), f"systems {', '.join(SYSTEMS)} are scored")
    for name, scores in results["systems"].items():
        for level in ("overall", *LEVELS):
            a = scores[level]
            expect(
                0 <= a["low"] <= a["accuracy"] <= a["high"] <= 1,
                f"{name} {level}: {a['low']:.3f} <= {a['accuracy']:.3f} <= {a['high']:.3f}",
            )
    steps = {step: s for step, s in results["seconds"].items() if step != "total"}
    total = results["seconds"]["total"]
    expect(
        len(steps) >= 5 and abs(sum(steps.values()) - total) < 1,
        f"seconds of {len(steps)} steps add up to {total:.0f}",
    )
    memory = results["peak_memory_gb"]
    expect(0.1 < memory < 8, f"peak memory is {memory:.2f} GB, below 8")
    return results


def check_benchmark(work: Path, results: dict) -> None:
    items = lines(work / "benchmark" / "metadata.jsonl")
    expect(len(items) == results["benchmark"]["items"], f"metadata.jsonl holds {len(items)} items")
    expect(
        all((work / "benchmark" / item["file_name"]).is_file() for item in items),
        "every item's audio file is there",
    )
    expect(
        all(len(set(item["options"])) == 4 and item["answer"] in "ABCD" for item in items),
        "every item has four different options and a letter",
    )
    ids = {item["id"] for item in items}
    for name in results["systems"]:
        # They have no predictions of their own.
        if name in ("chance", "four_yaws"):
            continue
        predictions = lines(work / "predictions" / f"{name}.jsonl")
        answered = {p["id"] for p in predictions if isinstance(p["answer"], str)}
        # A rotated or mirrored scene may not support each of its questions.
        is_geometric = name in CONTROLS and CONTROLS[name].is_geometric
        is_complete = answered <= ids if is_geometric else answered == ids
        is_complete &= len(answered) >= 0.7 * len(ids) and len(predictions) == len(answered)
        expect(is_complete, f"{name} answers every item once")


def check_report(work: Path) -> None:
    page = (work / "report" / "index.html").read_text()
    expect(len(page) > REPORT_BYTES, f"report/index.html has {len(page)} characters")
    expect("Checks of the controls" in page, "the report checks the controls")


def check_export(work: Path) -> None:
    params, meta, tokenizer = load.load_model(work / "export")
    count = sum(array.size for array in load.flatten_params(params).values())
    expect(count > 100_000, f"export/ loads: {count:,} parameters")
    expect(tokenizer.is_file() and len(meta["classes"]) > 1, f"{len(meta['classes'])} classes")
    stage = meta["stage"]
    trained, _, _ = load.load_model(work / "checkpoints" / stage)
    merged = load.flatten_params(load.merge_lora(trained, meta["model"]))
    same = all(np.array_equal(a, merged[path]) for path, a in load.flatten_params(params).items())
    expect(
        same and len(merged) == len(load.flatten_params(params)),
        f"export/ equals checkpoints/{stage}",
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    check_export(folder)
    check_report(folder)
    check_benchmark(folder, check_results(folder))
