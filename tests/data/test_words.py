import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxasa.data import words

CLASSES = ("alarm", "bell", "bird", "clock", "dog", "engine", "rain", "voice")


def test_sectors_are_centred_on_their_names():
    names = {0: "front", 45: "front-left", 90: "left", 135: "back-left", 180: "back"}
    names |= {-45: "front-right", -90: "right", -135: "back-right"}
    for azimuth, name in names.items():
        assert {words.sector(azimuth + d) for d in (-22, 0, 22)} == {name}
        assert words.sector_margin(azimuth) == 22.5
        assert words.sector_margin(azimuth + 20) == pytest.approx(2.5)
        assert words.sector(azimuth + 24) != name != words.sector(azimuth - 24)


@given(st.floats(-180, 180))
def test_a_sector_holds_to_its_margin_and_no_further(azimuth):
    margin = words.sector_margin(azimuth)
    assert 0 <= margin <= 22.5
    inside = {words.sector(azimuth + d * (margin - 0.01)) for d in (-1, 1)}
    assert margin < 0.01 or inside == {words.sector(azimuth)}
    assert {words.sector(azimuth + d * (margin + 0.01)) for d in (-1, 1)} != {words.sector(azimuth)}


@given(st.floats(-180, 180))
def test_a_turn_by_a_sector_moves_one_name_on(azimuth):
    if words.sector_margin(azimuth) > 1e-6:
        now = words.SECTORS.index(words.sector(azimuth))
        assert words.sector(azimuth + 45) == words.SECTORS[(now + 1) % 8]


def test_distances():
    assert [words.distance(d) for d in (0.3, 1.59, 1.6, 4.0)] == ["near", "near", "far", "far"]


def test_captions_are_read_back_as_claims(described):
    for scene in described(50):
        expected = [
            {
                "class": s["class"],
                "sector": words.sector(s["azimuth"]),
                "distance": words.distance(s["distance"]),
            }
            for s in scene["sources"]
        ]
        assert words.claims(words.caption(scene), CLASSES) == expected
        for order in range(3):
            mixed = words.written(scene, np.random.default_rng(order))
            assert words.claims(mixed, CLASSES) == expected


def test_written_scenes_have_words_in_any_order(described):
    scene = described(1, (1, 1))[0]
    seen = {words.written(scene, np.random.default_rng(i)) for i in range(60)}
    assert len(seen) == 6


def test_claims_of_odd_texts():
    read = lambda text: words.claims(text, CLASSES)  # noqa: E731
    assert read("dog left") == [{"class": "dog", "sector": "left", "distance": None}]
    assert read("far dog , , left near") == [{"class": "dog", "sector": None, "distance": "far"}]
    assert read("dog bell left near") == [] == read("") == read("cat left near")
    assert [c["class"] for c in read("dog left . bell right")] == ["dog"]
    assert [c["class"] for c in read("dog left , dog right")] == ["dog", "dog"]


def test_a_users_words_become_the_trained_ones():
    assert words.plain("Where is the Dog?") == "where is the dog ?"
    assert words.plain("  You turn left.\nWhat  is front,then: ?") == (
        "you turn left . what is front , then : ?"
    )
