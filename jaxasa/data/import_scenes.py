"""Other people's data sets as ours: `jaxasa import LAYOUT SOURCE OUT`.

    dcase   DCASE/STARSS23: windows of recordings, their events, and four-option questions on
            the windows whose sounds stand still and have a class each (data/dcase.py)
    so      SO-Dataset: one split's sounds with their questions (data/so_dataset.py)
    jsonl   a file with a sound's path, a question and its answer on each line (same file)

OUT is a data set of data/records.py (16 kHz, W Y Z X, SN3D) with one file more,
questions.jsonl: on each line "record" (a number in the data set), "id", "seconds", "question",
"answer" (text), and where known "options" (four), "level", "task", "trace". What cannot be
used, a sound with other than four channels for one, is named and counted in the manifest, and
does not stop the rest. OUT appears only when whole.

    from jaxasa.data import convert

    made = convert.convert("so", "SO-Dataset", "runs/so", split="train")
    print(len(made), made.manifest["questions"], made.manifest["reasons"])
"""

import dataclasses
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxasa import config
from jaxasa.acoustics import foa
from jaxasa.config import ConfigError, check
from jaxasa.core import keys
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.core.files import atomic_path
from jaxasa.core.progress import progress
from jaxasa.data import dcase, foa_file, questions, records, so_dataset

VERSION = 1
QUESTIONS = "questions.jsonl"
LAYOUTS = ("dcase", "so", "jsonl")
SHARD = 200
PER_WINDOW = 6  # questions
MOST = 3  # sources of a window that is asked about
NAMELESS = "-"  # a class whose sounds no question may be about
STILL = 15.0  # degrees: a sound that moves less has one place
LAST = 0.5  # of the last window of a recording that must be there


@dataclass(frozen=True)
class Item:
    """A stretch of a sound file (seconds; None: all of it) with what is known of it.

    scene: "sources" as in acoustics/scenes.describe, so far as they are known.
    """

    id: str
    audio: Path
    sources: tuple[dict, ...] = ()
    questions: tuple[dict, ...] = ()
    start: float = 0.0
    seconds: float | None = None


def convert(
    layout: str,
    source: Path | str,
    out: Path | str,
    split: str | None = None,
    order: str = "ambix",
    seconds: float | None = None,
    classes: Sequence[str] | None = None,
) -> records.Records:
    """Converts the data set `source` into the new folder `out`, or opens what is there already.

    split: for so, a file in qa/ (default train); for dcase, a part of the names to take
    ("fold4", "dev-test"). order: channels, see foa_file.read. seconds: of a dcase
    window (10). classes: names by number, where annotations have numbers; of dcase one name may
    stand for several, and windows with a sound of a class "-" are left out. Raises `ConfigError`
    for a layout that is not there, an argument that it has no use for, nothing usable, and an
    `out` of other content.
    """
    check(layout in LAYOUTS, "layout", layout, "one of " + ", ".join(LAYOUTS))
    if layout != "dcase":
        check(seconds is None, "seconds", seconds, f"none with the layout {layout}")
    seconds = 10.0 if seconds is None else seconds
    check(0.5 <= seconds <= 3600, "seconds", seconds, "from 0.5 to 3600")
    seconds = round(seconds / dcase.FRAME) * dcase.FRAME
    foa.from_convention(np.zeros((0, 4)), order)  # raises for a name that does not exist
    source, out = Path(source), Path(out)
    refused: dict[str, str] = {}
    if layout == "dcase":
        names = tuple(classes or dcase.classes_of(source))
        items = list(_windows(source, split, seconds, names, refused))
    elif layout == "so":
        items = _items(so_dataset.read(source, split or "train", classes, refused))
    else:
        check(split is None, "split", split, "none with the layout jsonl")
        check(classes is None, "classes", classes, "none with the layout jsonl")
        items = _items(so_dataset.read_jsonl(source, refused))
    key = _key(layout, order, items)
    if out.exists():
        if records.read_manifest(out).get("key") != key:
            raise ConfigError(f"{out} holds another data set, expected a new folder")
        return records.Records(out)
    with atomic_path(out) as temporary:
        temporary.mkdir(parents=True)
        meta = {"version": VERSION, "format": "records", "layout": layout, "key": key}
        if layout == "dcase":
            meta["classes"] = sorted(set(names) - {NAMELESS})
        _write(items, temporary, order, meta, refused)
    return records.Records(out)


def _items(found: dict[Path, tuple[list[dict], list[dict]]]) -> list[Item]:
    """One item a sound file, from {path: (sources, questions)}."""
    names = Counter(path.stem for path in found)
    return [
        # Names are short where they are unique.
        Item(
            path.stem if names[path.stem] == 1 else path.as_posix(), path, tuple(heard), tuple(rows)
        )
        for path, (heard, rows) in found.items()
    ]


