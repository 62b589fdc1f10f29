# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxasa.acoustics import paths

metres = st.floats(-9, 9)
points = st.tuples(metres, metres, metres)


@st.composite
def a_path(draw):
    steps = draw(st.lists(st.tuples(st.floats(0.05, 2.0), points), min_size=1, max_size=5))
    times = np.cumsum([step for step, _ in steps])
    return np.array([(t, *p) for t, (_, p) in zip(times, steps, strict=True)])


@given(a_path(), points)
def test_min_distance_is_that_of_many_points(path, point):
    fine = np.linspace(path[0, 0], path[-1, 0], 2001)
    least = np.linalg.norm(paths.position_at(path, fine) - point, axis=1).min()
    step = paths.max_speed(path) * (fine[1] - fine[0])
    assert paths.min_distance(path, point) <= least + 1e-9
    assert paths.min_distance(path, point) >= least - step / 2 - 1e-9


@given(a_path(), points)
def test_retarded_position_satisfies_the_travel_time(path, point):
    path[:, 0] *= max(1, paths.max_speed(path) / paths.MAX_SPEED)
    arrivals = np.linspace(0, path[-1, 0] + 1, 7)
    distance = np.linalg.norm(paths.retarded_position(path, point, arrivals) - point, axis=1)
    emitted = arrivals - distance / 343.0
    again = np.linalg.norm(paths.position_at(path, emitted) - point, axis=1)
    np.testing.assert_allclose(distance, again, atol=1e-6)


def test_source_is_static_before_and_after_its_path():
    path = np.array([[1.0, 0, 0, 0], [2.0, 3, 0, 0]])
    np.testing.assert_array_equal(paths.position_at(path, [0.0, 1.5, 9.0])[:, 0], [0, 1.5, 3])
    assert paths.max_speed(path) == 3 and paths.max_speed(path[:1]) == 0


def _walks(count, speed=1.0, allowed=lambda position: True):
    rng = np.random.default_rng(0)
    for _ in range(count):
        walk = paths.sample_walk((4.0, 2.0, 1.0), 0.5, 3.0, speed, (3.0, 2.0, 1.5), allowed, rng)
        yield np.array([(0.5, 4.0, 2.0, 1.0), *walk])


def test_half_of_all_walks_circle_the_listener_and_half_go_straight():
    kinds = []
    for path in _walks(200):
        flat = np.hypot(path[:, 1] - 3.0, path[:, 2] - 2.0)
        circle = np.allclose(flat, 1.0)
        steps = np.diff(path[:, 1:], axis=0)
        assert circle or np.allclose(steps, steps[0])
        np.testing.assert_allclose(np.linalg.norm(steps, axis=1), 0.1)
        assert np.all(path[:, 3] == 1.0) and path[-1, 0] >= 3.5 - 1e-9
        kinds.append(circle)
    assert 70 < sum(kinds) < 130


def test_walks_turn_at_the_limits_of_allowed():
    def allowed(position):
        return all(abs(p - q) <= 1.2 for p, q in zip(position, (4.0, 2.0, 1.0), strict=True))

    pauses = 0
    for path in _walks(100, 2.0, allowed):
        assert np.abs(path[:, 1:] - (4.0, 2.0, 1.0)).max() <= 1.2
        pauses += int((np.diff(path[:, 1:], axis=0) == 0).all(axis=1).sum())
    assert pauses == 0
    blocked = next(_walks(1, 2.0, lambda position: False))
    assert np.ptp(blocked[:, 1:], axis=0).max() == 0


def test_circles_have_both_directions():
    turns = []
    for path in _walks(100):
        flat = path[:, 1:3] - (3.0, 2.0)
        if np.allclose(np.hypot(*flat.T), 1.0):
            turns.append(math.copysign(1, np.cross(flat[0], flat[1])))
    assert abs(np.mean(turns)) < 0.4


def test_min_distance_of_one_waypoint():
    assert paths.min_distance(np.array([[0.0, 1, 1, 1]]), (1, 1, 3)) == pytest.approx(2)
