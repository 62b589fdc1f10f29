# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest

from jaxasa.acoustics import bands, foa, image_source, rir, rooms
from jaxasa.core import keys
from jaxasa.core.audio import SAMPLE_RATE

LISTENER = np.array([3.1, 2.4, 1.5])
ROOM = (6.0, 5.0, 3.0)
ANECHOIC = rooms.Shoebox(ROOM, np.ones(7), air=False)


def _direct(source, listener=LISTENER) -> np.ndarray:
    return image_source.image_rir(ANECHOIC, source, listener, 5.0)


@pytest.mark.parametrize("azimuth, elevation", [(0, 0), (90, 0), (-135, 20), (30, 40), (170, -35)])
def test_anechoic_gains_are_exact(azimuth, elevation):
    unit = foa.encode(azimuth, elevation)[[3, 1, 2]]
    spectrum = np.fft.rfft(_direct(LISTENER + 1.3 * unit), 4096)[:, 50:1600]
    np.testing.assert_allclose(np.abs(spectrum[0]), 1 / 1.3, rtol=1e-3)
    gains = (spectrum / spectrum[0]).real.mean(axis=1)
    np.testing.assert_allclose(gains, foa.encode(azimuth, elevation), atol=1e-5)


def test_level_falls_with_distance_and_delay_rises():
    near, far = (_direct(LISTENER + [d, 0, 0])[0] for d in (0.7, 1.4))
    spectra = [np.abs(np.fft.rfft(r, 4096)[50:1600]) for r in (near, far)]
    np.testing.assert_allclose(spectra[0] / spectra[1], 2, rtol=2e-3)
    for d, response in ((0.7, near), (1.4, far)):
        assert abs(int(np.argmax(response)) - bands.PRE_SAMPLES - d / 343 * 16000) <= 0.5


@pytest.mark.parametrize("fraction", np.linspace(-0.5, 0.5, 9))
def test_fractional_delay_is_accurate(fraction):
    """Up to 7 kHz, against the exact phase: below -50 dB everywhere, -70 dB in the mean."""
    distance = (50 + fraction) * 343 / 16000
    frequency = np.fft.rfftfreq(8192, 1 / SAMPLE_RATE)
    use = frequency < 7000
    spectrum = np.fft.rfft(_direct(LISTENER + [distance, 0, 0])[0], 8192)[use] * distance
    delay = bands.PRE_SAMPLES / SAMPLE_RATE + distance / 343
    error = np.abs(spectrum - np.exp(-2j * np.pi * frequency[use] * delay))
    assert 20 * np.log10(error.max()) < -50
    assert 10 * np.log10(np.mean(error**2)) < -70


def test_first_reflection_has_the_absorption_of_each_band():
    """Only the floor is near: its reflection is the direct sound times sqrt(1 - absorption)."""
    absorption = np.array([0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9])
    room = rooms.Shoebox((60.0, 60.0, 60.0), absorption, air=False)
    listener = np.array([30.0, 30.0, 3.0])
    images = image_source.image_rir(room, listener + [2.0, 0, 0], listener, 10.0)[0]
    direct = 2.0 * np.abs(np.fft.rfft(images[: bands.PRE_SAMPLES + 187], 16000))
    floor = math.hypot(2, 6) * np.abs(np.fft.rfft(images[bands.PRE_SAMPLES + 187 :], 16000))
    assert floor[250] / direct[250] == pytest.approx(0.9**0.5, rel=0.05)
    assert floor[2000] / direct[2000] == pytest.approx(0.1**0.5, rel=0.05)


