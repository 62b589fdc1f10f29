# SPDX-License-Identifier: Apache-2.0
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
        assert {scene_text.sector_name(azimuth + d) for d in (-22, 0, 22)} == {name}
        assert scene_text.sector_margin(azimuth) == 22.5
        assert scene_text.sector_margin(azimuth + 20) == pytest.approx(2.5)
        assert scene_text.sector_name(azimuth + 24) != name != scene_text.sector_name(azimuth - 24)


@given(st.floats(-180, 180))
def test_sector_changes_beyond_its_margin(azimuth):
    margin = scene_text.sector_margin(azimuth)
    assert 0 <= margin <= 22.5
    inside = {scene_text.sector_name(azimuth + d * (margin - 0.01)) for d in (-1, 1)}
    assert margin < 0.01 or inside == {scene_text.sector_name(azimuth)}
    assert {scene_text.sector_name(azimuth + d * (margin + 0.01)) for d in (-1, 1)} != {
        scene_text.sector_name(azimuth)
    }


@given(st.floats(-180, 180))
def test_adding_one_sector_width_gives_the_next_sector(azimuth):
    if scene_text.sector_margin(azimuth) > 1e-6:
        index = scene_text.SECTORS.index(scene_text.sector_name(azimuth))
        assert scene_text.sector_name(azimuth + 45) == scene_text.SECTORS[(index + 1) % 8]


def test_distance_names():
    assert [scene_text.distance_name(d) for d in (0.3, 1.59, 1.6, 4.0)] == [
        "near",
        "near",
        "far",
        "far",
    ]


def test_parse_caption_inverts_caption(described):
    for scene in described(50):
        expected = [
            {
                "class": s["class"],
                "sector": scene_text.sector_name(s["azimuth"]),
                "distance": scene_text.distance_name(s["distance"]),
            }
            for s in scene["sources"]
        ]
        assert scene_text.parse_caption(scene_text.caption(scene), CLASSES) == expected
        for order in range(3):
            mixed = scene_text.scene_to_text(scene, np.random.default_rng(order))
            assert scene_text.parse_caption(mixed, CLASSES) == expected


def test_scene_to_text_has_words_in_any_order(described):
    scene = described(1, (1, 1))[0]
    texts = {scene_text.scene_to_text(scene, np.random.default_rng(i)) for i in range(60)}
    assert len(texts) == 6


def test_parse_caption_of_malformed_texts():
    read = lambda text: scene_text.parse_caption(text, CLASSES)  # noqa: E731
    assert read("dog left") == [{"class": "dog", "sector": "left", "distance": None}]
    assert read("far dog , , left near") == [{"class": "dog", "sector": None, "distance": "far"}]
    assert read("dog bell left near") == [] == read("") == read("cat left near")
    assert [c["class"] for c in read("dog left . bell right")] == ["dog"]
    assert [c["class"] for c in read("dog left , dog right")] == ["dog", "dog"]


def test_normalize_text():
    assert scene_text.normalize_text("Where is the Dog?") == "where is the dog ?"
    assert scene_text.normalize_text("  You turn left.\nWhat  is front,then: ?") == (
        "you turn left . what is front , then : ?"
    )
