"""Runs systems over a suite: their answers to predictions/<name>.jsonl, scores to results.json."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from jaxasa import config
from jaxasa.bench import controls, score, suite
from jaxasa.config import ConfigError
from jaxasa.data.progress import progress
from jaxasa.workdir import write_text


class Responder(Protocol):
    """What answers: `hearing` is "full", "mono" or "none"; audio is int16 [B, N, 4]."""

    def respond(
        self, audio: np.ndarray, questions: list[str], options: list[tuple], hearing: str
    ) -> list[str]: ...


def run(
    systems: Mapping[str, Responder],
    benchmark_folder: str | Path,
    out_folder: str | Path,
    bench: config.Bench,
    marks: Mapping[str, str] | None = None,
) -> dict:
    """Answers, scores and compares; returns what results.json then holds.

    systems: by the names of controls.systems, which say what each hears. marks: a text per
    system that changes with its weights (a checkpoint's step, say). Answers that are there, for
    this suite and mark, are not asked for again. Keys of results.json that are not of the
    benchmark are kept, and so are other systems' scores on the same suite.
    """
    items, out = suite.load(benchmark_folder), Path(out_folder)
    facts = suite.manifest(benchmark_folder)
    known = controls.systems(("sft", "grpo"))
    unknown = [name for name in systems if name not in known]
    config.check(not unknown, "systems", unknown, "names out of " + ", ".join(known))
    predictions = {}
    for name, responder in systems.items():
        path = out / "predictions" / f"{name}.jsonl"
        mark = f"{facts['sha256']} {(marks or {}).get(name, '')}"
        if not _complete(path, mark):
            answers = answer(responder, items, known[name].hearing, bench.batch, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, "".join(json.dumps(a) + "\n" for a in answers))
            write_text(_seal(path), _digest(path, mark))
        predictions[name] = score.read(path, items)
    return _merge(out / "results.json", results(items, facts, predictions, bench.bootstrap))


def answer(
    responder: Responder, items: Sequence[suite.Item], hearing: str, batch: int, title: str
) -> list[dict]:
    """Answers of all items, {"id", "answer"}, in the suite's order.

    Every call has `batch` rows (the last repeats its last item), so that one compilation
    serves; where the system hears nothing, it is given silence and no file is read.
    """
    order = sorted(range(len(items)), key=lambda i: (str(items[i].file), i))
    silence = np.zeros_like(items[0].audio()) if hearing == "none" else None
    texts: dict[str, str] = {}
    with progress(f"answering: {title}", len(items), "items") as advance:
        for start in range(0, len(order), batch):
            rows = [items[i] for i in order[start : start + batch]]
            padded = rows + [rows[-1]] * (batch - len(rows))
            audio = {i.file: i.audio() if silence is None else silence for i in rows}
            shapes = {a.shape for a in audio.values()}
            config.check(len(shapes) == 1, "benchmark audio", shapes, "clips of one length")
            found = responder.respond(
                np.stack([audio[i.file] for i in padded]),
                [i.question for i in padded],
                [i.options for i in padded],
                hearing,
            )
            texts |= {i.id: text for i, text in zip(rows, found, strict=False)}
            advance(len(rows))
    return [{"id": i.id, "answer": texts[i.id]} for i in items]


def results(
    items: Sequence[suite.Item], facts: dict, predictions: Mapping[str, dict], bootstrap: int
) -> dict:
    """The benchmark's part of results.json: suite, systems, paired differences."""
    names = ("items", "levels", "seed", "sounds", "split", "scenes", "classes", "takes", "sha256")
    systems = {name: score.score(items, found) for name, found in predictions.items()}
    paired: dict = {}
    for system, control, name in controls.pairs(predictions):
        found: dict = {"against": name}
        for group, mask in score.groups(items).items():
            part = [i for i, keep in zip(items, mask, strict=True) if keep]
            if part and not group.startswith("task/"):
                a, b = predictions[system], predictions[name]
                found[group] = score.paired(part, a, b, samples=bootstrap)
        paired.setdefault(system, {})[control] = found
    return {
        "benchmark": {name: facts[name] for name in names} | {"leak": facts["leak"]},
        "systems": systems | {"chance": score.chance(items)},
        "paired": paired,
    }


def _merge(path: Path, new: dict) -> dict:
    """Puts `new` into results.json; older systems stay only if they answered the same suite."""
    old = {}
    if path.is_file():
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise ConfigError(f"{path}: is not JSON, expected results of `jaxasa bench`") from None
    if old.get("benchmark", {}).get("sha256") == new["benchmark"]["sha256"]:
        for part in ("systems", "paired"):
            new[part] = old.get(part, {}) | new[part]
    merged = old | new
    write_text(path, json.dumps(merged, indent=1) + "\n")
    return merged


def _seal(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _digest(path: Path, mark: str) -> str:
    return hashlib.sha256(path.read_bytes() + mark.encode()).hexdigest()


def _complete(path: Path, mark: str) -> bool:
    """Whether the predictions there are whole, of this suite and of these weights."""
    seal = _seal(path)
    if not path.is_file() or not seal.is_file():
        return False
    return seal.read_text(encoding="utf-8") == _digest(path, mark)