def _key(layout: str, order: str, items: Sequence[Item]) -> str:
    digest = hashlib.sha256(json.dumps([VERSION, layout, order]).encode())
    for item in items:
        stat = item.audio.stat() if item.audio.is_file() else None
        stamp = [stat.st_size, stat.st_mtime_ns] if stat else None
        row = [stamp, *dataclasses.astuple(dataclasses.replace(item, audio=None))]
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def _write(
    items: Sequence[Item], folder: Path, order: str, meta: dict, refused: dict[str, str]
) -> None:
    entries = []
    asked = 0
    with (
        progress(f"importing {meta['layout']}", len(items), "recordings") as advance,
        open(folder / QUESTIONS, "w", encoding="utf-8") as lines,
    ):
        made = _heard(items, order, refused, advance)
        for k in itertools.count():
            first = next(made, None)
            if first is None:
                break
            shard = [first, *itertools.islice(made, SHARD - 1)]
            for position, (item, audio) in enumerate(shard):
                about = {
                    "record": k * SHARD + position,
                    "id": item.id,
                    "seconds": round(len(audio) / SAMPLE_RATE, 4),
                }
                for row in item.questions:
                    lines.write(json.dumps(about | row, ensure_ascii=False) + "\n")
                    asked += 1
            path = folder / f"{meta['layout']}-{k:05d}.array_record"
            entries.append(
                records.write_shard(path, ((audio, _scene(item, audio)) for item, audio in shard))
            )
    if not entries:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(refused.items())[:3])
        raise ConfigError(f"nothing to import: {len(refused)} refused ({reasons or 'no rows'})")
    facts = {
        "rate": SAMPLE_RATE,
        "channels": "W Y Z X, ACN, SN3D",
        "questions": asked,
        "reasons": dict(sorted(Counter(refused.values()).items())),
        "refused": refused,
    }
    records.write_manifest(folder, meta | facts, entries)


def _scene(item: Item, audio: np.ndarray) -> dict:
    return {"id": item.id, "seconds": len(audio) / SAMPLE_RATE, "sources": list(item.sources)}


def _heard(
    items, order: str, refused: dict[str, str], advance
) -> Iterator[tuple[Item, np.ndarray]]:
    """Yields items with their int16 audio [N, 4]; a file with several windows is read once."""
    path, whole = None, None
    for item in items:
        advance(1)
        if item.audio != path:
            path = item.audio
            whole = _read(path, order, refused)
        if whole is None:
            continue
        start = round(item.start * SAMPLE_RATE)
        end = len(whole) if item.seconds is None else start + round(item.seconds * SAMPLE_RATE)
        yield item, whole[start:end]


def _read(path: Path, order: str, refused: dict[str, str]) -> np.ndarray | None:
    try:
        audio = foa_file.read(path, order)
    except ConfigError as error:
        refused[path.as_posix()] = _reason(error, path)
        return None
    return records.to_int16(audio / max(1.0, float(np.abs(audio).max())))


def _reason(error: ConfigError, *paths: Path | None) -> str:
    """What is wrong without the file's name, which stands beside it."""
    text = str(error)
    for path in paths:
        text = text.replace(str(path), "").strip(": ") if path else text
    return text


def _windows(
    root: Path, part: str | None, seconds: float, classes: Sequence[str], refused: dict[str, str]
) -> Iterator[Item]:
    """Windows of the recordings of a DCASE set, those with metadata, one after another."""
    for recording in dcase.listing(root):
        if part is not None and part not in recording.name:
            continue
        try:
            if recording.metadata is None:
                raise ConfigError("no metadata file")
            rows = dcase.read(recording.metadata)
            length = foa_file.seconds(recording.audio)
            dcase.events(rows, classes, length)  # raises for a class without a name
        except ConfigError as error:
            refused[recording.name] = _reason(error, recording.audio, recording.metadata)
            continue
        frames = round(seconds / dcase.FRAME)
        for k in range(int(length / seconds + 1 - LAST) or 1):
            heard = [r for r in rows if k * frames <= r.frame < (k + 1) * frames]
            shifted = [r._replace(frame=r.frame - k * frames) for r in heard]
            sources = dcase.events(shifted, classes, seconds)
            start = k * frames * dcase.FRAME
            name = f"{recording.name}@{start:g}"
            if any(s["class"] == NAMELESS for s in sources):
                refused[name] = "a sound of a class without a name"
                continue
            # Windows of one file are of one source recording.
            sources = [s | {"recording_id": recording.name} for s in sources]
            asked = _questions(sources, classes, name)
            yield Item(name, recording.audio, tuple(sources), tuple(asked), start, seconds)


def _questions(sources: Sequence[dict], classes: Sequence[str], name: str) -> list[dict]:
    """Questions of data/questions.py, on `askable` scenes in which all stands still."""
    if not askable(sources) or any(_spread(s) >= STILL for s in sources):
        return []
    classes = sorted(set(classes) - {NAMELESS})
    scene = {"sources": list(sources)}
    rng = keys.rng(0, "import", name)
    # Annotations err, too: no bearing near a boundary.
    which = config.Questions(training_margin=questions.MARGIN_DEG)
    drawn = questions.QuestionSampler(classes, which)(scene, rng, 2 * PER_WINDOW)
    distinct = {q.trace + q.task: q for q in drawn}
    return [
        {
            "question": q.question,
            "answer": q.answer_text,
            "options": list(q.options),
            "level": q.level,
            "task": q.task,
            "trace": q.trace,
        }
        for q in list(distinct.values())[:PER_WINDOW]
    ]


def askable(sources: Sequence[dict]) -> bool:
    """Whether a scene can be asked about: one to three sources, each of a class of its own."""
    return 1 <= len(sources) <= MOST and len({s["class"] for s in sources}) == len(sources)


def _spread(source: dict) -> float:
    """Degrees between the ends of what a source passes through, in azimuth or elevation."""
    path = source.get("trajectory")
    if path is None:
        return 0.0
    azimuth, elevation = np.array([place[:2] for place in path]).T
    turned = (azimuth - source["azimuth"] + 180) % 360 - 180
    return float(max(np.ptp(turned), np.ptp(elevation)))
