"""A scene before it is sound: SceneSpec, its JSON, and what makes it impossible to render.

Positions are in room metres (one corner at 0, 0, 0), times in seconds of the scene. A source
with a `trajectory` moves while it sounds; a listener with a `listener_turn_prob` turns. What is not used is
not written: the JSON of a scene at rest holds neither.

    >>> from jaxasa.acoustics import spec
    >>> bell = spec.Source("bell", "bell-1", "bell-1", onset=0.5, seconds=1.0, speed=1.0,
    ...                    gain=0.0, position=(2.0, 4.0, 1.5), trajectory=((1.5, 3.0, 4.0, 1.5),))
    >>> scene = spec.SceneSpec(seed=0, split="train", index=0, seconds=3.0, room=(6.0, 5.0, 3.0),
    ...                        absorption=(0.3,) * 7, rt60=0.4, listener=(3.0, 2.0, 1.5),
    ...                        yaw=0.0, sources=(bell,), snr=30.0)
    >>> spec.from_json(spec.to_json(scene)) == scene
    True
    >>> bell.path().tolist()  # straight from where it is at its onset
    [[0.5, 2.0, 4.0, 1.5], [1.5, 3.0, 4.0, 1.5]]
"""

import dataclasses
import json
import math
from dataclasses import dataclass

import numpy as np

from jaxasa.acoustics import paths, rooms
from jaxasa.config import ConfigError, check, tuples

NEAREST = 0.05  # metres between a source and the listener
MOST_SOURCES = 8
_UNUSED = {"turning": (), "sensor_snr": None, "trajectory": (), "scattering": 0.0}


@dataclass(frozen=True)
class Clip:
    """A mono recording: its id in the bank, class name, source recording and length (s)."""

    id: str
    label: str
    recording_id: str
    seconds: float


@dataclass(frozen=True)
class Source:
    """A clip at a place: onset is emission (s), seconds as played after `speed`, gain in dB.

    position: where it is at its onset. trajectory: the way-points (seconds, x, y, z) that it
    then goes to, in straight lines and at even speed from one to the next; empty, it rests.
    """

    label: str
    clip: str
    recording_id: str
    onset: float
    seconds: float
    speed: float
    gain: float
    position: tuple[float, float, float]
    trajectory: tuple[tuple[float, float, float, float], ...] = ()

    def path(self) -> np.ndarray:
        """Returns its way-points [K, 4] (see paths), the first being its position at onset."""
        return np.array([(self.onset, *self.position), *self.trajectory], float)


@dataclass(frozen=True)
class SceneSpec:
    """All that rendering needs beside the clips.

    room: (length, width, height) in metres. absorption: per octave band of rooms.BANDS, 7 numbers
    for all walls, or such a row for each of rooms.WALLS. rt60: nominal, s. yaw: degrees by which
    the listener has turned left from the room's x axis when the scene begins. snr: of the diffuse
    noise, dB. turning: (seconds, yaw) to which the listener turns evenly, yaw going on beyond 180
    degrees; empty, it keeps still. sensor_snr: of the microphones' own white noise, dB; None is
    no such noise. scattering: 0 to 1, how far walls mix the directions of late sound
    (rir.response).
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
    turning: tuple[tuple[float, float], ...] = ()
    sensor_snr: float | None = None
    scattering: float = 0.0

    def yaw_at(self, seconds):
        """Returns the listener's yaw (degrees, not wrapped) at `seconds` (scalar or array)."""
        times, yaws = zip((0.0, self.yaw), *self.turning, strict=True)
        return np.interp(seconds, times, yaws)


def to_json(spec: SceneSpec) -> str:
    """Returns the scene as one line of JSON; from_json gives it back exactly."""
    raw = dataclasses.asdict(spec)
    for part in (raw, *raw["sources"]):
        for name, unused in _UNUSED.items():
            if name in part and part[name] == unused:
                del part[name]
    return json.dumps(raw)


def from_json(text: str) -> SceneSpec:
    """Returns the scene that to_json wrote, validated; raises ConfigError for anything else."""
    try:
        raw = {name: tuples(value) for name, value in json.loads(text).items()}
        sources = tuple(
            Source(**{name: tuples(value) for name, value in source.items()})
            for source in raw.pop("sources")
        )
        spec = SceneSpec(sources=sources, **raw)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        problem = str(error).replace("\n", " ")
        raise ConfigError(f"scene is {text[:60]!r} ({problem}), expected a SceneSpec") from None
    validate(spec)
    return spec


def _number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(value, count: int) -> bool:
    """Whether `value` is a tuple or list of `count` finite numbers."""
    return isinstance(value, (tuple, list)) and len(value) == count and all(map(_number, value))


