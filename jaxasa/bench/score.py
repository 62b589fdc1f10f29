# SPDX-License-Identifier: Apache-2.0
"""Scoring: accuracy with intervals, paired differences.

A prediction is free text. Its answer is read by `replies.parse_choice`: strictly (exactly one
`<answer>B</answer>`), leniently (a letter in other words or dress) or as the text of an option. A
text with two different answers, or none, is wrong.

Reference: Wilson 1927 (intervals); Owen 2007, "The pigeonhole bootstrap" (paired differences).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxasa.bench import suite
from jaxasa.config import LEVELS, ConfigError
from jaxasa.core import keys
from jaxasa.data import replies

CHANCE = 0.25
_Z = 1.959963984540054  # standard normal, 97.5 %


def wilson_interval(successes, trials) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95 % interval of a proportion (1927, eq. 4): low and high, shaped as the inputs."""
    successes, trials = np.asarray(successes, float), np.asarray(trials, float)
    share, z2 = successes / trials, _Z**2 / trials
    centre = (share + z2 / 2) / (1 + z2)
    half = np.sqrt(share * (1 - share) * z2 + z2**2 / 4) / (1 + z2)
    # Exact at the ends, where rounding would leave 1e-17 of a share.
    low = np.where(successes == 0, 0.0, centre - half)
    return low, np.where(successes == trials, 1.0, centre + half)


def accuracy(is_correct: np.ndarray) -> dict:
    """A = {"accuracy", "low", "high", "items"} of a bool vector, with Wilson's interval."""
    n = len(is_correct)
    if n == 0:
        return {"accuracy": None, "low": None, "high": None, "items": 0}
    low, high = wilson_interval(is_correct.sum(), n)
    return {
        "accuracy": float(is_correct.mean()),
        "low": float(low),
        "high": float(high),
        "items": n,
    }


def group_masks(items: Sequence[suite.Item]) -> dict[str, np.ndarray]:
    """Masks [items] by name: "overall", each level, "task/…", "direction/yes" and "/no"."""
    level = np.array([i.level for i in items])
    task = np.array([i.task for i in items])
    direction = np.array([i.direction for i in items], bool)
    masks = {"overall": np.ones(len(items), bool)}
    masks |= {name: level == name for name in sorted(set(level.tolist()))}
    masks |= {f"task/{name}": task == name for name in dict.fromkeys(task.tolist())}
    return masks | {"direction/yes": direction, "direction/no": ~direction}


def correctness(items: Sequence[suite.Item], predictions: Mapping[str, str]) -> np.ndarray:
    """bool [items]: whether the parsed answer of each item's prediction is its correct answer."""
    answers = [replies.parse_choice(predictions[i.id], i.options)[0] for i in items]
    return np.array([a == i.answer for a, i in zip(answers, items, strict=True)], bool)


def _by_group(items: Sequence[suite.Item], value) -> dict:
    """{"overall": value(mask), "L1": ..., "tasks": {task: ...}, "direction": {"yes", "no"}}."""
    result: dict = {"tasks": {}, "direction": {}}
    for name, mask in group_masks(items).items():
        kind, _, rest = name.partition("/")
        target = {"task": result["tasks"], "direction": result["direction"]}.get(kind, result)
        target[rest or name] = value(mask)
    return result


def accuracy_by_group(items: Sequence[suite.Item], is_correct: np.ndarray) -> dict:
    """{"overall": A, "L1": A, ..., "tasks": {task: A}, "direction": {"yes": A, "no": A}}.

    A = {"accuracy", "low", "high", "items"}. is_correct: bool [items].
    """
    return _by_group(items, lambda mask: accuracy(is_correct[mask]))


def score(items: Sequence[suite.Item], predictions: Mapping[str, str]) -> dict:
    """`accuracy_by_group` of predictions by id, and how their answers were parsed.

    "parsing": {kind: share of predictions}. "by_parsing": {kind: A} overall, if only answers
    parsed as that kind or a stricter one count.
    """
    parsed = [replies.parse_choice(predictions[i.id], i.options) for i in items]
    hits = np.array([a == i.answer for (a, _), i in zip(parsed, items, strict=True)], bool)
    kinds = np.array([replies.KINDS.index(kind) for _, kind in parsed])
    parsing = {kind: float((kinds == k).mean()) for k, kind in enumerate(replies.KINDS)}
    by_kind = {kind: accuracy(hits & (kinds <= k)) for k, kind in enumerate(replies.KINDS[:-1])}
    return accuracy_by_group(items, hits) | {"parsing": parsing, "by_parsing": by_kind}


def chance_scores(items: Sequence[suite.Item]) -> dict:
    """The expected `accuracy_by_group` of random letters: 0.25 everywhere, without an interval."""
    constant = {"accuracy": CHANCE, "low": CHANCE, "high": CHANCE}
    return _by_group(items, lambda mask: constant | {"items": int(mask.sum())})


