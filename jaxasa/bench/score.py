"""Scores: answers read from text, accuracy with intervals, paired differences.

A prediction is free text. Its answer is read strictly (exactly one `<answer>B</answer>`),
leniently (a letter standing alone, said to be the answer, or heading an option) or as an
option's text; what reads as two answers, or none, is wrong. Reasoning (`<think>…</think>`)
is never read for an answer.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxasa.bench import suite
from jaxasa.config import ConfigError
from jaxasa.core import keys
from jaxasa.data.questions import LETTERS

KINDS = ("strict", "lenient", "text", "none")
CHANCE = 0.25
_Z = 1.959963984540054  # standard normal, 97.5 %
_THINK = re.compile(r"<think>.*?(</think>|$)", re.DOTALL)
_THOUGHT = re.compile(r"<think>(.*?)(?:</think>|<answer>|$)", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL)
_ALONE = re.compile(r"[(\[]?([A-Da-d])[)\].:]*")
_HEADING = re.compile(r"[(\[]?([A-D])[)\].:]+\s+(.+)", re.DOTALL)
_SAID = re.compile(r"\b(?:answer|option)(?:\s+is)?\s*:?\s*[(\[]?([A-D])\b", re.IGNORECASE)


def parse_answer(text: str, options: Sequence[str]) -> tuple[str | None, str]:
    """Reads the answer: (letter or None, one of KINDS)."""
    outside, blocks = _THINK.sub(" ", text), answer_spans(text)
    closed = "<answer>" in outside and "</answer>" in outside
    if len(blocks) == 1 and blocks[0] in tuple(LETTERS) and closed:
        return blocks[0], "strict"
    found = {_read(b, options) for b in blocks}
    return found.pop() if len(found) == 1 else (None, "none")


def reasoning_of(text: str) -> str:
    """The reasoning in a reply, up to where it ends or an answer begins; "" where there is none."""
    found = _THOUGHT.search(text)
    return found[1].strip() if found else ""


def answer_spans(text: str) -> list[str]:
    """Where an answer stands: what is in `<answer>` tags, or else all but the reasoning."""
    outside = _THINK.sub(" ", text)
    return [b.strip() for b in _ANSWER.findall(outside)] or [outside.strip()]


def _read(text: str, options: Sequence[str]) -> tuple[str | None, str]:
    """The answer in one stretch of text, without tags."""
    alone = _ALONE.fullmatch(text)
    if alone:
        return alone[1].upper(), "lenient"
    option = single_option_match(text, options)
    named = None if option is None else LETTERS[options.index(option)]
    heading = _HEADING.fullmatch(text)
    said = {m.upper() for m in _SAID.findall(text) if m.isupper()}
    letters = {heading[1]} if heading else said
    if len(letters) == 1:
        letter = letters.pop()
        # "B. left" where left is option C names two answers.
        return (letter, "lenient") if named in (None, letter) else (None, "none")
    return (named, "text") if named and not letters else (None, "none")


def single_option_match(text: str, options: Sequence[str]) -> str | None:
    """The one option whose text stands in `text` as whole words, else None."""
    rest, found = text.lower(), set()
    # Longest first, each cut out when found: "front-left" does not also name "left".
    for option in sorted(options, key=lambda o: -len(o)):
        pattern = rf"(?<![\w-]){re.escape(option.lower())}(?![\w-])"
        rest, count = re.subn(pattern, "|", rest)
        if count:
            found.add(option)
    return found.pop() if len(found) == 1 else None


def wilson_interval(right, items) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95 % interval of a share (1927, eq. 4): low and high, shaped as the inputs."""
    right, items = np.asarray(right, float), np.asarray(items, float)
    share, z2 = right / items, _Z**2 / items
    centre = (share + z2 / 2) / (1 + z2)
    half = np.sqrt(share * (1 - share) * z2 + z2**2 / 4) / (1 + z2)
    # Exact at the ends, where rounding would leave 1e-17 of a share.
    low = np.where(right == 0, 0.0, centre - half)
    return low, np.where(right == items, 1.0, centre + half)


