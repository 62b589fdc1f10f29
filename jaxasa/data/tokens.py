# SPDX-License-Identifier: Apache-2.0
"""Text tokenizer, and the token layout of prompts and completions.

A prompt is `[audio] question options`: `<AcousticTokens>` stands once for each audio token, and
the model replaces its embedding by the projector's output. In stage 0 a scene in words takes the
place of the audio. A completion is `<think>trace</think><answer> left</answer><eos>`.

Prompts are padded on the left and completions on the right, so that all rows of a batch start to
answer in the same column and all shapes are static.
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxasa.config import ConfigError
from jaxasa.data.questions import Question
from jaxasa.data.replies import CHOICE_LETTERS

PAD, EOS, AUDIO = "<pad>", "<eos>", "<AcousticTokens>"
THINK, END_THINK, ANSWER, END_ANSWER = "<think>", "</think>", "<answer>", "</answer>"
SPECIAL = (PAD, EOS, AUDIO, THINK, END_THINK, ANSWER, END_ANSWER)
# The names of the first two in Qwen's tokenizers, and the start of a chat message there.
QWEN_NAMES = {PAD: "<|endoftext|>", EOS: "<|im_end|>"}
MESSAGE_START = "<|im_start|>"
_OPTION = re.compile(rf"^[{CHOICE_LETTERS}] (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer with the ids of its special tokens. The pad id is 0 if trained here.

    eos_token: text of the end-of-sequence token. chat_prefix, chat_suffix: ids around a prompt if
    the decoder was trained on chats: start of the user's message, start of the assistant's.
    """

    backend: Tokenizer
    pad_id: int
    eos_id: int
    audio_id: int
    think_id: int
    end_think_id: int
    answer_id: int
    eos_token: str = EOS
    chat_prefix: tuple[int, ...] = ()
    chat_suffix: tuple[int, ...] = ()

    @classmethod
    def load(cls, path: str | Path) -> "TextTokenizer":
        """Reads a tokenizer.json; raises ConfigError if it is missing or lacks a special token."""
        if not Path(path).is_file():
            raise ConfigError(f"{path}: no such file, expected a tokenizer.json")
        return cls.from_tokenizer(Tokenizer.from_file(str(path)))

    @classmethod
    def from_tokenizer(cls, backend: Tokenizer) -> "TextTokenizer":
        """Looks up the special tokens; raises ConfigError if one is missing."""
        names = {token: _name_in(backend, token) for token in SPECIAL}
        ids = {token: backend.token_to_id(name) for token, name in names.items()}
        missing = [token for token, i in ids.items() if i is None]
        if missing:
            raise ConfigError(f"tokenizer lacks the tokens {missing}")
        tokenizer = cls(
            backend,
            pad_id=ids[PAD],
            eos_id=ids[EOS],
            audio_id=ids[AUDIO],
            think_id=ids[THINK],
            end_think_id=ids[END_THINK],
            answer_id=ids[ANSWER],
            eos_token=names[EOS],
        )
        if backend.token_to_id(MESSAGE_START) is None:
            return tokenizer
        prefix = tokenizer.encode(f"{MESSAGE_START}user\n")
        suffix = tokenizer.encode(f"{EOS}\n{MESSAGE_START}assistant\n")
        return dataclasses.replace(tokenizer, chat_prefix=tuple(prefix), chat_suffix=tuple(suffix))

    def check_embedding_rows(self, rows: int, source: str | Path) -> None:
        """Raises ConfigError if an embedding with this number of rows has none for some token."""
        vocab = self.backend.get_vocab(with_added_tokens=True)
        last = max(vocab, key=lambda token: vocab[token])
        if vocab[last] >= rows:
            raise ConfigError(
                f"{source}: token {last!r} has id {vocab[last]}, "
                f"expected less than Decoder.vocab_size = {rows}"
            )

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; `<eos>` in it becomes the tokenizer's own token."""
        text = text.replace(EOS, self.eos_token)
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text up to the end of sequence, with the tags of reasoning and answer."""
        ids = list(ids)
        ids = ids[: ids.index(self.eos_id)] if self.eos_id in ids else ids
        return self.backend.decode([i for i in ids if i != self.pad_id], skip_special_tokens=False)


def _name_in(backend: Tokenizer, token: str) -> str:
    """The name of a special token in a tokenizer: ours, or Qwen's if only that one is there."""
    qwen = QWEN_NAMES.get(token)
    is_missing = backend.token_to_id(token) is None
    return qwen if is_missing and qwen and backend.token_to_id(qwen) is not None else token


