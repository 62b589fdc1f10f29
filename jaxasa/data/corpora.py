"""Lists the recordings of corpora on disk: a folder per class, ESC-50, FSD50K, a manifest.

Listing decodes nothing. Recording ids are unique over the corpus, so that no recording can fall
in two splits. Each function raises `ConfigError` for what is not there.

    from pathlib import Path
    from jaxasa.data import corpora

    for recording in corpora.esc50(Path("ESC-50-master")):
        print(recording.name, recording.labels, recording.recording_id)
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from jaxasa.config import ConfigError
from jaxasa.data.decode import Recording

SUFFIXES = frozenset((".wav", ".flac", ".ogg", ".mp3", ".m4a", ".aac", ".aif", ".aiff", ".opus"))


def _recording(name: str, labels: tuple[str, ...], recording_id: str, path: Path) -> Recording:
    stat = path.stat() if path.is_file() else None
    stamp = f"{stat.st_size} {stat.st_mtime_ns}" if stat else "missing"
    return Recording(name, labels, recording_id, lambda: path, stamp=stamp)


def folder(root: Path) -> list[Recording]:
    """CLASS/FILE, each file a source recording, or CLASS/RECORDING/FILE."""
    _expect(root.is_dir(), root, "a folder per class")
    found = []
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if path.suffix.lower() in SUFFIXES and len(parts) > 1 and path.is_file():
            recording_id = f"{parts[0]}/{parts[1] if len(parts) > 2 else path.name}"
            found.append(_recording("/".join(parts), (parts[0],), recording_id, path))
    return found


def esc50(root: Path) -> list[Recording]:
    """ESC-50 as published: meta/esc50.csv, audio/; a source recording is a Freesound recording."""
    return [
        _recording(
            row["filename"], (row["category"],), row["src_file"], root / "audio" / row["filename"]
        )
        for row in _rows(root / "meta/esc50.csv", ("filename", "category", "src_file"))
    ]


def fsd50k(root: Path) -> list[Recording]:
    """FSD50K as published: FSD50K.ground_truth/{dev,eval}.csv, FSD50K.{dev,eval}_audio/.

    A source recording is a Freesound recording; its labels go from the most specific to the
    broadest.
    """
    return [
        _recording(
            f"{part}/{row['fname']}",
            tuple(row["labels"].split(",")),
            row["fname"],
            root / f"FSD50K.{part}_audio" / f"{row['fname']}.wav",
        )
        for part in ("dev", "eval")
        for row in _rows(root / f"FSD50K.ground_truth/{part}.csv", ("fname", "labels"))
    ]


def manifest(path: Path) -> list[Recording]:
    """A CSV file with the columns path (relative to it), class and recording_id.

    recording_id names the source recording that a clip was cut from (any text): splits are made by
    it, so all clips of one recording must have the same. ESC-50's own TAKE is no such name but
    the letter of a fragment: there the source recording is src_file.
    """
    meaning = (
        " (recording_id names the source recording that a clip was cut from, and splits are made "
        "by it; ESC-50's take, the letter of a fragment, is not that, its src_file is)"
    )
    return [
        _recording(row["path"], (row["class"],), row["recording_id"], path.parent / row["path"])
        for row in _rows(path, ("path", "class", "recording_id"), meaning)
    ]


def _rows(path: Path, columns: tuple[str, ...], meaning: str = "") -> Iterator[dict[str, str]]:
    _expect(path.is_file(), path, "a CSV file")
    with open(path, encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        names = reader.fieldnames or []
        expected = f"the columns {', '.join(columns)}{meaning}"
        _expect(all(c in names for c in columns), path, expected)
        for row in reader:
            _expect(all(row[c] for c in columns), f"{path}:{reader.line_num}", "no empty field")
            yield row


def _expect(condition: bool, path: Path | str, expected: str) -> None:
    if not condition:
        raise ConfigError(f"Sounds.bank: {path}: expected {expected}")
