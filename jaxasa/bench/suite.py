"""Benchmark suites: four-option items over fixed renders, written once and scored by anyone.

A suite is a folder: `audio/*.flac` (4 channels W, Y, Z, X in SN3D, or 2 ears; 16 bit, 16 kHz),
`metadata.jsonl` (one item a line), `card.md` (what it holds, for people) and `manifest.json`
(counts, classes, takes, SHA-256 of every file). It appears under its name only when whole.

Items are chosen so that the question alone tells nothing: within a task the right answers'
texts are equally common as far as the scenes allow, each letter is right equally often for
each text, and a reader of texts alone is trained and scored on the two halves (`leak`).
"""

import collections
import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from jaxasa import config
from jaxasa.acoustics import keys
from jaxasa.bench import card
from jaxasa.config import ConfigError
from jaxasa.data import questions, records, sounds
from jaxasa.data.progress import progress

RATE = 16_000
DIRECTION_SHARE = 0.55  # least share of each level's items to which direction matters
PER_SCENE = 2  # items of one task on one scene
_DRAWS = 6  # questions tried for each task on each scene
_SLACK = 0.1  # a right answer's text may be so much more common than an equal share


@dataclass(frozen=True)
class Item:
    """A line of metadata.jsonl. `file` is the audio's path, `scene` its description."""

    id: str
    level: str
    task: str
    question: str
    options: tuple[str, str, str, str]
    answer: str
    direction: bool
    scene: dict
    file: Path

    @property
    def answer_text(self) -> str:
        return self.options[questions.LETTERS.index(self.answer)]

    @property
    def takes(self) -> tuple[tuple[str, str], ...]:
        """(class, take) of each source: what a resample over recordings draws."""
        return tuple((s["class"], s["take"]) for s in self.scene["sources"])

    def audio(self) -> np.ndarray:
        """Reads the render: int16 [N, 4] (W Y Z X) or [N, 2] (ears), 16 kHz; else ConfigError."""
        try:
            audio, rate = soundfile.read(self.file, dtype="int16", always_2d=True)
        except (soundfile.SoundFileError, OSError) as error:
            raise ConfigError(f"{self.file}: cannot be read ({error}), expected FLAC") from None
        if audio.shape[1] not in (2, 4) or rate != RATE:
            raise ConfigError(
                f"{self.file}: {audio.shape[1]} channels at {rate} Hz, expected 4 or 2 at {RATE} Hz"
            )
        return audio


def quotas(bench: config.Bench) -> dict[str, int]:
    """Items of each task: equal within a level, or 55 % to those on which direction bears."""
    counts = {}
    for level, total in zip(questions.LEVELS, (bench.l1, bench.l2, bench.l3), strict=True):
        names = [t.__name__ for t in questions.TASKS[level]]
        spatial = [n for n in names if n not in questions.WITHOUT_DIRECTION]
        other = [n for n in names if n in questions.WITHOUT_DIRECTION]
        share = max(DIRECTION_SHARE, len(spatial) / len(names))
        for group, items in (
            (spatial, math.ceil(total * share - 1e-9)),
            (other, total - math.ceil(total * share - 1e-9)),
        ):
            for i, name in enumerate(group):
                counts[name] = items // len(group) + (i < items % len(group))
    return {name: counts[name] for name in questions.LEVEL_OF}


def choose(
    scenes: Sequence[dict], classes: Sequence[str], bench: config.Bench, seed: int, split: str
) -> list[tuple[int, questions.Question]]:
    """Draws the items: (index into `scenes`, question), in order of level and task.

    Raises ConfigError, saying how many scenes are needed, where these cannot give the counts.
    """
    load = np.zeros(len(scenes), int)
    chosen: list[tuple[int, questions.Question]] = []
    for task, quota in quotas(bench).items():
        candidates = _candidates(scenes, classes, task, seed, split)
        rng = keys.rng(seed, "benchmark", split, task)
        picked = _pick(candidates, quota, load, rng)
        if len(picked) < quota:
            need = math.ceil(1.1 * len(scenes) * quota / max(len(picked), 1))
            raise ConfigError(
                f"Scenes.{split} is {len(scenes)}, expected about {need}: task {task} has "
                f"{len(picked)} balanced items in these scenes, and the suite asks for {quota}"
            )
        # Sorting by answer, then dealing letters in turn, balances them within each answer too.
        for index, question in sorted(picked, key=lambda p: (p[1].answer_text, p[0])):
            letter = questions.LETTERS[len(chosen) % 4]
            chosen.append((index, _with_letter(question, letter)))
    return chosen


def _candidates(scenes, classes, task: str, seed: int, split: str):
    """Distinct questions of a task on every scene, shuffled by scene."""
    found = []
    for index, scene in enumerate(scenes):
        rng = keys.rng(seed, "benchmark", split, task, index)
        asked = (questions.ask(scene, classes, rng, task=task) for _ in range(_DRAWS))
        # One trace is one derivation: wordings and wrong options aside, the same question.
        distinct = {q.trace: q for q in asked if q is not None}
        found += [(index, q) for q in distinct.values()]
    return found


