# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from jaxasa.acoustics import bands, image_source, materials, rir, rooms
from jaxasa.config import ConfigError
from jaxasa.core import keys
from jaxasa.core.audio import SAMPLE_RATE

ROOM = (6.0, 5.0, 3.0)


def test_absorption_and_decay_time_are_inverse():
    target = np.array([0.6, 0.55, 0.5, 0.5, 0.45, 0.4, 0.3])
    absorption = rooms.absorption(ROOM, target)
    assert np.all((absorption > 0) & (absorption < 1))
    np.testing.assert_allclose(rooms.decay_time(ROOM, absorption), target, rtol=1e-6)


def test_calibration_is_near_eyring():
    absorption = rooms.absorption(ROOM, 0.5)[3]
    air = 4 * rooms.AIR_ABSORPTION[3] * rooms.volume(ROOM)
    eyring = 1 - np.exp(-(0.161 * rooms.volume(ROOM) / 0.5 - air) / rooms.surface_area(ROOM))
    assert absorption == pytest.approx(eyring, rel=0.25)


def test_refused_below_sabine_and_above_air():
    floor = 0.161 * 90 / 126
    assert rooms.sabine_min_rt60(ROOM) == pytest.approx(floor)
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
        energy = (1 - absorption[band]) ** walls * np.exp(-rooms.AIR_ABSORPTION[band] * d) / d**2
        for t, time in enumerate(times):
            near = np.abs(d / rooms.SPEED_OF_SOUND - time) < 0.01
            parts = [energy, energy * (y / d) ** 2, energy * (z / d) ** 2, energy * (x / d) ** 2]
            found[t] += [p[near].sum() / 0.02 / 12 for p in parts]
    expected = rooms.tail_energy(ROOM, absorption, times)[band].T
    np.testing.assert_allclose(10 * np.log10(found / expected), 0, atol=0.8)


def _band_energy(responses: np.ndarray, step: int) -> np.ndarray:
    """Energy [7, windows] of W responses [n] in the octave bands, without phase."""
    size = 2 * len(responses)
    f = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    gains = bands.gains(f) / np.sqrt(1 + (rooms.HIGH_PASS_HZ / np.maximum(f, 1)) ** 8)
    heard = np.fft.irfft(np.fft.rfft(responses, size) * gains, size)[:, : len(responses)]
    white = (gains**2).mean(axis=1)[:, None]
    return (heard**2).reshape(len(gains), -1, step).sum(axis=2) / white


@pytest.mark.parametrize("margin, walls", [(0.0, 0.24), (0.1, 0.24), (0.2, 0.4)])
def test_modes_and_positions_of_the_tail(margin, walls):
    """Low bands against all images, over 80 places: near the walls, and away from them.

    The oblique modes alone would be 2 to 6 dB short of the 250 Hz octave at the end.
    """
    rng, length, absorption = np.random.default_rng(0), 4800, np.full(7, walls)
    times = (np.arange(length)[::16] + 8) / SAMPLE_RATE
    found, expected = 0.0, 0.0
    for _ in range(80):
        source, listener = rng.uniform(margin, 1 - margin, (2, 3)) * ROOM
        where = (ROOM, absorption, source, listener)
        radius = length / SAMPLE_RATE * rooms.SPEED_OF_SOUND
        images = image_source.image_rir(*where, radius, air=False)[0, bands.PRE_SAMPLES :][:length]
        found = found + _band_energy(images, 1200)
        energy = rooms.tail_energy(ROOM, absorption, times, source, listener, air=False)
        expected = expected + energy[:, 0].reshape(7, 4, -1).mean(axis=2) * 1200 / SAMPLE_RATE
    error = 10 * np.log10(expected / found)[1:, 1:]
    assert np.abs(error[0]).max() < 1.5  # 250 Hz
    assert np.abs(error[1:]).max() < 1.0


def _heard(times: np.ndarray) -> np.ndarray:
    return np.ones((len(rooms.BANDS), len(times)))


@pytest.mark.parametrize(
    "sides, floor, ceiling",
    [
        ("plasterboard", "carpet", "ceiling_tile"),
        (("curtains", "acoustic_plaster", "plasterboard", "wood_panel"), "linoleum", "window"),
    ],
)
def test_layers_between_walls_that_absorb_much(sides, floor, ceiling):
    """Against all images over 24 places: modes of walls that reflect would be 3 to 6 dB off."""
    room, walls = (4.2, 3.4, 2.6), materials.room_absorption(sides, floor, ceiling)
    rng, length, found, expected = np.random.default_rng(0), 4800, 0.0, 0.0
    times = (np.arange(length)[::16] + 8) / SAMPLE_RATE
    radius = length / SAMPLE_RATE * rooms.SPEED_OF_SOUND
    for _ in range(24):
        source, listener = rng.uniform(0.1, 0.9, (2, 3)) * room
        where = (room, walls, source, listener)
        images = image_source.nearest_sample_rir(*where, 0.0, radius, _heard, air=False)
        found = found + _band_energy(images[0, bands.PRE_SAMPLES :][:length], 1200)
        energy = rooms.tail_energy(*where[:2], times, source, listener, air=False)
        expected = expected + energy[:, 0].reshape(7, 4, -1).mean(axis=2) * 1200 / SAMPLE_RATE
    error = 10 * np.log10(expected / found)[2:, 2:]  # 500 Hz and up, from 150 ms on
    assert np.abs(error).max() < 1.5


