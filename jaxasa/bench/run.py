"""Runs systems over a suite: their answers to predictions/<name>.jsonl, scores to results.json."""

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
from jaxasa.core.workdir import WorkFolder


class AnswerModel(Protocol):
    """What answers: `audio_condition` is one of ask.HEARING; audio is int16 [B, N, C]."""

    def respond(
        self, audio: np.ndarray, questions: list[str], options: list[tuple], hearing: str
    ) -> list[str]: ...


# A baseline: items -> {id: answer}, a letter or free text.
Baseline = Callable[[Sequence[suite.Item]], Mapping[str, str]]


def evaluate(
    systems: Mapping[str, controls.System],
    responders: Mapping[str, AnswerModel],
    benchmark_folder: str | Path,
    out_folder: str | Path,
    bench: config.Bench,
    marks: Mapping[str, str] | None = None,
    readers: Mapping[str, Baseline] | None = None,
) -> dict:
    """Answers, scores and compares; returns what results.json then holds.

    systems: as of controls.systems. responders: by stage. marks: a text per stage that changes
    with its weights (a checkpoint's step, say). readers: baselines by name, which are asked anew
    each time. Answers that are there, for this suite and mark, are not asked for again. Keys of
    results.json that are not of the benchmark are kept, and so are other systems' scores on the
    same suite where `marks` are those of before.
    """
    items, out = suite.load(benchmark_folder), WorkFolder(out_folder)
    facts = suite.manifest(benchmark_folder)
    answered: dict[str, Answers] = {}
    for name, system in systems.items():
        path = out.predictions / f"{name}.jsonl"
        mark = f"{facts['sha256']} {(marks or {}).get(system.stage, '')}"
        changed = system.perturb(items, facts["classes"])
        if not changed.items:
            raise ConfigError(f"{benchmark_folder}: no item is left for {name}, expected some")
        if not _complete(path, mark):
            responder = responders[system.stage]
            answers = answer_items(responder, changed, system.audio_condition, bench.batch_size, name)
            _write(path, answers, mark)
        answered[name] = Answers(changed, score.read_predictions(path, changed.items))
    for name, reader in (readers or {}).items():
        found = reader(items)
        path = out.predictions / f"{name}.jsonl"
        _write(path, [{"id": i.id, "answer": found[i.id]} for i in items], facts["sha256"])
        answered[name] = Answers(perturbations.identity(items, ()), score.read_predictions(path, items))
    found = score_systems(items, facts, answered, systems, bench.bootstrap_samples)
    found["benchmark"]["choose"] = bench.option_fallback
    return _merge(out.results, found | {"models": dict(marks or {})})


class Answers(NamedTuple):
    """What a system was asked, and its answers by id."""

    changed: perturbations.PerturbedSuite
    predictions: Mapping[str, str]

    @property
    def right(self) -> dict[str, bool]:
        """id -> whether the answer is right."""
        items = self.changed.items
        hits = score.correctness(items, self.predictions)
        return {item.id: bool(hit) for item, hit in zip(items, hits, strict=True)}


def _write(path: Path, answers: Sequence[dict], mark: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, "".join(json.dumps(a) + "\n" for a in answers))
    atomic_write_text(_seal(path), _digest(path, mark))


def answer_items(
    responder: AnswerModel, changed: perturbations.PerturbedSuite, hearing: str, batch: int, title: str
) -> list[dict]:
    """Answers of all items, {"id", "answer"}, in the suite's order.

    Every call has `batch` rows (the last repeats its last item), so that one compilation
    serves; where the system hears nothing, it is given silence and no file is read.
    """
    items = changed.items
    order = sorted(range(len(items)), key=lambda i: (str(items[i].file), i))
    silence = np.zeros_like(items[0].audio()) if hearing == "none" else None
    texts: dict[str, str] = {}
    with progress(f"answering: {title}", len(items), "items") as advance:
        for start in range(0, len(order), batch):
            rows = [items[i] for i in order[start : start + batch]]
            padded = rows + [rows[-1]] * (batch - len(rows))
            audio = {i.file: changed.sound(i) if silence is None else silence for i in rows}
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


