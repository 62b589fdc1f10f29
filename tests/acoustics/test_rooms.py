import numpy as np
import pytest

from jaxasa.acoustics import rooms
from jaxasa.config import ConfigError

ROOM = (6.0, 5.0, 3.0)


def test_absorption_and_decay_time_are_inverse():
    target = np.array([0.6, 0.55, 0.5, 0.5, 0.45, 0.4, 0.3])
    absorption = rooms.absorption(ROOM, target)
    assert np.all((absorption > 0) & (absorption < 1))
    np.testing.assert_allclose(rooms.decay_time(ROOM, absorption), target, rtol=1e-6)


def test_calibration_is_near_eyring():
    absorption = rooms.absorption(ROOM, 0.5)[3]
    air = 4 * rooms.AIR[3] * rooms.volume(ROOM)
    eyring = 1 - np.exp(-(0.161 * rooms.volume(ROOM) / 0.5 - air) / rooms.surface(ROOM))
    assert absorption == pytest.approx(eyring, rel=0.25)


def test_refused_below_sabine_and_above_air():
    floor = 0.161 * 90 / 126
    assert rooms.sabine_floor(ROOM) == pytest.approx(floor)
    with pytest.raises(ConfigError, match="rt60 is 0.1, expected at least 0.115"):
        rooms.absorption(ROOM, 0.1)
    with pytest.raises(ConfigError, match="rt60 is 3.0, expected at most 1.98"):
        rooms.absorption(ROOM, 3.0)


def test_tail_energy_is_the_sum_over_random_images():
    """Counts images on the lattice by brute force: energy per second around 60 and 120 ms."""
    absorption = rooms.absorption(ROOM, 0.4)
    band = 6
    rng = np.random.default_rng(0)
    i, mirrored = np.divmod(np.arange(-40, 42), 2)
    hits = np.abs(i) + np.abs(i - mirrored)
    times = np.array([0.06, 0.12])
    found = np.zeros((2, 4))
    for _ in range(12):
        source, listener = rng.uniform(0.2, 0.8, (2, 3)) * ROOM
        axes = [
            (1 - 2 * mirrored) * s + 2 * i * size - r
            for s, r, size in zip(source, listener, ROOM, strict=True)
        ]
        x, y, z = np.meshgrid(*axes, indexing="ij")
        walls = sum(np.meshgrid(hits, hits, hits, indexing="ij"))
        d = np.sqrt(x * x + y * y + z * z)
        energy = (1 - absorption[band]) ** walls * np.exp(-rooms.AIR[band] * d) / d**2
        for t, time in enumerate(times):
            near = np.abs(d / rooms.SPEED - time) < 0.01
            parts = [energy, energy * (y / d) ** 2, energy * (z / d) ** 2, energy * (x / d) ** 2]
            found[t] += [p[near].sum() / 0.02 / 12 for p in parts]
    expected = rooms.tail_energy(ROOM, absorption, times)[band].T
    np.testing.assert_allclose(10 * np.log10(found / expected), 0, atol=0.8)


def test_drr_falls_by_six_db_a_doubling_near_the_source():
    absorption = np.full(7, 0.9)
    fall = rooms.expected_drr(ROOM, absorption, 0.05) - rooms.expected_drr(ROOM, absorption, 0.1)
    assert fall == pytest.approx(6.02, abs=0.5)