def accuracy(correct: np.ndarray) -> dict:
    """A = {"accuracy", "low", "high", "items"} of a bool vector."""
    n = len(correct)
    if n == 0:
        return {"accuracy": None, "low": None, "high": None, "items": 0}
    low, high = wilson_interval(correct.sum(), n)
    return {
        "accuracy": float(correct.mean()),
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
    """bool [items]: whether each item's prediction reads as its answer."""
    return np.array([parse_answer(predictions[i.id], i.options)[0] == i.answer for i in items], bool)


def accuracy_by_group(items: Sequence[suite.Item], right: np.ndarray) -> dict:
    """{"overall": A, "L1": A, ..., "tasks": {task: A}, "direction": {"yes": A, "no": A}} with
    A = {"accuracy", "low", "high", "items"}, of what is `right`, bool [items]."""
    result: dict = {"tasks": {}, "direction": {}}
    for name, mask in group_masks(items).items():
        kind, _, rest = name.partition("/")
        target = {"task": result["tasks"], "direction": result["direction"]}.get(kind, result)
        target[rest or name] = accuracy(right[mask])
    return result


def score(items: Sequence[suite.Item], predictions: Mapping[str, str]) -> dict:
    """`accuracy_by_group` of predictions by id, and how they were read.

    "parsing": {kind: share}. "read": {kind: A} overall, where only answers that read so or more
    strictly count: letters in their tags, then letters anywhere, then options' texts too.
    """
    read = [parse_answer(predictions[i.id], i.options) for i in items]
    right = np.array([a == i.answer for (a, _), i in zip(read, items, strict=True)], bool)
    kinds = np.array([KINDS.index(kind) for _, kind in read])
    parsing = {kind: float((kinds == k).mean()) for k, kind in enumerate(KINDS)}
    by_kind = {kind: accuracy(right & (kinds <= k)) for k, kind in enumerate(KINDS[:-1])}
    return accuracy_by_group(items, right) | {"parsing": parsing, "read": by_kind}


def chance_scores(items: Sequence[suite.Item]) -> dict:
    """What `score` expects of random letters: 0.25 everywhere, without an interval."""
    fixed = {"accuracy": CHANCE, "low": CHANCE, "high": CHANCE}
    result: dict = {"tasks": {}, "direction": {}}
    for name, mask in group_masks(items).items():
        kind, _, rest = name.partition("/")
        target = {"task": result["tasks"], "direction": result["direction"]}.get(kind, result)
        target[rest or name] = fixed | {"items": int(mask.sum())}
    return result


def paired_difference(
    items: Sequence[suite.Item],
    a: Mapping[str, str],
    b: Mapping[str, str],
    *,
    samples: int = 2000,
    seed: int = 0,
) -> dict:
    """Difference in accuracy of predictions `a` over `b` on the same items.

    Returns {"difference", "low", "high", "items"}, shares, 95 %. Scenes and recordings are both
    resampled (pigeonhole bootstrap, Owen 2007): an item weighs the product of its scene's
    multiplicity and its sources' recordings', so that neither crowded scenes nor one easy recording
    pass for evidence. It errs on the wide side.
    """
    difference = correctness(items, a).astype(float) - correctness(items, b)
    scene_ids = {s: n for n, s in enumerate(dict.fromkeys(i.scene["id"] for i in items))}
    scene = np.array([scene_ids[i.scene["id"]] for i in items])
    # Items enter by their scene alone, so sums per scene suffice.
    total = np.bincount(scene, difference, len(scene_ids))
    count = np.bincount(scene, minlength=len(scene_ids)).astype(float)
    by_scene = {i.scene["id"]: sorted(set(i.recordings)) for i in items}
    recordings = {t: n for n, t in enumerate(sorted({t for ts in by_scene.values() for t in ts}))}
    most = max(len(ts) for ts in by_scene.values())
    member = np.full((len(scene_ids), most), len(recordings))  # last: multiplicity 1
    for row, name in enumerate(scene_ids):
        member[row, : len(by_scene[name])] = [recordings[t] for t in by_scene[name]]

    rng = keys.rng(seed, "paired")
    estimates = []
    for start in range(0, samples, 250):
        r = min(250, samples - start)
        weight = rng.multinomial(len(count), np.full(len(count), 1 / len(count)), r)
        drawn = rng.multinomial(len(recordings), np.full(len(recordings), 1 / len(recordings)), r)
        drawn = np.concatenate([drawn, np.ones((r, 1), drawn.dtype)], axis=1)
        weight = weight * drawn[:, member].prod(axis=2)
        items_drawn = weight @ count
        estimates.append((weight @ total)[items_drawn > 0] / items_drawn[items_drawn > 0])
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
    known = {i.id for i in items}
    found: dict[str, str] = {}
    for n, line in suite.read_lines(path):
        where = f"{path}:{n}"
        if "id" not in line or not isinstance(line.get("answer"), str):
            raise ConfigError(f"{where}: {str(line)[:60]}, expected id and answer, both texts")
        if line["id"] not in known:
            raise ConfigError(f"{where}: id {line['id']!r} is not in the benchmark")
        if line["id"] in found:
            raise ConfigError(f"{where}: id {line['id']!r} is there twice, expected once")
        found[line["id"]] = line["answer"]
    missing = [i.id for i in items if i.id not in found]
    if missing:
        raise ConfigError(
            f"{path}: {len(missing)} of {len(items)} items have no answer, the first {missing[0]}"
        )
    return found


def score_file(predictions: str | Path, benchmark_folder: str | Path) -> dict:
    """`score` of any system's predictions.jsonl on a suite."""
    items = suite.load(benchmark_folder)
    return score(items, read_predictions(predictions, items))
