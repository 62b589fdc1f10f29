"""Imported questions as a source of stage 3, beside those on simulated scenes.

A folder of data/import_scenes.py becomes a sequence of (audio, question rows) for grain, and `Asked`
makes of them the examples that pipeline.Asked makes of scenes. Nothing is turned or mixed
down: what is asked about directions is in words, which would not turn along.

    SftStage.qa_datasets = ("runs/so",)     # in a gin file: a share of each batch comes from there
    SftStage.qa_datasets_weight = 0.5
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.data import import_scenes, scene_text, tokens
from jaxasa.data.records import Records
from jaxasa.data.tokens import Text

Example = dict[str, np.ndarray]


class Imported:
    """The recordings of an imported folder of at most `seconds` with questions that fit.

    `source[i]` is (int16 `[N, 4]`, rows), N being `seconds` at 16 kHz: shorter sounds end in
    silence, longer ones are left out, since a question may be about what would be cut. Rows whose
    prompt or reply has too many tokens for `model` are left out too; `report` counts both.
    Raises `ConfigError` where none is left.
    """

    def __init__(self, folder: Path | str, model: config.Model, text: Text, seconds: float):
        self._records = Records(folder)
        self._samples = round(seconds * SAMPLE_RATE)
        self.report = {"used": 0, "too long a sound": 0, "too long a text": 0}
        rows: dict[int, list[dict]] = {}
        for line in _lines(self._records.folder / import_scenes.QUESTIONS):
            if round(line["seconds"] * SAMPLE_RATE) > self._samples:
                self.report["too long a sound"] += 1
            elif not _fits(line, model, text):
                self.report["too long a text"] += 1
            else:
                self.report["used"] += 1
                rows.setdefault(line["record"], []).append(line)
        self._rows = list(rows.items())
        summary = ", ".join(f"{count} {name}" for name, count in self.report.items())
        if not rows:
            raise ConfigError(
                f"SftStage.qa_datasets {folder}: no question fits ({summary}), expected sounds of at "
                f"most {seconds} s, prompts of {model.prompt_tokens} and replies of "
                f"{model.reply_tokens} tokens"
            )
        print(f"{folder}: {summary} of the questions", file=sys.stderr)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, list[dict]]:
        record, rows = self._rows[index]
        audio, _ = self._records[record]
        return np.pad(audio, ((0, self._samples - len(audio)), (0, 0))), rows


@dataclass(frozen=True)
class Asked:
    """`count` questions of a recording -> what pipeline.Asked returns; level -1 where unknown."""

    model: config.Model
    text: Text
    audio_tokens: int
    count: int

    def __call__(
        self, element: tuple[np.ndarray, Sequence[dict]], rng: np.random.Generator, done: float
    ) -> Example:
        audio, rows = element
        chosen = [rows[i] for i in rng.integers(len(rows), size=self.count)]
        pairs = [_exchange(row) for row in chosen]
        prompts = [tokens.prompt_ids(self.text, self.audio_tokens, p) for p, _ in pairs]
        replies = [self.text.encode(reply) for _, reply in pairs]
        length = self.audio_tokens + self.model.prompt_tokens
        levels = [
            config.LEVELS.index(r["level"]) if r.get("level") in config.LEVELS else -1
            for r in chosen
        ]
        return {
            "audio": audio,
            "yaw": np.zeros((), np.float32),
            "mono": np.zeros((), bool),
            "nulled": np.zeros((), bool),
            "prompt": tokens.pad_left(prompts, length, self.text.pad),
            "reply": tokens.pad_right(replies, self.model.reply_tokens, self.text.pad),
            "level": np.array(levels, np.int32),
            "source_label": np.full(8, -1, np.int32),
            "source_azimuth": np.zeros(8, np.float32),
            "source_distance": np.zeros(8, np.float32),
        }


def _exchange(row: dict) -> tuple[str, str]:
    """(prompt, reply); the question in the words in which `jaxasa ask` passes it on."""
    prompt = tokens.question_text(scene_text.plain(row["question"]), row.get("options"))
    trace = f" {row['trace']}" if row.get("trace") else ""
    return prompt, (
        f"{tokens.THINK}{trace}{tokens.END_THINK}"
        f"{tokens.ANSWER} {row['answer']}{tokens.END_ANSWER}{tokens.EOS}"
    )


def _fits(row: dict, model: config.Model, text: Text) -> bool:
    prompt, reply = _exchange(row)
    return (
        len(tokens.prompt_ids(text, 0, prompt)) <= model.prompt_tokens
        and len(text.encode(reply)) <= model.reply_tokens
    )


def _lines(path: Path):
    if not path.is_file():
        raise ConfigError(f"{path}: no such file, expected a folder of `jaxasa import`")
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except ValueError:
                raise ConfigError(f"{path}:{number}: damaged, expected a JSON object") from None