def paired_difference(
    items: Sequence[suite.Item],
    a: Mapping[str, str],
    b: Mapping[str, str],
    *,
    samples: int = 2000,
    seed: int = 0,
) -> dict:
    """Difference in accuracy of predictions `a` and `b` (a minus b) on the same items.

    Returns {"difference", "low", "high", "items"}: shares, 95 % interval. Scenes and source
    recordings are both resampled (pigeonhole bootstrap, Owen 2007): an item's weight is the
    multiplicity of its scene times those of its sources' recordings, so that neither a scene with
    many items nor one easy recording counts as independent evidence. The interval is conservative.
    """
    difference = correctness(items, a).astype(float) - correctness(items, b)
    scene_ids = {s: n for n, s in enumerate(dict.fromkeys(i.scene["id"] for i in items))}
    scene = np.array([scene_ids[i.scene["id"]] for i in items])
    # The weight depends on the scene alone, so sums per scene suffice.
    total = np.bincount(scene, difference, len(scene_ids))
    count = np.bincount(scene, minlength=len(scene_ids)).astype(float)
    by_scene = {i.scene["id"]: sorted(set(i.recordings)) for i in items}
    recordings = {r: n for n, r in enumerate(sorted({r for rs in by_scene.values() for r in rs}))}
    most = max(len(rs) for rs in by_scene.values())
    # Rows are padded with an extra recording, whose multiplicity is always one.
    member = np.full((len(scene_ids), most), len(recordings))
    for row, name in enumerate(scene_ids):
        member[row, : len(by_scene[name])] = [recordings[r] for r in by_scene[name]]

    rng = keys.rng(seed, "paired")
    estimates = []
    for start in range(0, samples, 250):
        r = min(250, samples - start)
        weight = rng.multinomial(len(count), np.full(len(count), 1 / len(count)), r)
        drawn = rng.multinomial(len(recordings), np.full(len(recordings), 1 / len(recordings)), r)
        drawn = np.concatenate([drawn, np.ones((r, 1), drawn.dtype)], axis=1)
        weight = weight * drawn[:, member].prod(axis=2)
        weight_sum = weight @ count
        estimates.append((weight @ total)[weight_sum > 0] / weight_sum[weight_sum > 0])
    low, high = np.percentile(np.concatenate(estimates), [2.5, 97.5])
    return {
        "difference": float(difference.mean()),
        "low": float(low),
        "high": float(high),
        "items": len(items),
    }


def read_predictions(path: str | Path, items: Sequence[suite.Item]) -> dict[str, str]:
    """Reads predictions.jsonl ({"id", "answer"} a line) and checks it against `items`.

    Raises ConfigError naming the first unknown, repeated or missing id.
    """
    ids = {i.id for i in items}
    predictions: dict[str, str] = {}
    for n, line in suite.read_lines(path):
        place = f"{path}:{n}"
        if not all(isinstance(line.get(name), str) for name in ("id", "answer")):
            raise ConfigError(f"{place}: {str(line)[:60]}, expected id and answer, both strings")
        if line["id"] not in ids:
            raise ConfigError(f"{place}: id {line['id']!r} is not in the benchmark")
        if line["id"] in predictions:
            raise ConfigError(f"{place}: id {line['id']!r} is there twice, expected once")
        predictions[line["id"]] = line["answer"]
    missing = [i.id for i in items if i.id not in predictions]
    if missing:
        raise ConfigError(
            f"{path}: {len(missing)} of {len(items)} items have no answer, the first {missing[0]}"
        )
    return predictions


def score_file(predictions: str | Path, benchmark_folder: str | Path) -> dict:
    """`score` of any system's predictions.jsonl on a suite."""
    items = suite.load(benchmark_folder)
    return score(items, read_predictions(predictions, items))


def format_table(systems: Mapping[str, Mapping]) -> str:
    """Accuracies by group of systems, as text for a terminal."""
    groups = ("overall", *LEVELS)
    width = max(len("system"), *map(len, systems))
    rows: list[list[str]] = [["system", *groups]]
    rows += [[name, *(_cell(a.get(group)) for group in groups)] for name, a in systems.items()]
    lines = ["  ".join([row[0].ljust(width), *(c.ljust(14) for c in row[1:])]) for row in rows]
    return "\n".join(["Accuracy in %, with 95 % intervals.", *map(str.rstrip, lines)])


def _cell(a: Mapping | None) -> str:
    if a is None or a["accuracy"] is None:
        return "-"
    return f"{100 * a['accuracy']:5.1f} ({100 * a['low']:.0f}-{100 * a['high']:.0f})"
