# SPDX-License-Identifier: Apache-2.0
"""Reads directions, distances, times and counts as people write them, in degrees, metres, seconds.

Numbers have digits or words, a decimal point or comma, and a unit or none. A range has two
values, as have alternatives. A bearing is left, front-left, 30 degrees to the left, 30 degrees
clockwise or at 2 o'clock; azimuth is counter-clockwise, front 0, left +90.

>>> parse_quantity("about thirty degrees to the right", "azimuth")
-30.0
>>> parse_quantity("1,5 m", "distance"), parse_quantity("1500 mm", "distance")
(1.5, 1.5)
>>> parse_quantity("between 1 and 5 metres", "distance") is None
True
"""

import math
import re
import unicodedata

from jaxasa.data import replies, scene_text

QUANTITIES = ("azimuth", "elevation", "distance", "time", "count")

_UNITS = {
    "angle": {
        **dict.fromkeys(("degrees", "degree", "degs", "deg", "°"), 1.0),
        **dict.fromkeys(("radians", "radian", "rads", "rad"), 180.0 / math.pi),
    },
    "distance": {
        **dict.fromkeys(("metres", "metre", "meters", "meter", "m"), 1.0),
        **dict.fromkeys(("decimetres", "decimetre", "decimeters", "decimeter", "dm"), 0.1),
        **dict.fromkeys(("centimetres", "centimetre", "centimeters", "centimeter", "cm"), 0.01),
        **dict.fromkeys(("millimetres", "millimetre", "millimeters", "millimeter", "mm"), 0.001),
        **dict.fromkeys(("kilometres", "kilometre", "kilometers", "kilometer", "km"), 1000.0),
        **dict.fromkeys(("feet", "foot", "ft"), 0.3048),
        **dict.fromkeys(("inches", "inch"), 0.0254),
        **dict.fromkeys(("yards", "yard", "yd"), 0.9144),
        **dict.fromkeys(("miles", "mile"), 1609.344),
    },
    "time": {
        **dict.fromkeys(("seconds", "second", "secs", "sec", "s"), 1.0),
        **dict.fromkeys(("milliseconds", "millisecond", "msec", "ms"), 0.001),
        **dict.fromkeys(("minutes", "minute", "mins", "min"), 60.0),
        **dict.fromkeys(("hours", "hour", "h"), 3600.0),
    },
    "other": dict.fromkeys(("db", "khz", "hz", "%", "percent", "samples", "frames"), 1.0),
}
_ALL_UNITS = {unit: kind for kind, units in _UNITS.items() for unit in units}
_KIND_OF = {"azimuth": "angle", "elevation": "angle", "distance": "distance", "time": "time"}

_UP_TO_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)
_TENS = "thirty forty fifty sixty seventy eighty ninety"
_WORDS = {word: k for k, word in enumerate(_UP_TO_TWENTY.split())}
_WORDS |= {word: 10 * k for k, word in enumerate(_TENS.split(), 3)}
_WORD = "|".join(sorted(_WORDS, key=len, reverse=True))
_LONG_UNIT = "|".join(sorted((u for u in _ALL_UNITS if len(u) > 3), key=len, reverse=True))
_NUMBER_IN_WORDS = re.compile(
    rf"\b(?:(?P<half>half an? |a half )|(?P<hundred>(?:a|one) hundred )?(?:and )?"
    rf"(?P<first>(?:{_WORD})[ -])?(?P<second>(?:{_WORD})[ -])?(?P<point>point (?P<after>{_WORD}) )?"
    rf"(?P<plus>and a half )?)(?=(?:{_LONG_UNIT})\b)"
)
_COUNT_WORD = re.compile(rf"\b(?:{_WORD})\b")

