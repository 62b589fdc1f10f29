# SPDX-License-Identifier: Apache-2.0
"""Scoring of open-ended answers: values parsed from free text, compared within tolerances.

An item's `open_answer` is {"kind", "value", "text"}. An answer is correct if its value is within
`TOLERANCES` of the true one (20 degrees of azimuth, 10 of elevation, a relative distance error of
0.3, 0.4 s; a count must be equal), or, for kind "name", if it contains that class name and no
other. A text with two different answers, or none, is wrong. Reasoning (`<think>...</think>`) is
not parsed.

    >>> from jaxasa.bench import open_ended
    >>> open_ended.parse_answer("about 30 degrees to the right", "azimuth")
    -30.0
    >>> open_ended.parse_answer("behind me", "azimuth")
    180.0
    >>> open_ended.parse_answer("150 centimetres", "distance")
    1.5
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxasa.bench import score, suite

TOLERANCES = {"azimuth": 20.0, "elevation": 10.0, "distance": 0.3, "time": 0.4, "count": 0.0}
_NUMBER = r"(?<![\w.])[-+\u2212]?(?:\d+(?:\.\d+)?|\.\d+)"
_UNITS = {
    "azimuth": {"": 1.0, "degrees": 1.0, "degree": 1.0, "deg": 1.0, "°": 1.0},
    "elevation": {"": 1.0, "degrees": 1.0, "degree": 1.0, "deg": 1.0, "°": 1.0},
    "distance": {
        **dict.fromkeys(("", "m", "metre", "metres", "meter", "meters"), 1.0),
        **dict.fromkeys(("cm", "centimetre", "centimetres", "centimeter", "centimeters"), 0.01),
        **dict.fromkeys(("ft", "foot", "feet"), 0.3048),
    },
    "time": {
        **dict.fromkeys(("", "s", "sec", "secs", "second", "seconds"), 1.0),
        **dict.fromkeys(("ms", "millisecond", "milliseconds"), 0.001),
    },
}
_COUNTS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
# In this order, each removed once matched, so that "front-left" does not also match "left".
_BEARINGS = {
    r"(?:front|forward|ahead)[\s-]*(?:and|to the|,)?[\s-]*left|left[\s-]*front": 45.0,
    r"(?:front|forward|ahead)[\s-]*(?:and|to the|,)?[\s-]*right|right[\s-]*front": -45.0,
    r"(?:back|rear|behind)[\s-]*(?:and|to the|,)?[\s-]*left|left[\s-]*(?:back|rear)": 135.0,
    r"(?:back|rear|behind)[\s-]*(?:and|to the|,)?[\s-]*right|right[\s-]*(?:back|rear)": -135.0,
    r"left": 90.0,
    r"right": -90.0,
    r"front|ahead|forward": 0.0,
    r"behind|back|rear": 180.0,
}
_LEVEL = re.compile(r"\b(?:level|ear height|eye level|horizontal)\b")


def parse_answer(text: str, kind: str, names: Collection[str] = ()) -> float | str | None:
    """The answer in free text: degrees, metres, seconds, a count, or one of `names`; or None.

    kind: one of TOLERANCES, or "name".
    """
    answers = {_parse_span(t.lower(), kind, names) for t in score.answer_spans(text)}
    return answers.pop() if len(answers) == 1 else None


def _parse_span(text: str, kind: str, names: Collection[str]) -> float | str | None:
    if kind == "name":
        return score.single_option_match(text, list(names))
    if kind == "count":
        return _count(text)
    numbers = _numbers(text, kind)
    if kind == "azimuth":
        return _azimuth(text, numbers)
    if kind == "elevation" and len(numbers) == 1:
        (value,) = numbers
        is_down = re.search(r"\b(?:below|down|downwards?|under)\b", text)
        return -abs(value) if is_down else value
    if kind == "elevation" and not numbers and _LEVEL.search(text):
        return 0.0
    return numbers.pop() if len(numbers) == 1 else None


def _numbers(text: str, kind: str) -> set[float]:
    """The numbers in `text` in the unit of `kind`. If any has a unit, those without are ignored."""
    bare, with_unit = set(), set()
    units = _UNITS[kind]
    for match in re.finditer(rf"({_NUMBER})\s*([a-z°]*)", text):
        value, unit = float(match[1].replace("\u2212", "-")), match[2]
        if unit in units and unit:
            with_unit.add(value * units[unit])
        else:
            bare.add(value)
    return with_unit or bare


def _azimuth(text: str, numbers: set[float]) -> float | None:
    """Degrees in (-180, 180]: a number, with a side if one is named, or a bearing in words."""
    sides = set(re.findall(r"\b(left|right)\b", text))
    if len(numbers) == 1:
        (value,) = numbers
        if len(sides) > 1:
            return None
        if sides:
            value = abs(value) if sides == {"left"} else -abs(value)
        return 180.0 - (180.0 - value) % 360.0
    if numbers:
        return None
    bearings = set()
    for pattern, value in _BEARINGS.items():
        text, count = re.subn(rf"\b(?:{pattern})\b", "|", text)
        if count:
            bearings.add(value)
    return bearings.pop() if len(bearings) == 1 else None


def _count(text: str) -> float | None:
    counts = {float(n) for n in re.findall(rf"{_NUMBER}(?![\w.]*\d)", text)}
    if any(n < 0 or n % 1 for n in counts):
        return None
    counts |= {float(k) for k, word in enumerate(_COUNTS) if re.search(rf"\b{word}\b", text)}
    if re.search(r"\b(?:none|no|nothing)\b", text):
        counts.add(0.0)
    return counts.pop() if len(counts) == 1 else None


def is_within_tolerance(answer: float | str | None, truth: Mapping) -> bool:
    """Whether a parsed answer is correct. truth: an item's `open_answer`."""
    if answer is None:
        return False
    if truth["kind"] == "name":
        return answer == truth["text"]
    error = abs(float(answer) - truth["value"])
    if truth["kind"] == "azimuth":
        error = min(error % 360.0, 360.0 - error % 360.0)
    if truth["kind"] == "distance":
        error /= truth["value"]
    return error <= TOLERANCES[truth["kind"]] + 1e-9


def score_items(items: Sequence[suite.Item], predictions: Mapping[str, str]) -> dict:
    """`score.accuracy_by_group` of open-ended answers, and accuracy by kind of answer.

    Adds "kinds": {kind: A}, and "unparsed": the share of predictions without a (single) answer.
    """
    names = sorted({s["class"] for i in items for s in i.scene["sources"]})
    truths: list[Mapping] = [i.open_answer or {} for i in items]
    kind = np.array([truth["kind"] for truth in truths])
    answers = [parse_answer(predictions[i.id], k, names) for i, k in zip(items, kind, strict=True)]
    hits = np.array(list(map(is_within_tolerance, answers, truths)), bool)
    result = score.accuracy_by_group(items, hits)
    kinds = {k: score.accuracy(hits[kind == k]) for k in sorted(set(kind.tolist()))}
    unparsed = sum(a is None for a in answers) / len(items)
    return result | {"kinds": kinds, "unparsed": unparsed}


def score_file(predictions: str | Path, benchmark_folder: str | Path) -> dict:
    """`score_items` of a predictions.jsonl on the items of a suite that have an open answer."""
    items = [i for i in suite.load(benchmark_folder) if i.open_answer]
    return score_items(items, score.read_predictions(predictions, items))