def extend_pretrained_tokenizer(path: str | Path) -> tuple[TextTokenizer, dict[int, list[int]]]:
    """Reads a pretrained decoder's tokenizer.json and adds the tokens of SPECIAL that it lacks.

    They take the ids after its last one, for which Qwen's embeddings have spare rows. Also returns
    {id of a new token: ids of the subwords that it was split into before}, except for the audio
    token, whose embedding is never used. Raises ConfigError if the file is not a tokenizer.
    """
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise ConfigError(f"{path}: cannot be read as a tokenizer: {error}") from None
    missing = [t for t in SPECIAL if backend.token_to_id(_name_in(backend, t)) is None]
    subwords = {t: backend.encode(t, add_special_tokens=False).ids for t in missing}
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in missing])
    new_ids = {backend.token_to_id(t): ids for t, ids in subwords.items() if t != AUDIO}
    return TextTokenizer.from_tokenizer(backend), new_ids


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> TextTokenizer:
    """Trains a byte-level BPE on texts. Its words may contain hyphens, but no blanks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[\w\-]+| ?[^\w\s]|\s"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return TextTokenizer.from_tokenizer(tokenizer)


def question_text(question: str, options: Sequence[str] | None) -> str:
    """Text of a prompt: the question and its options, one per line; None: open-ended."""
    if options is None:
        return f" {question}\n"
    letters = CHOICE_LETTERS[: len(options)]
    lines = [f"\n{letter} {option}" for letter, option in zip(letters, options, strict=True)]
    return f" {question}{''.join(lines)}\n"


def parse_options(prompt: str) -> tuple[str, ...]:
    """The options in a prompt of `question_text`; () for an open-ended question."""
    return tuple(_OPTION.findall(prompt))


def reply_text(question: Question, with_trace: bool = True) -> str:
    """The completion that SFT trains on; without the trace, its reasoning is empty.

    The answer is the text of the option: a decoder of half a million parameters learns which text
    is right long before it learns which letter belongs to it.
    """
    trace = f" {question.trace}" if with_trace else ""
    return f"{THINK}{trace}{END_THINK}{answer_text(question.answer_text)}"


def answer_text(answer: str) -> str:
    """The end of a completion, after the reasoning."""
    return f"{ANSWER} {answer}{END_ANSWER}{EOS}"


def caption_text(caption: str) -> str:
    """The completion that stage 2 trains on: reasoning without an answer."""
    return f"{THINK} {caption}{END_THINK}{EOS}"


def prompt_ids(tokenizer: TextTokenizer, audio_tokens: int, text: str) -> list[int]:
    """Token ids of a prompt: placeholders for `audio_tokens` audio tokens, then the text."""
    placeholders = [tokenizer.audio_id] * audio_tokens
    text_ids = tokenizer.encode(text)
    return [*tokenizer.chat_prefix, *placeholders, *text_ids, *tokenizer.chat_suffix]


def pad_left(rows: Sequence[Sequence[int]], length: int, pad_id: int) -> np.ndarray:
    """Pads rows of ids on the left: int32 [rows, length]. Raises ConfigError if one is longer."""
    out = np.full((len(rows), length), pad_id, np.int32)
    for i, row in enumerate(rows):
        _check_length(row, length, "prompt")
        out[i, length - len(row) :] = row
    return out


def pad_right(rows: Sequence[Sequence[int]], length: int, pad_id: int) -> np.ndarray:
    """Pads rows of ids on the right: int32 [rows, length]. Raises ConfigError if one is longer."""
    out = np.full((len(rows), length), pad_id, np.int32)
    for i, row in enumerate(rows):
        _check_length(row, length, "completion")
        out[i, : len(row)] = row
    return out


def _check_length(row: Sequence[int], length: int, name: str) -> None:
    if len(row) > length:
        raise ConfigError(f"a {name} of {len(row)} tokens, expected at most {length}")
