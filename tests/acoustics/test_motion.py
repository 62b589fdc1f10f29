# SPDX-License-Identifier: Apache-2.0
"""Moving sources, compared with the closed form: emission at u arrives at u + d(u) / c."""

import itertools

import numpy as np
import pytest
import scipy.signal

from jaxasa.acoustics import bands, motion, paths, rir, rooms
from jaxasa.core.audio import SAMPLE_RATE

ROOM, LISTENER = (5.0, 4.0, 3.0), (2.2, 1.7, 1.5)
# Anechoic; an absorption of 1 would have no decay time.
ANECHOIC = rooms.Shoebox(ROOM, (1 - 1e-12,) * 7, air=False)


class Tones:
    """A sum of tones from 200 Hz to 7 kHz, known at any time."""

    def __init__(self, count):
        rng = np.random.default_rng(0)
        self.rate = 2 * np.pi * np.linspace(200, 7000, count)
        self.phase = rng.uniform(0, 2 * np.pi, count)

    def __call__(self, seconds):
        return np.sin(seconds[..., None] * self.rate + self.phase).sum(-1)

    def dry(self, length):
        return self(np.arange(length) / SAMPLE_RATE).astype(np.float32)


def _moving_image(signal, path, mirror, shift, length):
    """Returns an image [4, length] in closed form, and its distance at each time of arrival."""
    moved = path.copy()
    moved[:, 1:] = mirror * path[:, 1:] + shift
    now = np.arange(length) / SAMPLE_RATE
    emitted = now.copy()
    for _ in range(6):
        emitted = now - np.linalg.norm(paths.position_at(moved, emitted) - LISTENER, axis=1) / 343.0
    vector = paths.position_at(moved, emitted) - LISTENER
    distance = np.linalg.norm(vector, axis=1)
    later = np.linalg.norm(paths.position_at(moved, emitted + 1e-5) - LISTENER, axis=1)
    sooner = np.linalg.norm(paths.position_at(moved, emitted - 1e-5) - LISTENER, axis=1)
    y = signal(emitted) / (distance * (1 + (later - sooner) / 2e-5 / 343.0))
    x, up, side = vector[:, 0] / distance, vector[:, 2] / distance, vector[:, 1] / distance
    return y * np.stack([np.ones(length), side, up, x]), distance


def _error(actual, expected, skip=1500):
    """Returns the mean and the maximum error (dB), without the ends of the signal."""
    cut = slice(skip, actual.shape[1] - 300)
    off = (actual - expected)[:, cut]
    mean = 10 * np.log10((off**2).sum(1) / (expected[:, cut] ** 2).sum(1))
    return mean.max(), 20 * np.log10(np.abs(off).max() / np.abs(expected[:, cut]).max())


@pytest.mark.parametrize("speed, mean, worst", [(2.0, -65, -55), (10.0, -45, -40)])
def test_free_field_is_the_retarded_solution(speed, mean, worst):
    path = np.array([[0.0, 0.5, 2.4, 1.2], [4.0 / speed, 4.5, 2.4, 1.2]])
    signal, length = Tones(40), int(SAMPLE_RATE * min(4.0 / speed, 1.0))
    dry = signal.dry(length)
    actual = motion.early_sound(dry, 0, path, ANECHOIC, LISTENER, length)
    expected = rir.high_pass(_moving_image(signal, path, 1, 0, length)[0])
    errors = _error(actual, expected, 600)
    assert errors[0] < mean and errors[1] < worst


def test_early_images_move_as_mirror_images():
    path = np.array([[0.0, 1.0, 3.0, 1.2], [0.2, 1.5, 2.8, 1.2], [0.35, 1.4, 2.4, 1.3]])
    signal, length = Tones(8), 4500
    room = rooms.Shoebox(ROOM, (0.4,) * 7, air=False)
    actual = motion.early_sound(signal.dry(length), 0, path, room, LISTENER, length)
    radius = motion.mixing_radius(path, ROOM, LISTENER)
    assert radius == pytest.approx(rooms.mixing_time(ROOM) * 343.0)
    expected = np.zeros((4, length))
    counts = [range(-int(radius / size) - 2, int(radius / size) + 3) for size in ROOM]
    number = 0
    for cell in itertools.product(*counts):
        # Cell n along an axis: even ones are shifted, odd ones mirrored; |n| walls between.
        mirror = np.array([1 if n % 2 == 0 else -1 for n in cell])
        shift = np.array([(n + n % 2) * size for n, size in zip(cell, ROOM, strict=True)])
        if np.linalg.norm(mirror * path[0, 1:] + shift - LISTENER) > radius + 3:
            continue
        image, distance = _moving_image(signal, path, mirror, shift, length)
        fade = np.cos(np.pi / 2 * np.clip(3 * distance / radius - 2, 0, 1))
        expected += 0.6 ** (sum(map(abs, cell)) / 2) * fade * image
        number += 1
    assert number > 300
    mean, worst = _error(actual, rir.high_pass(expected))
    assert mean < -45 and worst < -40