def _pick(candidates, quota: int, load: np.ndarray, rng: np.random.Generator):
    """Up to `quota` candidates: the rarest answer next, from the scene with the fewest items."""
    by_text = collections.defaultdict(list)
    for i in rng.permutation(len(candidates)):
        by_text[candidates[i][1].answer_text].append(candidates[i])
    share = quota / max(len(by_text), 1)
    most = math.ceil(share) + max(1, round(_SLACK * share))
    taken: collections.Counter[str] = collections.Counter()
    here: collections.Counter[int] = collections.Counter()
    picked: list[tuple[int, questions.Question]] = []
    while len(picked) < quota:
        open_texts = [t for t in by_text if by_text[t] and taken[t] < most]
        if not open_texts:
            break
        text = min(open_texts, key=lambda t: taken[t])
        best = min(range(len(by_text[text])), key=lambda i: load[by_text[text][i][0]])
        index, question = by_text[text].pop(best)
        if here[index] >= PER_SCENE:
            continue
        here[index] += 1
        load[index] += 1
        taken[text] += 1
        picked.append((index, question))
    return picked


def _with_letter(question: questions.Question, letter: str) -> questions.Question:
    options = [o for o in question.options if o != question.answer_text]
    options.insert(questions.LETTERS.index(letter), question.answer_text)
    a, b, c, d = options
    return dataclasses.replace(question, options=(a, b, c, d), answer=letter)


def leak(items: Sequence, key: str = "task") -> dict[str, float]:
    """Accuracy by level of guessing from texts alone: chance is 0.25.

    For each option's text, given the item's `key` ("task" or "question"), it learns on one half
    of the scenes how often that text was right when offered, picks the best option of each
    item of the other half (ties share), and swaps the halves.
    """
    scenes = sorted({i.scene["id"] for i in items})
    order = keys.rng(0, "leak").permutation(len(scenes))
    half = {scenes[s]: n % 2 for n, s in enumerate(order)}
    right: collections.Counter[tuple] = collections.Counter()
    shown: collections.Counter[tuple] = collections.Counter()
    for i in items:
        for option in i.options:
            at = (half[i.scene["id"]], getattr(i, key), option)
            shown[at] += 1
            right[at] += option == i.answer_text
    hits: dict[str, list[float]] = {}
    for i in items:
        others = [(1 - half[i.scene["id"]], getattr(i, key), option) for option in i.options]
        rates = [(right[at] + 0.25) / (shown[at] + 1) for at in others]
        best = [o for o, r in zip(i.options, rates, strict=True) if r >= max(rates) - 1e-12]
        hits.setdefault(i.level, []).append((i.answer_text in best) / len(best))
    return {level: float(np.mean(hits[level])) for level in sorted(hits)}


