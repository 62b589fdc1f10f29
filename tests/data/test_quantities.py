# SPDX-License-Identifier: Apache-2.0
import math
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxasa.data import quantities


@pytest.mark.parametrize(
    ("quantity", "text", "value"),
    [
        ("azimuth", "45", 45.0),
        ("azimuth", "-120 degrees", -120.0),
        ("azimuth", "about 30 degrees to the right", -30.0),
        ("azimuth", "40° left", 40.0),
        ("azimuth", "270", -90.0),
        ("azimuth", "front-left", 45.0),
        ("azimuth", "to the front and right", -45.0),
        ("azimuth", "behind you", 180.0),
        ("azimuth", "back left", 135.0),
        ("azimuth", "straight ahead", 0.0),
        ("azimuth", "left or right", None),
        ("azimuth", "30 degrees left or 60 degrees", None),
        ("azimuth", "somewhere", None),
        ("azimuth", "1.57 radians", 89.954),
        ("azimuth", "π/2 rad", 90.0),
        ("azimuth", "-pi/2", -90.0),
        ("azimuth", "-π/2 radians", -90.0),
        ("azimuth", "minus 20 degrees", -20.0),
        ("azimuth", "thirty degrees to the left", 30.0),
        ("azimuth", "30 degrees clockwise", -30.0),
        ("azimuth", "30 degrees counter-clockwise", 30.0),
        ("azimuth", "at 3 o'clock", -90.0),
        ("azimuth", "at 9 o’clock", 90.0),
        ("azimuth", "frontleft", 45.0),
        ("azimuth", "Front-Left", 45.0),
        ("azimuth", "front, left", 45.0),
        ("azimuth", "20 degrees left of behind", None),
        ("azimuth", "30 ± 5 degrees", 30.0),
        ("azimuth", "45 degrees, front-left", 45.0),
        ("azimuth", "between 20 and 40 degrees", None),
        ("azimuth", "20-40°", None),
        ("azimuth", "−30°", -30.0),
        ("azimuth", "–30°", -30.0),
        ("azimuth", "2 m away at 30 degrees", 30.0),
        ("azimuth", "in front of you", 0.0),
        ("azimuth", "to your left", 90.0),
        ("elevation", "20 degrees up", 20.0),
        ("elevation", "15 degrees below", -15.0),
        ("elevation", "at ear height", 0.0),
        ("elevation", "minus 20 degrees", -20.0),
        ("elevation", "negative twenty degrees", -20.0),
        ("elevation", "20º", 20.0),
        ("distance", "1.5 m", 1.5),
        ("distance", "some 150 centimetres away", 1.5),
        ("distance", "the 2nd sound is 3 metres away", 3.0),
        ("distance", "10 feet", 3.048),
        ("distance", "far", None),
        ("distance", "1,5 m", 1.5),
        ("distance", "between 1 and 5 metres", None),
        ("distance", "1.5-2.5 m", None),
        ("distance", "1.5 – 2.5 m", None),
        ("distance", "1 to 2 m", None),
        ("distance", "1500 mm", 1.5),
        ("distance", "1,500 mm", 1.5),
        ("distance", "1,500 m", None),
        ("distance", "3 kilometres", 3000.0),
        ("distance", "two and a half metres", 2.5),
        ("distance", "half a metre", 0.5),
        ("distance", "one metre", 1.0),
        ("distance", "a hundred and twenty centimetres", 1.2),
        ("distance", "one point five metres", 1.5),
        ("distance", "about 3 away", 3.0),
        ("distance", "30 degrees", None),
        ("distance", "2m", 2.0),
        ("distance", "1.5m.", 1.5),
        ("distance", "2.5", 2.5),
        ("distance", "2,5", 2.5),
        ("distance", "1½ m", 1.5),
        ("distance", "1.5 m at 30 degrees", 1.5),
        ("time", "at 1.25 s", 1.25),
        ("time", "after 300 ms", 0.3),
        ("time", "2", 2.0),
        ("time", "between 1 and 2 s", None),
        ("time", "1,25 seconds", 1.25),
        ("time", "the second sound starts at 1.5 s", 1.5),
        ("count", "three sounds", 3.0),
        ("count", "There are 2.", 2.0),
        ("count", "none", 0.0),
        ("count", "2 or 3", None),
        ("count", "2-3", None),
        ("count", "2.0", 2.0),
        ("count", "2.5", None),
        ("count", "twelve", 12.0),
        ("count", "-1", None),
        ("count", "1,000", None),
    ],
)
def test_parse_quantity(quantity, text, value):
    answer = quantities.parse_quantity(text, quantity)
    assert answer == (value if value is None else pytest.approx(value, abs=1e-3))


