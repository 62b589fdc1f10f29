# SPDX-License-Identifier: Apache-2.0
"""Benchmark suites: four-option items over fixed renders, readable and scorable by anyone.

A suite is a folder that bench/build.py writes: `audio/*.flac` (4 channels W, Y, Z, X in SN3D, or
2 ears; 16 bit, 16 kHz), `metadata.jsonl` (one item per line), `card.md` (data card for people),
`manifest.json` (counts, classes, recordings, SHA-256 of every file) and `audit.json` (scores of
the shortcut probe and of the oracle). It appears under its name only when it is complete.
"""

import collections
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core import text_files
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.core.workdir import output_of
from jaxasa.data import questions


@dataclass(frozen=True)
class Item:
    """One item: a line of metadata.jsonl.

    task: name of the question type. direction: whether the answer depends on the directions of
    sounds. scene: description of the scene. file: path of the audio. template_args: the random
    choices that filled the question's template, for `questions.reinstantiate`. open_answer: key
    to the answer if no options are shown, {"kind", "value", "text"} (bench/open_ended.py), None
    if the question needs options.
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
    template_args: Mapping = dataclasses.field(default_factory=dict)
    open_answer: Mapping | None = None

    @property
    def answer_text(self) -> str:
        return self.options[questions.LETTERS.index(self.answer)]

    @property
    def rng_key(self) -> str:
        """Name of the item's random streams: its id with the question type's `rng_key`."""
        question_type = questions.QUESTION_TYPES.get(self.task)
        key = self.task if question_type is None else question_type.rng_key
        return self.id.replace(f"-{self.task}-", f"-{key}-")

    @property
    def recordings(self) -> tuple[tuple[str, str], ...]:
        """(class, recording id) of each source: the units of a bootstrap over recordings."""
        return tuple((s["class"], s["recording_id"]) for s in self.scene["sources"])

    def audio(self) -> np.ndarray:
        """Reads the audio: int16 [N, 4] (W Y Z X) or [N, 2] (ears) at 16 kHz.

        Raises ConfigError if the file has another format or cannot be read.
        """
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
    """The `file_name` of an item's file: its path within the suite, "audio/NAME.flac"."""
    return f"{file.parent.name}/{file.name}"


def manifest(folder: str | Path) -> dict:
    """Reads the suite's manifest.json; raises ConfigError if there is none."""
    path = Path(folder) / "manifest.json"
    return text_files.read_json(path, output_of(folder, "a suite written by `jaxasa bench build`"))


def load(folder: str | Path) -> list[Item]:
    """Reads a suite's items in the order of metadata.jsonl, without their audio.

    Raises ConfigError, with file and line, if anything is missing or malformed.
    """
    folder = Path(folder)
    path = folder / "metadata.jsonl"
    lines = read_lines(path, output_of(folder, "a suite written by `jaxasa bench build`"))
    items = [_item(folder, line, f"{path}:{n}") for n, line in lines]
    ids = collections.Counter(i.id for i in items)
    repeated = next((i for i, n in ids.items() if n > 1), None)
    config.check(repeated is None, f"{path}: id", repeated, "each id once")
    config.check(len(items) > 0, str(path), "empty", "one item per line")
    return items


def read_lines(path: str | Path, expected: str = "JSON lines") -> list[tuple[int, dict]]:
    """Reads a JSONL file: [(line number, object)]. Raises ConfigError, with file and line, if a
    line is not a JSON object."""
    rows = []
    for n, line, value in text_files.read_json_lines(path, expected):
        if value is None:
            raise ConfigError(f"{path}:{n}: {line[:60]!r}, expected a JSON object")
        rows.append((n, value))
    return rows


def _item(folder: Path, line: Mapping, where: str) -> Item:
    names = ("id", "level", "task", "question", "options", "answer", "direction", "scene")
    missing = [n for n in (*names, "file_name") if n not in line]
    config.check(not missing, f"{where}: missing fields", missing, "none")
    types = {"scene": dict, "options": list, "direction": bool}
    for name in (*names, "file_name"):
        kind = types.get(name, str)
        ok = isinstance(line[name], kind)
        config.check(ok, f"{where}: {name}", line[name], f"a value of type {kind.__name__}")
    values = {n: line[n] for n in names} | {"options": tuple(line["options"])}
    config.check(len(values["options"]) == 4, f"{where}: options", values["options"], "4 options")
    ok = values["answer"] in tuple(questions.LETTERS)
    config.check(ok, f"{where}: answer", values["answer"], "A, B, C or D")
    extra = {n: line[n] for n in ("template_args", "open_answer") if n in line}
    return Item(**values, **extra, file=folder / line["file_name"])
