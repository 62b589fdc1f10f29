# SPDX-License-Identifier: Apache-2.0
"""Converts other data sets to jaxasa's records: `jaxasa import LAYOUT SOURCE OUT`.

    dcase   DCASE/STARSS23: windows of recordings, their events, and four-option questions on the
            windows in which sources do not move and have different classes (data/dcase.py)
    so      SO-Dataset: the sounds of one split with their questions (data/so_dataset.py)
    jsonl   a file with a sound's path, a question and its answer on each line (same file)

OUT is a data set of data/records.py (16 kHz, W Y Z X, SN3D) with a further file, questions.jsonl,
which has on each line "record" (a number in the data set), "id", "seconds", "question", "answer"
(text), and if known "options" (four), "level", "task", "trace". Sounds that cannot be used, for
example if they do not have four channels, are skipped and listed in the manifest. OUT appears
only when it is complete.

    from jaxasa.data import import_scenes

    data = import_scenes.convert("so", "SO-Dataset", "runs/so", split="train")
    print(len(data), data.manifest["questions"], data.manifest["reasons"])

Shapes: N samples
"""

import dataclasses
import hashlib
import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
from jaxasa.core.walk import text_of_name
from jaxasa.data import dcase, dcase_csv, foa_file, questions, records, so_dataset

VERSION = 2
QUESTIONS_FILE = "questions.jsonl"
LAYOUTS = ("dcase", "so", "jsonl")
RECORDS_PER_SHARD = 200
WINDOW_S = 10.0  # default length of the windows of a DCASE recording
MIN_LAST_WINDOW = 0.5  # part of the last window of a recording that must be there
QUESTIONS_PER_WINDOW = 6
MAX_SOURCES = 3  # in a window with questions
MAX_MOTION_DEG = 15.0  # in a window with questions: sources that move less count as still
UNNAMED_CLASS = "-"  # name of the classes about which there must be no question


