# SPDX-License-Identifier: Apache-2.0
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxasa.data import replies, scene_text

OPTIONS = ("left", "front-left", "dog", "a cat")


@pytest.mark.parametrize(
    ("text", "letter", "kind"),
    [
        ("<answer>B</answer>", "B", "strict"),
        ("<think>dog left . so A</think> <answer> C </answer>", "C", "strict"),
        ("<answer>b</answer>", "B", "lenient"),
        ("<answer>B", "B", "lenient"),
        ("D", "D", "lenient"),
        (" (c). ", "C", "lenient"),
        ("B. front-left", "B", "lenient"),
        ("The answer is B", "B", "lenient"),
        ("Answer: C.", "C", "lenient"),
        ("<answer>A</answer><answer>A</answer>", "A", "lenient"),
        ("<answer>front-left</answer>", "B", "text"),
        ("<think>dog</think>Left", "A", "text"),
        ("It comes from the front-left.", "B", "text"),
        ("A dog is barking", "C", "text"),
        ("I hear a cat", "D", "text"),
        ("<answer>A</answer><answer>B</answer>", None, "none"),
        ("B. left", None, "none"),
        ("left or front-left", None, "none"),
        ("the answer is A or the answer is B", None, "none"),
        ("<think>so B</think>", None, "none"),
        ("<think>never closed <answer>B</answer>", None, "none"),
        ("leftover", None, "none"),
        ("E", None, "none"),
        ("", None, "none"),
    ],
)
def test_parse_choice(text, letter, kind):
    assert replies.parse_choice(text, OPTIONS) == (letter, kind)


@pytest.mark.parametrize(
    "text",
    [
        "The correct answer is **B**.",
        "**B**",
        "**B.**",
        "**Answer:** B",
        "Final Answer: **B) front-left**",
        "\\boxed{B}",
        "<answer>\\boxed{B}</answer>",
        "\\(\\boxed{\\text{B}}\\)",
        "A and C are too far away, so $\\boxed{\\mathbf{B}}$.",
        "`B`",
        '"B"',
        "\u201cB\u201d",
        "\uff22",  # a full-width letter
        "<b>B</b>",
        "_B_",
        "b",
        "(b)",
        "b) front-left",
        "Answer: b",
        "The answer is:\n\n**B**",
        "My choice: B",
        "Answer - B",
        "Answer = (B)",
        "I'd go with (B)",
        "B is the correct answer",
        "B, because it comes from there",
        "B - front-left",
        "B\n\nThe dog barks at the front-left.",
        "The dog barks at the front-left.\n\nB",
        "\u7b54\u6848\uff1aB",
    ],
)
def test_a_letter_in_any_dress(text):
    assert replies.parse_choice(text, OPTIONS) == ("B", "lenient")


@pytest.mark.parametrize(
    "text",
    [
        "reasoning: maybe option A. no.\n</think>\n\nB",
        "<thinking>left?</thinking> B",
        "<think>A?</think> <think>C?</think> B",
        "<reasoning>A</reasoning> B",
        "[THINK]A or C[/THINK]B",
        "<THINK>A</THINK>B",
        "A. </think> still A. </think> B",
    ],
)
def test_reasoning_with_any_tags_is_not_read(text):
    assert replies.parse_choice(text, OPTIONS)[0] == "B"
    assert replies.split_reply(text)[1].strip() == "B"
    assert "A" in replies.split_reply("x A </think> B")[0]


@pytest.mark.parametrize(
    "text",
    [
        "A or B",
        "A, B",
        "A/B",
        "the answer is A or B",
        "Answer: A, B",
        "Answer: A and C",
        "**A** or **B**",
        "\\boxed{A} \\boxed{B}",
        "the answer is not B",
        "not left",
        "it is neither left nor front-left",
        "the left. Answer: B",
        "left </think>",
    ],
)
def test_two_answers_or_a_denied_one_are_none(text):
    assert replies.parse_choice(text, OPTIONS) == (None, "none")