@pytest.mark.parametrize("wall", range(6))
def test_each_wall_reflects_with_its_own_absorption(wall):
    """A source near one wall of a dead room: one echo of gain sqrt(1 - 0.36) from behind it."""
    size = np.array([20.0, 20.0, 20.0])
    listener = size / 2
    axis, side = divmod(wall, 2)
    normal = np.eye(3)[axis] * (1 if side else -1)
    source = listener + 8.0 * normal
    absorption = np.ones((6, 7))
    absorption[wall] = 0.36
    room = rooms.Shoebox(size, absorption, air=False)
    images = image_source.image_rir(room, source, listener, 15.0)
    echo = bands.PRE_SAMPLES + round(12.0 / 343 * 16000)
    spectrum = np.fft.rfft(images[:, echo - 60 : echo + 60], 512)[:, 40:200]
    np.testing.assert_allclose(np.abs(spectrum[0]), 0.8 / 12, rtol=0.02)
    gains = (spectrum / spectrum[0]).real.mean(axis=1)
    np.testing.assert_allclose(gains, [1, *normal[[1, 2, 0]]], atol=1e-2)


def test_air_attenuates_as_tabulated():
    far = LISTENER + [2.8, 0, 0]
    humid = rooms.Shoebox(ROOM, np.ones(7))
    rirs = [image_source.image_rir(room, far, LISTENER, 5.0)[0] for room in (humid, ANECHOIC)]
    with_air, without = (np.abs(np.fft.rfft(w, 16000)) for w in rirs)
    for band in (1, 4, 5):
        f = int(rooms.BANDS[band])
        lost = -20 * np.log10(with_air[f] / without[f])
        assert lost == pytest.approx(
            10 * np.log10(np.e) * rooms.AIR_ABSORPTION[band] * 2.8, rel=0.05
        )


def test_all_images_within_the_radius_are_included():
    """Every image of a rigid room counted by brute force: arrivals, gains and none beyond."""
    room, source = (2.0, 1.7, 1.3), (0.4, 1.1, 0.9)
    listener = np.array([1.3, 0.5, 0.4])
    rigid = rooms.Shoebox(room, np.full(7, 1e-9), air=False)
    actual = image_source.image_rir(rigid, source, listener, 6.0)
    n, mirrored = np.arange(-6, 7), (1, -1)
    axes = [
        np.array([m * s + 2 * i * size for i in n for m in mirrored]) - r
        for s, size, r in zip(source, room, listener, strict=True)
    ]
    x, y, z = (a.ravel() for a in np.meshgrid(*axes, indexing="ij"))
    d = np.sqrt(x * x + y * y + z * z)
    near = d < 6.0
    x, y, z, d = x[near], y[near], z[near], d[near]
    f = np.arange(1.0, 6000.0, 40.0)
    phase = np.exp(-2j * np.pi * f[:, None] * (d / 343 + bands.PRE_SAMPLES / 16000)) / d
    expected = np.stack([(phase * g).sum(axis=1) for g in (np.ones_like(d), y / d, z / d, x / d)])
    samples = np.exp(-2j * np.pi * f[:, None] * np.arange(actual.shape[1]) / 16000)
    error = np.linalg.norm(actual @ samples.T - expected) / np.linalg.norm(expected)
    # One image too few or too many would be -28 dB; the filters of the last ones are truncated.
    assert 20 * np.log10(error) < -42


SMALL_ROOM = (4.2, 3.6, 2.7)
SMALL_SOURCE, SMALL_LISTENER = np.array([1.1, 2.9, 0.8]), np.array([2.7, 1.2, 1.5])
# pyroomacoustics' names, in the order of rooms.WALLS: x = 0 is west, y = 0 south.
WALLS = ("west", "east", "south", "north", "floor", "ceiling")


