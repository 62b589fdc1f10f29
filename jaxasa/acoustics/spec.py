# SPDX-License-Identifier: Apache-2.0
"""SceneSpec, the specification from which a scene is rendered: fields, JSON and validation.

Positions are room coordinates in metres (one corner is the origin), times are seconds of the
scene. A source with `waypoints` moves while it sounds; a listener with a `yaw_trajectory` turns.
Optional fields at their defaults are left out of the JSON, so a static scene has neither.

    >>> from jaxasa.acoustics import spec
    >>> bell = spec.Source("bell", "bell-1", "bell-1", onset=0.5, seconds=1.0,
    ...                    playback_rate=1.0, gain=0.0, position=(2.0, 4.0, 1.5),
    ...                    waypoints=((1.5, 3.0, 4.0, 1.5),))
    >>> scene = spec.SceneSpec(seed=0, split="train", index=0, seconds=3.0, room=(6.0, 5.0, 3.0),
    ...                        absorption=(0.3,) * 7, rt60=0.4, listener=(3.0, 2.0, 1.5),
    ...                        yaw=0.0, sources=(bell,), snr=30.0)
    >>> spec.SceneSpec.from_json(scene.to_json()) == scene
    True
    >>> bell.path().tolist()  # from its position at onset, in a straight line
    [[0.5, 2.0, 4.0, 1.5], [1.5, 3.0, 4.0, 1.5]]
"""

import dataclasses
import itertools
import json
import math
from dataclasses import dataclass

import numpy as np

from jaxasa.acoustics import paths, rooms
from jaxasa.config import ConfigError, check, tuples

MAX_SOURCES = 8
_OPTIONAL = {"yaw_trajectory": (), "sensor_snr": None, "waypoints": (), "scattering": 0.0}


@dataclass(frozen=True)
class Clip:
    """A mono recording: its id in the bank, class name, source recording and length (s)."""

    id: str
    label: str
    recording_id: str
    seconds: float


@dataclass(frozen=True)
class Source:
    """A sound source: one clip played at a position.

    onset: time of emission (s), not of arrival. seconds: length as played, after resampling by
    `playback_rate` (1: unchanged, 2: an octave up and half as long). gain: dB. position: x, y, z
    (m) at onset. waypoints: rows (seconds, x, y, z) that the source then moves through, in
    straight lines at constant speed between two rows; empty for a static source.
    """

    label: str
    clip: str
    recording_id: str
    onset: float
    seconds: float
    playback_rate: float
    gain: float
    position: tuple[float, float, float]
    waypoints: tuple[tuple[float, float, float, float], ...] = ()

    def path(self) -> np.ndarray:
        """Returns the path [K, 4] (see paths): the position at onset, then the waypoints."""
        return np.array([(self.onset, *self.position), *self.waypoints], float)


@dataclass(frozen=True)
class SceneSpec:
    """Everything that rendering needs except the clips' audio.

    room: length, width, height (m). absorption: energy absorption coefficients per octave band
    of rooms.BANDS, 7 numbers for all walls, or one such row for each of rooms.WALLS. rt60:
    nominal (s). yaw: of the listener at time 0, degrees counter-clockwise from the room's x axis.
    snr: of the diffuse noise (dB). yaw_trajectory: rows (seconds, yaw) between which the
    listener's yaw is linear; it is not wrapped at 180 degrees; empty for a static listener.
    sensor_snr: of the microphones' white noise (dB), or None for no such noise. scattering: 0 to
    1, how isotropic the walls make late sound (see rir.shoebox_rir).
    """

    seed: int
    split: str
    index: int
    seconds: float
    room: tuple[float, float, float]
    absorption: tuple[float, ...] | tuple[tuple[float, ...], ...]
    rt60: float
    listener: tuple[float, float, float]
    yaw: float
    sources: tuple[Source, ...]
    snr: float
    yaw_trajectory: tuple[tuple[float, float], ...] = ()
    sensor_snr: float | None = None
    scattering: float = 0.0

    def shoebox(self, air: bool = True) -> rooms.Shoebox:
        """Returns the room as the renderers take it."""
        return rooms.Shoebox(self.room, self.absorption, self.scattering, air)

    def yaw_at(self, seconds):
        """Returns the listener's yaw (degrees, not wrapped) at `seconds` (scalar or array)."""
        times, yaws = zip((0.0, self.yaw), *self.yaw_trajectory, strict=True)
        return np.interp(seconds, times, yaws)

    def to_json(self) -> str:
        """Returns the scene as one line of JSON; `from_json` inverts it exactly."""
        raw = dataclasses.asdict(self)
        for part in (raw, *raw["sources"]):
            for name, default in _OPTIONAL.items():
                if name in part and part[name] == default:
                    del part[name]
        return json.dumps(raw)

    @classmethod
    def from_json(cls, text: str) -> "SceneSpec":
        """Parses and validates the JSON of `to_json`; raises ConfigError for anything else."""
        try:
            raw = {name: tuples(value) for name, value in json.loads(text).items()}
            sources = tuple(
                Source(**{name: tuples(value) for name, value in source.items()})
                for source in raw.pop("sources")
            )
            spec = cls(sources=sources, **raw)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            problem = str(error).replace("\n", " ")
            expected = f"scene is {text[:60]!r} ({problem}), expected a SceneSpec"
            raise ConfigError(expected) from None
        spec.validate()
        return spec

    def validate(self) -> None:
        """Raises ConfigError naming the first field that makes the scene impossible to render."""
        for name in ("seed", "index"):
            value = getattr(self, name)
            ok = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            check(ok, f"SceneSpec.{name}", value, "an integer of at least 0")
        check(isinstance(self.split, str), "SceneSpec.split", self.split, "a name")
        for name in ("seconds", "rt60"):
            value = getattr(self, name)
            check(_number(value) and value > 0, f"SceneSpec.{name}", value, "seconds above 0")
        ok = _numbers(self.room, 3) and all(v > 0 for v in self.room)
        check(ok, "SceneSpec.room", self.room, "length, width and height above 0 metres")
        _check_absorption(self.absorption)
        ok = _number(self.scattering) and 0 <= self.scattering <= 1
        check(ok, "SceneSpec.scattering", self.scattering, "a number from 0 to 1")
        _check_inside("SceneSpec.listener", self.listener, self.room)
        for name in ("yaw", "snr"):
            value = getattr(self, name)
            check(_number(value), f"SceneSpec.{name}", value, "a number")
        ok = self.sensor_snr is None or _number(self.sensor_snr)
        check(ok, "SceneSpec.sensor_snr", self.sensor_snr, "a number of dB or None")
        rows = self.yaw_trajectory
        _check_times("SceneSpec.yaw_trajectory", rows, 2, 0.0, "(seconds, yaw)")
        ok = isinstance(self.sources, tuple) and 0 < len(self.sources) <= MAX_SOURCES
        check(ok, "SceneSpec.sources", self.sources, f"1 to {MAX_SOURCES} sources")
        for i, source in enumerate(self.sources):
            _check_source(self, source, f"SceneSpec.sources[{i}]")


