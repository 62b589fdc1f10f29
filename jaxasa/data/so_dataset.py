"""Questions about recordings, as others store them: SO-Dataset, and plain JSONL.

SO-Dataset (Spatial-Omni) has audio/{split}/*.wav, qa/{split}.jsonl and annotations/{split}/*.csv.
A line of qa has audio_path, question, answer, and perhaps canonical_answer, task_name,
task_type and source_refs (class_name, azimuth_deg, elevation_deg, distance_m). The sources of a
recording are those its questions refer to; given class names, those of its annotations.

Plain JSONL has, on each line, a path ("audio", "audio_path" or "file_name", from the file's
folder), "question" and "answer", and perhaps "options" (four texts, the answer being one of
them or its letter), "level", "task" and "trace". A suite's metadata.jsonl is such a file.

>>> row({"question": "Where?", "answer": "B", "options": ["left", "right", "front", "back"]})
{'question': 'Where?', 'answer': 'right', 'options': ['left', 'right', 'front', 'back']}
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxasa.config import ConfigError
from jaxasa.data import dcase
from jaxasa.data.questions import LETTERS

# {sound file: (sources, question rows)}
Found = dict[Path, tuple[list[dict], list[dict]]]
_PATHS = ("audio", "audio_path", "file_name")
_KEPT = ("level", "task", "trace")
# What a line of any shape may raise; OSError: a path too long to look up.
_FAULTS = (ValueError, TypeError, KeyError, AttributeError, OSError)


def read(root: Path, split: str, classes: Sequence[str] | None, refused: dict[str, str]) -> Found:
    """The sounds of a split with their sources and questions; unusable lines go to `refused`.

    classes: names of the numbers in annotations/{split}, which must be there then. Raises
    `ConfigError` where it is not, and where there is no qa/{split}.jsonl.
    """
    folder = root / "annotations" / split
    if classes is not None and not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder, expected the annotations that classes name")
    found: Found = {}
    path = root / "qa" / f"{split}.jsonl"
    for where, line in _lines(path, refused):
        try:
            audio = _audio(line, (root, root / "audio" / split, root / "audio"))
            asked = row(line | {"task": line.get("task_name") or line.get("task")})
            heard = _references(line.get("source_refs") or [])
        except _FAULTS as error:
            refused[where] = _reason(error)
            continue
        if line.get("canonical_answer"):
            asked["canonical"] = str(line["canonical_answer"])
        sources, rows = found.setdefault(audio, ([], []))
        sources += [source for source in heard if source not in sources]
        rows.append(asked)
    for audio, (sources, _) in found.items() if classes is not None else ():
        path = folder / f"{audio.stem}.csv"
        try:
            sources[:] = _annotated(path, classes) if path.is_file() else sources
        except ConfigError as error:
            refused[path.name] = str(error).replace(str(path), "").strip(": ")
    return found


def read_jsonl(path: Path, refused: dict[str, str]) -> Found:
    """The sounds of a JSONL file with their questions; unusable lines go to `refused`."""
    found: Found = {}
    for where, line in _lines(path, refused):
        try:
            audio, asked = _audio(line, (path.parent,)), row(line)
        except _FAULTS as error:
            refused[where] = _reason(error)
            continue
        found.setdefault(audio, ([], []))[1].append(asked)
    return found


def row(line: dict) -> dict:
    """The question, answer (text), options, level, task and trace of a line, where it has them.

    Raises `ValueError` saying what is wrong.
    """
    made: dict = {name: _said(line, name) for name in ("question", "answer")}
    options = line.get("options")
    if options is not None:
        if not isinstance(options, list) or len(options) != len(LETTERS):
            raise ValueError("options are not four")
        texts = [str(option).strip() for option in options]
        answer = made["answer"]
        if answer not in texts and answer not in tuple(LETTERS):
            raise ValueError("the answer is no option")
        made["answer"] = answer if answer in texts else texts[LETTERS.index(answer)]
        made["options"] = texts
    return made | {name: str(line[name]) for name in _KEPT if line.get(name)}


def _said(line: dict, name: str) -> str:
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
            where = f"{path.name}:{number}"
            try:
                # NaN, which is no JSON, is what is not known; a lone surrogate cannot be written.
                line = json.loads(text, parse_constant=lambda _: None)
                json.dumps(line, ensure_ascii=False).encode()
            except (ValueError, RecursionError):
                line = text
            if isinstance(line, dict):
                yield where, line
            else:
                refused[where] = "not a JSON object"


def _audio(line: dict, folders: Sequence[Path]) -> Path:
    given = next((line[name] for name in _PATHS if line.get(name)), None)
    if not isinstance(given, str) or "\0" in given:
        raise ValueError("no path of a sound")
    candidates = [folder / name for folder in folders for name in (given, Path(given).name)]
    return next((c for c in candidates if c.is_file()), candidates[0])


def _references(given: list[dict]) -> list[dict]:
    names = {
        "class": "class_name",
        "azimuth": "azimuth_deg",
        "elevation": "elevation_deg",
        "distance": "distance_m",
    }
    found = []
    for reference in given:
        source = {ours: reference.get(theirs) for ours, theirs in names.items()}
        kept = {"class": str(source.pop("class"))}
        numbers = {name: float(value) for name, value in source.items() if value is not None}
        if not all(map(math.isfinite, numbers.values())):
            raise ValueError("a source reference is not finite")
        found.append(kept | numbers)
    return found


def _annotated(path: Path, classes: Sequence[str]) -> list[dict]:
    found = dcase.read(path)
    seconds = (found[-1].frame + 1) * dcase.FRAME if found else 0.0
    return dcase.events(found, classes, seconds)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else "malformed"
