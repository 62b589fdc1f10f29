import dataclasses

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from jaxasa.config import ConfigError
from jaxasa.data import questions, tokens
from jaxasa.stages import rewards

ASKED = questions.Question(
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
def test_text_comes_back(text, words):
    ids = text.encode(words)
    assert text.decode(ids) == words
    assert text.decode([*ids, text.eos, 9, 9]) == words
    assert text.decode([text.pad, *ids, text.pad]) == words


def test_special_tokens_are_one_id_each(text):
    assert [text.encode(t) for t in tokens.SPECIAL] == [[i] for i in range(len(tokens.SPECIAL))]
    assert (text.pad, text.eos, text.audio) == (0, 1, 2)
    assert (text.think, text.end_think, text.answer) == (3, 4, 5)
    assert len(text.encode(" back-right")) == 1 and text.size <= 480


def test_saved_and_loaded(text, tmp_path):
    text.tokenizer.save(str(tmp_path / "tokenizer.json"))
    again = tokens.Text.load(tmp_path / "tokenizer.json")
    assert again.encode(" dog left ?") == text.encode(" dog left ?") and again.eos == text.eos
    with pytest.raises(ConfigError, match=r"absent\.json: no such file"):
        tokens.Text.load(tmp_path / "absent.json")
    with pytest.raises(ConfigError, match="lacks the tokens .*<AcousticTokens>"):
        tokens.Text.of(Tokenizer(models.BPE()))


def test_each_option_follows_its_letter():
    written = tokens.question_text(ASKED.question, ASKED.options)
    assert written == " where is the dog ?\nA left\nB back\nC front\nD right\n"
    free = tokens.question_text(ASKED.question, None)
    assert free == " where is the dog ?\n"
    assert tokens.options_in(written) == ASKED.options and tokens.options_in(free) == ()


def test_options_are_read_from_prompts_of_all_kinds(text):
    """As rewards meet them: with places for audio, padded, and in a conversation's turns."""
    chat = dataclasses.replace(text, before=tuple(text.encode("user\n")), after=(text.eos, 9))
    for kind in (text, chat):
        for options in (ASKED.options, ("0", "1", "2", "3"), ("bird left", "B", "A b", "dog")):
            words = tokens.question_text(ASKED.question, options)
            [ids] = tokens.pad_left([tokens.prompt_ids(kind, 5, words)], 60, text.pad)
            assert tokens.options_in(kind.decode(ids)) == options


def test_replies_are_what_the_rewards_read():
    whole = tokens.reply_text(ASKED)
    assert whole.endswith("<eos>")
    said = whole.removesuffix("<eos>")
    assert rewards.parse(said) == (" dog front near . so front", "front")
    silent = tokens.reply_text(ASKED, thought=False).removesuffix("<eos>")
    assert rewards.parse(silent) == ("", "front")
    assert tokens.caption_text("dog front near .") == "<think> dog front near .</think><eos>"


def test_prompts_begin_with_places_for_audio(text):
    ids = tokens.prompt_ids(text, 3, " where is the dog ?\n")
    assert ids[:3] == [text.audio] * 3 and text.audio not in ids[3:]
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
