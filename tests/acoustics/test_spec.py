# SPDX-License-Identifier: Apache-2.0
"""JSON round trips of specs, and errors of those that cannot be rendered."""

import dataclasses
import json
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jaxasa.acoustics import paths, rooms, spec
from jaxasa.config import ConfigError, Scenes


def inside(room):
    return st.tuples(*(st.floats(0, size, exclude_min=True, exclude_max=True) for size in room))


@st.composite
def a_source(draw, room, listener, seconds):
    position = draw(inside(room).filter(lambda p: math.dist(p, listener) >= 0.05))
    latest = seconds - math.dist(position, listener) / 343.0
    assume(latest > 1e-3)
    onset = draw(st.floats(0, latest * 0.99))
    rows, position_now, now = [], position, onset
    for goal in draw(st.lists(inside(room), max_size=3)):
        step = math.dist(position_now, goal)
        now += step / draw(st.floats(0.1, 9.9)) + 1e-3
        rows.append((now, *goal))
        position_now = goal
    source = spec.Source(
        label=draw(st.text()),
        clip=draw(st.text()),
        recording_id=draw(st.text()),
        onset=onset,
        seconds=draw(st.floats(1e-3, 30)),
        playback_rate=draw(st.floats(0.25, 4)),
        gain=draw(st.floats(-60, 60)),
        position=position,
        waypoints=tuple(rows),
    )
    assume(paths.min_distance(source.path(), listener) >= rooms.MIN_SOURCE_DISTANCE)
    return source


@st.composite
def a_spec(draw):
    room = draw(st.tuples(*(st.floats(1, 30) for _ in range(3))))
    listener = draw(inside(room))
    seconds = draw(st.floats(0.5, 30))
    sources = draw(st.lists(a_source(room, listener, seconds), min_size=1, max_size=3))
    steps = draw(st.lists(st.tuples(st.floats(0.01, 9), st.floats(-720, 720)), max_size=3))
    turning, now = [], 0.0
    for step, yaw in steps:
        now += step
        turning.append((now, yaw))
    bands = st.tuples(*[st.floats(0, 1, exclude_min=True)] * 7)
    return spec.SceneSpec(
        seed=draw(st.integers(0, 2**63)),
        split=draw(st.text()),
        index=draw(st.integers(0, 10**9)),
        seconds=seconds,
        room=room,
        absorption=draw(bands | st.tuples(*[bands] * 6)),
        rt60=draw(st.floats(0.01, 10)),
        listener=listener,
        yaw=draw(st.floats(-180, 180)),
        sources=tuple(sources),
        snr=draw(st.floats(-50, 100)),
        yaw_trajectory=tuple(turning),
        sensor_snr=draw(st.none() | st.floats(-50, 100)),
        scattering=draw(st.just(0.0) | st.floats(0, 1)),
    )


@given(a_spec())
def test_json_round_trip_is_exact(scene):
    text = scene.to_json()
    assert "\n" not in text
    back = spec.SceneSpec.from_json(text)
    assert back == scene and hash(back) == hash(scene)
    assert back.to_json() == text