def test_static_source_has_the_rir_of_its_position():
    """Octave bands, air, fade and high-pass are those of rir, until its tail begins."""
    position = (3.4, 2.9, 1.1)
    rt60 = np.array([0.5, 0.45, 0.4, 0.35, 0.35, 0.3, 0.25])
    room = rooms.Shoebox(ROOM, rooms.absorption(ROOM, rt60))
    response = rir.shoebox_rir(room, position, LISTENER, np.random.default_rng(0))
    dry = np.random.default_rng(1).standard_normal(160).astype(np.float32)
    expected = np.stack([np.convolve(row, dry) for row in response])[:, bands.PRE_SAMPLES :]
    until = int(rooms.mixing_time(ROOM) * 2 / 3 * SAMPLE_RATE)
    path = np.array([[0.0, *position]])
    actual = motion.early_sound(dry, 100, path, room, LISTENER, 4000)
    off, expected = actual[:, 100 : 100 + until] - expected[:, :until], expected[:, :until]
    assert 10 * np.log10((off**2).sum() / (expected**2).sum()) < -45
    assert np.abs(actual[:, :100]).max() < 1e-2 * np.abs(actual).max()


@pytest.mark.parametrize("by_wall", [False, True])
def test_full_mode_of_a_static_source_is_the_full_rir(by_wall):
    position = (3.4, 2.9, 1.1)
    absorption = rooms.absorption(ROOM, 0.16)
    if by_wall:  # all walls differ, and one reflects nothing
        absorption = np.linspace(0.4, 1.0, 6)[:, None] * np.linspace(0.8, 1.0, 7)
    room = rooms.Shoebox(ROOM, absorption)
    response = rir.shoebox_rir(room, position, LISTENER, None, full=True)
    dry = np.random.default_rng(1).standard_normal(64).astype(np.float32)
    expected = np.stack([np.convolve(row, dry) for row in response])[:, bands.PRE_SAMPLES :]
    path, length = np.array([[0.0, *position]]), expected.shape[1] - 64
    actual = motion.early_sound(dry, 0, path, room, LISTENER, length, full=True)
    off = actual - expected[:, :length]
    assert 10 * np.log10((off**2).sum() / (expected**2).sum()) < -45


def test_approaching_tone_has_a_doppler_shift():
    path = np.array([[0.0, 4.5, 1.7, 1.5], [1.0, 2.7, 1.7, 1.5]])  # 1.8 m/s, head-on
    dry = np.sin(2 * np.pi * 2000 * np.arange(SAMPLE_RATE) / SAMPLE_RATE).astype(np.float32)
    w = motion.early_sound(dry, 0, path, ANECHOIC, LISTENER, SAMPLE_RATE)[0, 2000:14000]
    spectrum = np.abs(np.fft.rfft(w * np.hanning(len(w)), 2**18))
    actual = spectrum.argmax() * SAMPLE_RATE / 2**18
    assert actual == pytest.approx(2000 / (1 - 1.8 / 343), abs=0.2)


