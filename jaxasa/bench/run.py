# SPDX-License-Identifier: Apache-2.0
"""Runs systems on a suite: their answers go to predictions/NAME.jsonl, scores to results.json."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from jaxasa import config
from jaxasa.bench import controls, perturbations, score, suite
from jaxasa.config import ConfigError
from jaxasa.core.files import atomic_write_json, atomic_write_text
from jaxasa.core.progress import progress
from jaxasa.core.provenance import made_by
from jaxasa.core.workdir import WorkFolder
from jaxasa.data import replies


class AnswerModel(Protocol):
    """A model under test. audio: int16 [B, N, C]. audio_condition: one of qa.AUDIO_CONDITIONS."""

    def respond(
        self, audio: np.ndarray, questions: list[str], options: list[tuple], audio_condition: str
    ) -> list[str]: ...


# items -> {id: answer}, a letter or free text
Baseline = Callable[[Sequence[suite.Item]], Mapping[str, str]]


def evaluate(
    systems: Mapping[str, controls.System],
    models: Mapping[str, AnswerModel],
    benchmark_folder: str | Path,
    out_folder: str | Path,
    bench: config.Bench,
    model_digests: Mapping[str, str] | None = None,
    baselines: Mapping[str, Baseline] | None = None,
) -> dict:
    """Answers the suite, scores and compares the answers; returns the content of results.json.

    systems: of controls.systems. models: by stage. model_digests: by stage, a text that changes
    with the weights. baselines: by name; they always answer again. Predictions of the same suite
    and digest are reused. In results.json, other keys than those of the benchmark stay, and so do
    other systems' scores if they are of the same suite and the same `model_digests`.
    """
    items, out = suite.load(benchmark_folder), WorkFolder(out_folder)
    facts = suite.manifest(benchmark_folder)
    answers: dict[str, Answers] = {}
    for name, system in systems.items():
        path = out.predictions / f"{name}.jsonl"
        origin = f"{facts['sha256']} {(model_digests or {}).get(system.stage, '')}"
        perturbed = system.perturb(items, facts["classes"])
        if not perturbed.items:
            raise ConfigError(f"{benchmark_folder}: no item is left for {name}, expected some")
        if not _is_complete(path, origin):
            model = models[system.stage]
            condition, rows = system.audio_condition, bench.batch_size
            _write(path, answer_items(model, perturbed, condition, rows, name), origin)
        answers[name] = Answers(perturbed, score.read_predictions(path, perturbed.items))
    for name, baseline in (baselines or {}).items():
        by_id = baseline(items)
        path = out.predictions / f"{name}.jsonl"
        _write(path, [{"id": i.id, "answer": by_id[i.id]} for i in items], facts["sha256"])
        unperturbed = perturbations.identity(items, ())
        answers[name] = Answers(unperturbed, score.read_predictions(path, items))
    results = score_systems(items, facts, answers, systems, bench.bootstrap_samples)
    results["benchmark"]["option_fallback"] = bench.option_fallback
    results["model_digests"] = dict(model_digests or {})
    return _merge(out.results, results | {"made_by": made_by()})


class Answers(NamedTuple):
    """The suite that a system answered, and its predictions by id."""

    perturbed: perturbations.PerturbedSuite
    predictions: Mapping[str, str]

    @property
    def correctness(self) -> dict[str, bool]:
        """id -> whether the answer is correct."""
        items = self.perturbed.items
        hits = score.correctness(items, self.predictions)
        return {item.id: bool(hit) for item, hit in zip(items, hits, strict=True)}


def _write(path: Path, answers: Sequence[dict], origin: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, "".join(json.dumps(a) + "\n" for a in answers))
    atomic_write_text(_digest_path(path), _digest(path, origin))


def answer_items(
    model: AnswerModel,
    perturbed: perturbations.PerturbedSuite,
    audio_condition: str,
    batch_size: int,
    title: str,
) -> list[dict]:
    """Answers of a model to all items, {"id", "answer"}, in the suite's order.

    Every call has `batch_size` rows (the last batch repeats its last item), so that the model is
    compiled once. Without audio ("none") the model gets silence, and no file is read.
    """
    items = perturbed.items
    order = sorted(range(len(items)), key=lambda i: (str(items[i].file), i))
    silence = np.zeros_like(items[0].audio()) if audio_condition == "none" else None
    replies: dict[str, str] = {}
    with progress(f"answering: {title}", len(items), "items") as advance:
        for start in range(0, len(order), batch_size):
            rows = [items[i] for i in order[start : start + batch_size]]
            padded = rows + [rows[-1]] * (batch_size - len(rows))
            audio = {i.file: perturbed.audio(i) if silence is None else silence for i in rows}
            shapes = {a.shape for a in audio.values()}
            config.check(len(shapes) == 1, "benchmark audio", shapes, "clips of one length")
            batch = model.respond(
                np.stack([audio[i.file] for i in padded]),
                [i.question for i in padded],
                [i.options for i in padded],
                audio_condition,
            )
            replies |= {i.id: reply for i, reply in zip(rows, batch, strict=False)}
            advance(len(rows))
    return [{"id": i.id, "answer": replies[i.id]} for i in items]


def score_systems(
    items: Sequence[suite.Item],
    facts: dict,
    answers: Mapping[str, Answers],
    systems: Mapping[str, controls.System],
    bootstrap_samples: int,
) -> dict:
    """The benchmark's part of results.json: suite, scores of systems, paired differences."""
    names = ["items", "levels", "seed", "sounds", "split", "scenes", "classes", "recordings"]
    names += ["sha256", "scene_source", "shortcut_probe"]
    scores = {name: score.score(a.perturbed.items, a.predictions) for name, a in answers.items()}
    for name, control in controls.CONTROLS.items():
        original = answers.get(systems[name].stage) if name in systems else None
        if control.is_geometric and original is not None:
            scores[name] |= {"geometric": _geometric_scores(answers[name], original)}
    scores |= _four_yaws(items, answers, systems)
    differences: dict = {}
    for stage, control_name, name in controls.pairs(answers):
        by_group: dict = {"against": name}
        for group, mask in score.group_masks(items).items():
            part = [i for i, in_group in zip(items, mask, strict=True) if in_group]
            if part and not group.startswith("task/"):
                a, b = answers[stage].predictions, answers[name].predictions
                by_group[group] = score.paired_difference(part, a, b, samples=bootstrap_samples)
        differences.setdefault(stage, {})[control_name] = by_group
    return {
        "benchmark": {name: facts[name] for name in names},
        "systems": scores | {"chance": score.chance_scores(items)},
        "paired_differences": differences,
    }