_NUMBER = r"\d+(?:[.,]\d+)*|\.\d+"
_MEASURE = re.compile(
    rf"(?:(?<![\w.,)°])(?P<sign>[-+])|(?<![\w.,]))(?P<number>{_NUMBER})"
    r"(?: ?(?P<unit>[a-z]+|°|%)(?![a-z]))?"
)
_RANGE = re.compile(r" ?(?:-+|~|/|\.\.+|to|and|or|,|;) ?(?:about |around |even )?")
_SIGN = re.compile(r"\b(minus|negative|plus|positive) (?=[\d.])")
_MULTIPLE_OF_PI = re.compile(
    r"(?:(?P<factor>(?<![\d.])\d{1,6}(?:\.\d{1,6})?)[ *]{0,2})?(?:π|(?<![a-z])pi(?![a-z]))"
    r"(?: ?/ ?(?P<by>[1-9]\d{0,2}))?"
)
_FRACTION = re.compile(r"(\d{0,6})([¼½¾⅓⅔])")
_ORDINAL = re.compile(r"\b\d+(?:st|nd|rd|th)\b")
_TOLERANCE = re.compile(r" ?(?:±|\+/-|\+-|plus or minus) ?[\d.,]+")
_CLOCK = re.compile(r"\b(\d{1,2}) ?o' ?clock\b")
_COUNTERCLOCKWISE = re.compile(r"\b(?:counter|anti)[ -]?clockwise\b|\bccw\b")
_CLOCKWISE = re.compile(r"\bclockwise\b|\bcw\b")
_LEVEL = re.compile(r"\b(?:level|ear height|eye level|horizontal)\b")
_DOWN = re.compile(r"\b(?:below|down|downwards?|under)\b")
# "front, left" is one bearing here, as there is but one question.
_BEARING = re.compile(
    r"(?<![\w-])(?:(front|back)(?:-|, ?(?:to the )?))?(left|right|front|back)(?![\w-])"
)
_FRONT_LIMIT_DEG = 100.0  # a number that is called front is within this angle of it


def parse_quantity(text: str, quantity: str) -> float | None:
    """The value in a text: degrees, metres, seconds or a count; None if there is none, or several.

    quantity: one of QUANTITIES. Azimuths are in (-180, 180].
    """
    text = " ".join(replies.plain_text(text).lower().split())
    value = _count(text) if quantity == "count" else _measure(text, quantity)
    return value if value is not None and math.isfinite(value) else None


def _measure(text: str, quantity: str) -> float | None:
    text = _SIGN.sub(lambda m: "-" if m[1] in ("minus", "negative") else "", _in_digits(text))
    text = _ORDINAL.sub("|", _TOLERANCE.sub("", text))
    if quantity == "azimuth":
        return _azimuth(text)
    values = _values(text, _KIND_OF[quantity])
    if quantity == "elevation" and not values and _LEVEL.search(text):
        return 0.0
    if values is None or len(values) != 1:
        return None
    (value,) = values
    if quantity == "elevation":
        return -abs(value) if _DOWN.search(text) else value
    return value if value >= 0 else None


def _in_digits(text: str) -> str:
    """A text in which numbers in words before a unit, and multiples of pi, are in digits."""

    def number(match: re.Match) -> str:
        first, second = (match[name] or "" for name in ("first", "second"))
        if match["half"]:
            return "0.5 "
        value = 100.0 * bool(match["hundred"])
        value += sum(_WORDS[word.strip(" -")] for word in (first, second) if word)
        value += _WORDS[match["after"]] / 10 if match["point"] else 0.0
        value += 0.5 * bool(match["plus"])
        is_number = first or second or match["hundred"]
        return f"{value:g} " if is_number else match[0]

    def multiple(match: re.Match) -> str:
        value = float(match["factor"] or 1) * math.pi / float(match["by"] or 1)
        return f"{value:.6f} radians "

    def fraction(match: re.Match) -> str:
        return f"{float(match[1] or 0) + unicodedata.numeric(match[2]):.6f}"

    text = _FRACTION.sub(fraction, _NUMBER_IN_WORDS.sub(number, text))
    text = _MULTIPLE_OF_PI.sub(multiple, text)
    return " ".join(re.sub(r"(?<=radians ) ?(?:radians?|rads?)\b", "", text).split())


def _values(text: str, kind: str) -> set[float] | None:
    """The numbers in a text in the unit of `kind`; if any has a unit, those without are ignored.

    None if a number can be read in two ways ("1,500 m").
    """
    bare, with_unit = set(), set()
    matches = [m for m in _MEASURE.finditer(text) if _unit_of(m) is not None]
    units = [_unit_of(match) or "" for match in matches]
    for k in range(len(matches) - 1, 0, -1):  # "1 to 2 m": both are in metres
        between = text[matches[k - 1].end("number") : matches[k].start()]
        if not units[k - 1] and _RANGE.fullmatch(between):
            units[k - 1] = units[k]
    for match, unit in zip(matches, units, strict=True):
        value = _number(match["number"], unit)
        if value is None:
            return None
        value = -value if match["sign"] == "-" else value
        if not unit:
            bare.add(value)
        elif _ALL_UNITS[unit] == kind:
            with_unit.add(value * _UNITS[kind][unit])
    return with_unit or bare


