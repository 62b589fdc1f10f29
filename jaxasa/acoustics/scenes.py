# SPDX-License-Identifier: Apache-2.0
"""Scenes drawn from (seed, split, index), and their description for people and models.

A scene is a shoebox room, a listener, one to eight sources and noise; config.Scenes has the
ranges. Everything that a description says of direction is in the listener's frame, and all of
it is computed from the spec that is rendered: azimuth = atan2(y, x) of the source seen from the
listener, less the yaw; onset = emission + d / c; a moving source is heard from where it was when
the sound left it (paths.heard).

Sources at rest, a still listener, walls that are alike and no sensor noise are the default, and
what is switched on is drawn from keys of its own: it moves nothing else in a scene (but rooms in
which no draw of named materials has an RT60 in the range are passed over).

    >>> from jaxasa.acoustics import scenes
    >>> from jaxasa.config import Scenes
    >>> clips = [scenes.Clip("bell-1", "bell", "bell-1", 1.5)]
    >>> ranges = Scenes(train=1, dev=1, benchmark=1, sources=(1, 1), moving_source_prob=1.0)
    >>> spec = scenes.sample_scene(ranges, clips, seed=0, split="train", index=3)
    >>> description = scenes.describe(spec)
    >>> description["id"], len(description["sources"][0]["doa_trajectory"])
    ('train/000003', 50)
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxasa.acoustics import foa, materials, paths, rooms
from jaxasa.acoustics.spec import (  # noqa: F401  (a scene's spec is found here too)
    Clip,
    SceneSpec,
    Source,
    from_json,
    to_json,
    validate,
)
from jaxasa.config import ConfigError, Scenes, check
from jaxasa.core import keys

MIN_AUDIBLE_S = 0.4  # seconds: least time a source is heard, and between the starts of two
FRAME_S = 0.1  # seconds between the moments at which a description follows what moves
_LOWEST, _HIGHEST = math.sin(math.radians(-40.0)), math.sin(math.radians(60.0))  # elevation
_LISTENER_MARGIN, _SOURCE_MARGIN = 0.5, 0.3
_CANDIDATES, _ATTEMPTS = 96, 60


@dataclass(frozen=True)
class Layout:
    """A room with a listener and places for sources, as SceneSpec has them."""

    room: tuple[float, float, float]
    absorption: tuple[float, ...] | tuple[tuple[float, ...], ...]
    rt60: float
    listener: tuple[float, float, float]
    positions: tuple[tuple[float, float, float], ...]
    scattering: float = 0.0


def sample_scene(
    scenes: Scenes, clips: Sequence[Clip], seed: int, split: str, index: int
) -> SceneSpec:
    """Draws scene `index` of `split`: classes, then source recordings, then clips uniformly; no audio.

    Azimuths in the listener's frame are uniform, whatever the room and the class, because the
    yaw is. Raises ConfigError where the ranges leave no room for the sources.
    """
    rng = keys.rng(seed, "scene", split, index)
    own = keys.rng(seed, "walls", split, index)
    return sample_scene_in(
        scenes, clips, seed, split, index, rng, lambda count: sample_layout(scenes, count, rng, own)
    )


def sample_layout(
    scenes: Scenes, count: int, rng: np.random.Generator, own: np.random.Generator
) -> Layout:
    """Draws a room, a listener and `count` places; raises ConfigError where they do not fit.

    own: draws materials and scattering, where walls have any.
    """
    room, listener, positions, made = _place(scenes, count, rng, own)
    coloured = _colour(scenes, room, rng)
    rt60, absorption = made or coloured
    scattering = float(own.uniform(*scenes.scattering)) if scenes.scattering else 0.0
    return Layout(room, absorption, rt60, listener, tuple(positions), scattering)


def sample_scene_in(
    scenes: Scenes,
    clips: Sequence[Clip],
    seed: int,
    split: str,
    index: int,
    rng: np.random.Generator,
    layout: Callable[[int], Layout],
) -> SceneSpec:
    """Draws all of a scene but its room: layout(number of sources) gives room and places."""
    count = int(rng.integers(scenes.sources[0], scenes.sources[1] + 1))
    chosen = _choose_clips(clips, count, scenes, rng)
    place = layout(count)
    delays = [math.dist(place.listener, p) / rooms.SPEED_OF_SOUND for p in place.positions]
    arrivals = _arrivals(scenes.seconds, count, max(delays), rng)
    gains = rng.uniform(*scenes.gain, count).tolist()
    speeds = rng.uniform(*scenes.speed_perturbation, count).tolist()
    lengths = [clip.seconds / speed for clip, speed in zip(chosen, speeds, strict=True)]
    if scenes.overlap:
        own = keys.rng(seed, "overlap", split, index)
        arrivals, lengths = _overlapping(scenes, lengths, max(delays), own)
    sources = [
        Source(
            label=clip.label,
            clip=clip.id,
            recording_id=clip.recording_id,
            onset=arrival - delay,
            seconds=min(length, scenes.seconds - arrival),
            playback_rate=speed,
            gain=gain,
            position=position,
        )
        for clip, position, delay, arrival, length, gain, speed in zip(
            chosen, place.positions, delays, arrivals, lengths, gains, speeds, strict=True
        )
    ]
    if scenes.moving_source_prob:
        sources = [
            _set_moving(scenes, place, source, keys.rng(seed, "motion", split, index, i))
            for i, source in enumerate(sources)
        ]
    yaw = foa.wrap_azimuth(rng.uniform(-180.0, 180.0))
    snr = float(rng.uniform(*scenes.snr))
    turning: tuple[tuple[float, float], ...] = ()
    if scenes.listener_turn_prob:
        turning = _turning(scenes, yaw, keys.rng(seed, "turning", split, index))
    sensor_snr = None
    if scenes.sensor_snr:
        sensor_snr = float(keys.rng(seed, "sensor", split, index).uniform(*scenes.sensor_snr))
    return SceneSpec(
        seed=seed,
        split=split,
        index=index,
        seconds=scenes.seconds,
        room=place.room,
        absorption=place.absorption,
        rt60=place.rt60,
        listener=place.listener,
        yaw=yaw,
        sources=tuple(sources),
        snr=snr,
        yaw_trajectory=turning,
        sensor_snr=sensor_snr,
        scattering=place.scattering,
    )


def _set_moving(scenes: Scenes, place: Layout, source: Source, rng) -> Source:
    """Returns the source as it is, or on a walk within the ranges that its place was drawn from."""
    if rng.random() >= scenes.moving_source_prob:
        return source
    room = np.array(place.room)
    margin = np.minimum(_SOURCE_MARGIN, room / 6)
    low, high = (margin - 1e-9).tolist(), (room - margin + 1e-9).tolist()

    def allowed(point) -> bool:
        distance = math.dist(point, place.listener)
        up = (point[2] - place.listener[2]) / distance
        return (
            all(a <= p <= b for a, p, b in zip(low, point, high, strict=True))
            and scenes.distance[0] - 1e-9 <= distance <= scenes.distance[1] + 1e-9
            and _LOWEST <= up <= _HIGHEST
        )

    pace = float(rng.uniform(*scenes.walk_speed))
    walk = paths.sample_walk(
        source.position, source.onset, source.seconds, pace, place.listener, allowed, rng
    )
    return dataclasses.replace(source, waypoints=walk)


def _turning(scenes: Scenes, yaw: float, rng) -> tuple[tuple[float, float], ...]:
    """Returns the way-points (seconds, yaw) of a listener who turns once, evenly; or none."""
    if rng.random() >= scenes.listener_turn_prob:
        return ()
    start, end = scenes.seconds * rng.uniform(0.01, 0.5), scenes.seconds * rng.uniform(0.6, 1.0)
    side = math.copysign(1.0, rng.random() - 0.5)
    angle = side * rng.uniform(*scenes.turn_rate) * (end - start)
    return (float(start), yaw), (float(end), float(yaw + angle))


_grouped: tuple[list[Clip], list[list[list[Clip]]]] = ([], [])


def _group(clips: Sequence[Clip]) -> list[list[list[Clip]]]:
    """Returns the clips by class, then source recording, both in the order of their names.

    The last result is kept: comparing 700 clips by identity takes 1 % of grouping them.
    """
    global _grouped
    clips = list(clips)
    # Read and set once, as a whole: threads that mix scenes come here at the same time.
    known = _grouped
    if known[0] != clips:
        tree: dict[str, dict[str, list[Clip]]] = {}
        for clip in clips:
            tree.setdefault(clip.label, {}).setdefault(clip.recording_id, []).append(clip)
        known = (
            clips,
            [[recordings[t] for t in sorted(recordings)] for _, recordings in sorted(tree.items())],
        )
        _grouped = known
    return known[1]


def _choose_clips(clips, count: int, scenes: Scenes, rng) -> list[Clip]:
    classes = _group(clips)
    expected = f"at most as many as there are classes ({len(classes)})"
    check(count <= len(classes), "Scenes.sources", scenes.sources, expected)
    chosen = []
    for i in rng.permutation(len(classes))[:count]:
        recording = classes[i][rng.integers(len(classes[i]))]
        chosen.append(recording[rng.integers(len(recording))])
    return chosen


def _place(scenes: Scenes, count: int, rng, own):
    """Returns room, listener, `count` source positions (m), and the walls of `_made_of` or None."""
    made = None
    for _ in range(_ATTEMPTS):
        ranges = np.array([scenes.length, scenes.width, scenes.height])
        room = rng.uniform(ranges[:, 0], ranges[:, 1])
        if rooms.sabine_min_rt60(room) > scenes.rt60[1]:
            continue
        if scenes.floor_materials and (made := _made_of(scenes, room, own)) is None:
            continue
        margin = np.minimum(_LISTENER_MARGIN, room / 4)
        low, high = margin, room - margin
        # Ears are where people's are, where the room is high enough.
        low[2], high[2] = min(max(low[2], 1.0), room[2] / 2), min(high[2], 1.8)
        listener = rng.uniform(low, high)
        positions = _positions(scenes, room, listener, count, rng)
        if positions is not None:
            as_tuple = tuple(room.tolist()), tuple(listener.tolist())
            return *as_tuple, [tuple(p) for p in positions.tolist()], made
    raise ConfigError(
        f"Scenes is {scenes.sources} sources, distance {scenes.distance}, min_separation "
        f"{scenes.min_separation}, rt60 {scenes.rt60}, expected ranges that fit in its rooms"
        + " and materials"
        * bool(scenes.floor_materials)
    )


def _made_of(scenes: Scenes, room, rng):
    """Returns the nominal RT60 (s) and the absorption [6][7] of walls of materials.

    The first of some draws whose RT60 (closed form, mean of 500 Hz and 1 kHz) is in the range;
    None if there is none.
    """
    low, high = scenes.rt60
    for _ in range(_ATTEMPTS):
        sides = tuple(
            scenes.wall_materials[i] for i in rng.integers(len(scenes.wall_materials), size=4)
        )
        floor = scenes.floor_materials[rng.integers(len(scenes.floor_materials))]
        ceiling = scenes.ceiling_materials[rng.integers(len(scenes.ceiling_materials))]
        walls = materials.room_absorption(sides, floor, ceiling)
        rt60 = float(rooms.decay_time(room, walls)[2:4].mean())
        if low <= rt60 <= high:
            return rt60, tuple(map(tuple, walls.tolist()))
    return None


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
    floor = rooms.sabine_min_rt60(room)
    rt60 = float(rng.uniform(max(scenes.rt60[0], floor), scenes.rt60[1]))
    octaves = np.arange(len(rooms.BANDS)) - 2.5
    factor = np.exp(rng.uniform(-0.15, 0.05) * octaves + 0.08 * rng.standard_normal(octaves.size))
    factor /= (factor[2] + factor[3]) / 2
    ceiling = 0.9 * 6 * math.log(10) / (rooms.SPEED_OF_SOUND * rooms.AIR_ABSORPTION)
    target = np.clip(rt60 * factor, floor, ceiling)
    return rt60, tuple(rooms.absorption(room, target).tolist())


def _arrivals(seconds: float, count: int, earliest: float, rng) -> list[float]:
    """Returns arrival times (s) in random order, HEARD apart and before the end where possible."""
    span = max(seconds - MIN_AUDIBLE_S - earliest, 0.0)
    gap = min(MIN_AUDIBLE_S, span / count)
    free = np.sort(rng.uniform(0.0, span - gap * (count - 1), count))
    times = earliest + free + gap * np.arange(count)
    return rng.permutation(times).tolist()


def _overlapping(scenes: Scenes, lengths: list[float], earliest: float, rng):
    """Returns arrival times and played lengths (s) of sources that each overlap the one before.

    A source starts when the share drawn of the one before is still to come. Clips are cut
    where all of them would not fit in the scene.
    """
    shares = rng.uniform(*scenes.overlap, len(lengths) - 1)
    longest = max(lengths)
    while True:
        cut = np.minimum(lengths, longest)
        starts = earliest + np.concatenate([[0.0], np.cumsum((1 - shares) * cut[:-1])])
        spare = scenes.seconds - float((starts + cut).max())
        if spare >= 0:
            return (starts + rng.uniform(0.0, spare)).tolist(), cut.tolist()
        longest *= 0.95
        expected = f"shares at which {len(lengths)} sources fit in {scenes.seconds} s"
        check(longest >= MIN_AUDIBLE_S, "Scenes.overlap", scenes.overlap, expected)


def frame_times(seconds: float) -> np.ndarray:
    """Returns the moments (s) at which a description follows motion: the middle of each FRAME."""
    return (np.arange(math.ceil(seconds / FRAME_S - 1e-6)) + 0.5) * FRAME_S


def describe(spec: SceneSpec) -> dict:
    """Returns the scene description, a plain JSON dict, from geometry alone.

    Azimuth and elevation (degrees) are the listener's, onset and offset (s) are arrivals,
    level is the source's own gain (dB); sources are ordered by onset. rt60 is nominal and drr
    expected: `render.render` replaces both by what it measures.

    Of a moving source, azimuth, elevation, distance and drr are those at its onset. It has a
    "doa_trajectory" beside them, and so has each source where the listener turns: [azimuth,
    elevation, distance] as heard at each of `frame_times`, before the onset too. A turning listener
    has "yaw", degrees at each of `frame_times`: azimuth + yaw is a bearing in the room.
    """
    described = []
    for source in spec.sources:
        vector = np.subtract(source.position, spec.listener)
        azimuth, elevation = foa.cartesian_to_azel(vector)
        distance = float(np.linalg.norm(vector))
        onset = source.onset + distance / rooms.SPEED_OF_SOUND
        yaw = float(spec.yaw_at(onset)) if spec.yaw_trajectory else spec.yaw
        entry = {
            "class": source.label,
            "recording_id": source.recording_id,
            "clip": source.clip,
            "azimuth": foa.wrap_azimuth(azimuth - yaw),
            "elevation": float(elevation),
            "distance": distance,
            "onset": onset,
            "offset": min(onset + source.seconds, spec.seconds),
            "level": source.gain,
            "drr": rooms.expected_drr(spec.room, spec.absorption, distance),
        }
        if source.waypoints:
            end = source.onset + source.seconds
            away = math.dist(paths.position_at(source.path(), end), spec.listener)
            entry["offset"] = min(end + away / rooms.SPEED_OF_SOUND, spec.seconds)
        if source.waypoints or spec.yaw_trajectory:
            entry["doa_trajectory"] = _trajectory(spec, source)
        described.append(entry)
    scene = {
        "id": f"{spec.split}/{spec.index:06d}",
        "seconds": spec.seconds,
        "room": list(spec.room),
        "volume": rooms.volume(spec.room),
        "rt60": spec.rt60,
        "snr": spec.snr,
        "sources": sorted(described, key=lambda s: s["onset"]),
    }
    if spec.yaw_trajectory:
        scene["yaw"] = foa.wrap_azimuth(spec.yaw_at(frame_times(spec.seconds))).tolist()
    return scene


def _trajectory(spec: SceneSpec, source: Source) -> list[list[float]]:
    """Returns [azimuth, elevation, distance] of a source as heard at each of `frame_times`."""
    times = frame_times(spec.seconds)
    vector = paths.retarded_position(source.path(), spec.listener, times) - spec.listener
    azimuth, elevation = foa.cartesian_to_azel(vector)
    seen = foa.wrap_azimuth(azimuth - spec.yaw_at(times))
    return np.stack([seen, elevation, np.linalg.norm(vector, axis=1)], axis=1).tolist()


def rotate_scene(scene: dict, yaw: float) -> dict:
    """Returns the description after rotating the sound field by +`yaw` degrees about z.

    Trajectories turn with it, and a turning listener's own yaw the other way.
    """
    turned = []
    for source in scene["sources"]:
        changed = {"azimuth": foa.wrap_azimuth(source["azimuth"] + yaw)}
        if "doa_trajectory" in source:
            changed["doa_trajectory"] = [
                [foa.wrap_azimuth(a + yaw), *r] for a, *r in source["doa_trajectory"]
            ]
        turned.append({**source, **changed})
    if "yaw" in scene:
        scene = {**scene, "yaw": [foa.wrap_azimuth(y - yaw) for y in scene["yaw"]]}
    return {**scene, "sources": turned}
