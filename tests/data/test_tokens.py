# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from jaxasa.config import ConfigError
from jaxasa.data import questions, tokens
from jaxasa.stages import rewards

QUESTION = questions.Question(
    "L1", "azimuth", "where is the dog ?", ("left", "back", "front", "right"), "C",
    "dog front near . so front", True,
)  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        " where is the bell ?\nA left\nB back-right\n",
        "<think> dog front-left near , rain back far . so dog</think><answer> dog</answer>",
        "Ünknown wörds, 漢字 & a tab\t!",
    ],
)
def test_decoding_inverts_encoding(text, words):
    ids = text.encode(words)
    assert text.decode(ids) == words
    assert text.decode([*ids, text.eos_id, 9, 9]) == words
    assert text.decode([text.pad_id, *ids, text.pad_id]) == words


def test_special_tokens_are_one_id_each(text):
    assert [text.encode(t) for t in tokens.SPECIAL] == [[i] for i in range(len(tokens.SPECIAL))]
    assert (text.pad_id, text.eos_id, text.audio_id) == (0, 1, 2)
    assert (text.think_id, text.end_think_id, text.answer_id) == (3, 4, 5)
    assert len(text.encode(" back-right")) == 1 and text.vocab_size <= 480


def test_saved_tokenizer_is_loaded(text, tmp_path):
    text.backend.save(str(tmp_path / "tokenizer.json"))
    loaded = tokens.TextTokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.encode(" dog left ?") == text.encode(" dog left ?")
    assert loaded.eos_id == text.eos_id
    with pytest.raises(ConfigError, match=r"absent\.json: no such file"):
        tokens.TextTokenizer.load(tmp_path / "absent.json")
    with pytest.raises(ConfigError, match="lacks the tokens .*<AcousticTokens>"):
        tokens.TextTokenizer.from_tokenizer(Tokenizer(models.BPE()))


def test_each_option_follows_its_letter():
    prompt = tokens.question_text(QUESTION.question, QUESTION.options)
    assert prompt == " where is the dog ?\nA left\nB back\nC front\nD right\n"
    assert tokens.parse_options(prompt) == QUESTION.options
    open_ended = tokens.question_text(QUESTION.question, None)
    assert open_ended == " where is the dog ?\n" and tokens.parse_options(open_ended) == ()


def test_options_are_parsed_from_padded_and_chat_prompts(text):
    """As rewards read them: after audio placeholders and padding, inside a chat message."""
    prefix, suffix = tuple(text.encode("user\n")), (text.eos_id, 9)
    chat = dataclasses.replace(text, chat_prefix=prefix, chat_suffix=suffix)
    for tokenizer in (text, chat):
        for options in (QUESTION.options, ("0", "1", "2", "3"), ("bird left", "B", "A b", "dog")):
            words = tokens.question_text(QUESTION.question, options)
            [ids] = tokens.pad_left([tokens.prompt_ids(tokenizer, 5, words)], 60, text.pad_id)
            assert tokens.parse_options(tokenizer.decode(ids)) == options


def test_replies_are_parsed_by_the_rewards():
    reply = tokens.reply_text(QUESTION)
    assert reply.endswith("<eos>")
    parsed = rewards.parse_completion(reply.removesuffix("<eos>"))
    assert parsed == (" dog front near . so front", "front")
    without_trace = tokens.reply_text(QUESTION, with_trace=False).removesuffix("<eos>")
    assert rewards.parse_completion(without_trace) == ("", "front")
    assert tokens.caption_text("dog front near .") == "<think> dog front near .</think><eos>"


def test_prompts_begin_with_audio_placeholders(text):
    ids = tokens.prompt_ids(text, 3, " where is the dog ?\n")
    assert ids[:3] == [text.audio_id] * 3 and text.audio_id not in ids[3:]
    assert text.decode(ids[3:]) == " where is the dog ?\n"


def test_padding_and_rows_that_are_too_long():
    rows = [[5, 6], [7], []]
    left, right = tokens.pad_left(rows, 3, 0), tokens.pad_right(rows, 3, 0)
    np.testing.assert_array_equal(left, [[0, 5, 6], [0, 0, 7], [0, 0, 0]])
    np.testing.assert_array_equal(right, [[5, 6, 0], [7, 0, 0], [0, 0, 0]])
    assert left.dtype == right.dtype == np.int32
    with pytest.raises(ConfigError, match="a prompt of 4 tokens, expected at most 3"):
        tokens.pad_left([[1, 2, 3, 4]], 3, 0)
    with pytest.raises(ConfigError, match="a completion of 4 tokens, expected at most 3"):
        tokens.pad_right([[1, 2, 3, 4]], 3, 0)