@dataclass(frozen=True)
class Excerpt:
    """A part of a sound file (from `start`, `seconds` long; None: to its end) with its labels.

    sources: as in acoustics/scenes.describe, as far as they are known. questions: rows of
    questions.jsonl without the fields of the record.
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
    convention: str | None = None,
    seconds: float | None = None,
    classes: Sequence[str] | None = None,
    unit: str | None = None,
) -> records.Records:
    """Converts the data set `source` into the new folder `out`; opens it if it is there already.

    split: for so, a file in qa/ (default train); for dcase, the recordings with this in their name
    ("fold4", "dev-test"). convention: of the channels, see `foa_file.read_foa`. seconds: length of
    a dcase window (default 10). classes: class names by number, for annotations with numbers; for
    dcase a name may stand for several numbers, and windows with a class "-" are left out. unit: of
    the distances in a DCASE set or annotations, "m" or "cm"; None: as `dcase_csv.distance_unit`
    tells. What was assumed is printed on stderr, and is in the manifest ("notes"). Raises
    ConfigError for an unknown layout, an argument that does not apply to it, nothing usable, and
    an `out` with other content.
    """
    check(layout in LAYOUTS, "layout", layout, "one of " + ", ".join(LAYOUTS))
    if layout != "dcase":
        check(seconds is None, "seconds", seconds, f"none with the layout {layout}")
    seconds = WINDOW_S if seconds is None else seconds
    check(0.5 <= seconds <= 3600, "seconds", seconds, "from 0.5 to 3600")
    seconds = round(seconds / dcase_csv.FRAME_S) * dcase_csv.FRAME_S
    foa.to_ambix(np.zeros((0, 4)), convention or "ambix")  # raises for an unknown name
    source, out = Path(source), Path(out)
    refused: dict[str, str] = {}
    notes: list[str] = []
    if layout == "dcase":
        names = tuple(classes or dcase.class_names(source))
        excerpts = list(_windows(source, split, seconds, names, unit, refused, notes.append))
    elif layout == "so":
        expected = "none without class names of the annotations"
        check(unit is None or classes is not None, "unit", unit, expected)
        sounds = so_dataset.read_split(
            source, split or "train", classes, refused, unit, notes.append
        )
        excerpts = _whole_files(sounds)
    else:
        check(split is None, "split", split, "none with the layout jsonl")
        check(classes is None, "classes", classes, "none with the layout jsonl")
        check(unit is None, "unit", unit, "none with the layout jsonl")
        excerpts = _whole_files(so_dataset.read_jsonl(source, refused))
    for text in notes:
        print(f"{source}: {text}", file=sys.stderr)
    # Without a convention files are read as their headers state, so "ambix" is another data set.
    key = _key(
        layout, {None: "ambix", "ambix": "ambix alone"}.get(convention, convention), excerpts
    )
    if out.exists():
        if records.read_manifest(out).get("key") != key:
            raise ConfigError(f"{out} holds another data set, expected a new folder")
        return records.Records(out)
    meta = {"version": VERSION, "format": "records", "layout": layout, "key": key, "notes": notes}
    if layout == "dcase":
        meta["classes"] = sorted(set(names) - {UNNAMED_CLASS})
    with atomic_path(out) as folder:
        folder.mkdir(parents=True)
        _write(excerpts, folder, convention, meta, refused)
    return records.Records(out)


def _whole_files(sounds: so_dataset.SoundQuestions) -> list[Excerpt]:
    """One excerpt for each sound file, named by its stem if that is unique."""
    stems = Counter(path.stem for path in sounds)
    return [
        Excerpt(
            text_of_name(path.stem if stems[path.stem] == 1 else path.as_posix()),
            path,
            tuple(sources),
            tuple(rows),
        )
        for path, (sources, rows) in sounds.items()
    ]


def _key(layout: str, convention: str, excerpts: Sequence[Excerpt]) -> str:
    digest = hashlib.sha256(json.dumps([VERSION, layout, convention]).encode())
    for excerpt in excerpts:
        stat = excerpt.audio.stat() if excerpt.audio.is_file() else None
        stamp = [stat.st_size, stat.st_mtime_ns] if stat else None
        row = [stamp, *dataclasses.astuple(dataclasses.replace(excerpt, audio=None))]
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def _write(
    excerpts: Sequence[Excerpt],
    folder: Path,
    convention: str | None,
    meta: dict,
    refused: dict[str, str],
) -> None:
    entries = []
    num_questions = 0

    def note(text: str) -> None:  # once, whatever the number of files
        if text not in meta["notes"]:
            print(f"import: {text}", file=sys.stderr)
            meta["notes"].append(text)

    with (
        progress(f"importing {meta['layout']}", len(excerpts), "recordings") as advance,
        open(folder / QUESTIONS_FILE, "w", encoding="utf-8") as lines,
    ):
        pairs = _read_audio(excerpts, convention, refused, advance, note)
        for k in itertools.count():
            shard = list(itertools.islice(pairs, RECORDS_PER_SHARD))
            if not shard:
                break
            for position, (excerpt, audio) in enumerate(shard):
                record = {
                    "record": k * RECORDS_PER_SHARD + position,
                    "id": excerpt.id,
                    "seconds": round(len(audio) / SAMPLE_RATE, 4),
                }
                for row in excerpt.questions:
                    lines.write(json.dumps(record | row, ensure_ascii=False) + "\n")
                    num_questions += 1
            path = folder / f"{meta['layout']}-{k:05d}.array_record"
            scenes = ((audio, _description(excerpt, audio)) for excerpt, audio in shard)
            entries.append(records.write_shard(path, scenes))
    if not entries:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(refused.items())[:3])
        raise ConfigError(f"nothing to import: {len(refused)} refused ({reasons or 'no rows'})")
    facts = {
        "rate": SAMPLE_RATE,
        "channels": "W Y Z X, ACN, SN3D",
        "questions": num_questions,
        "reasons": dict(sorted(Counter(refused.values()).items())),
        "refused": refused,
    }
    records.write_manifest(folder, meta | facts, entries)


def _description(excerpt: Excerpt, audio: np.ndarray) -> dict:
    seconds = len(audio) / SAMPLE_RATE
    return {"id": excerpt.id, "seconds": seconds, "sources": list(excerpt.sources)}


def _read_audio(
    excerpts: Sequence[Excerpt],
    convention: str | None,
    refused: dict[str, str],
    advance: Callable[[int], None],
    note: Callable[[str], None],
) -> Iterator[tuple[Excerpt, np.ndarray]]:
    """Yields excerpts with int16 audio [N, 4]; a file with several of them is read once."""
    path, whole = None, None
    for excerpt in excerpts:
        advance(1)
        if excerpt.audio != path:
            path = excerpt.audio
            whole = _read_file(path, convention, refused, note)
        if whole is None:
            continue
        start = round(excerpt.start * SAMPLE_RATE)
        end = len(whole)
        if excerpt.seconds is not None:
            end = start + round(excerpt.seconds * SAMPLE_RATE)
        yield excerpt, whole[start:end]


def _read_file(
    path: Path, convention: str | None, refused: dict[str, str], note: Callable[[str], None]
) -> np.ndarray | None:
    try:
        audio = foa_file.read_foa(path, convention, note)
    except ConfigError as error:
        refused[text_of_name(path.as_posix())] = _reason(error, path)
        return None
    return foa_file.to_int16(audio)


def _reason(error: ConfigError, *paths: Path | None) -> str:
    """The message without file names, which are stored next to it."""
    text = str(error)
    for path in paths:
        text = text.replace(str(path), "").strip(": ") if path else text
    return text


def _windows(
    root: Path,
    part: str | None,
    seconds: float,
    classes: Sequence[str],
    unit: str | None,
    refused: dict[str, str],
    note: Callable[[str], None],
) -> Iterator[Excerpt]:
    """Consecutive windows of the recordings of a DCASE set that have metadata.

    part: only of recordings with this in their name. unit, note: see `dcase_csv.read_references`.
    """
    recordings = [r for r in dcase.list_recordings(root) if part is None or part in r.name]
    paths = {r.name: r.metadata for r in recordings if r.metadata is not None}

    def refuse(name: str, error: ConfigError) -> None:
        refused[name] = _reason(error, paths.get(name))

    events_of = dcase_csv.read_references(paths, unit, refuse, note)
    for recording in recordings:
        if recording.metadata is not None and recording.name not in events_of:
            continue
        try:
            if recording.metadata is None:
                raise ConfigError("no metadata file")
            events = events_of[recording.name]
            length = foa_file.duration_s(recording.audio)
            dcase.sources_of_events(events, classes, length)  # raises for a class without a name
        except ConfigError as error:
            refused[recording.name] = _reason(error, recording.audio, recording.metadata)
            continue
        frames = round(seconds / dcase_csv.FRAME_S)
        for k in range(int(length / seconds + 1 - MIN_LAST_WINDOW) or 1):
            start = k * frames * dcase_csv.FRAME_S
            name = f"{recording.name}@{start:g}"
            inside = [e for e in events if k * frames <= e.frame < (k + 1) * frames]
            shifted = [e._replace(frame=e.frame - k * frames) for e in inside]
            sources = dcase.sources_of_events(shifted, classes, seconds)
            if any(s["class"] == UNNAMED_CLASS for s in sources):
                refused[name] = "a sound of a class without a name"
                continue
            # The windows of a recording share its id.
            sources = [s | {"recording_id": recording.name} for s in sources]
            rows = _questions(sources, classes, name)
            yield Excerpt(name, recording.audio, tuple(sources), tuple(rows), start, seconds)


def _questions(sources: Sequence[dict], classes: Sequence[str], name: str) -> list[dict]:
    """Questions (data/questions) about a window, if `is_askable` and no source moves."""
    if not is_askable(sources) or any(_motion_deg(s) >= MAX_MOTION_DEG for s in sources):
        return []
    classes = sorted(set(classes) - {UNNAMED_CLASS})
    rng = keys.rng(0, "import", name)
    # Annotations have errors too, so directions near a boundary are not asked about.
    settings = config.Questions(training_margin=questions.MARGIN_DEG)
    sampler = questions.QuestionSampler(classes, settings)
    sample = sampler({"sources": list(sources)}, rng, 2 * QUESTIONS_PER_WINDOW)
    distinct = {q.trace + q.task: q for q in sample}
    return [
        {
            "question": q.question,
            "answer": q.answer_text,
            "options": list(q.options),
            "level": q.level,
            "task": q.task,
            "trace": q.trace,
        }
        for q in list(distinct.values())[:QUESTIONS_PER_WINDOW]
    ]


def is_askable(sources: Sequence[dict]) -> bool:
    """True for scenes that questions can be about: one to three sources of different classes."""
    return 1 <= len(sources) <= MAX_SOURCES and len({s["class"] for s in sources}) == len(sources)


def _motion_deg(source: dict) -> float:
    """Range of a source's azimuth or elevation, whichever is larger, in degrees."""
    path = source.get("doa_trajectory")
    if path is None:
        return 0.0
    azimuth, elevation = np.array([place[:2] for place in path]).T
    offset = (azimuth - source["azimuth"] + 180) % 360 - 180
    return float(max(np.ptp(offset), np.ptp(elevation)))