@pytest.mark.parametrize("spelling", ["{} {}", "{}-{}", "{}{}", "{}_{}", "{}\u2011{}", "{}  {}"])
@pytest.mark.parametrize("case", [str.lower, str.title, str.upper])
def test_bearings_in_any_spelling(spelling, case):
    for sector in scene_text.SECTORS:
        words = sector.split("-")
        text = case(spelling.format(*words) if len(words) == 2 else sector)
        for dress in ("{}", "It comes from the {}.", "<answer> {}</answer>", "**{}**"):
            assert replies.match_option(dress.format(text), scene_text.SECTORS) == sector
    # No option has two directions: "front left" is not "left".
    assert replies.match_option(case(spelling.format("front", "left")), ("left", "back")) is None


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("behind you", "back"),
        ("straight ahead", "front"),
        ("in front", "front"),
        ("rear left", "back-left"),
        ("to the back and right", "back-right"),
        ("on the left-hand side", "left"),
        ("left, not right", "left"),
        ("not left but front left", "front-left"),
        ("left and right", None),
    ],
)
def test_other_words_for_bearings(text, option):
    assert replies.match_option(text, scene_text.SECTORS) == option


@pytest.mark.parametrize(
    ("text", "options", "option"),
    [
        ("three sounds", "1 3 2 0", "3"),
        ("2", "1 3 2 0", "2"),
        ("1.5", "1 3 2 0", None),
        ("-1", "1 3 2 0", None),
        ("No, there is none.", "yes no", "no"),
        ("rear", "back rear", "rear"),
        ("Dog bark", "dog_bark cat_meow", "dog_bark"),
        ("30 degrees", "-30_degrees 30_degrees", "30_degrees"),
    ],
)
def test_options_of_other_kinds(text, options, option):
    assert replies.match_option(text, options.split()) == option


@pytest.mark.parametrize("count", range(2, 11))
def test_two_to_ten_options(count):
    options = [f"sound {'abcdefghij'[k] * 3}" for k in range(count)]
    for k, letter in enumerate(replies.CHOICE_LETTERS):
        expected = (letter, "lenient") if k < count else (None, "none")
        assert replies.parse_choice(f"**Answer:** ({letter})", options) == expected


MARKS = (
    "{}",
    "**{}**",
    "({})",
    "`{}`",
    '"{}"',
    "\\boxed{{{}}}",
    "<b>{}</b>",
    "_{}_",
    "\u201c{}\u201d",
)
PHRASES = (
    "{}", "{}.", "Answer: {}", "The answer is {}", "<think>A, B, C or D?</think>{}", "  {}\n",
    "option A? </think>\n{}", "<answer>{}</answer>", "<answer>{}", "### {}", "My choice: {}",
)  # fmt: skip


@given(*map(st.sampled_from, ("ABCD", MARKS, MARKS, PHRASES)))
def test_dresses_within_dresses(letter, inner, outer, phrase):
    text = phrase.format(outer.format(inner.format(letter)))
    assert replies.parse_choice(text, OPTIONS)[0] == letter, text


PARTS = (
    *PHRASES, *MARKS, "A", "B", "b", "E", "left", "front", "-", " ", "\n", "{{", "}}", "<", ">",
    "\\text{{", "</think>", "<think>", "<answer>", "</answer>", "not ", " or ", ", ",
    "\u2028", "\x00",
)  # fmt: skip


def check_any_reply(text):
    letter, kind = replies.parse_choice(text, OPTIONS)
    assert (letter is None) == (kind == "none") and kind in replies.KINDS
    assert letter is None or letter in "ABCD"


@given(st.lists(st.sampled_from(PARTS) | st.text(max_size=5), max_size=12).map("".join))
def test_any_text_has_a_letter_or_none(text):
    check_any_reply(text)


@pytest.mark.parametrize(
    "part",
    [
        "<think>",
        "</think>",
        "<answer>",
        "\\boxed{",
        "{",
        "a ",
        " ",
        "\n",
        "not ",
        "A or ",
        "'",
        "answer is ",
    ],
)
def test_long_replies_take_no_time(part):
    start = time.perf_counter()
    replies.parse_choice(part * (200_000 // len(part)), OPTIONS)
    assert time.perf_counter() - start < 5


@pytest.mark.soak
def test_fuzz():
    rng = random.Random(0)
    for _ in range(100_000):
        check_any_reply("".join(rng.choices(PARTS, k=rng.randrange(16))))