def test_images_are_pyroomacoustics_images():
    pra = pytest.importorskip("pyroomacoustics")
    walls = dict(zip(WALLS, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), strict=True))
    materials = pra.make_materials(**walls)
    box = pra.ShoeBox(SMALL_ROOM, fs=16_000, materials=materials, max_order=16)
    box.add_source(SMALL_SOURCE)
    box.add_microphone(SMALL_LISTENER)
    box.image_source_model()
    pyroom_offset = box.sources[0].images.T - SMALL_LISTENER
    distance = np.linalg.norm(pyroom_offset, axis=1)
    near = distance < 15.0  # order 16 includes all of them
    room = rooms.Shoebox(SMALL_ROOM, np.outer(list(walls.values()), np.ones(7)), air=False)
    offset, gain = image_source.image_sources(room, SMALL_SOURCE, SMALL_LISTENER, 15.0)
    assert len(offset) == near.sum() > 300
    expected = np.column_stack([pyroom_offset, box.sources[0].damping.ravel() / distance])[near]
    actual = np.column_stack([offset, gain[:, 3]])
    order = [np.lexsort(np.round(rows.T, 4)) for rows in (expected, actual)]
    np.testing.assert_allclose(actual[order[1]], expected[order[0]], atol=1e-5)


def test_images_are_sorted_by_distance_and_attenuated_by_walls_and_air():
    absorption = np.linspace(0.1, 0.7, 7)
    offset, gain = image_source.image_sources(
        rooms.Shoebox(SMALL_ROOM, absorption), SMALL_SOURCE, SMALL_LISTENER, 6.0
    )
    distance = np.linalg.norm(offset, axis=1)
    assert np.all(np.diff(distance) >= 0) and distance[-1] < 6.0
    np.testing.assert_allclose(offset[0], SMALL_SOURCE - SMALL_LISTENER, atol=1e-9)
    air = np.exp(-0.5 * rooms.AIR_ABSORPTION * distance[0])
    np.testing.assert_allclose(gain[0], air / distance[0])
    # The nearest reflection is the floor's: one wall.
    mirror = SMALL_SOURCE * [1, 1, -1] - SMALL_LISTENER
    (floor,) = np.flatnonzero(np.abs(offset - mirror).max(axis=1) < 1e-9)
    loss = gain[floor] * distance[floor] / np.exp(-0.5 * rooms.AIR_ABSORPTION * distance[floor])
    np.testing.assert_allclose(loss, np.sqrt(1 - absorption))


def test_encoded_image_list_equals_the_rir():
    """The RIR of `shoebox_rir` is the list of images, encoded."""
    room = rooms.Shoebox(SMALL_ROOM, np.full(7, 0.6))
    response = rir.shoebox_rir(room, SMALL_SOURCE, SMALL_LISTENER, keys.rng(0), full=True)
    radius = (response.shape[1] - bands.PRE_SAMPLES) / SAMPLE_RATE * rooms.SPEED_OF_SOUND
    offset, gain = image_source.image_sources(room, SMALL_SOURCE, SMALL_LISTENER, radius)
    time = np.linalg.norm(offset, axis=1) / rooms.SPEED_OF_SOUND + bands.PRE_SAMPLES / SAMPLE_RATE
    frequency = np.fft.rfftfreq(8192, 1 / SAMPLE_RATE)
    use = np.flatnonzero((frequency > 500) & (frequency < 6000))
    waves = (gain @ bands.gains(frequency[use])) * np.exp(
        -2j * np.pi * time[:, None] * frequency[use]
    )
    expected = foa.encode(*foa.cartesian_to_azel(offset)).T @ waves
    actual = np.fft.rfft(response, 8192)[:, use]
    # The phase response of the high-pass near 500 Hz is the same in all channels.
    high_pass = np.fft.rfft(rir.high_pass(np.eye(1, 8192)[0]))[use]
    error = np.linalg.norm(actual - expected * high_pass) / np.linalg.norm(expected)
    assert 20 * np.log10(error) < -35


def test_radius_below_the_direct_sound_has_no_images():
    offset, gain = image_source.image_sources(
        rooms.Shoebox(SMALL_ROOM, [0.3] * 7), SMALL_SOURCE, SMALL_LISTENER, 1.0
    )
    assert offset.shape == (0, 3) and gain.shape == (0, 7)
