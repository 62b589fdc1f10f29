# SPDX-License-Identifier: Apache-2.0
"""Audit of a suite without its audio: shortcut probe, oracle, recordings that splits share.

`audit.json`, beside the suite's metadata:
    {"drawn": N, "chance": 0.25, "levels": {L: SCORES}, "tasks": {task: SCORES},
     "recordings": {...}}
    SCORES: "items"; "text_only", "options_only" and "position_only", the accuracy of the
        classifiers of bench/shortcut_probe.py, trained on N sampled items and tested on N others;
        "oracle", which reads the metadata; and the accuracy of systems in results.json, such as
        "mono".
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxasa import config
from jaxasa.acoustics import scenes
from jaxasa.bench import shortcut_probe
from jaxasa.bench.select_items import select_items
from jaxasa.config import ConfigError
from jaxasa.core import keys, text_files
from jaxasa.core.files import atomic_write_json
from jaxasa.core.progress import progress
from jaxasa.data import questions

FILE = "audit.json"
SYSTEMS = ("question_only", "mono")
_ROTATIONS = 4  # of each scene sampled for the shortcut probe, by random yaws


def oracle(items: Sequence, classes: Sequence[str]) -> np.ndarray:
    """bool [items]: whether the scene in an item's metadata gives its answer."""
    return np.array([answer_in_scene(i, i.scene, classes) == i.answer_text for i in items], bool)


def answer_in_scene(item, scene: dict, classes: Sequence[str]) -> str | None:
    """The answer that `scene` gives to an item's question, None if it does not support it."""
    rng = keys.rng(0, "key")
    question = questions.reinstantiate(
        item.task, item.template_args, scene, classes, rng, lenient=True
    )
    return None if question is None else question.answer_text


def sample_items(run: config.Run, bank, tasks: Mapping[str, int], count: int, purpose: str) -> list:
    """Selects about `count` questions as for a suite, on scenes that are sampled but not rendered.

    tasks: question types and their weights.
    """
    b = run.bench
    total = b.l1 + b.l2 + b.l3
    sizes = {n: max(1, count * getattr(b, n) // total) for n in ("l1", "l2", "l3")}
    clips = bank.clips("test")
    # As many scenes per item as in the suite. A rotated scene is as good as a new one here.
    num_scenes = -(-run.scenes.benchmark * count // (total * _ROTATIONS))
    pool = []
    with progress(f"sampling questions: {purpose}", num_scenes, "scenes") as advance:
        for index in range(num_scenes):
            spec = scenes.sample_scene(run.scenes, clips, run.seed, f"audit {purpose}", index)
            scene, rng = scenes.describe(spec), keys.rng(run.seed, "audit", purpose, index)
            pool += [scenes.rotate_scene(scene, yaw) for yaw in rng.uniform(-180, 180, _ROTATIONS)]
            advance(1)
    which = config.Questions(dict(tasks), run.questions.margin)
    items, _ = select_items(
        pool, bank.classes, config.Bench(**sizes), which, run.seed, f"audit {purpose}"
    )
    return [question for _, question in items]


def audit(run: config.Run, bank, items: Sequence) -> dict:
    """Content of audit.json for a suite's `items`. bank: the sounds of its scenes.

    Without scores of classifiers if run.bench.probe_items is 0 or the bank has no clips.
    """
    hits: dict[str, np.ndarray] = {}
    test: list = []
    if run.bench.probe_items and bank.clips("test"):
        weights = questions.task_weights(run.questions.tasks)
        tasks = {i.task: weights[i.task] for i in items}
        train, test = (
            sample_items(run, bank, tasks, run.bench.probe_items, split)
            for split in ("train", "test")
        )
        hits = shortcut_probe.measure(train, test)
    oracle_hits = oracle(items, bank.classes)

    def scores(name: str, value: str) -> dict:
        of_items = np.array([getattr(i, name) == value for i in items])
        of_test = np.array([getattr(q, name) == value for q in test], bool)
        probe = {f"{kind}_only": _mean(hit[of_test]) for kind, hit in hits.items()}
        return {"items": int(of_items.sum()), **probe, "oracle": _mean(oracle_hits[of_items])}

    return {
        "drawn": len(test),
        "chance": 0.25,
        "levels": {level: scores("level", level) for level in config.LEVELS},
        "tasks": {task: scores("task", task) for task in dict.fromkeys(i.task for i in items)},
        "recordings": split_contents(bank),
    }


def _mean(hits: np.ndarray) -> float | None:
    return round(float(hits.mean()), 4) if len(hits) else None


def split_contents(bank) -> dict:
    """{split: {"recordings", "clips", "sha256"}, "shared": [...]}: contents of a bank's splits.

    sha256: of the sorted digests of its clips. shared: source recordings (with their class) and
    digests of clips that are in two splits; a sound bank should have none.
    """
    contents: dict = {}
    splits: dict[str, set[str]] = {}
    for split in ("train", "dev", "test"):
        clips = bank.clips(split)
        digests = sorted(clip_digest(bank, c.id) for c in clips)
        names = {f"{c.label}: {c.recording_id}" for c in clips}
        contents[split] = {
            "recordings": len(names),
            "clips": len(clips),
            "sha256": hashlib.sha256("\n".join(digests).encode()).hexdigest(),
        }
        for name in names | set(digests):
            splits.setdefault(name, set()).add(split)
    return contents | {"shared": sorted(name for name, s in splits.items() if len(s) > 1)}


def clip_digest(bank, clip: str) -> str:
    """SHA-256 of a clip's samples."""
    return hashlib.sha256(np.ascontiguousarray(bank.audio(clip)).tobytes()).hexdigest()


def check_no_train_overlap(bank, trained) -> None:
    """Raises ConfigError if a test clip of `bank` is a train or dev clip of the bank `trained`."""
    known = {
        clip_digest(trained, c.id): c.id for split in ("train", "dev") for c in trained.clips(split)
    }
    for clip in bank.clips("test"):
        match = known.get(clip_digest(bank, clip.id))
        if match is not None:
            raise ConfigError(
                f"{bank.folder}: test clip {clip.id!r} is {match!r} of {trained.folder}, "
                "expected recordings outside the training data (the same Run.seed and Sounds, "
                "or other sounds altogether)"
            )


def add_scores(folder: str | Path, results: Mapping) -> dict:
    """Adds the accuracy of systems in results.json on each level and task to audit.json.

    Raises ConfigError if the suite in `folder` has no audit.
    """
    path = Path(folder) / FILE
    report = text_files.read_json(path, "the audit that `jaxasa bench build` writes")
    for name in SYSTEMS:
        system = results["systems"].get(name)
        if system is None:
            continue
        for level, scores in report["levels"].items():
            scores[name] = system[level]["accuracy"]
        for task, scores in report["tasks"].items():
            scores[name] = system["tasks"][task]["accuracy"]
    atomic_write_json(path, report)
    return report
