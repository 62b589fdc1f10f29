"""Text to token ids: a small byte-level BPE for the tiny model, prompts, completions, batches.

A prompt is `[audio] question options`: `<AcousticTokens>` stands once for each audio token,
and the model puts the projector's output there. In stage 0 a written scene stands in its
place. A completion is `<think>trace</think><answer> left</answer><eos>`.

Prompts are padded on the left and completions on the right, so that every row of a batch
begins to answer in the same column and all shapes are static.
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxasa.config import ConfigError
from jaxasa.data.questions import LETTERS, Question

PAD, EOS, AUDIO = "<pad>", "<eos>", "<AcousticTokens>"
THINK, END_THINK, ANSWER, END_ANSWER = "<think>", "</think>", "<answer>", "</answer>"
SPECIAL = (PAD, EOS, AUDIO, THINK, END_THINK, ANSWER, END_ANSWER)
# What Qwen's tokenizers call the first two, and how a turn of a conversation begins there.
QWEN = {PAD: "<|endoftext|>", EOS: "<|im_end|>"}
TURN = "<|im_start|>"
_OPTION = re.compile(rf"^[{''.join(LETTERS)}] (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Text:
    """A tokenizer with the ids that the model needs. Pad is 0 in the tiny tokenizer.

    end: the text of the token eos. before, after: ids around a prompt, where the decoder was
    taught conversations: the user's turn, and the beginning of the model's.
    """

    tokenizer: Tokenizer
    pad: int
    eos: int
    audio: int
    think: int
    end_think: int
    answer: int
    end: str = EOS
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @classmethod
    def load(cls, path: str | Path) -> "Text":
        """Reads a `tokenizer.json`; raises ConfigError where a special token is missing."""
        if not Path(path).is_file():
            raise ConfigError(f"{path}: no such file, expected a tokenizer.json")
        return cls.of(Tokenizer.from_file(str(path)))

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Text":
        known = {name: _name_in(tokenizer, name) for name in SPECIAL}
        ids = {name: tokenizer.token_to_id(known[name]) for name in SPECIAL}
        missing = [name for name, i in ids.items() if i is None]
        if missing:
            raise ConfigError(f"tokenizer lacks the tokens {missing}")
        text = cls(
            tokenizer,
            ids[PAD],
            ids[EOS],
            ids[AUDIO],
            ids[THINK],
            ids[END_THINK],
            ids[ANSWER],
            known[EOS],
        )
        if tokenizer.token_to_id(TURN) is None:
            return text
        before = text.encode(f"{TURN}user\n")
        after = text.encode(f"{EOS}\n{TURN}assistant\n")
        return dataclasses.replace(text, before=tuple(before), after=tuple(after))

    def check_rows(self, rows: int, source: str | Path) -> None:
        """Raises ConfigError where a token has no row in an embedding of so many `rows`."""
        vocab = self.tokenizer.get_vocab(with_added_tokens=True)
        name = max(vocab, key=lambda token: vocab[token])
        if vocab[name] >= rows:
            raise ConfigError(
                f"{source}: token {name!r} has id {vocab[name]}, "
                f"expected less than Decoder.vocab_size = {rows}"
            )

    @property
    def size(self) -> int:
        return self.tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        text = text.replace(EOS, self.end)
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text up to the end of sequence; the tags of thought and answer stay in it."""
        ids = list(ids)
        ids = ids[: ids.index(self.eos)] if self.eos in ids else ids
        return self.tokenizer.decode([i for i in ids if i != self.pad], skip_special_tokens=False)


def _name_in(tokenizer: Tokenizer, name: str) -> str:
    """What `tokenizer` calls a special token."""
    other = QWEN.get(name)
    lacks = tokenizer.token_to_id(name) is None
    return other if lacks and other and tokenizer.token_to_id(other) is not None else name


def adopt(path: str | Path) -> tuple[Text, dict[int, list[int]]]:
    """A pretrained decoder's tokenizer.json with the tokens of SPECIAL that it lacks.

    They take the ids behind its last, for which Qwen's embeddings have spare rows. Returns also
    {id of such a token: ids of the pieces that spelt it before}, without that of audio, whose
    row is never read. Raises ConfigError for a file that is no tokenizer.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise ConfigError(f"{path}: cannot be read as a tokenizer: {error}") from None
    lacking = [n for n in SPECIAL if tokenizer.token_to_id(_name_in(tokenizer, n)) is None]
    spelt = {n: tokenizer.encode(n, add_special_tokens=False).ids for n in lacking}
    tokenizer.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in lacking])
    rows = {tokenizer.token_to_id(n): ids for n, ids in spelt.items() if n != AUDIO}
    return Text.of(tokenizer), rows


def train(texts: Sequence[str], vocab: int) -> Text:
    """Byte-level BPE on `texts`, at most `vocab` entries; words may join hyphens but not blanks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[\w\-]+| ?[^\w\s]|\s"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return Text.of(tokenizer)


def question_text(question: str, options: Sequence[str] | None) -> str:
    """The question and its options, a line each; None: an open question."""
    if options is None:
        return f" {question}\n"
    lines = [f"\n{letter} {option}" for letter, option in zip(LETTERS, options, strict=True)]
    return f" {question}{''.join(lines)}\n"


def options_in(prompt: str) -> tuple[str, ...]:
    """The options in a prompt that `question_text` made; () for an open question."""
    return tuple(_OPTION.findall(prompt))


def reply_text(question: Question, thought: bool = True) -> str:
    """The completion that SFT teaches; without `thought` the trace is empty.

    The answer is the text of the option: a decoder of half a million parameters learns which
    text is right long before it learns which letter stands beside it.
    """
    trace = f" {question.trace}" if thought else ""
    return f"{THINK}{trace}{END_THINK}{answer_text(question.answer_text)}"


def answer_text(answer: str) -> str:
    """How a completion ends."""
    return f"{ANSWER} {answer}{END_ANSWER}{EOS}"


def caption_text(caption: str) -> str:
    """The completion that stage 2 teaches: a trace that is not followed by an answer."""
    return f"{THINK} {caption}{END_THINK}{EOS}"


def prompt_ids(text: Text, audio_tokens: int, words: str) -> list[int]:
    """Ids of a prompt with `audio_tokens` places for audio before the `words`."""
    return [*text.before, *[text.audio] * audio_tokens, *text.encode(words), *text.after]


def pad_left(rows: Sequence[Sequence[int]], length: int, pad: int) -> np.ndarray:
    """int32 [len(rows), length], ids at the right; raises ConfigError for a longer row."""
    out = np.full((len(rows), length), pad, np.int32)
    for i, row in enumerate(rows):
        _check_length(row, length, "prompt")
        out[i, length - len(row) :] = row
    return out


def pad_right(rows: Sequence[Sequence[int]], length: int, pad: int) -> np.ndarray:
    """int32 [len(rows), length], ids at the left; raises ConfigError for a longer row."""
    out = np.full((len(rows), length), pad, np.int32)
    for i, row in enumerate(rows):
        _check_length(row, length, "completion")
        out[i, : len(row)] = row
    return out


def _check_length(row: Sequence[int], length: int, what: str) -> None:
    if len(row) > length:
        raise ConfigError(f"a {what} of {len(row)} tokens, expected at most {length}")