@given(st.text() | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_text_that_is_no_spec_raises_one_line(text):
    with pytest.raises(ConfigError) as error:
        spec.SceneSpec.from_json(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"sources": [{"label": "x"}]}', "null"])
def test_bad_json_raises_one_line(text):
    with pytest.raises(ConfigError) as error:
        spec.SceneSpec.from_json(text)
    assert "\n" not in str(error.value)


@given(a_spec(), st.data())
def test_invalid_field_raises_one_line(scene, data):
    raw = json.loads(scene.to_json())
    part = data.draw(st.sampled_from([raw, raw["sources"][0]]))
    texts = {"label", "clip", "recording_id", "split"}
    name = data.draw(st.sampled_from(sorted(set(part) - texts)))
    part[name] = data.draw(st.sampled_from(["x", {}, [[]], float("nan"), float("inf"), -1e9, True]))
    assume(not (name in ("gain", "snr", "yaw", "sensor_snr") and part[name] == -1e9))
    with pytest.raises(ConfigError) as error:
        spec.SceneSpec.from_json(json.dumps(raw))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"room": (6.0, 0.0, 3.0)}, r"SceneSpec.room is \(6.0, 0.0, 3.0\)"),
        ({"room": (6.0, 5.0)}, r"SceneSpec.room is \(6.0, 5.0\)"),
        ({"room": (6.0, float("inf"), 3.0)}, "SceneSpec.room.*inf"),
        ({"room": (6.0, -5.0, 3.0)}, "SceneSpec.room.*-5"),
        ({"listener": (7.0, 2.0, 1.5)}, "SceneSpec.listener.*7.0"),
        ({"absorption": (0.0,) * 7}, "SceneSpec.absorption.*0.0"),
        ({"absorption": (0.3,) * 6}, "SceneSpec.absorption.*0.3"),
        ({"absorption": (1.5,) * 7}, "SceneSpec.absorption.*1.5"),
        ({"absorption": ((0.3,) * 7,) * 5}, "SceneSpec.absorption.*each wall"),
        ({"absorption": (*((0.3,) * 7,) * 5, (0.3,) * 6 + (0.0,))}, "SceneSpec.absorption.*0.0"),
        ({"scattering": 1.5}, "SceneSpec.scattering is 1.5"),
        ({"scattering": True}, "SceneSpec.scattering is True"),
        ({"yaw": float("nan")}, "SceneSpec.yaw.*nan"),
        ({"index": -1}, "SceneSpec.index.*-1"),
        ({"sources": ()}, "SceneSpec.sources"),
        ({"seconds": -1.0}, "SceneSpec.seconds is -1.0"),
        ({"rt60": 0}, "SceneSpec.rt60 is 0"),
        ({"sources": ("bell",)}, r"sources\[0\] is 'bell'"),
        ({"yaw_trajectory": ((1.0, 0.0), (1.0, 9.0))}, "SceneSpec.yaw_trajectory.*rise"),
        ({"yaw_trajectory": ((0.0, 0.0),)}, "SceneSpec.yaw_trajectory.*rise"),
        ({"yaw_trajectory": ((1.0, float("nan")),)}, "SceneSpec.yaw_trajectory.*nan"),
        ({"sensor_snr": "loud"}, "SceneSpec.sensor_snr is 'loud'"),
    ],
)
def test_bad_scene_names_field_and_value(bell, changes, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(bell, **changes).validate()


def test_nine_sources_raise(bell):
    with pytest.raises(ConfigError, match="SceneSpec.sources.*1 to 8"):
        dataclasses.replace(bell, sources=bell.sources * 9).validate()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"position": (3.0, 5.0, 1.5)}, r"position is \(3.0, 5.0, 1.5\), expected .*inside"),
        ({"position": (3.0, 2.04, 1.5)}, r"position is \(3.0, 2.04, 1.5\), expected .*0.05 m"),
        ({"waypoints": ((1.0, 3.0, 6.0, 1.5),)}, r"waypoints is \(3.0, 6.0, 1.5\).*inside"),
        ({"waypoints": ((2.5, 3.0, 1.0, 1.5),)}, r"waypoints is 0.0, expected 0.05 m or more"),
        ({"waypoints": ((0.6, 1.0, 4.0, 1.5),)}, r"waypoints is 20.0, expected at most 10"),
        ({"waypoints": ((0.5, 3.0, 4.1, 1.5),)}, r"waypoints.*rise from above 0.5 s"),
        ({"waypoints": ((1.0, 3.0, 4.1),)}, r"waypoints.*rows of \(seconds, x, y, z\)"),
        ({"seconds": 0}, r"sources\[0\].seconds is 0"),
        ({"onset": 4.5}, r"sources\[0\].onset.*4.5"),
        ({"playback_rate": 0}, r"sources\[0\].playback_rate.*0"),
        ({"gain": float("inf")}, r"sources\[0\].gain is inf"),
    ],
)
def test_bad_source_names_field_and_value(bell, changes, words):
    source = dataclasses.replace(bell.sources[0], **changes)
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(bell, sources=(source,)).validate()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"moving_source_prob": 1.5}, "Scenes.moving_source_prob is 1.5"),
        ({"walk_speed": (1.0, 20.0)}, "Scenes.walk_speed.*at most 10"),
        ({"walk_speed": (2.0, 1.0)}, "Scenes.walk_speed"),
        ({"listener_turn_prob": -0.1}, "Scenes.listener_turn_prob is -0.1"),
        ({"turn_rate": (float("nan"), 10.0)}, "Scenes.turn_rate.*nan"),
        ({"overlap": (0.0, 1.5)}, "Scenes.overlap.*1.5"),
        ({"overlap": (0.5,)}, "Scenes.overlap"),
        ({"sensor_snr": (30.0,)}, "Scenes.sensor_snr"),
        ({"height": (0.0, 3.0)}, "Scenes.height"),
        ({"width": (3.0, float("inf"))}, "Scenes.width.*inf"),
        ({"seconds": 0.0}, "Scenes.seconds is 0.0"),
        ({"rir_positions_per_room": 9}, "Scenes.rir_positions_per_room is 9"),
        (
            {"floor_materials": ("marble",)},
            r"Scenes.wall_materials is \(\), expected .*go together",
        ),
        ({"ceiling_materials": "marble"}, "Scenes.ceiling_materials is 'marble'"),
        (
            {"floor_materials": ("marble", "cheese")},
            "Scenes.floor_materials is 'cheese', expected one of brick",
        ),
        ({"scattering": (0.5, 1.5)}, "Scenes.scattering.*1.5"),
        ({"scattering": 0.5}, "Scenes.scattering is 0.5"),
        ({"rir_rooms": -1}, "Scenes.rir_rooms is -1"),
        (
            {"rir_rooms": 10, "rir_positions_per_room": 2},
            "Scenes.rir_positions_per_room is 2.*Scenes.sources",
        ),
        (
            {"rir_rooms": 10, "moving_source_prob": 0.5},
            "Scenes.moving_source_prob is 0.5.*10 stored",
        ),
    ],
)
def test_bad_ranges_name_field_and_value(changes, words):
    with pytest.raises(ConfigError, match=words):
        Scenes(train=1, dev=1, benchmark=1, **changes)
