# SPDX-License-Identifier: Apache-2.0
"""Paths of moving sources: where a source is when it sounds, and where it is heard from.

A path is an array [K, 4] of way-points (seconds, x, y, z), times rising: straight and even
motion from one to the next, rest before the first and after the last. Straight lines keep two
things exact: a path lies in a room if its way-points do, and its least distance to the listener
is that of a segment.

What arrives at the time t left the source at the time s with s + |p(s) - listener| / c = t.
For anything slower than sound there is one such s, and s <- t - |p(s) - listener| / c converges
by the factor v / c a turn.

    >>> import numpy as np
    >>> from jaxasa.acoustics import paths
    >>> path = np.array([[0.0, 1.0, 3.0, 1.5], [2.0, 5.0, 3.0, 1.5]])  # 2 m/s along x
    >>> paths.position_at(path, 0.5).tolist()
    [2.0, 3.0, 1.5]
    >>> paths.min_distance(path, (3.0, 2.0, 1.5))
    1.0
    >>> heard = paths.retarded_position(path, (3.0, 2.0, 1.5), np.array([1.0]))
    >>> bool(2.99 < heard[0, 0] < 3.0)  # it was there 1 m / c, 2.9 ms, before
    True
"""

import math

import numpy as np

from jaxasa.acoustics import rooms

MAX_SPEED = 10.0  # m/s: a runner; delays of the images are accurate up to it (see motion)
WALK_STEP_S = 0.1  # seconds between the way-points of a walk
# Headings (degrees) that a walker tries, in this order, where the way ahead is barred.
_AVOID = tuple(sign * angle for angle in (0, 30, 60, 90, 120, 150, 180) for sign in (1, -1))


def position_at(path: np.ndarray, seconds) -> np.ndarray:
    """Returns the place [..., 3] (m) of a source at the times `seconds` [...] of emission."""
    seconds = np.asarray(seconds, float)
    return np.stack([np.interp(seconds, path[:, 0], path[:, c]) for c in (1, 2, 3)], axis=-1)


def retarded_position(path: np.ndarray, point, arrivals: np.ndarray) -> np.ndarray:
    """Returns where [T, 3] (m) the sound that reaches `point` at `arrivals` [T] (s) came from."""
    emitted = np.asarray(arrivals, float)
    for _ in range(12):
        away = np.linalg.norm(position_at(path, emitted) - point, axis=-1)
        emitted = arrivals - away / rooms.SPEED_OF_SOUND
    return position_at(path, emitted)


def min_distance(path: np.ndarray, point) -> float:
    """Returns the least distance (m) between a path and a point."""
    start, way = path[:-1, 1:], np.diff(path[:, 1:], axis=0)
    square = np.maximum((way**2).sum(axis=1), 1e-30)
    share = np.clip(((point - start) * way).sum(axis=1) / square, 0.0, 1.0)
    near = np.concatenate([start + share[:, None] * way, path[-1:, 1:]])
    return float(np.linalg.norm(near - point, axis=1).min())


def cumulative_length(path: np.ndarray) -> np.ndarray:
    """Returns the way (m) behind a source at each way-point [K]; the first is 0."""
    steps = np.linalg.norm(np.diff(path[:, 1:], axis=0), axis=1)
    return np.concatenate([[0.0], np.cumsum(steps)])


def max_speed(path: np.ndarray) -> float:
    """Returns the highest speed (m/s) on a path; 0 for one way-point."""
    if len(path) < 2:
        return 0.0
    return float((np.diff(cumulative_length(path)) / np.diff(path[:, 0])).max())


def sample_walk(
    start, onset: float, seconds: float, speed: float, listener, allowed, rng: np.random.Generator
) -> tuple[tuple[float, float, float, float], ...]:
    """Draws a walk: way-points (seconds, x, y, z) every STEP after `onset`, at one height.

    Half of all walks circle the listener, the rest go straight. allowed(place) says where a
    source may be; at its limits a walk turns by as little as it can, and where there is no way
    it rests.
    """
    circles = bool(rng.random() < 0.5)
    side = math.copysign(1.0, rng.random() - 0.5)
    heading = rng.uniform(-math.pi, math.pi)
    x, y, z = start
    points = []
    for i in range(1, math.ceil(seconds / WALK_STEP_S) + 1):
        if circles:
            # A chord of the circle: along its tangent the walk would spiral outwards.
            radius = math.hypot(x - listener[0], y - listener[1])
            inward = math.asin(min(speed * WALK_STEP_S / (2 * max(radius, 1e-9)), 1.0))
            heading = math.atan2(y - listener[1], x - listener[0])
            heading += side * (math.pi / 2 + inward)
        for turn in _AVOID:
            angle = heading + side * math.radians(turn)
            place = (
                x + speed * WALK_STEP_S * math.cos(angle),
                y + speed * WALK_STEP_S * math.sin(angle),
                z,
            )
            if allowed(place):
                x, y, z = place
                heading = angle
                if circles and abs(turn) > 90:
                    side = -side
                break
        points.append((onset + i * WALK_STEP_S, x, y, z))
    return tuple(points)
