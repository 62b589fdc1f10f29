# SPDX-License-Identifier: Apache-2.0
"""Imported questions about recordings, as a component of the mixture of stage 3.

A folder of `jaxasa import` (data/import_scenes.py) is a data set of (audio, question rows), from
which `ImportedQaExamples` makes examples with the arrays of `transforms.QaExamples`. There is no
rotation and no mono dropout, since the texts of imported questions and answers would not follow.

    SftStage.qa_datasets = ("runs/so",)     # in a gin file: part of each batch comes from there
    SftStage.qa_datasets_weight = 0.5

Shapes: N samples · Q questions per recording · P prompt length · L reply length
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core import text_files
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.data import import_scenes, scene_text, tokens, transforms
from jaxasa.data.pipeline import Example
from jaxasa.data.records import Records
from jaxasa.data.tokens import TextTokenizer


class ImportedQuestions:
    """The recordings of an imported folder with their questions, as a random-access data set.

    data[i] is (int16 audio [N, 4], question rows), N being `seconds` at 16 kHz. Shorter recordings
    are padded with silence; longer ones are left out, as a question may be about the part that
    would be cut off. Questions whose prompt or reply has too many tokens for `model` are left out
    too; `report` counts both. Raises ConfigError if no question is left.
    """

    def __init__(
        self, folder: Path | str, model: config.Model, tokenizer: TextTokenizer, seconds: float
    ):
        self._records = Records(folder)
        self._samples = round(seconds * SAMPLE_RATE)
        self.report = {"used": 0, "too long a sound": 0, "too long a text": 0}
        rows: dict[int, list[dict]] = {}
        for row in _read_rows(self._records.folder / import_scenes.QUESTIONS_FILE):
            if round(row["seconds"] * SAMPLE_RATE) > self._samples:
                self.report["too long a sound"] += 1
            elif not _fits(row, model, tokenizer):
                self.report["too long a text"] += 1
            else:
                self.report["used"] += 1
                rows.setdefault(row["record"], []).append(row)
        self._rows = list(rows.items())
        summary = ", ".join(f"{count} {name}" for name, count in self.report.items())
        if not rows:
            raise ConfigError(
                f"SftStage.qa_datasets {folder}: no question fits ({summary}), expected sounds of "
                f"at most {seconds} s, prompts of {model.prompt_tokens} and replies of "
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
class ImportedQaExamples:
    """Transform: a recording and `questions_per_scene` of its questions, with repetition.

    Returns the arrays of `transforms.QaExamples`; level is -1 if unknown, and there are no sources.
    """

    model: config.Model
    tokenizer: TextTokenizer
    audio_tokens: int
    questions_per_scene: int

    def __call__(
        self, element: tuple[np.ndarray, Sequence[dict]], rng: np.random.Generator, progress: float
    ) -> Example:
        audio, rows = element
        sample = [rows[i] for i in rng.integers(len(rows), size=self.questions_per_scene)]
        pairs = [_prompt_and_reply(row) for row in sample]
        prompts = [tokens.prompt_ids(self.tokenizer, self.audio_tokens, p) for p, _ in pairs]
        replies = [self.tokenizer.encode(reply) for _, reply in pairs]
        max_prompt = self.audio_tokens + self.model.prompt_tokens
        levels = [
            config.LEVELS.index(r["level"]) if r.get("level") in config.LEVELS else -1
            for r in sample
        ]
        return {
            "audio": audio,
            "yaw": np.zeros((), np.float32),
            "mono": np.zeros((), bool),
            "drop_spatial": np.zeros((), bool),
            "prompt": tokens.pad_left(prompts, max_prompt, self.tokenizer.pad_id),
            "reply": tokens.pad_right(replies, self.model.reply_tokens, self.tokenizer.pad_id),
            "level": np.array(levels, np.int32),
        } | transforms.source_arrays([], ())


def _prompt_and_reply(row: dict) -> tuple[str, str]:
    """The texts of a question, normalised as `jaxasa ask` does, and of the reply to it."""
    prompt = tokens.question_text(scene_text.normalize_text(row["question"]), row.get("options"))
    trace = f" {row['trace']}" if row.get("trace") else ""
    return prompt, (
        f"{tokens.THINK}{trace}{tokens.END_THINK}"
        f"{tokens.ANSWER} {row['answer']}{tokens.END_ANSWER}{tokens.EOS}"
    )


def _fits(row: dict, model: config.Model, tokenizer: TextTokenizer) -> bool:
    prompt, reply = _prompt_and_reply(row)
    return (
        len(tokens.prompt_ids(tokenizer, 0, prompt)) <= model.prompt_tokens
        and len(tokenizer.encode(reply)) <= model.reply_tokens
    )


def _read_rows(path: Path) -> Iterator[dict]:
    expected = "the questions of a folder of `jaxasa import`"
    for number, _, row in text_files.read_json_lines(path, expected):
        if row is None:
            raise ConfigError(f"{path}:{number}: damaged, expected a JSON object")
        yield row