def test_walls_given_one_by_one_are_uneven_where_they_differ():
    alike, times = np.full((6, 7), 0.2), np.array([0.1, 0.3])
    places = ((1.0, 2.0, 1.0), (4.0, 3.0, 2.0))
    one, six = (rooms.tail_energy(ROOM, walls, times, *places) for walls in (alike[0], alike))
    np.testing.assert_array_equal(one, six)
    assert not rooms.has_nonuniform_absorption(alike[0]) and not rooms.has_nonuniform_absorption(
        alike
    )
    alike[3, 2] = 0.21
    assert rooms.has_nonuniform_absorption(alike)


def test_positions_average_to_the_whole_room():
    rng, times = np.random.default_rng(0), np.array([0.1, 0.2, 0.3])
    absorption = np.full(7, 0.2)
    places = rng.uniform(0, 1, (400, 2, 3)) * ROOM
    each = [rooms.tail_energy(ROOM, absorption, times, s, r)[2:] for s, r in places]
    whole = rooms.tail_energy(ROOM, absorption, times)[2:]
    np.testing.assert_allclose(10 * np.log10(np.mean(each, axis=0) / whole), 0, atol=0.25)


def test_sabine_and_eyring_by_hand():
    v, s = 90.0, 126.0
    np.testing.assert_allclose(
        rooms.absorption(ROOM, 0.5, "sabine", air=False), 0.161 * v / (0.5 * s)
    )
    eyring = 1 - np.exp(-0.161 * v / (0.5 * s))
    np.testing.assert_allclose(rooms.absorption(ROOM, 0.5, "eyring", air=False), eyring)
    with_air = (0.161 * v / 0.5 - 4 * rooms.AIR_ABSORPTION * v) / s
    np.testing.assert_allclose(rooms.absorption(ROOM, 0.5, "sabine"), with_air, rtol=2e-3)


def test_calibrated_rooms_have_the_decay_that_was_asked_for():
    """Sabine's formula misses by a tenth and more; the calibrated absorption does not."""
    rng, missed = np.random.default_rng(3), {"calibrated": [], "sabine": []}
    for i in range(12):
        room = rng.uniform([4.0, 3.5, 2.5], [7.0, 5.5, 3.4])
        source, listener = rng.uniform(0.15, 0.85, (2, 3)) * room
        for method, found in missed.items():
            absorption = rooms.absorption(room, 0.35, method)
            response = rir.shoebox_rir(
                room, absorption, source, listener, keys.rng(0, i), full=True
            )
            found.append(rir.rt60(response) / 0.35 - 1)
    assert abs(np.mean(missed["calibrated"])) < 0.04
    assert np.mean(missed["sabine"]) > np.mean(missed["calibrated"]) - 1e-9
    assert np.std(missed["calibrated"]) < 0.15


def test_eyring_goes_below_the_floor_and_methods_are_named():
    assert 0.6 < rooms.absorption(ROOM, 0.1, "eyring", air=False)[0] < 1
    np.testing.assert_allclose(
        rooms.absorption(ROOM, rooms.sabine_min_rt60(ROOM), "sabine", air=False), 1.0
    )
    with pytest.raises(ConfigError, match="rt60 is 0.1, expected at least 0.115"):
        rooms.absorption(ROOM, 0.1, "sabine")
    with pytest.raises(ConfigError, match="method is 'norris', expected one of calibrated"):
        rooms.absorption(ROOM, 0.5, "norris")
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="rt60 is .*, expected seconds above 0"):
            rooms.absorption(ROOM, bad, "eyring")
    with pytest.raises(ConfigError, match="room is"):
        rooms.absorption((6, -5, 3), 0.5)


def test_two_walls_of_an_axis_share_their_decay():
    uneven = np.full((6, 7), 0.2)
    uneven[4], uneven[5] = 0.0001, 1 - 0.8**2 / 0.9999
    np.testing.assert_allclose(
        rooms.decay_time(ROOM, uneven), rooms.decay_time(ROOM, np.full(7, 0.2)), rtol=1e-6
    )


def test_drr_falls_by_six_db_a_doubling_near_the_source():
    absorption = np.full(7, 0.9)
    fall = rooms.expected_drr(ROOM, absorption, 0.05) - rooms.expected_drr(ROOM, absorption, 0.1)
    assert fall == pytest.approx(6.02, abs=0.5)