def test_corners_of_a_path_do_not_click():
    """A 1 kHz tone on a path with sharp corners has no energy above 3 kHz at any time."""
    path = np.array(
        [[0.0, 1.0, 3.0, 1.2], [0.5, 2.0, 3.0, 1.2], [1.0, 1.0, 2.9, 1.2], [1.5, 1.2, 1.2, 2.2]]
    )
    length = 2 * SAMPLE_RATE
    dry = np.sin(2 * np.pi * 1000 * np.arange(length) / SAMPLE_RATE).astype(np.float32)
    room = rooms.Shoebox(ROOM, rooms.absorption(ROOM, 0.4))
    audio = motion.early_sound(dry, 0, path, room, LISTENER, length)
    rng = np.random.default_rng(0)
    for part, tail in motion.late_segments(dry, 0, path, room, LISTENER, rng):
        for c in range(4):
            audio[c] += np.convolve(part, tail[c])[bands.PRE_SAMPLES : bands.PRE_SAMPLES + length]
    window = np.blackman(512)
    for c in range(4):
        frames = np.lib.stride_tricks.sliding_window_view(audio[c, 2000:-500], 512)[::128]
        power = np.abs(np.fft.rfft(frames * window)) ** 2
        above = power[:, 3000 * 512 // SAMPLE_RATE :].sum(axis=1).max()
        assert 10 * np.log10(above / np.median(power.sum(axis=1))) < -50


def test_squares_of_segments_sum_to_that_of_the_dry_signal():
    path = np.array([[0.1, 1.0, 3.0, 1.2], [1.0, 3.9, 3.0, 1.2]])
    dry = np.random.default_rng(0).standard_normal(SAMPLE_RATE).astype(np.float32)
    room = rooms.Shoebox(ROOM, rooms.absorption(ROOM, 0.3))
    rng = np.random.default_rng(1)
    parts, tails = zip(*motion.late_segments(dry, 800, path, room, LISTENER, rng), strict=True)
    assert len(parts) == 7  # 2.9 m, one every half metre
    np.testing.assert_allclose(sum(p**2 for p in parts), dry**2, rtol=1e-5)
    for i, j in itertools.combinations(range(7), 2):
        shared = np.vdot(tails[i], tails[j]) / np.linalg.norm(tails[i]) / np.linalg.norm(tails[j])
        assert abs(shared) < 0.1
    ((segment, _),) = motion.late_segments(dry, 0, path[:1], room, LISTENER, rng)
    np.testing.assert_array_equal(segment, dry)


def test_energy_decays_as_that_of_a_static_source():
    """In windows of 10 ms over the cross-fade and the tail, averaged over draws of the tail."""
    position = np.array([3.4, 2.9, 1.1])
    room = rooms.Shoebox(ROOM, rooms.absorption(ROOM, 0.4))
    moving = np.array([[0.0, *(position - 0.3)], [0.1, *(position + 0.3)]])
    dry = np.random.default_rng(2).standard_normal(1600).astype(np.float32)
    length, energies = 6400, np.zeros((2, 640))

    def convolve(response):
        return np.stack([np.convolve(row, dry)[bands.PRE_SAMPLES :][:length] for row in response])

    early = motion.early_sound(dry, 0, moving, room, LISTENER, length)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        audio = early.copy()
        for part, tail in motion.late_segments(dry, 0, moving, room, LISTENER, rng):
            for c in range(4):
                audio[c] += np.convolve(part, tail[c])[bands.PRE_SAMPLES :][:length]
        static = convolve(rir.shoebox_rir(room, position, LISTENER, rng))
        for row, actual in zip(energies, (audio, static), strict=True):
            row += (actual[:, : 640 * 10].reshape(4, 640, 10) ** 2).sum((0, 2))
    windows = energies.reshape(2, 40, 16).sum(2)[:, 12:34]  # to some 50 dB down
    level = 10 * np.log10(windows[0] / windows[1])
    assert np.abs(level).max() < 2.5 and abs(level.mean()) < 0.7


def test_nonuniform_absorption_has_late_images_along_the_path():
    """Compared with all images of the moving source; noise tails have errors of 0.6 to 0.8 dB."""
    listener = (1.9, 3.0, 1.7)
    walls = np.repeat([[0.8], [0.1], [0.2], [0.4], [0.2], [0.2]], 7, axis=1)
    path = np.array([[0.0, 3.0, 1.2, 1.6], [0.7, 3.6, 1.5, 1.6]])
    rng = np.random.default_rng(4)
    dry = rng.standard_normal(int(0.7 * SAMPLE_RATE)).astype(np.float32)
    where = (path, rooms.Shoebox((6.8, 4.0, 3.5), walls), listener)
    length = len(dry) + SAMPLE_RATE // 2
    expected = motion.early_sound(dry, 0, *where, length, full=True)
    actual = motion.early_sound(dry, 0, *where, length)
    for part, tail in motion.late_segments(dry, 0, *where, rng):
        late = scipy.signal.fftconvolve(part[None], tail, axes=1)[:, bands.PRE_SAMPLES :]
        late = late[:, :length]
        actual[:, : late.shape[1]] += late
    # Energy decay after the source has ended, down to -35 dB.
    left = [np.cumsum((x**2).sum(0)[::-1])[::-1][len(dry) :] for x in (actual, expected)]
    curves = [10 * np.log10(energy / energy[0] + 1e-9) for energy in left]
    fallen = np.argmax(curves[1] < -35)
    assert np.abs(curves[0] - curves[1])[:fallen].max() < 0.45


@pytest.mark.parametrize("scattering", [0.0, 1.0])
def test_scattering_makes_the_tails_isotropic(scattering):
    size, listener = (9.0, 8.0, 2.4), (4.0, 4.0, 1.2)
    path = np.array([[0.0, 3.0, 3.0, 1.2], [0.5, 3.5, 3.0, 1.2]])
    dry, room = (
        np.ones(8000, np.float32),
        rooms.Shoebox(size, rooms.absorption(size, 0.5), scattering),
    )
    rng = np.random.default_rng(0)
    energy = sum(
        (late[:, 3000:] ** 2).sum(axis=1)
        for _, late in motion.late_segments(dry, 0, path, room, listener, rng)
    )
    if scattering:
        np.testing.assert_allclose(energy[1:] / energy[0], 1 / 3, rtol=0.15)
    else:
        assert energy[2] / energy[0] < 0.2  # little arrives from above or below
