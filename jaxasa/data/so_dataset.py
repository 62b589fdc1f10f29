# SPDX-License-Identifier: Apache-2.0
"""Reads questions about recordings: of SO-Dataset, and of plain JSONL files.

SO-Dataset (Spatial-Omni) has audio/{split}/*.wav, qa/{split}.jsonl and annotations/{split}/*.csv.
A line of qa has audio_path, question, answer, and optionally canonical_answer, task_name, task_type
and source_refs (class_name, azimuth_deg, elevation_deg, distance_m). The sources of a recording
are those that its questions refer to or, given class names, those of its annotations.

A line of plain JSONL has a path ("audio", "audio_path" or "file_name", relative to the file's
folder), "question" and "answer", and optionally "options" (four texts, the answer being one of
them or its letter), "level", "task" and "trace". A suite's metadata.jsonl is such a file.

>>> line = {"question": "Where?", "answer": "B", "options": ["left", "right", "front", "back"]}
>>> parse_row(line)
{'question': 'Where?', 'answer': 'right', 'options': ['left', 'right', 'front', 'back']}
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxasa.config import ConfigError
from jaxasa.data import dcase, dcase_csv
from jaxasa.data.questions import LETTERS

# {sound file: (sources, question rows)}
SoundQuestions = dict[Path, tuple[list[dict], list[dict]]]
_PATH_FIELDS = ("audio", "audio_path", "file_name")
_OPTIONAL_FIELDS = ("level", "task", "trace")
# Errors that a malformed line may raise; OSError: a path too long to look up.
_LINE_ERRORS = (ValueError, TypeError, KeyError, AttributeError, OSError)


def read_split(
    root: Path, split: str, classes: Sequence[str] | None, refused: dict[str, str]
) -> SoundQuestions:
    """The sounds of a split with their sources and questions; unusable lines go to `refused`.

    classes: names of the class numbers in annotations/{split}. Raises ConfigError if they are given
    without that folder, and if there is no qa/{split}.jsonl.
    """
    folder = root / "annotations" / split
    if classes is not None and not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder, expected the annotations that classes name")
    sounds: SoundQuestions = {}
    path = root / "qa" / f"{split}.jsonl"
    for place, line in _lines(path, refused):
        try:
            audio = _audio_path(line, (root, root / "audio" / split, root / "audio"))
            row = parse_row(line | {"task": line.get("task_name") or line.get("task")})
            refs = _source_refs(line.get("source_refs") or [])
        except _LINE_ERRORS as error:
            refused[place] = _reason(error)
            continue
        if line.get("canonical_answer"):
            row["canonical"] = str(line["canonical_answer"])
        sources, rows = sounds.setdefault(audio, ([], []))
        sources += [source for source in refs if source not in sources]
        rows.append(row)
    for audio, (sources, _) in sounds.items() if classes is not None else ():
        path = folder / f"{audio.stem}.csv"
        try:
            sources[:] = _annotated_sources(path, classes) if path.is_file() else sources
        except ConfigError as error:
            refused[path.name] = str(error).replace(str(path), "").strip(": ")
    return sounds


def read_jsonl(path: Path, refused: dict[str, str]) -> SoundQuestions:
    """The sounds of a JSONL file with their questions; unusable lines go to `refused`."""
    sounds: SoundQuestions = {}
    for place, line in _lines(path, refused):
        try:
            audio, row = _audio_path(line, (path.parent,)), parse_row(line)
        except _LINE_ERRORS as error:
            refused[place] = _reason(error)
            continue
        sounds.setdefault(audio, ([], []))[1].append(row)
    return sounds


def parse_row(line: dict) -> dict:
    """The question, answer (text), options, level, task and trace of a line, as far as it has them.

    Raises ValueError with the reason if the line is not usable.
    """
    row: dict = {name: _text_field(line, name) for name in ("question", "answer")}
    options = line.get("options")
    if options is not None:
        if not isinstance(options, list) or len(options) != len(LETTERS):
            raise ValueError("options are not four")
        texts = [str(option).strip() for option in options]
        answer = row["answer"]
        if answer not in texts and answer not in tuple(LETTERS):
            raise ValueError("the answer is no option")
        row["answer"] = answer if answer in texts else texts[LETTERS.index(answer)]
        row["options"] = texts
    return row | {name: str(line[name]) for name in _OPTIONAL_FIELDS if line.get(name)}


def _text_field(line: dict, name: str) -> str:
    value = line.get(name)
    if not isinstance(value, (str, int, float)) or not str(value).strip():
        raise ValueError(f"no {name}")
    return str(value).strip()


def _lines(path: Path, refused: dict[str, str]) -> Iterator[tuple[str, dict]]:
    """Yields ("file:line", object)."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file, expected questions, one JSON object a line")
    with open(path, encoding="utf-8", errors="replace") as lines:
        for number, text in enumerate(lines, 1):
            if not text.strip():
                continue
            place = f"{path.name}:{number}"
            try:
                # NaN is not JSON: it stands for unknown. A lone surrogate could not be written.
                line = json.loads(text, parse_constant=lambda _: None)
                json.dumps(line, ensure_ascii=False).encode()
            except (ValueError, RecursionError):
                line = text
            if isinstance(line, dict):
                yield place, line
            else:
                refused[place] = "not a JSON object"


def _audio_path(line: dict, folders: Sequence[Path]) -> Path:
    """The sound file of a line: its path, or its name, in the first folder that has it."""
    path = next((line[name] for name in _PATH_FIELDS if line.get(name)), None)
    if not isinstance(path, str) or "\0" in path:
        raise ValueError("no path of a sound")
    candidates = [folder / name for folder in folders for name in (path, Path(path).name)]
    return next((c for c in candidates if c.is_file()), candidates[0])


def _source_refs(refs: list[dict]) -> list[dict]:
    """Sources with the fields of a scene description, as far as they are known."""
    fields = {
        "azimuth": "azimuth_deg",
        "elevation": "elevation_deg",
        "distance": "distance_m",
    }
    sources = []
    for ref in refs:
        numbers = {
            name: float(ref[field]) for name, field in fields.items() if ref.get(field) is not None
        }
        if not all(map(math.isfinite, numbers.values())):
            raise ValueError("a source reference is not finite")
        sources.append({"class": str(ref.get("class_name"))} | numbers)
    return sources


def _annotated_sources(path: Path, classes: Sequence[str]) -> list[dict]:
    events = dcase.read_events(path)
    seconds = (events[-1].frame + 1) * dcase_csv.FRAME_S if events else 0.0
    return dcase.sources_of_events(events, classes, seconds)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else "malformed"