def score_systems(
    items: Sequence[suite.Item],
    facts: dict,
    answered: Mapping[str, Answers],
    systems: Mapping[str, controls.System],
    bootstrap: int,
) -> dict:
    """The benchmark's part of results.json: suite, systems, paired differences."""
    names = ("items", "levels", "seed", "sounds", "split", "scenes", "classes", "recordings", "sha256")
    scores = {name: score.score(a.changed.items, a.predictions) for name, a in answered.items()}
    for name, found in scores.items():
        whole = answered.get(systems[name].stage) if name in systems else None
        if name in controls.TURNED and whole is not None:
            found |= {"beside": _beside(answered[name], whole)}
    scores |= _four_yaws(items, answered, systems)
    paired: dict = {}
    for system, control, name in controls.pairs(answered):
        found = {"against": name}
        for group, mask in score.group_masks(items).items():
            part = [i for i, keep in zip(items, mask, strict=True) if keep]
            if part and not group.startswith("task/"):
                a, b = answered[system].predictions, answered[name].predictions
                found[group] = score.paired_difference(part, a, b, samples=bootstrap)
        paired.setdefault(system, {})[control] = found
    return {
        "benchmark": {name: facts[name] for name in names}
        # Suites from before there were others do not say.
        | {"scene_source": facts["scene_source"], "leak": facts["leak"]},
        "systems": scores | {"chance": score.chance_scores(items)},
        "paired": paired,
    }


def _beside(control: Answers, whole: Answers) -> dict:
    """What a turned control's accuracy is to be read beside, on items tagged `direction`.

    "still": A of the system on the same items unturned; "now": A of the control; "before": A of
    the control by the answers before the turn, on items whose answer the turn changes, and
    "changed": A on those by the answers after it.
    """
    items = [item for item in control.changed.items if item.direction]
    now, still = control.right, whole.right
    of = lambda hits: score.accuracy(np.array(list(hits), bool))  # noqa: E731
    moved = [item for item in items if item.id in control.changed.before]
    said = {i.id: score.parse_answer(control.predictions[i.id], i.options)[0] for i in moved}
    return {
        "still": of(still[i.id] for i in items),
        "now": of(now[i.id] for i in items),
        "before": of(said[i.id] == control.changed.before[i.id] for i in moved),
        "changed": of(now[i.id] for i in moved),
    }


def _four_yaws(
    items: Sequence[suite.Item],
    answered: Mapping[str, Answers],
    systems: Mapping[str, controls.System],
) -> dict:
    """{"four_yaws": scores} of items that are right at 0, 90, 180 and 270 degrees, if all ran."""
    turned = [f"rotated_{yaw}" for yaw in controls.YAWS]
    if any(name not in answered or name not in systems for name in turned):
        return {}
    stage = systems[turned[0]].stage
    if stage not in answered:
        return {}
    rights = [answered[name].right for name in (stage, *turned)]
    kept = [i for i in items if all(i.id in right for right in rights)]
    every = np.array([all(right[i.id] for right in rights) for i in kept], bool)
    return {"four_yaws": score.accuracy_by_group(kept, every)}


def _merge(path: Path, new: dict) -> dict:
    """Puts `new` into results.json; older systems stay only if they are of the same models and
    answered the same suite."""
    old = {}
    if path.is_file():
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise ConfigError(f"{path}: is not JSON, expected results of `jaxasa bench`") from None
    is_same = old.get("benchmark", {}).get("sha256") == new["benchmark"]["sha256"]
    if is_same and old.get("models") == new["models"]:
        for part in ("systems", "paired"):
            new[part] = old.get(part, {}) | new[part]
    merged = old | new
    atomic_write_json(path, merged)
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
