import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxasa.data import scene_text

CLASSES = ("alarm", "bell", "bird", "clock", "dog", "engine", "rain", "voice")


def test_sectors_are_centred_on_their_names():
    names = {0: "front", 45: "front-left", 90: "left", 135: "back-left", 180: "back"}
    names |= {-45: "front-right", -90: "right", -135: "back-right"}
    for azimuth, name in names.items():
        assert {scene_text.sector(azimuth + d) for d in (-22, 0, 22)} == {name}
        assert scene_text.sector_margin(azimuth) == 22.5
        assert scene_text.sector_margin(azimuth + 20) == pytest.approx(2.5)
        assert scene_text.sector(azimuth + 24) != name != scene_text.sector(azimuth - 24)


@given(st.floats(-180, 180))
def test_a_sector_holds_to_its_margin_and_no_further(azimuth):
    margin = scene_text.sector_margin(azimuth)
    assert 0 <= margin <= 22.5
    inside = {scene_text.sector(azimuth + d * (margin - 0.01)) for d in (-1, 1)}
    assert margin < 0.01 or inside == {scene_text.sector(azimuth)}
    assert {scene_text.sector(azimuth + d * (margin + 0.01)) for d in (-1, 1)} != {
        scene_text.sector(azimuth)
    }


@given(st.floats(-180, 180))
def test_a_turn_by_a_sector_moves_one_name_on(azimuth):
    if scene_text.sector_margin(azimuth) > 1e-6:
        now = scene_text.SECTORS.index(scene_text.sector(azimuth))
        assert scene_text.sector(azimuth + 45) == scene_text.SECTORS[(now + 1) % 8]


def test_distances():
    assert [scene_text.distance(d) for d in (0.3, 1.59, 1.6, 4.0)] == ["near", "near", "far", "far"]


def test_captions_are_read_back_as_claims(described):
    for scene in described(50):
        expected = [
            {
                "class": s["class"],
                "sector": scene_text.sector(s["azimuth"]),
                "distance": scene_text.distance(s["distance"]),
            }
            for s in scene["sources"]
        ]
        assert scene_text.claims(scene_text.caption(scene), CLASSES) == expected
        for order in range(3):
            mixed = scene_text.written(scene, np.random.default_rng(order))
            assert scene_text.claims(mixed, CLASSES) == expected


def test_written_scenes_have_words_in_any_order(described):
    scene = described(1, (1, 1))[0]
    seen = {scene_text.written(scene, np.random.default_rng(i)) for i in range(60)}
    assert len(seen) == 6


def test_claims_of_odd_texts():
    read = lambda text: scene_text.claims(text, CLASSES)  # noqa: E731
    assert read("dog left") == [{"class": "dog", "sector": "left", "distance": None}]
    assert read("far dog , , left near") == [{"class": "dog", "sector": None, "distance": "far"}]
    assert read("dog bell left near") == [] == read("") == read("cat left near")
    assert [c["class"] for c in read("dog left . bell right")] == ["dog"]
    assert [c["class"] for c in read("dog left , dog right")] == ["dog", "dog"]


def test_a_users_words_become_the_trained_ones():
    assert scene_text.plain("Where is the Dog?") == "where is the dog ?"
    assert scene_text.plain("  You turn left.\nWhat  is front,then: ?") == (
        "you turn left . what is front , then : ?"
    )
