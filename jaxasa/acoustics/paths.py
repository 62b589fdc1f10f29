# SPDX-License-Identifier: Apache-2.0
"""Paths of moving sources: position at the time of emission, and as heard by a listener.

A path is an array [K, 4] of waypoints (seconds, x, y, z) in order of time: straight motion at
constant speed between two waypoints, rest before the first and after the last. Straight lines
make two things exact: a path lies in a room if its waypoints do, and its minimum distance to the
listener is that of a segment.

Sound that arrives at time t was emitted at the retarded time s with s + |p(s) - listener| / c = t.
For a source slower than sound there is exactly one such s, and the iteration
s <- t - |p(s) - listener| / c converges by the factor v / c per step.

    >>> import numpy as np
    >>> from jaxasa.acoustics import paths
    >>> path = np.array([[0.0, 1.0, 3.0, 1.5], [2.0, 5.0, 3.0, 1.5]])  # 2 m/s along x
    >>> paths.position_at(path, 0.5).tolist()
    [2.0, 3.0, 1.5]
    >>> paths.min_distance(path, (3.0, 2.0, 1.5))
    1.0
    >>> position = paths.retarded_position(path, (3.0, 2.0, 1.5), np.array([1.0]))
    >>> bool(2.99 < position[0, 0] < 3.0)  # its place 1 m / c = 2.9 ms earlier
    True
"""

import math

import numpy as np

from jaxasa.acoustics import rooms

MAX_SPEED = 10.0  # m/s: a runner; delays of the images are accurate up to it (see motion)
WALK_STEP_S = 0.1  # seconds between the waypoints of a walk
# Changes of heading (degrees) that a walk tries, in this order, if the way ahead is blocked.
_TURNS = tuple(sign * angle for angle in (0, 30, 60, 90, 120, 150, 180) for sign in (1, -1))


def position_at(path: np.ndarray, seconds) -> np.ndarray:
    """Returns the position [..., 3] (m) of a source at the times `seconds` [...] of emission."""
    seconds = np.asarray(seconds, float)
    return np.stack([np.interp(seconds, path[:, 0], path[:, c]) for c in (1, 2, 3)], axis=-1)


def retarded_position(path: np.ndarray, point, arrivals: np.ndarray) -> np.ndarray:
    """Returns the position [T, 3] (m) at the retarded time of sound arriving at `arrivals` [T] (s).

    point: x, y, z of the listener (m).
    """
    emitted = np.asarray(arrivals, float)
    for _ in range(12):
        distance = np.linalg.norm(position_at(path, emitted) - point, axis=-1)
        emitted = arrivals - distance / rooms.SPEED_OF_SOUND
    return position_at(path, emitted)


def min_distance(path: np.ndarray, point) -> float:
    """Returns the minimum distance (m) between a path and a point."""
    start, step = path[:-1, 1:], np.diff(path[:, 1:], axis=0)
    square = np.maximum((step**2).sum(axis=1), 1e-30)
    fraction = np.clip(((point - start) * step).sum(axis=1) / square, 0.0, 1.0)
    nearest = np.concatenate([start + fraction[:, None] * step, path[-1:, 1:]])
    return float(np.linalg.norm(nearest - point, axis=1).min())


def cumulative_length(path: np.ndarray) -> np.ndarray:
    """Returns the distance travelled (m) at each waypoint [K]; the first is 0."""
    steps = np.linalg.norm(np.diff(path[:, 1:], axis=0), axis=1)
    return np.concatenate([[0.0], np.cumsum(steps)])


def max_speed(path: np.ndarray) -> float:
    """Returns the maximum speed (m/s) on a path; 0 for one waypoint."""
    if len(path) < 2:
        return 0.0
    return float((np.diff(cumulative_length(path)) / np.diff(path[:, 0])).max())


def sample_walk(
    start, onset: float, seconds: float, speed: float, listener, allowed, rng: np.random.Generator
) -> tuple[tuple[float, float, float, float], ...]:
    """Samples a walk at constant height: waypoints (seconds, x, y, z) every WALK_STEP_S.

    start: x, y, z at `onset` (s). speed: m/s. Half of all walks circle the listener, the others go
    straight. allowed(position) returns whether a source may be there. At the limits a walk changes
    its heading by as little as possible, and if no heading is possible, it pauses.
    """
    circles = bool(rng.random() < 0.5)
    side = math.copysign(1.0, rng.random() - 0.5)
    heading = rng.uniform(-math.pi, math.pi)
    x, y, z = start
    points = []
    for i in range(1, math.ceil(seconds / WALK_STEP_S) + 1):
        if circles:
            # A chord of the circle: steps along its tangent would spiral outwards.
            radius = math.hypot(x - listener[0], y - listener[1])
            inward = math.asin(min(speed * WALK_STEP_S / (2 * max(radius, 1e-9)), 1.0))
            heading = math.atan2(y - listener[1], x - listener[0])
            heading += side * (math.pi / 2 + inward)
        for turn in _TURNS:
            angle = heading + side * math.radians(turn)
            position = (
                x + speed * WALK_STEP_S * math.cos(angle),
                y + speed * WALK_STEP_S * math.sin(angle),
                z,
            )
            if allowed(position):
                x, y, z = position
                heading = angle
                if circles and abs(turn) > 90:
                    side = -side
                break
        points.append((onset + i * WALK_STEP_S, x, y, z))
    return tuple(points)
