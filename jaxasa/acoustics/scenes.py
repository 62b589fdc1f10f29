"""Scenes as data: drawn from (seed, split, index), JSON, and their description for people.

A scene is a shoebox room, a listener with a yaw, one to eight static sources and diffuse
noise. Positions are in room metres (one corner at 0, 0, 0); everything that the description
says of direction is in the listener's frame.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxasa.acoustics import foa, keys, rooms
from jaxasa.config import ConfigError, Scenes, check

HEARD = 0.4  # seconds: least time a source is heard, and between the starts of two
_LOWEST, _HIGHEST = math.sin(math.radians(-40.0)), math.sin(math.radians(60.0))  # elevation
_LISTENER_MARGIN, _SOURCE_MARGIN = 0.5, 0.3
_CANDIDATES, _ATTEMPTS = 96, 60


@dataclass(frozen=True)
class Clip:
    """A mono recording: its id in the bank, class name, take and length in seconds."""

    id: str
    label: str
    take: str
    seconds: float


@dataclass(frozen=True)
class Source:
    """A clip at a place: onset is emission (s), seconds as played after `speed`, gain in dB."""

    label: str
    clip: str
    take: str
    onset: float
    seconds: float
    speed: float
    gain: float
    position: tuple[float, float, float]


@dataclass(frozen=True)
class SceneSpec:
    """All that rendering needs beside the clips.

    room: (length, width, height) in metres. absorption: of all walls, one per octave band of
    rooms.BANDS. rt60: nominal, s. yaw: degrees by which the listener has turned left from the
    room's x axis. snr: of the diffuse noise, dB.
    """

    seed: int
    split: str
    index: int
    seconds: float
    room: tuple[float, float, float]
    absorption: tuple[float, ...]
    rt60: float
    listener: tuple[float, float, float]
    yaw: float
    sources: tuple[Source, ...]
    snr: float


def draw(scenes: Scenes, clips: Sequence[Clip], seed: int, split: str, index: int) -> SceneSpec:
    """Draws scene `index` of `split`: classes, then takes, then clips uniformly; no audio.

    Azimuths in the listener's frame are uniform, whatever the room and the class, because the
    yaw is. Raises ConfigError where the ranges leave no room for the sources.
    """
    rng = keys.rng(seed, "scene", split, index)
    count = int(rng.integers(scenes.sources[0], scenes.sources[1] + 1))
    chosen = _choose_clips(clips, count, scenes, rng)
    room, listener, positions = _place(scenes, count, rng)
    rt60, absorption = _colour(scenes, room, rng)
    delays = [math.dist(listener, p) / rooms.SPEED for p in positions]
    arrivals = _arrivals(scenes.seconds, count, max(delays), rng)
    gains = rng.uniform(*scenes.gain, count).tolist()
    speeds = rng.uniform(*scenes.speed, count).tolist()
    sources = [
        Source(
            label=clip.label,
            clip=clip.id,
            take=clip.take,
            onset=arrival - delay,
            seconds=min(clip.seconds / speed, scenes.seconds - arrival),
            speed=speed,
            gain=gain,
            position=position,
        )
        for clip, position, delay, arrival, gain, speed in zip(
            chosen, positions, delays, arrivals, gains, speeds, strict=True
        )
    ]
    return SceneSpec(
        seed=seed,
        split=split,
        index=index,
        seconds=scenes.seconds,
        room=room,
        absorption=absorption,
        rt60=rt60,
        listener=listener,
        yaw=foa.wrap(rng.uniform(-180.0, 180.0)),
        sources=tuple(sources),
        snr=float(rng.uniform(*scenes.snr)),
    )


_grouped: tuple[list[Clip], list[list[list[Clip]]]] = ([], [])


def _group(clips: Sequence[Clip]) -> list[list[list[Clip]]]:
    """Returns the clips by class, then take, both in the order of their names.

    The last result is kept: comparing 700 clips by identity takes 1 % of grouping them.
    """
    global _grouped
    clips = list(clips)
    if _grouped[0] != clips:
        tree: dict[str, dict[str, list[Clip]]] = {}
        for clip in clips:
            tree.setdefault(clip.label, {}).setdefault(clip.take, []).append(clip)
        _grouped = clips, [[takes[t] for t in sorted(takes)] for _, takes in sorted(tree.items())]
    return _grouped[1]


def _choose_clips(clips, count: int, scenes: Scenes, rng) -> list[Clip]:
    classes = _group(clips)
    expected = f"at most as many as there are classes ({len(classes)})"
    check(count <= len(classes), "Scenes.sources", scenes.sources, expected)
    chosen = []
    for i in rng.permutation(len(classes))[:count]:
        take = classes[i][rng.integers(len(classes[i]))]
        chosen.append(take[rng.integers(len(take))])
    return chosen


def _place(scenes: Scenes, count: int, rng):
    """Returns room, listener and `count` source positions, all tuples of floats in metres."""
    for _ in range(_ATTEMPTS):
        ranges = np.array([scenes.length, scenes.width, scenes.height])
        room = rng.uniform(ranges[:, 0], ranges[:, 1])
        if rooms.sabine_floor(room) > scenes.rt60[1]:
            continue
        margin = np.minimum(_LISTENER_MARGIN, room / 4)
        low, high = margin, room - margin
        # Ears are where people's are, where the room is high enough.
        low[2], high[2] = min(max(low[2], 1.0), room[2] / 2), min(high[2], 1.8)
        listener = rng.uniform(low, high)
        positions = _positions(scenes, room, listener, count, rng)
        if positions is not None:
            as_tuple = tuple(room.tolist()), tuple(listener.tolist())
            return *as_tuple, [tuple(p) for p in positions.tolist()]
    raise ConfigError(
        f"Scenes is {scenes.sources} sources, distance {scenes.distance}, min_separation "
        f"{scenes.min_separation}, rt60 {scenes.rt60}, expected ranges that fit in its rooms"
    )


def _positions(scenes: Scenes, room, listener, count: int, rng) -> np.ndarray | None:
    n = _CANDIDATES
    margin = np.minimum(_SOURCE_MARGIN, room / 6)
    azimuth = rng.uniform(-np.pi, np.pi, n)
    bearing = np.stack([np.cos(azimuth), np.sin(azimuth)], axis=1)
    distance = rng.uniform(*scenes.distance, n)
    # Height, not elevation, is uniform: a low room would else leave few distant sources.
    up = (rng.uniform(margin[2], room[2] - margin[2], n) - listener[2]) / distance
    flat = np.sqrt(np.maximum(1 - up * up, 0.0))
    position = listener[:2] + (distance * flat)[:, None] * bearing
    inside = (up >= _LOWEST) & (up <= _HIGHEST)
    inside &= ((position >= margin[:2]) & (position <= (room - margin)[:2])).all(axis=1)
    unit = np.concatenate([flat[:, None] * bearing, up[:, None]], axis=1)
    limit = math.cos(math.radians(scenes.min_separation)) if scenes.min_separation else 2.0
    kept: list[int] = []
    for i in inside.nonzero()[0]:
        # Both on the sphere and in azimuth alone: near the zenith one can be without the other.
        if all(unit[i] @ unit[j] <= limit and bearing[i] @ bearing[j] <= limit for j in kept):
            kept.append(i)
            if len(kept) == count:
                return listener + distance[kept, None] * unit[kept]
    return None


def _colour(scenes: Scenes, room, rng) -> tuple[float, tuple[float, ...]]:
    """Returns the nominal RT60 (s) and an absorption per band around it.

    Rooms differ in colour: the RT60 of a band follows a slope of -15 to +5 % per octave, and
    varies by 8 % beyond it. The mean of the 500 Hz and 1 kHz bands stays nominal.
    """
    floor = rooms.sabine_floor(room)
    rt60 = float(rng.uniform(max(scenes.rt60[0], floor), scenes.rt60[1]))
    octaves = np.arange(len(rooms.BANDS)) - 2.5
    factor = np.exp(rng.uniform(-0.15, 0.05) * octaves + 0.08 * rng.standard_normal(octaves.size))
    factor /= (factor[2] + factor[3]) / 2
    ceiling = 0.9 * 6 * math.log(10) / (rooms.SPEED * rooms.AIR)
    target = np.clip(rt60 * factor, floor, ceiling)
    return rt60, tuple(rooms.absorption(room, target).tolist())


def _arrivals(seconds: float, count: int, earliest: float, rng) -> list[float]:
    """Returns arrival times (s) in random order, HEARD apart and before the end where possible."""
    span = max(seconds - HEARD - earliest, 0.0)
    gap = min(HEARD, span / count)
    free = np.sort(rng.uniform(0.0, span - gap * (count - 1), count))
    times = earliest + free + gap * np.arange(count)
    return rng.permutation(times).tolist()


def to_json(spec: SceneSpec) -> str:
    """Returns the scene as one line of JSON; from_json gives it back exactly."""
    return json.dumps(dataclasses.asdict(spec))


def from_json(text: str) -> SceneSpec:
    """Returns the scene that to_json wrote, validated; raises ConfigError for anything else."""
    try:
        raw = json.loads(text)
        sources = tuple(
            Source(**{**s, "position": tuple(s["position"])}) for s in raw.pop("sources")
        )
        triples = {k: tuple(raw.pop(k)) for k in ("room", "absorption", "listener")}
        spec = SceneSpec(sources=sources, **triples, **raw)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        problem = str(error).replace("\n", " ")
        raise ConfigError(f"scene is {text[:60]!r} ({problem}), expected a SceneSpec") from None
    validate(spec)
    return spec


def _number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_inside(field: str, point, room) -> None:
    ok = isinstance(point, (tuple, list)) and len(point) == 3 and all(map(_number, point))
    ok = ok and all(0 < p < size for p, size in zip(point, room, strict=True))
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
    ok = len(spec.room) == 3 and all(_number(v) and v > 0 for v in spec.room)
    check(ok, "SceneSpec.room", spec.room, "length, width and height above 0 metres")
    ok = len(spec.absorption) == len(rooms.BANDS)
    ok = ok and all(_number(v) and 0 < v <= 1 for v in spec.absorption)
    expected = f"{len(rooms.BANDS)} numbers above 0 and up to 1"
    check(ok, "SceneSpec.absorption", spec.absorption, expected)
    _check_inside("SceneSpec.listener", spec.listener, spec.room)
    for name in ("yaw", "snr"):
        value = getattr(spec, name)
        check(_number(value), f"SceneSpec.{name}", value, "a number")
    check(len(spec.sources) > 0, "SceneSpec.sources", spec.sources, "at least one source")
    for i, source in enumerate(spec.sources):
        _validate_source(spec, source, f"SceneSpec.sources[{i}]")


def _validate_source(spec: SceneSpec, source: Source, where: str) -> None:
    for name in ("label", "clip", "take"):
        value = getattr(source, name)
        check(isinstance(value, str), f"{where}.{name}", value, "a name")
    _check_inside(f"{where}.position", source.position, spec.room)
    distance = math.dist(source.position, spec.listener)
    check(distance >= 0.05, f"{where}.position", source.position, "0.05 m from the listener")
    ok = _number(source.onset) and source.onset >= 0
    ok = ok and source.onset + distance / rooms.SPEED < spec.seconds
    check(ok, f"{where}.onset", source.onset, f"at least 0 and heard before {spec.seconds} s")
    for name in ("seconds", "speed"):
        value = getattr(source, name)
        check(_number(value) and value > 0, f"{where}.{name}", value, "a number above 0")
    check(_number(source.gain), f"{where}.gain", source.gain, "a number of dB")


def describe(spec: SceneSpec) -> dict:
    """Returns the scene description, a plain JSON dict, from geometry alone.

    Azimuth and elevation (degrees) are the listener's, onset and offset (s) are arrivals,
    level is the source's own gain (dB); sources are ordered by onset. rt60 is nominal and drr
    expected: `render.render` replaces both by what it measures.
    """
    described = []
    for source in spec.sources:
        vector = np.subtract(source.position, spec.listener)
        azimuth, elevation = foa.direction(vector)
        distance = float(np.linalg.norm(vector))
        onset = source.onset + distance / rooms.SPEED
        described.append(
            {
                "class": source.label,
                "take": source.take,
                "clip": source.clip,
                "azimuth": foa.wrap(azimuth - spec.yaw),
                "elevation": float(elevation),
                "distance": distance,
                "onset": onset,
                "offset": min(onset + source.seconds, spec.seconds),
                "level": source.gain,
                "drr": rooms.expected_drr(spec.room, spec.absorption, distance),
            }
        )
    return {
        "id": f"{spec.split}/{spec.index:06d}",
        "seconds": spec.seconds,
        "room": list(spec.room),
        "volume": rooms.volume(spec.room),
        "rt60": spec.rt60,
        "snr": spec.snr,
        "sources": sorted(described, key=lambda s: s["onset"]),
    }


def turn(scene: dict, yaw: float) -> dict:
    """Returns the description after rotating the sound field by +`yaw` degrees about z."""
    turned = [{**s, "azimuth": foa.wrap(s["azimuth"] + yaw)} for s in scene["sources"]]
    return {**scene, "sources": turned}
