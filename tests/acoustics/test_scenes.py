import dataclasses
import math

import numpy as np
import pytest

from jaxasa.acoustics import rooms, scenes
from jaxasa.config import ConfigError, Scenes

CONFIG = Scenes(train=1, dev=1, benchmark=1)
CLIPS = [
    scenes.Clip(f"clip{i}", f"class{i % 5}", f"take{i // 2}", 0.3 + (i % 7) * 0.6)
    for i in range(60)
]


@pytest.fixture(scope="module")
def drawn():
    return [scenes.draw(CONFIG, CLIPS, 7, "train", i) for i in range(400)]


def test_draw_is_a_function_of_its_key(drawn):
    again = scenes.draw(CONFIG, list(CLIPS), 7, "train", 3)
    assert again == drawn[3]
    assert scenes.draw(CONFIG, CLIPS, 8, "train", 3) != again
    assert scenes.draw(CONFIG, CLIPS, 7, "dev", 3) != dataclasses.replace(again, split="dev")


def test_draw_respects_ranges(drawn):
    by_id = {clip.id: clip for clip in CLIPS}
    for spec in drawn:
        scenes.validate(spec)
        for size, (low, high) in zip(
            spec.room, (CONFIG.length, CONFIG.width, CONFIG.height), strict=True
        ):
            assert low <= size <= high
        assert CONFIG.rt60[0] <= spec.rt60 <= CONFIG.rt60[1]
        assert CONFIG.snr[0] <= spec.snr <= CONFIG.snr[1]
        room = np.array(spec.room)
        assert np.all(np.minimum(spec.listener, room - spec.listener) >= 0.5 - 1e-9)
        assert 1 <= len(spec.sources) <= 3
        assert len({s.label for s in spec.sources}) == len(spec.sources)
        for source in spec.sources:
            clip = by_id[source.clip]
            assert (clip.label, clip.take) == (source.label, source.take)
            assert np.all(np.minimum(source.position, room - source.position) >= 0.3 - 1e-9)
            distance = math.dist(source.position, spec.listener)
            assert CONFIG.distance[0] - 1e-9 <= distance <= CONFIG.distance[1] + 1e-9
            assert CONFIG.gain[0] <= source.gain <= CONFIG.gain[1]


def test_sources_are_apart_in_bearing_and_time(drawn):
    for spec in drawn:
        found = scenes.describe(spec)["sources"]
        onsets = np.array([s["onset"] for s in found])
        assert np.all(np.diff(onsets) >= scenes.HEARD - 1e-9)
        assert np.all(onsets <= spec.seconds - scenes.HEARD + 1e-9)
        azimuths = [s["azimuth"] for s in found]
        for i, a in enumerate(azimuths):
            for b in azimuths[:i]:
                apart = abs((a - b + 180) % 360 - 180)
                assert apart >= CONFIG.min_separation - 1e-6


def test_azimuth_is_uniform_whatever_the_class(drawn):
    found = [s for spec in drawn for s in scenes.describe(spec)["sources"]]
    azimuth = np.array([s["azimuth"] for s in found])
    assert azimuth.min() > -180 and azimuth.max() <= 180
    expected = len(found) / 8
    counts = np.histogram(azimuth, 8, (-180, 180))[0]
    assert ((counts - expected) ** 2 / expected).sum() < 24.3  # chi-squared, 7 degrees, 0.1 %
    for label in {s["class"] for s in found}:
        mine = np.radians([s["azimuth"] for s in found if s["class"] == label])
        assert abs(np.exp(1j * mine).mean()) < 3.5 / len(mine) ** 0.5
    elevation = np.array([s["elevation"] for s in found])
    assert elevation.min() >= -40 - 1e-6 and elevation.max() <= 60 + 1e-6
    assert elevation.std() > 12


def test_classes_are_uniform_even_if_clips_are_not():
    clips = [scenes.Clip(f"a{i}", "many", f"t{i}", 1.0) for i in range(90)]
    clips += [scenes.Clip("b", "few", "t", 1.0)]
    one = dataclasses.replace(CONFIG, sources=(1, 1))
    few = sum(scenes.draw(one, clips, 0, "x", i).sources[0].label == "few" for i in range(200))
    assert 70 < few < 130