def _check_inside(field: str, point, room) -> None:
    ok = _numbers(point, 3) and all(0 < p < size for p, size in zip(point, room, strict=True))
    check(ok, field, point, f"x, y, z in metres inside the room {tuple(room)}")


def validate(spec: SceneSpec) -> None:
    """Raises ConfigError naming the first field of a scene that cannot be rendered."""
    for name in ("seed", "index"):
        value = getattr(spec, name)
        ok = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        check(ok, f"SceneSpec.{name}", value, "an integer of at least 0")
    check(isinstance(spec.split, str), "SceneSpec.split", spec.split, "a name")
    for name in ("seconds", "rt60"):
        value = getattr(spec, name)
        check(_number(value) and value > 0, f"SceneSpec.{name}", value, "seconds above 0")
    ok = _numbers(spec.room, 3) and all(v > 0 for v in spec.room)
    check(ok, "SceneSpec.room", spec.room, "length, width and height above 0 metres")
    _check_absorption(spec.absorption)
    ok = _number(spec.scattering) and 0 <= spec.scattering <= 1
    check(ok, "SceneSpec.scattering", spec.scattering, "a share from 0 to 1")
    _check_inside("SceneSpec.listener", spec.listener, spec.room)
    for name in ("yaw", "snr"):
        value = getattr(spec, name)
        check(_number(value), f"SceneSpec.{name}", value, "a number")
    ok = spec.sensor_snr is None or _number(spec.sensor_snr)
    check(ok, "SceneSpec.sensor_snr", spec.sensor_snr, "a number of dB or None")
    _check_times("SceneSpec.turning", spec.turning, 2, 0.0, "(seconds, yaw)")
    ok = isinstance(spec.sources, tuple) and 0 < len(spec.sources) <= MOST_SOURCES
    check(ok, "SceneSpec.sources", spec.sources, f"1 to {MOST_SOURCES} sources")
    for i, source in enumerate(spec.sources):
        _validate_source(spec, source, f"SceneSpec.sources[{i}]")


def _check_absorption(absorption) -> None:
    ok = isinstance(absorption, (tuple, list))
    by_wall = ok and len(absorption) == len(rooms.WALLS)
    rows = absorption if by_wall else [absorption]
    ok = ok and all(
        _numbers(row, len(rooms.BANDS)) and all(0 < v <= 1 for v in row) for row in rows
    )
    expected = f"{len(rooms.BANDS)} numbers above 0 and up to 1, or such a row for each wall"
    check(ok, "SceneSpec.absorption", absorption, expected)


def _check_times(field: str, rows, width: int, first: float, what: str) -> None:
    """Checks rows of `width` numbers whose first, a time, rises from beyond `first`."""
    ok = isinstance(rows, (tuple, list)) and all(_numbers(row, width) for row in rows)
    times = [first, *(row[0] for row in rows)] if ok else []
    ok = ok and all(a < b for a, b in zip(times, times[1:], strict=False))
    check(ok, field, rows, f"rows of {what} whose times rise from above {first} s")


def _validate_source(spec: SceneSpec, source: Source, where: str) -> None:
    check(isinstance(source, Source), where, source, "a Source")
    for name in ("label", "clip", "recording_id"):
        value = getattr(source, name)
        check(isinstance(value, str), f"{where}.{name}", value, "a name")
    _check_inside(f"{where}.position", source.position, spec.room)
    distance = math.dist(source.position, spec.listener)
    expected = f"a place at least {NEAREST} m from the listener {spec.listener}"
    check(distance >= NEAREST, f"{where}.position", source.position, expected)
    ok = _number(source.onset) and source.onset >= 0
    ok = ok and source.onset + distance / rooms.SPEED < spec.seconds
    check(ok, f"{where}.onset", source.onset, f"at least 0 and heard before {spec.seconds} s")
    for name in ("seconds", "speed"):
        value = getattr(source, name)
        check(_number(value) and value > 0, f"{where}.{name}", value, "a number above 0")
    check(_number(source.gain), f"{where}.gain", source.gain, "a number of dB")
    _validate_trajectory(spec, source, f"{where}.trajectory")


def _validate_trajectory(spec: SceneSpec, source: Source, where: str) -> None:
    _check_times(where, source.trajectory, 4, source.onset, "(seconds, x, y, z)")
    if not source.trajectory:
        return
    for row in source.trajectory:
        _check_inside(where, row[1:], spec.room)
    path = source.path()
    distance = paths.closest(path, spec.listener)
    check(distance >= NEAREST, where, round(distance, 4), f"{NEAREST} m or more from the listener")
    speed = paths.fastest(path)
    check(speed <= paths.FASTEST, where, round(speed, 2), f"at most {paths.FASTEST} m/s")
