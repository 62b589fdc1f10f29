# SPDX-License-Identifier: Apache-2.0
"""Reads questions about recordings: of SO-Dataset, and of plain JSONL files.

SO-Dataset (Spatial-Omni) has audio/{split}/*.wav, qa/{split}.jsonl and annotations/{split}/*.csv.
A line of qa has audio_path, question, answer, and optionally canonical_answer, task_name, task_type
and source_refs (class_name, azimuth_deg, elevation_deg, distance_m). The sources of a recording
are those that its questions refer to or, given class names, those of its annotations.

A line of plain JSONL has a path ("audio", "audio_path" or "file_name", relative to the file's
folder), "question" and "answer", and optionally "options" (two to ten texts, the answer being
one of them or its letter, as replies.parse_choice reads it), "level", "task" and "trace". A suite's
metadata.jsonl is such a file.

>>> line = {"question": "Where?", "answer": "B", "options": ["left", "right", "front", "back"]}
>>> parse_row(line)
{'question': 'Where?', 'answer': 'right', 'options': ['left', 'right', 'front', 'back']}
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jaxasa.config import ConfigError
from jaxasa.core import text_files
from jaxasa.data import dcase, dcase_csv, replies
from jaxasa.data.replies import CHOICE_LETTERS

# {sound file: (sources, question rows)}
SoundQuestions = dict[Path, tuple[list[dict], list[dict]]]
_PATH_FIELDS = ("audio", "audio_path", "file_name")
_LETTERED = re.compile(r"[(\[]?([A-Ja-j])[)\].:]+\s+(\S.*)", re.DOTALL)
_OPTIONAL_FIELDS = ("level", "task", "trace")
# Errors that a malformed line may raise; OSError: a path too long to look up.
_LINE_ERRORS = (ValueError, TypeError, KeyError, AttributeError, OSError)


def read_split(
    root: Path,
    split: str,
    classes: Sequence[str] | None,
    refused: dict[str, str],
    unit: str | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> SoundQuestions:
    """The sounds of a split with their sources and questions; unusable lines go to `refused`.

    classes: names of the class numbers in annotations/{split}. unit, note: of the distances there,
    see `dcase_csv.read_references`. Raises ConfigError if classes are given without that folder,
    and if there is no qa/{split}.jsonl.
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
    if classes is None:
        return sounds

    def refuse(name: str, error: ConfigError) -> None:
        refused[f"{name}.csv"] = str(error).replace(str(folder / f"{name}.csv"), "").strip(": ")

    paths = {audio.stem: folder / f"{audio.stem}.csv" for audio in sounds}
    paths = {name: path for name, path in paths.items() if path.is_file()}
    annotations = dcase_csv.read_references(paths, unit, refuse, note)
    for audio, (sources, _) in sounds.items():
        events = annotations.get(audio.stem)
        if events is None:
            continue
        seconds = (events[-1].frame + 1) * dcase_csv.FRAME_S if events else 0.0
        try:
            sources[:] = dcase.sources_of_events(events, classes, seconds)
        except ConfigError as error:
            refuse(audio.stem, error)
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
        if not isinstance(options, list) or not 2 <= len(options) <= len(CHOICE_LETTERS):
            raise ValueError(f"options are not two to {len(CHOICE_LETTERS)}")
        texts = _without_letters([str(option).strip() for option in options])
        answer = row["answer"]
        if answer not in texts:
            letter, _ = replies.parse_choice(answer, texts)
            if letter is None:
                raise ValueError("the answer is no option")
            answer = texts[CHOICE_LETTERS.index(letter)]
        row |= {"answer": answer, "options": texts}
    return row | {name: str(line[name]) for name in _OPTIONAL_FIELDS if line.get(name)}


def _without_letters(options: list[str]) -> list[str]:
    """Options without the letters that they begin with, "(A) left", if all do, in order."""
    matches = [_LETTERED.fullmatch(option) for option in options]
    letters = "".join(match[1] for match in matches if match).upper()
    if letters != CHOICE_LETTERS[: len(options)]:
        return options
    return [match[2] for match in matches if match]


def _text_field(line: dict, name: str) -> str:
    value = line.get(name)
    if not isinstance(value, (str, int, float)) or not str(value).strip():
        raise ValueError(f"no {name}")
    return str(value).strip()


def _lines(path: Path, refused: dict[str, str]) -> Iterator[tuple[str, dict]]:
    """Yields ("file:line", object)."""
    expected = "questions, one JSON object a line"
    for number, _, line in text_files.read_json_lines(path, expected):
        place = f"{path.name}:{number}"
        try:
            # A lone surrogate could not be written.
            json.dumps(line, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            line = None
        if line is None:
            refused[place] = "not a JSON object"
        else:
            yield place, line


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


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else "malformed"