def test_rooms_differ_in_colour(drawn):
    decays = np.array([rooms.decay_time(s.room, s.absorption) for s in drawn])
    nominal = np.array([s.rt60 for s in drawn])
    assert np.median(np.abs(decays[:, 2:4].mean(axis=1) / nominal - 1)) < 0.01
    assert np.std(np.log(decays[:, 5] / decays[:, 1])) > 0.15


def test_json_round_trip(drawn):
    for spec in drawn[:20]:
        assert scenes.from_json(scenes.to_json(spec)) == spec


def _plain(**changes) -> scenes.SceneSpec:
    source = scenes.Source("bell", "c", "t", 0.5, 1.0, 1.0, 3.0, (3.0, 4.0, 1.5))
    spec = scenes.SceneSpec(
        seed=0,
        split="train",
        index=12,
        seconds=4.0,
        room=(6.0, 5.0, 3.0),
        absorption=(0.3,) * 7,
        rt60=0.4,
        listener=(3.0, 2.0, 1.5),
        yaw=30.0,
        sources=(source,),
        snr=30.0,
    )
    return dataclasses.replace(spec, **changes)


def test_description_is_in_the_listeners_frame():
    scene = scenes.describe(_plain())
    (source,) = scene["sources"]
    assert scene["id"] == "train/000012"
    assert scene["volume"] == pytest.approx(90)
    assert source["azimuth"] == pytest.approx(60)
    assert source["elevation"] == pytest.approx(0)
    assert source["distance"] == pytest.approx(2)
    assert source["onset"] == pytest.approx(0.5 + 2 / 343)
    assert source["offset"] == pytest.approx(1.5 + 2 / 343)
    assert source["level"] == 3.0


def test_turn_rotates_azimuths_only():
    scene = scenes.describe(_plain())
    turned = scenes.turn(scene, 150.0)
    assert turned["sources"][0]["azimuth"] == pytest.approx(-150)
    assert scene["sources"][0]["azimuth"] == pytest.approx(60)
    back = scenes.turn(turned, -150.0)
    assert back["sources"][0].pop("azimuth") == pytest.approx(60)
    assert all(scene["sources"][0][k] == v for k, v in back["sources"][0].items())


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"room": (6.0, -5.0, 3.0)}, "SceneSpec.room.*-5"),
        ({"listener": (7.0, 2.0, 1.5)}, "SceneSpec.listener.*7.0"),
        ({"absorption": (0.3,) * 6}, "SceneSpec.absorption.*0.3"),
        ({"absorption": (1.5,) * 7}, "SceneSpec.absorption.*1.5"),
        ({"yaw": float("nan")}, "SceneSpec.yaw.*nan"),
        ({"seconds": 0}, "SceneSpec.seconds.*0"),
        ({"sources": ()}, "SceneSpec.sources"),
        ({"index": -1}, "SceneSpec.index.*-1"),
    ],
)
def test_bad_scene_names_field_and_value(changes, words):
    with pytest.raises(ConfigError, match=words):
        scenes.validate(_plain(**changes))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"position": (3.0, 4.0, 9.0)}, r"sources\[0\].position.*9.0"),
        ({"position": (3.0, 2.0, 1.5)}, r"sources\[0\].position.*0.05 m"),
        ({"onset": 4.5}, r"sources\[0\].onset.*4.5"),
        ({"speed": 0}, r"sources\[0\].speed.*0"),
    ],
)
def test_bad_source_names_field_and_value(changes, words):
    source = dataclasses.replace(_plain().sources[0], **changes)
    with pytest.raises(ConfigError, match=words):
        scenes.validate(_plain(sources=(source,)))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"sources": [{"label": "x"}]}', "null"])
def test_bad_json_is_one_line(text):
    with pytest.raises(ConfigError) as error:
        scenes.from_json(text)
    assert "\n" not in str(error.value)


def test_impossible_ranges_are_refused():
    far = dataclasses.replace(CONFIG, distance=(30.0, 40.0))
    with pytest.raises(ConfigError, match="30.0"):
        scenes.draw(far, CLIPS, 0, "train", 0)
    crowd = dataclasses.replace(CONFIG, sources=(6, 6))
    with pytest.raises(ConfigError, match="Scenes.sources.*6"):
        scenes.draw(crowd, CLIPS, 0, "train", 0)
