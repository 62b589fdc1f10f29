"""What can be known of a suite without hearing it: leaks, the oracle, recordings in two splits.

`audit.json`, beside the suite's metadata:
    {"drawn": N, "chance": 0.25, "levels": {L: SCORES}, "tasks": {task: SCORES},
     "recordings": {...}}
    SCORES: "items", "text_only", "options_only", "position_only" (accuracy of the classifiers of
        bench/shortcut_probe.py, which learnt from N items drawn without audio, on N others), "oracle"
        (which reads metadata), and of each system in results.json, such as "mono", its own.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxasa import config
from jaxasa.acoustics import scenes
from jaxasa.bench import select_items, shortcut_probe, suite
from jaxasa.config import ConfigError
from jaxasa.core import keys
from jaxasa.core.files import atomic_write_json
from jaxasa.core.progress import progress
from jaxasa.data import questions

FILE = "audit.json"
TURNS = 4  # how often the scenes drawn for the classifiers come, each time turned another way
SYSTEMS = ("question_only", "mono")


def oracle(items: Sequence, classes: Sequence[str]) -> np.ndarray:
    """bool [items]: whether the scene in an item's metadata gives the answer it is keyed with."""
    return np.array([key(i, i.scene, classes) == i.answer_text for i in items], bool)


def key(item, scene: dict, classes: Sequence[str]) -> str | None:
    """The answer that `scene` gives to an item's question (its `task` and `about`), or None."""
    found = questions.reinstantiate(item.task, item.about, scene, classes, keys.rng(0, "key"), lenient=True)
    return None if found is None else found.answer_text


def drawn(run: config.Run, bank, tasks: Mapping[str, int], count: int, purpose: str) -> list:
    """About `count` questions such as the suite's, on scenes that are only drawn."""
    b = run.bench
    total = b.l1 + b.l2 + b.l3
    sizes = {n: max(1, count * getattr(b, n) // total) for n in ("l1", "l2", "l3")}
    clips = bank.clips("test")
    # As many scenes to an item as the suite has, and turned ones are as good as new here.
    distinct = -(-run.scenes.benchmark * count // (total * TURNS))
    found = []
    with progress(f"drawing questions: {purpose}", distinct, "scenes") as advance:
        for index in range(distinct):
            spec = scenes.draw(run.scenes, clips, run.seed, f"audit {purpose}", index)
            scene, rng = scenes.describe(spec), keys.rng(run.seed, "audit", purpose, index)
            found += [scenes.turn(scene, yaw) for yaw in rng.uniform(-180, 180, TURNS)]
            advance(1)
    which = config.Questions(dict(tasks), run.questions.margin)
    bench = config.Bench(**sizes)
    chosen, _ = select_items.choose(found, bank.classes, bench, which, run.seed, f"audit {purpose}")
    return [q for _, q in chosen]


def audit(run: config.Run, bank, items: Sequence) -> dict:
    """What audit.json holds of a suite's `items`. bank: the sounds that it was made of.

    Where run.bench.audit is 0, or the bank has no clips, nothing is drawn and there are no scores
    of classifiers.
    """
    hits: dict[str, np.ndarray] = {}
    tested: list = []
    if run.bench.probe_items and bank.clips("test"):
        own = questions.task_weights(run.questions.tasks)
        tasks = {i.task: own[i.task] for i in items}
        train, tested = (
            drawn(run, bank, tasks, run.bench.probe_items, p) for p in ("train", "test")
        )
        hits = shortcut_probe.measure(train, tested)
    right = oracle(items, bank.classes)

    def scores(name: str, value: str) -> dict:
        here = np.array([getattr(i, name) == value for i in items])
        there = np.array([getattr(q, name) == value for q in tested], bool)
        read = {f"{reader}_only": _mean(hit[there]) for reader, hit in hits.items()}
        return {"items": int(here.sum()), **read, "oracle": _mean(right[here])}

    return {
        "drawn": len(tested),
        "chance": 0.25,
        "levels": {level: scores("level", level) for level in config.LEVELS},
        "tasks": {task: scores("task", task) for task in dict.fromkeys(i.task for i in items)},
        "recordings": split_contents(bank),
    }


def _mean(hits: np.ndarray) -> float | None:
    return round(float(hits.mean()), 4) if len(hits) else None


def split_contents(bank) -> dict:
    """{split: {"recordings", "clips", "sha256"}, "shared": [...]}: what each split can play.

    sha256: of the sorted hashes of its clips' samples. shared: source recordings (with their
    class), and hashes of clips, that are in two splits; a sound bank should have none.
    """
    found: dict = {}
    owners: dict[str, set[str]] = {}
    for split in ("train", "dev", "test"):
        clips = bank.clips(split)
        hashes = sorted(mark(bank, c.id) for c in clips)
        names = {f"{c.label}: {c.recording_id}" for c in clips}
        digest = hashlib.sha256("\n".join(hashes).encode()).hexdigest()
        found[split] = {"recordings": len(names), "clips": len(clips), "sha256": digest}
        for name in names | set(hashes):
            owners.setdefault(name, set()).add(split)
    return found | {"shared": sorted(name for name, splits in owners.items() if len(splits) > 1)}


def mark(bank, clip: str) -> str:
    """SHA-256 of a clip's samples."""
    return hashlib.sha256(np.ascontiguousarray(bank.audio(clip)).tobytes()).hexdigest()


def check_unheard(bank, trained) -> None:
    """Raises ConfigError where a test clip of `bank` is one of train or dev of `trained`."""
    heard = {mark(trained, c.id): c.id for split in ("train", "dev") for c in trained.clips(split)}
    for clip in bank.clips("test"):
        known = heard.get(mark(bank, clip.id))
        if known is not None:
            raise ConfigError(
                f"{bank.folder}: clip {clip.id!r} of the test is {known!r} of {trained.folder}, "
                "expected recordings that training did not have (the same Run.seed and Sounds, or "
                "others altogether)"
            )


def add_scores(folder: str | Path, results: Mapping) -> dict:
    """Adds what systems in results.json score on each level and task to audit.json.

    Raises ConfigError where the suite in `folder` has no audit.
    """
    path = Path(folder) / FILE
    found = suite.read_json(path, "the audit that `jaxasa bench build` writes")
    for name in SYSTEMS:
        system = results["systems"].get(name)
        if system is None:
            continue
        for level, scores in found["levels"].items():
            scores[name] = system[level]["accuracy"]
        for task, scores in found["tasks"].items():
            scores[name] = system["tasks"][task]["accuracy"]
    atomic_write_json(path, found)
    return found
