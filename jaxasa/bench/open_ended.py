"""Open-ended answers: numbers, units and words read from free text, scored within tolerances.

An item's `open` is {"kind", "value", "text"}. Right is what reads as a value within `TOLERANCES`
of the true one: 20 degrees of azimuth, 10 of elevation, 0.3 of the distance, 0.4 s; a count must
be equal, and of a "name" the one class that the text names. What reads as two different answers,
or as none, is wrong. Reasoning (`<think>...</think>`) is not read.

    >>> from jaxasa.bench import free
    >>> free.read("about 30 degrees to the right", "azimuth"), free.read("behind me", "azimuth")
    (-30.0, 180.0)
    >>> free.read("1.5 m", "distance"), free.read("150 centimetres", "distance")
    (1.5, 1.5)
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
# Words are taken in this order: "front-left" is not also "left".
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


def read(text: str, kind: str, names: Collection[str] = ()) -> float | str | None:
    """The answer in free text: degrees, metres, seconds, a count, or one of `names`; or None."""
    found = {_read(t.lower(), kind, names) for t in score.stretches(text)}
    return found.pop() if len(found) == 1 else None


def _read(text: str, kind: str, names: Collection[str]) -> float | str | None:
    if kind == "name":
        return score.only_named(text, list(names))
    if kind == "count":
        return _count(text)
    numbers = _numbers(text, kind)
    if kind == "azimuth":
        return _azimuth(text, numbers)
    if kind == "elevation" and len(numbers) == 1:
        (value,) = numbers
        down = re.search(r"\b(?:below|down|downwards?|under)\b", text)
        return -abs(value) if down else value
    if kind == "elevation" and not numbers and _LEVEL.search(text):
        return 0.0
    return numbers.pop() if len(numbers) == 1 else None


def _numbers(text: str, kind: str) -> set[float]:
    """The numbers in `text` in the unit of `kind`; those with a unit alone, where any has one."""
    plain, united = set(), set()
    units = _UNITS[kind]
    for match in re.finditer(rf"({_NUMBER})\s*([a-z°]*)", text):
        value, unit = float(match[1].replace("\u2212", "-")), match[2]
        if unit in units and unit:
            united.add(value * units[unit])
        else:
            plain.add(value)
    return united or plain


def _azimuth(text: str, numbers: set[float]) -> float | None:
    """Degrees in (-180, 180]: a number, with its side where one is named, or a bearing's words."""
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
    found = set()
    for pattern, value in _BEARINGS.items():
        text, count = re.subn(rf"\b(?:{pattern})\b", "|", text)
        if count:
            found.add(value)
    return found.pop() if len(found) == 1 else None


def _count(text: str) -> float | None:
    found = {float(n) for n in re.findall(rf"{_NUMBER}(?![\w.]*\d)", text)}
    if any(n < 0 or n % 1 for n in found):
        return None
    found |= {float(k) for k, word in enumerate(_COUNTS) if re.search(rf"\b{word}\b", text)}
    if re.search(r"\b(?:none|no|nothing)\b", text):
        found.add(0.0)
    return found.pop() if len(found) == 1 else None


def is_right(answer: float | str | None, form: Mapping) -> bool:
    """Whether what was read is the true answer of an item's `open`, within its tolerance."""
    if answer is None:
        return False
    if form["kind"] == "name":
        return answer == form["text"]
    off = abs(float(answer) - form["value"])
    if form["kind"] == "azimuth":
        off = min(off % 360.0, 360.0 - off % 360.0)
    if form["kind"] == "distance":
        off /= form["value"]
    return off <= TOLERANCES[form["kind"]] + 1e-9


def score_items(items: Sequence[suite.Item], predictions: Mapping[str, str]) -> dict:
    """Accuracy of open-ended answers, as score.score has it by groups, and by kind of answer.

    Adds "kinds": {kind: A} and "unread", the share of answers in which none was found.
    """
    names = sorted({s["class"] for i in items for s in i.scene["sources"]})
    forms: list[Mapping] = [i.open or {} for i in items]
    kind = np.array([form["kind"] for form in forms])
    read_as = [read(predictions[i.id], k, names) for i, k in zip(items, kind, strict=True)]
    right = np.array(list(map(is_right, read_as, forms)), bool)
    result = score.by_groups(items, right)
    kinds = {k: score.accuracy(right[kind == k]) for k in sorted(set(kind.tolist()))}
    unread = sum(a is None for a in read_as) / len(items)
    return result | {"kinds": kinds, "unread": unread}


def score_file(predictions: str | Path, benchmark_folder: str | Path) -> dict:
    """`score_items` of a predictions.jsonl on the items of a suite that have an open form."""
    items = [i for i in suite.load(benchmark_folder) if i.open]
    return score_items(items, score.read(predictions, items))
