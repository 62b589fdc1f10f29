# SPDX-License-Identifier: Apache-2.0
"""Scenes sampled from (seed, split, index), and their description for people and models.

A scene is a shoebox room, a listener, one to eight sources and noise; config.Scenes has the
ranges. All directions in a description are in the listener's frame, and all of it is computed from
the SceneSpec that is rendered: azimuth = atan2(y, x) of the source relative to the listener, minus
the yaw; onset = emission + d / c; a moving source is heard at its retarded position (paths).

By default sources and listener are static, all walls are the same, and there is no sensor noise.
Each of the other options is drawn from keys of its own, so switching it on changes nothing else in
a scene (but rooms are rejected in which no draw of materials has an RT60 in the range).

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
from jaxasa.acoustics.spec import Clip, SceneSpec, Source
from jaxasa.config import ConfigError, Scenes, check
from jaxasa.core import keys

MIN_AUDIBLE_S = 0.4  # of each source; also the minimum time between two arrivals
FRAME_S = 0.1  # period at which a description samples motion
_MIN_SIN, _MAX_SIN = math.sin(math.radians(-40.0)), math.sin(math.radians(60.0))  # of elevation
_LISTENER_MARGIN, _SOURCE_MARGIN = 0.5, 0.3  # m from the walls
_CANDIDATES, _ATTEMPTS = 96, 60


@dataclass(frozen=True)
class Layout:
    """A room with positions of a listener and of sources; fields as in SceneSpec."""

    room: tuple[float, float, float]
    absorption: tuple[float, ...] | tuple[tuple[float, ...], ...]
    rt60: float
    listener: tuple[float, float, float]
    positions: tuple[tuple[float, float, float], ...]
    scattering: float = 0.0

    def shoebox(self) -> rooms.Shoebox:
        """Returns the room as the renderers take it."""
        return rooms.Shoebox(self.room, self.absorption, self.scattering)


def sample_scene(
    scenes: Scenes, clips: Sequence[Clip], seed: int, split: str, index: int
) -> SceneSpec:
    """Samples scene `index` of `split`: uniform over classes, source recordings, then clips.

    Azimuths in the listener's frame are uniform for any room and class, because the yaw is. Reads
    no audio. Raises ConfigError if the sources do not fit into the ranges.
    """
    rng = keys.rng(seed, "scene", split, index)
    wall_rng = keys.rng(seed, "walls", split, index)

    def make_layout(count: int) -> Layout:
        return sample_layout(scenes, count, rng, wall_rng)

    return sample_scene_in(scenes, clips, seed, split, index, rng, make_layout)


def sample_layout(
    scenes: Scenes, count: int, rng: np.random.Generator, wall_rng: np.random.Generator
) -> Layout:
    """Samples a room, a listener and `count` source positions; raises ConfigError if none fit.

    wall_rng draws materials and scattering, if the ranges have any.
    """
    size, listener, positions, walls = _sample_positions(scenes, count, rng, wall_rng)
    uniform_walls = _sample_absorption(scenes, size, rng)
    rt60, absorption = walls or uniform_walls
    scattering = float(wall_rng.uniform(*scenes.scattering)) if scenes.scattering else 0.0
    return Layout(size, absorption, rt60, listener, tuple(positions), scattering)


def sample_scene_in(
    scenes: Scenes,
    clips: Sequence[Clip],
    seed: int,
    split: str,
    index: int,
    rng: np.random.Generator,
    make_layout: Callable[[int], Layout],
) -> SceneSpec:
    """Samples a scene in the room and positions that make_layout(number of sources) returns."""
    count = int(rng.integers(scenes.sources[0], scenes.sources[1] + 1))
    chosen = _choose_clips(clips, count, scenes, rng)
    layout = make_layout(count)
    delays = [math.dist(layout.listener, p) / rooms.SPEED_OF_SOUND for p in layout.positions]
    arrivals = _sample_arrivals(scenes.seconds, count, max(delays), rng)
    gains = rng.uniform(*scenes.gain, count).tolist()
    rates = rng.uniform(*scenes.speed_perturbation, count).tolist()
    lengths = [clip.seconds / rate for clip, rate in zip(chosen, rates, strict=True)]
    if scenes.overlap:
        overlap_rng = keys.rng(seed, "overlap", split, index)
        arrivals, lengths = _sample_overlap(scenes, lengths, max(delays), overlap_rng)
    sources = [
        Source(
            label=clip.label,
            clip=clip.id,
            recording_id=clip.recording_id,
            onset=arrival - delay,
            seconds=min(length, scenes.seconds - arrival),
            playback_rate=rate,
            gain=gain,
            position=position,
        )
        for clip, position, delay, arrival, length, gain, rate in zip(
            chosen, layout.positions, delays, arrivals, lengths, gains, rates, strict=True
        )
    ]
    if scenes.moving_source_prob:
        sources = [
            _sample_motion(scenes, layout, source, keys.rng(seed, "motion", split, index, i))
            for i, source in enumerate(sources)
        ]
    yaw = foa.wrap_azimuth(rng.uniform(-180.0, 180.0))
    snr = float(rng.uniform(*scenes.snr))
    yaw_trajectory: tuple[tuple[float, float], ...] = ()
    if scenes.listener_turn_prob:
        yaw_trajectory = _sample_yaw_trajectory(
            scenes, yaw, keys.rng(seed, "turning", split, index)
        )
    sensor_snr = None
    if scenes.sensor_snr:
        sensor_snr = float(keys.rng(seed, "sensor", split, index).uniform(*scenes.sensor_snr))
    return SceneSpec(
        seed=seed,
        split=split,
        index=index,
        seconds=scenes.seconds,
        room=layout.room,
        absorption=layout.absorption,
        rt60=layout.rt60,
        listener=layout.listener,
        yaw=yaw,
        sources=tuple(sources),
        snr=snr,
        yaw_trajectory=yaw_trajectory,
        sensor_snr=sensor_snr,
        scattering=layout.scattering,
    )


def _sample_motion(scenes: Scenes, layout: Layout, source: Source, rng) -> Source:
    """Returns the source, static or on a walk within the ranges of source positions."""
    if rng.random() >= scenes.moving_source_prob:
        return source
    size = np.array(layout.room)
    margin = np.minimum(_SOURCE_MARGIN, size / 6)
    low, high = (margin - 1e-9).tolist(), (size - margin + 1e-9).tolist()

    def allowed(point) -> bool:
        distance = math.dist(point, layout.listener)
        sin_elevation = (point[2] - layout.listener[2]) / distance
        return (
            all(a <= p <= b for a, p, b in zip(low, point, high, strict=True))
            and scenes.distance[0] - 1e-9 <= distance <= scenes.distance[1] + 1e-9
            and _MIN_SIN <= sin_elevation <= _MAX_SIN
        )

    speed = float(rng.uniform(*scenes.walk_speed))
    walk = paths.sample_walk(
        source.position, source.onset, source.seconds, speed, layout.listener, allowed, rng
    )
    return dataclasses.replace(source, waypoints=walk)


def _sample_yaw_trajectory(scenes: Scenes, yaw: float, rng) -> tuple[tuple[float, float], ...]:
    """Returns rows (seconds, yaw) of a listener who turns once at constant rate, or no rows."""
    if rng.random() >= scenes.listener_turn_prob:
        return ()
    start, end = scenes.seconds * rng.uniform(0.01, 0.5), scenes.seconds * rng.uniform(0.6, 1.0)
    side = math.copysign(1.0, rng.random() - 0.5)
    angle = side * rng.uniform(*scenes.turn_rate) * (end - start)
    return (float(start), yaw), (float(end), float(yaw + angle))


_grouped: tuple[list[Clip], list[list[list[Clip]]]] = ([], [])


def _group_clips(clips: Sequence[Clip]) -> list[list[list[Clip]]]:
    """Returns the clips by class, then by source recording, both sorted by name.

    Caches the last result: comparing 700 clips by identity takes 1 % of the time of grouping.
    """
    global _grouped
    clips = list(clips)
    # Read and set once, as a whole: threads of the data loader call this at the same time.
    cached = _grouped
    if cached[0] != clips:
        tree: dict[str, dict[str, list[Clip]]] = {}
        for clip in clips:
            tree.setdefault(clip.label, {}).setdefault(clip.recording_id, []).append(clip)
        classes = (recordings for _, recordings in sorted(tree.items()))
        cached = clips, [[by_id[key] for key in sorted(by_id)] for by_id in classes]
        _grouped = cached
    return cached[1]


def _choose_clips(clips, count: int, scenes: Scenes, rng) -> list[Clip]:
    classes = _group_clips(clips)
    expected = f"at most as many as there are classes ({len(classes)})"
    check(count <= len(classes), "Scenes.sources", scenes.sources, expected)
    chosen = []
    for i in rng.permutation(len(classes))[:count]:
        recording = classes[i][rng.integers(len(classes[i]))]
        chosen.append(recording[rng.integers(len(recording))])
    return chosen


def _sample_positions(scenes: Scenes, count: int, rng, wall_rng):
    """Returns size, listener, `count` source positions (m), and walls of `_sample_materials`."""
    walls = None
    for _ in range(_ATTEMPTS):
        ranges = np.array([scenes.length, scenes.width, scenes.height])
        size = rng.uniform(ranges[:, 0], ranges[:, 1])
        if rooms.sabine_min_rt60(size) > scenes.rt60[1]:
            continue
        if scenes.floor_materials and (walls := _sample_materials(scenes, size, wall_rng)) is None:
            continue
        margin = np.minimum(_LISTENER_MARGIN, size / 4)
        low, high = margin, size - margin
        # The height of people's ears, if the room is high enough.
        low[2], high[2] = min(max(low[2], 1.0), size[2] / 2), min(high[2], 1.8)
        listener = rng.uniform(low, high)
        positions = _sample_source_positions(scenes, size, listener, count, rng)
        if positions is not None:
            as_tuple = tuple(size.tolist()), tuple(listener.tolist())
            return *as_tuple, [tuple(p) for p in positions.tolist()], walls
    raise ConfigError(
        f"Scenes is {scenes.sources} sources, distance {scenes.distance}, min_separation "
        f"{scenes.min_separation}, rt60 {scenes.rt60}, expected ranges that fit in its rooms"
        + " and materials"
        * bool(scenes.floor_materials)
    )


def _sample_materials(scenes: Scenes, size, rng):
    """Returns the nominal RT60 (s) and the absorption [6][7] of walls of random materials.

    It is the first of some draws whose RT60 (closed form, mean of 500 Hz and 1 kHz) is in the
    range, or None.
    """
    low, high = scenes.rt60
    for _ in range(_ATTEMPTS):
        sides = tuple(
            scenes.wall_materials[i] for i in rng.integers(len(scenes.wall_materials), size=4)
        )
        floor = scenes.floor_materials[rng.integers(len(scenes.floor_materials))]
        ceiling = scenes.ceiling_materials[rng.integers(len(scenes.ceiling_materials))]
        walls = materials.room_absorption(sides, floor, ceiling)
        rt60 = float(rooms.decay_time(rooms.Shoebox(size, walls))[2:4].mean())
        if low <= rt60 <= high:
            return rt60, tuple(map(tuple, walls.tolist()))
    return None


def _sample_source_positions(scenes: Scenes, size, listener, count: int, rng) -> np.ndarray | None:
    n = _CANDIDATES
    margin = np.minimum(_SOURCE_MARGIN, size / 6)
    azimuth = rng.uniform(-np.pi, np.pi, n)
    bearing = np.stack([np.cos(azimuth), np.sin(azimuth)], axis=1)
    distance = rng.uniform(*scenes.distance, n)
    # Height, not elevation, is uniform: otherwise a low room would have few distant sources.
    sin_elevation = (rng.uniform(margin[2], size[2] - margin[2], n) - listener[2]) / distance
    cos_elevation = np.sqrt(np.maximum(1 - sin_elevation * sin_elevation, 0.0))
    position = listener[:2] + (distance * cos_elevation)[:, None] * bearing
    inside = (sin_elevation >= _MIN_SIN) & (sin_elevation <= _MAX_SIN)
    inside &= ((position >= margin[:2]) & (position <= (size - margin)[:2])).all(axis=1)
    unit = np.concatenate([cos_elevation[:, None] * bearing, sin_elevation[:, None]], axis=1)
    limit = math.cos(math.radians(scenes.min_separation)) if scenes.min_separation else 2.0
    chosen: list[int] = []
    for i in inside.nonzero()[0]:
        # Separated both on the sphere and in azimuth: near the zenith one does not imply the other.
        if all(unit[i] @ unit[j] <= limit and bearing[i] @ bearing[j] <= limit for j in chosen):
            chosen.append(i)
            if len(chosen) == count:
                return listener + distance[chosen, None] * unit[chosen]
    return None


def _sample_absorption(scenes: Scenes, size, rng) -> tuple[float, tuple[float, ...]]:
    """Returns the nominal RT60 (s), and the absorption [7] of all walls for RT60s around it.

    The RT60 changes by -15 to +5 % per octave, and varies by 8 % from band to band in addition.
    The mean of the 500 Hz and 1 kHz bands stays nominal.
    """
    lowest = rooms.sabine_min_rt60(size)
    rt60 = float(rng.uniform(max(scenes.rt60[0], lowest), scenes.rt60[1]))
    octaves = np.arange(len(rooms.BANDS)) - 2.5
    factor = np.exp(rng.uniform(-0.15, 0.05) * octaves + 0.08 * rng.standard_normal(octaves.size))
    factor /= (factor[2] + factor[3]) / 2
    target = np.clip(rt60 * factor, lowest, rooms.air_limited_rt60())
    return rt60, tuple(rooms.absorption(size, target).tolist())


def _sample_arrivals(seconds: float, count: int, earliest: float, rng) -> list[float]:
    """Returns arrival times (s) in random order.

    They are MIN_AUDIBLE_S apart and before the end, if possible.
    """
    span = max(seconds - MIN_AUDIBLE_S - earliest, 0.0)
    gap = min(MIN_AUDIBLE_S, span / count)
    free = np.sort(rng.uniform(0.0, span - gap * (count - 1), count))
    times = earliest + free + gap * np.arange(count)
    return rng.permutation(times).tolist()


def _sample_overlap(scenes: Scenes, lengths: list[float], earliest: float, rng):
    """Returns arrival times and played lengths (s) of sources that overlap their predecessor.

    A source starts when a random fraction of its predecessor remains. Clips are cut if not all of
    them would fit into the scene.
    """
    fractions = rng.uniform(*scenes.overlap, len(lengths) - 1)
    longest = max(lengths)
    while True:
        cut = np.minimum(lengths, longest)
        starts = earliest + np.concatenate([[0.0], np.cumsum((1 - fractions) * cut[:-1])])
        spare = scenes.seconds - float((starts + cut).max())
        if spare >= 0:
            return (starts + rng.uniform(0.0, spare)).tolist(), cut.tolist()
        longest *= 0.95
        expected = f"fractions at which {len(lengths)} sources fit in {scenes.seconds} s"
        check(longest >= MIN_AUDIBLE_S, "Scenes.overlap", scenes.overlap, expected)


def frame_times(seconds: float) -> np.ndarray:
    """Returns the times (s) at which a description samples motion: the centre of each frame."""
    return (np.arange(math.ceil(seconds / FRAME_S - 1e-6)) + 0.5) * FRAME_S


def describe(spec: SceneSpec) -> dict:
    """Returns the scene description, a plain JSON dict, from geometry alone.

    Azimuth and elevation (degrees) are in the listener's frame, onset and offset (s) are arrivals,
    level is the gain of the source (dB); sources are ordered by onset. rt60 is nominal and drr
    expected: `render.render` replaces both by measurements on the RIRs.

    Azimuth, elevation, distance and drr of a moving source are those at its onset. If the source
    moves or the listener turns, it also has a "doa_trajectory": [azimuth, elevation, distance] as
    heard at each of `frame_times`, also before the onset. If the listener turns, the scene has
    "yaw", degrees at each of `frame_times`: azimuth + yaw is the azimuth in room coordinates.
    """
    room, described = spec.shoebox(), []
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
            "drr": rooms.expected_drr(room, distance),
        }
        if source.waypoints:
            end = source.onset + source.seconds
            last = math.dist(paths.position_at(source.path(), end), spec.listener)
            entry["offset"] = min(end + last / rooms.SPEED_OF_SOUND, spec.seconds)
        if source.waypoints or spec.yaw_trajectory:
            entry["doa_trajectory"] = _doa_trajectory(spec, source)
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


def _doa_trajectory(spec: SceneSpec, source: Source) -> list[list[float]]:
    """Returns [azimuth, elevation, distance] of a source as heard at each of `frame_times`."""
    times = frame_times(spec.seconds)
    vector = paths.retarded_position(source.path(), spec.listener, times) - spec.listener
    azimuth, elevation = foa.cartesian_to_azel(vector)
    relative = foa.wrap_azimuth(azimuth - spec.yaw_at(times))
    return np.stack([relative, elevation, np.linalg.norm(vector, axis=1)], axis=1).tolist()


def rotate_scene(scene: dict, yaw: float) -> dict:
    """Returns the description after a rotation of the sound field by +`yaw` degrees about z.

    DOA trajectories rotate with it, and the yaw of a turning listener in the opposite direction.
    """
    sources = []
    for source in scene["sources"]:
        rotated = {"azimuth": foa.wrap_azimuth(source["azimuth"] + yaw)}
        if "doa_trajectory" in source:
            rows = source["doa_trajectory"]
            rotated["doa_trajectory"] = [[foa.wrap_azimuth(a + yaw), *rest] for a, *rest in rows]
        sources.append({**source, **rotated})
    if "yaw" in scene:
        scene = {**scene, "yaw": [foa.wrap_azimuth(y - yaw) for y in scene["yaw"]]}
    return {**scene, "sources": sources}
