"""Benchmark suites: four-option items over fixed renders, readable and scorable by anyone.

A suite is a folder that bench/build.py writes: `audio/*.flac` (4 channels W, Y, Z, X in SN3D, or
2 ears; 16 bit, 16 kHz), `metadata.jsonl` (one item a line), `card.md` (what it holds, for people),
`manifest.json` (counts, classes, recordings, SHA-256 of every file) and `audit.json` (what readers
of texts and of metadata score on it). It appears under its name only when whole.
"""

import collections
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.data import questions


@dataclass(frozen=True)
class Item:
    """A line of metadata.jsonl. `file` is the audio's path, `scene` its description.

    about: what the question chose of the scene, for `questions.again`. open: how to score an
    answer without options (bench/open_ended.py): {"kind", "value", "text"}; None where there is none.
    """

    id: str
    level: str
    task: str
    question: str
    options: tuple[str, str, str, str]
    answer: str
    direction: bool
    scene: dict
    file: Path
    about: Mapping = dataclasses.field(default_factory=dict)
    open: Mapping | None = None

    @property
    def answer_text(self) -> str:
        return self.options[questions.LETTERS.index(self.answer)]

    @property
    def recordings(self) -> tuple[tuple[str, str], ...]:
        """(class, recording id) of each source: the units of a bootstrap over recordings."""
        return tuple((s["class"], s["recording_id"]) for s in self.scene["sources"])

    def audio(self) -> np.ndarray:
        """Reads the render: int16 [N, 4] (W Y Z X) or [N, 2] (ears), 16 kHz; else ConfigError."""
        try:
            audio, rate = soundfile.read(self.file, dtype="int16", always_2d=True)
        except (soundfile.SoundFileError, OSError) as error:
            raise ConfigError(f"{self.file}: cannot be read ({error}), expected FLAC") from None
        if audio.shape[1] not in (2, 4) or rate != SAMPLE_RATE:
            raise ConfigError(
                f"{self.file}: {audio.shape[1]} channels at {rate} Hz, "
                f"expected 4 or 2 at {SAMPLE_RATE} Hz"
            )
        return audio


def name_of(file: Path) -> str:
    """The `file_name` of an item's file: its path inside the suite, "audio/NAME.flac"."""
    return f"{file.parent.name}/{file.name}"


def manifest(folder: str | Path) -> dict:
    """The suite's manifest.json. Raises ConfigError where there is none."""
    return read_json(Path(folder) / "manifest.json", "a suite written by `jaxasa bench build`")


def read_json(path: Path, expected: str) -> dict:
    """The JSON of a file; raises ConfigError where it is not there or no JSON."""
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
    extra = {n: line[n] for n in ("about", "open") if n in line}
    return Item(**values, **extra, file=folder / line["file_name"])