UNITS = {
    "azimuth": {"degrees": 1, "°": 1, "deg": 1, "rad": 180 / math.pi},
    "distance": {"m": 1, "metres": 1, "cm": 0.01, "mm": 0.001, "km": 1000, "feet": 0.3048},
    "time": {"s": 1, "seconds": 1, "ms": 0.001, "minutes": 60},
}
unit = st.sampled_from([(q, u) for q, units in UNITS.items() for u in units])
number = st.integers(1, 300), st.integers(0, 2)


@given(unit, *number, st.sampled_from("., "), st.sampled_from(("", " ", "  ", "\u00a0")))
def test_numbers_with_units_and_decimal_signs(unit, whole, digits, point, blank):
    quantity, name = unit
    text = f"{whole / 10**digits:.{digits}f}".replace(".", point.strip() or ".")
    expected = whole / 10**digits * UNITS[quantity][name]
    if quantity == "azimuth":
        expected = 180 - (180 - expected) % 360
    for phrase in ("{}", "about {}", "It is {} away.", "**{}**", "{}, I think"):
        value = quantities.parse_quantity(phrase.format(f"{text}{blank}{name}"), quantity)
        assert value == pytest.approx(expected, abs=1e-6), phrase


@given(unit, st.integers(1, 9), st.integers(10, 99), st.integers(0, 5))
def test_ranges_are_two_values(unit, low, high, form):
    quantity, name = unit
    forms = ("between {} and {} {}", "{}-{} {}", "{} \u2013 {} {}", "{} to {} {}", "{} or {} {}")
    text = (*forms, "{} {} or {} {}")[form]
    text = text.format(*((low, high, name) if form < 5 else (low, name, high, name)))
    assert quantities.parse_quantity(text, quantity) is None, text


PARTS = (
    "minus ", "-", "+", "\u2212", "twenty ", "one ", "half a ", " and a half ", "hundred ", "pi",
    "/", "2", "1,5", "1.5", ".5", "1,500", "9" * 400, "\u00bd", " ", " to ", " and ", "\u00b1",
    "degrees", "\u00b0", "m", " metres", "ms", " seconds", "left", " front", "behind", "clockwise",
    "o'clock", "between ", "no ", "2nd", "\n", "**", "<answer>", "\u0663", "\u00b2",
)  # fmt: skip
any_text = st.lists(st.sampled_from(PARTS) | st.text(max_size=4), max_size=10).map("".join)


def check_any_text(text, quantity):
    value = quantities.parse_quantity(text, quantity)
    assert value is None or math.isfinite(value)
    if value is not None and quantity == "azimuth":
        assert -180 < value <= 180
    if value is not None and quantity in ("distance", "time", "count"):
        assert value >= 0


@given(any_text, st.sampled_from(quantities.QUANTITIES))
def test_any_text_has_a_value_or_none(text, quantity):
    check_any_text(text, quantity)


@pytest.mark.parametrize(
    "part", ["1", "1,", "1 ", "- ", "one ", "2 to ", "pi/2", "a hundred ", "front "]
)
def test_long_texts_take_no_time(part):
    start = time.perf_counter()
    for quantity in ("azimuth", "distance", "count"):
        quantities.parse_quantity(part * (100_000 // len(part)), quantity)
    assert time.perf_counter() - start < 5


@pytest.mark.soak
def test_fuzz():
    rng = random.Random(0)
    for _ in range(100_000):
        text = "".join(rng.choices(PARTS, k=rng.randrange(12)))
        check_any_text(text, rng.choice(quantities.QUANTITIES))
