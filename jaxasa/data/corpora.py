# SPDX-License-Identifier: Apache-2.0
"""Lists the files of sound corpora on disk: a folder per class, ESC-50, FSD50K, a manifest.

Listing decodes nothing. Recording ids are unique over the corpus, so that clips of one source
recording are never in two splits. Each function raises ConfigError for missing files. `LISTERS` has
them by the kind of `Sounds.bank`.

    from pathlib import Path
    from jaxasa.data import corpora

    for file in corpora.list_esc50(Path("ESC-50-master")):
        print(file.name, file.labels, file.recording_id)
"""

from collections.abc import Iterator
from pathlib import Path

from jaxasa.config import ConfigError
from jaxasa.core import text_files
from jaxasa.core.walk import list_files, text_of_name
from jaxasa.data.decode import SoundFile

SUFFIXES = frozenset((".wav", ".flac", ".ogg", ".mp3", ".m4a", ".aac", ".aif", ".aiff", ".opus"))


def _sound_file(name: str, labels: tuple[str, ...], recording_id: str, path: Path) -> SoundFile:
    stat = path.stat() if path.is_file() else None
    stamp = f"{stat.st_size} {stat.st_mtime_ns}" if stat else "missing"
    return SoundFile(name, labels, recording_id, lambda: path, stamp=stamp)


def list_folder(root: Path) -> list[SoundFile]:
    """CLASS/FILE, each file a source recording, or CLASS/RECORDING/FILE."""
    _expect(root.is_dir(), root, "a folder per class")
    files = []
    for path in list_files(root):
        parts = tuple(map(text_of_name, path.relative_to(root).parts))
        if path.suffix.lower() in SUFFIXES and len(parts) > 1:
            recording_id = "/".join(parts[:2])
            files.append(_sound_file("/".join(parts), (parts[0],), recording_id, path))
    return files


def list_esc50(root: Path) -> list[SoundFile]:
    """ESC-50 as published: meta/esc50.csv, audio/. A source recording is a Freesound clip."""
    return [
        _sound_file(
            row["filename"], (row["category"],), row["src_file"], root / "audio" / row["filename"]
        )
        for row in _rows(root / "meta/esc50.csv", ("filename", "category", "src_file"))
    ]


def list_fsd50k(root: Path) -> list[SoundFile]:
    """FSD50K as published: FSD50K.ground_truth/{dev,eval}.csv, FSD50K.{dev,eval}_audio/.

    A source recording is a Freesound clip; its labels go from the most specific to the broadest.
    """
    return [
        _sound_file(
            f"{part}/{row['fname']}",
            tuple(row["labels"].split(",")),
            row["fname"],
            root / f"FSD50K.{part}_audio" / f"{row['fname']}.wav",
        )
        for part in ("dev", "eval")
        for row in _rows(root / f"FSD50K.ground_truth/{part}.csv", ("fname", "labels"))
    ]


def list_manifest(path: Path) -> list[SoundFile]:
    """A CSV file with the columns path (relative to it), class and recording_id.

    recording_id names the source recording that a clip was cut from (any text): splits are made by
    it, so all clips of one recording must have the same. The `take` of ESC-50 is not such a name
    but the letter of a fragment; its source recording is `src_file`.
    """
    meaning = (
        " (recording_id names the source recording that a clip was cut from, and splits are made "
        "by it; ESC-50's take, the letter of a fragment, is not that, its src_file is)"
    )
    return [
        _sound_file(row["path"], (row["class"],), row["recording_id"], path.parent / row["path"])
        for row in _rows(path, ("path", "class", "recording_id"), meaning)
    ]


LISTERS = {
    "folder": list_folder,
    "esc50": list_esc50,
    "fsd50k": list_fsd50k,
    "manifest": list_manifest,
}


def _rows(path: Path, columns: tuple[str, ...], meaning: str = "") -> Iterator[dict[str, str]]:
    _expect(path.is_file(), path, "a CSV file")
    expected = f"the columns {', '.join(columns)}{meaning}"
    for number, row in text_files.read_csv(path, columns, expected):
        _expect(all(row[c] for c in columns), f"{path}:{number}", "no empty field")
        yield row


def _expect(condition: bool, path: Path | str, expected: str) -> None:
    if not condition:
        raise ConfigError(f"Sounds.bank: {path}: expected {expected}")