def _unit_of(match: re.Match) -> str | None:
    """The unit of a number; "" if it has none, None if letters follow it that are no unit."""
    unit = match["unit"] or ""
    is_attached = bool(unit) and match.start("unit") == match.end("number")
    if unit in _ALL_UNITS or not is_attached:
        return unit if unit in _ALL_UNITS else ""
    return None


def _number(digits: str, unit: str) -> float | None:
    """The value of digits with a decimal point or comma, or both; None if it could be two values.

    "1,500" is 1500 if its unit is a thousandth, and 1.5 or 1500 otherwise.
    """
    commas, points = digits.count(","), digits.count(".")
    if commas and points:
        decimal = max(digits.rfind(","), digits.rfind("."))
        whole, rest = digits[:decimal], digits[decimal + 1 :]
        if digits.count(digits[decimal]) > 1:
            return None
        digits = f"{re.sub('[.,]', '', whole)}.{rest}"
    elif commas == 1 and points == 0:
        whole, _, rest = digits.partition(",")
        if len(rest) == 3 and whole.strip("0") and len(whole) <= 3:
            if unit not in ("mm", "ms") and not unit.startswith("milli"):
                return None
            digits = whole + rest
        else:
            digits = f"{whole}.{rest}"
    elif commas > 1 or points > 1:
        parts = re.split("[.,]", digits)
        if any(len(part) != 3 for part in parts[1:]):
            return None
        digits = "".join(parts)
    return float(digits)


def _azimuth(text: str) -> float | None:
    """Degrees in (-180, 180]: a number, with a side if one is named, or a bearing in words."""
    turns = set()
    text, count = _COUNTERCLOCKWISE.subn("|", text)
    turns |= {1.0} if count else set()
    text, count = _CLOCKWISE.subn("|", text)
    turns |= {-1.0} if count else set()
    hours = {float(hour) for hour in _CLOCK.findall(text)}
    if hours:
        return _wrap(-30.0 * hours.pop()) if len(hours) == 1 and max(hours) <= 12 else None
    text = replies.normalize_bearings(text)
    bearings = _bearings(text)
    values = _values(text, "angle")
    if values is None or len(values) > 1:
        return None
    if not values:
        centres = {scene_text.SECTOR_WIDTH * scene_text.SECTORS.index(name) for name in bearings}
        return _wrap(centres.pop()) if len(centres) == 1 else None
    (value,) = values
    turns |= {1.0 if name.endswith("left") else -1.0 for name in bearings if "-" in name}
    turns |= {1.0} if "left" in bearings else set()
    turns |= {-1.0} if "right" in bearings else set()
    if len(turns) > 1:
        return None
    value = _wrap(turns.pop() * abs(value) if turns else value)
    ends = {name.partition("-")[0] for name in bearings} & {"front", "back"}
    is_front, is_back = abs(value) <= _FRONT_LIMIT_DEG, abs(value) >= 180.0 - _FRONT_LIMIT_DEG
    # "20 degrees left of the back" counts from there.
    return None if ("front" in ends and not is_front) or ("back" in ends and not is_back) else value


def _bearings(text: str) -> set[str]:
    """The names of sectors in a text; "front, left" is one."""
    return {"-".join(filter(None, names)) for names in _BEARING.findall(text)}


def _wrap(degrees: float) -> float:
    return 180.0 - (180.0 - degrees) % 360.0


def _count(text: str) -> float | None:
    text = _ORDINAL.sub("|", text)
    counts = {
        -1.0 if match["sign"] == "-" else _number(match["number"], "")
        for match in _MEASURE.finditer(text)
    }
    if any(n is None or n < 0 or n % 1 for n in counts):
        return None
    counts |= {float(_WORDS[word]) for word in _COUNT_WORD.findall(text)}
    if re.search(r"\b(?:none|no|nothing)\b", text):
        counts.add(0.0)
    return counts.pop() if len(counts) == 1 else None