def build(
    run: config.Run,
    bank_folder: str | Path,
    records_folder: str | Path,
    folder: str | Path,
    split: str = "benchmark",
) -> list[Item]:
    """Writes the suite of `split` ("benchmark" or "dev") into `folder` and returns its items.

    bank_folder: the sound bank, for class names and the takes of each split. records_folder:
    the rendered scenes of `split`. A suite made before from the same config and scenes is kept.
    Raises ConfigError where the scenes are too few, or hold takes of another split.
    """
    folder = Path(folder)
    config.check(split in ("benchmark", "dev"), "split", split, "benchmark or dev")
    source = records.Records(records_folder)
    stamp = _stamp(run, Path(records_folder), split, len(source))
    if (folder / "manifest.json").is_file() and manifest(folder).get("made_from") == stamp:
        return load(folder)
    bank = sounds.Bank.load(bank_folder)
    scenes = [source[i][1] for i in range(len(source))]
    takes = bank_takes(bank)
    _check_takes(scenes, takes, "test" if split == "benchmark" else "dev")
    chosen = choose(scenes, bank.classes, run.bench, run.seed, split)

    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "audio").mkdir(parents=True)
    used = sorted({index for index, _ in chosen})
    with progress(f"writing the {split} suite", len(used), "scenes") as advance:
        for index in used:
            path = temporary / _file_name(scenes[index])
            soundfile.write(path, source[index][0], RATE, subtype="PCM_16", format="FLAC")
            advance(1)
    items = _items(chosen, scenes, temporary)
    lines = "".join(json.dumps(_line(item)) + "\n" for item in items)
    (temporary / "metadata.jsonl").write_text(lines, encoding="utf-8")
    facts = {
        "split": split,
        "seed": run.seed,
        "sounds": bank.name,
        "items": len(items),
        "levels": dict(collections.Counter(i.level for i in items)),
        "scenes": len(used),
        "seconds": scenes[used[0]]["seconds"],
        "channels": int(source[used[0]][0].shape[1]),
        "classes": list(bank.classes),
        "takes": {s: {c: len(t) for c, t in by.items()} for s, by in takes.items()},
        "leak": {"task": leak(items, "task"), "question": leak(items, "question")},
        "made_from": stamp,
    }
    _check_direction(items)
    (temporary / "card.md").write_text(card.text(items, facts), encoding="utf-8")
    facts["files"] = {
        str(p.relative_to(temporary)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(temporary.rglob("*"))
        if p.is_file()
    }
    facts["sha256"] = hashlib.sha256(json.dumps(facts["files"]).encode()).hexdigest()
    (temporary / "manifest.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    return load(folder)


def _stamp(run: config.Run, records_folder: Path, split: str, count: int) -> str:
    path = records_folder / "manifest.json"
    parts = {
        "counts": [run.bench.l1, run.bench.l2, run.bench.l3],
        "seed": run.seed,
        "split": split,
        "scenes": count,
        "records": hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None,
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def bank_takes(bank) -> dict[str, dict[str, set[str]]]:
    """The takes of a sound bank: split -> class -> takes."""
    takes: dict[str, dict[str, set[str]]] = {}
    for split in ("train", "dev", "test"):
        by_class = takes.setdefault(split, {c: set() for c in bank.classes})
        for clip in bank.clips(split):
            by_class[clip.label].add(clip.take)
    return takes


def _check_takes(scenes, takes, own: str) -> None:
    """A dry recording of this suite must be in no other split."""
    for scene in scenes:
        for s in scene["sources"]:
            for split, by_class in takes.items():
                if (s["take"] in by_class.get(s["class"], ())) != (split == own):
                    raise ConfigError(
                        f"scene {scene['id']}: take {s['take']!r} of {s['class']} is "
                        f"{'in' if split != own else 'not in'} the {split} split of the sound "
                        f"bank, expected only takes of {own}"
                    )


def _check_direction(items: Sequence[Item]) -> None:
    for level in questions.LEVELS:
        kinds = [i.direction for i in items if i.level == level]
        share = sum(kinds) / len(kinds)
        expected = f"at least {DIRECTION_SHARE} of the items of {level}"
        config.check(share >= DIRECTION_SHARE, "direction", share, expected)


def _file_name(scene: dict) -> str:
    return f"audio/{scene['id'].replace('/', '-')}.flac"


def _items(chosen, scenes, folder: Path) -> list[Item]:
    counters: collections.Counter[str] = collections.Counter()
    items = []
    for index, q in chosen:
        counters[q.task] += 1
        items.append(
            Item(
                id=f"{q.level}-{q.task}-{counters[q.task]:03d}",
                level=q.level,
                task=q.task,
                question=q.question,
                options=q.options,
                answer=q.answer,
                direction=q.direction,
                scene=scenes[index],
                file=folder / _file_name(scenes[index]),
            )
        )
    return items


def _line(item: Item) -> dict:
    names = ("id", "level", "task", "question", "direction", "options", "answer", "scene")
    return {"file_name": _file_name(item.scene)} | {n: getattr(item, n) for n in names}


def manifest(folder: str | Path) -> dict:
    """The suite's manifest.json. Raises ConfigError where there is none."""
    return _json(Path(folder) / "manifest.json", "a suite written by `jaxasa bench build`")


def _json(path: Path, expected: str) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problem = "is not JSON" if isinstance(error, ValueError) else "cannot be read"
        raise ConfigError(f"{path}: {problem}, expected {expected}") from None


def load(folder: str | Path) -> list[Item]:
    """Reads a suite's items, in the order of metadata.jsonl; audio is read when asked for.

    Raises ConfigError naming the file and line of what is missing or malformed.
    """
    folder = Path(folder)
    path = folder / "metadata.jsonl"
    items = [_item(folder, line, f"{path}:{n}") for n, line in read_lines(path)]
    ids = collections.Counter(i.id for i in items)
    double = next((i for i, n in ids.items() if n > 1), None)
    config.check(double is None, f"{path}: id", double, "each id once")
    config.check(len(items) > 0, str(path), "empty", "one item a line")
    return items


def read_lines(path: str | Path) -> list[tuple[int, dict]]:
    """The JSON objects of a JSONL file with their line numbers; raises ConfigError by line."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}), expected JSON lines") from None
    found = []
    for n, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ConfigError(f"{path}:{n}: {line[:60]!r}, expected a JSON object")
        found.append((n, value))
    return found


def _item(folder: Path, line: Mapping, where: str) -> Item:
    names = ("id", "level", "task", "question", "options", "answer", "direction", "scene")
    missing = [n for n in (*names, "file_name") if n not in line]
    config.check(not missing, where, missing, "a line with these fields too")
    values = {n: line[n] for n in names} | {"options": tuple(line["options"])}
    config.check(len(values["options"]) == 4, f"{where}: options", values["options"], "4 options")
    ok = values["answer"] in tuple(questions.LETTERS)
    config.check(ok, f"{where}: answer", values["answer"], "A, B, C or D")
    return Item(**values, file=folder / line["file_name"])