def _number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(value, count: int) -> bool:
    """Returns whether `value` is a tuple or list of `count` finite numbers."""
    return isinstance(value, (tuple, list)) and len(value) == count and all(map(_number, value))


def _check_inside(field: str, point, room) -> None:
    ok = _numbers(point, 3) and all(0 < p < size for p, size in zip(point, room, strict=True))
    check(ok, field, point, f"x, y, z in metres inside the room {tuple(room)}")


def _check_absorption(absorption) -> None:
    ok = isinstance(absorption, (tuple, list))
    by_wall = ok and len(absorption) == len(rooms.WALLS)
    rows = absorption if by_wall else [absorption]
    ok = ok and all(
        _numbers(row, len(rooms.BANDS)) and all(0 < v <= 1 for v in row) for row in rows
    )
    expected = f"{len(rooms.BANDS)} numbers above 0 and up to 1, or such a row for each wall"
    check(ok, "SceneSpec.absorption", absorption, expected)


def _check_times(field: str, rows, width: int, start: float, columns: str) -> None:
    """Checks rows of `width` numbers, the first of which is a time that rises from `start` on."""
    ok = isinstance(rows, (tuple, list)) and all(_numbers(row, width) for row in rows)
    times = [start, *(row[0] for row in rows)] if ok else []
    ok = ok and all(a < b for a, b in itertools.pairwise(times))
    check(ok, field, rows, f"rows of {columns} whose times rise from above {start} s")


def _check_source(spec: SceneSpec, source: Source, where: str) -> None:
    check(isinstance(source, Source), where, source, "a Source")
    for name in ("label", "clip", "recording_id"):
        value = getattr(source, name)
        check(isinstance(value, str), f"{where}.{name}", value, "a name")
    _check_inside(f"{where}.position", source.position, spec.room)
    distance = math.dist(source.position, spec.listener)
    nearest = rooms.MIN_SOURCE_DISTANCE
    expected = f"a position at least {nearest} m from the listener {spec.listener}"
    check(distance >= nearest, f"{where}.position", source.position, expected)
    ok = _number(source.onset) and source.onset >= 0
    ok = ok and source.onset + distance / rooms.SPEED_OF_SOUND < spec.seconds
    check(ok, f"{where}.onset", source.onset, f"at least 0 and audible before {spec.seconds} s")
    for name in ("seconds", "playback_rate"):
        value = getattr(source, name)
        check(_number(value) and value > 0, f"{where}.{name}", value, "a number above 0")
    check(_number(source.gain), f"{where}.gain", source.gain, "a number of dB")
    _check_waypoints(spec, source, f"{where}.waypoints")


def _check_waypoints(spec: SceneSpec, source: Source, where: str) -> None:
    _check_times(where, source.waypoints, 4, source.onset, "(seconds, x, y, z)")
    if not source.waypoints:
        return
    for row in source.waypoints:
        _check_inside(where, row[1:], spec.room)
    path = source.path()
    distance = paths.min_distance(path, spec.listener)
    expected = f"{rooms.MIN_SOURCE_DISTANCE} m or more from the listener"
    check(distance >= rooms.MIN_SOURCE_DISTANCE, where, round(distance, 4), expected)
    speed = paths.max_speed(path)
    check(speed <= paths.MAX_SPEED, where, round(speed, 2), f"at most {paths.MAX_SPEED} m/s")