def _geometric_scores(control: Answers, original: Answers) -> dict:
    """Accuracies of a geometric control on items about direction (`direction` is true).

    "original": A of the same checkpoint on the same items of the unperturbed suite. "perturbed":
    A of the control. On the items whose answer the perturbation changes: "answer_changed": A of
    the control; "stale_answer": A of the control if the original answers counted as correct.
    """
    items = [item for item in control.perturbed.items if item.direction]
    after, before = control.correctness, original.correctness
    original_answer = control.perturbed.original_answer
    changed = [item for item in items if item.id in original_answer]
    letters = {i.id: replies.parse_choice(control.predictions[i.id], i.options)[0] for i in changed}

    def accuracy(hits) -> dict:
        return score.accuracy(np.array(list(hits), bool))

    return {
        "original": accuracy(before[i.id] for i in items),
        "perturbed": accuracy(after[i.id] for i in items),
        "answer_changed": accuracy(after[i.id] for i in changed),
        "stale_answer": accuracy(letters[i.id] == original_answer[i.id] for i in changed),
    }


def _four_yaws(
    items: Sequence[suite.Item],
    answers: Mapping[str, Answers],
    systems: Mapping[str, controls.System],
) -> dict:
    """{"four_yaws": scores} if all four ran: an item is correct if it is so at each of 4 yaws."""
    rotated = [f"rotated_{yaw}" for yaw in controls.YAWS]
    if any(name not in answers or name not in systems for name in rotated):
        return {}
    stage = systems[rotated[0]].stage
    if stage not in answers:
        return {}
    by_yaw = [answers[name].correctness for name in (stage, *rotated)]
    shared = [i for i in items if all(i.id in hits for hits in by_yaw)]
    at_all_yaws = np.array([all(hits[i.id] for hits in by_yaw) for i in shared], bool)
    return {"four_yaws": score.accuracy_by_group(shared, at_all_yaws)}


def _merge(path: Path, new: dict) -> dict:
    """Writes `new` to results.json; scores of systems that are not in it stay only if they are of
    the same models and the same suite."""
    old = {}
    if path.is_file():
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise ConfigError(f"{path}: is not JSON, expected results of `jaxasa bench`") from None
    is_same_suite = old.get("benchmark", {}).get("sha256") == new["benchmark"]["sha256"]
    if is_same_suite and old.get("model_digests") == new["model_digests"]:
        for part in ("systems", "paired_differences"):
            new[part] = old.get(part, {}) | new[part]
    merged = old | new
    atomic_write_json(path, merged)
    return merged


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _digest(path: Path, origin: str) -> str:
    return hashlib.sha256(path.read_bytes() + origin.encode()).hexdigest()


def _is_complete(path: Path, origin: str) -> bool:
    """Whether predictions are there in full, for this suite and these weights."""
    digest = _digest_path(path)
    if not path.is_file() or not digest.is_file():
        return False
    return digest.read_text(encoding="utf-8") == _digest(path, origin)
