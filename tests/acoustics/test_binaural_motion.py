# SPDX-License-Identifier: Apache-2.0
"""Binaural motion, compared with the BRIR of each position, every half millisecond."""

import numpy as np
import pytest
import scipy.signal

from jaxasa.acoustics import bands, rooms
from jaxasa.acoustics.binaural_motion import render_moving_binaural
from jaxasa.acoustics.binaural_rir import shoebox_brir
from jaxasa.acoustics.sphere_hrtf import SphereHrtf
from jaxasa.core import keys
from jaxasa.core.audio import SAMPLE_RATE

HEAD = SphereHrtf()
ROOM, LISTENER = (6.0, 5.0, 3.0), np.array([3.0, 2.0, 1.5])
ANECHOIC = rooms.Shoebox(ROOM, np.ones(7))
REVERBERANT = rooms.Shoebox(ROOM, rooms.absorption(ROOM, 0.3))


def _noise(samples: int) -> np.ndarray:
    """Noise from 150 Hz to 7 kHz that begins and ends softly."""
    sections = scipy.signal.butter(8, (150, 7000), "bandpass", fs=SAMPLE_RATE, output="sos")
    noise = scipy.signal.sosfilt(sections, keys.rng(0).standard_normal(samples))
    return (noise * np.sin(np.pi * np.arange(samples) / samples)).astype(np.float32)


def _passing(seconds):
    """2.5 m/s along x, past the listener at 1.3 m."""
    seconds = np.asarray(seconds, float)
    x = 2.0 + 2.5 * seconds
    return np.stack([x, np.full_like(x, 3.2), np.full_like(x, 1.9)], axis=-1)


def _static(seconds):
    return np.broadcast_to([1.8, 3.1, 1.2], (*np.shape(seconds), 3))


def _ahead(seconds):
    return np.zeros_like(np.asarray(seconds, float))


def _turning(seconds):
    return 40.0 + 200.0 * np.asarray(seconds, float)


def _rng():
    return keys.rng(3)


def _render(dry, start, position, yaw, room, length):
    return render_moving_binaural(dry, start, position, yaw, room, LISTENER, HEAD, _rng, length)


def _fine_steps(dry, start: int, position, yaw, length: int, step: int = 8) -> np.ndarray:
    """Convolves each half millisecond with the BRIR of its position and yaw, cross-faded."""
    out = np.zeros((2, length + 4000))
    for k in range(0, len(dry) + step, step):
        samples = np.arange(max(k - step, 0), min(k + step, len(dry)))
        if len(samples) == 0:
            continue
        part = dry[samples] * (1 - np.abs(samples - k) / step)
        source = position(np.array([(start + k) / SAMPLE_RATE]))[0]
        flight = np.linalg.norm(source - LISTENER) / rooms.SPEED_OF_SOUND
        degrees = float(yaw(np.array([(start + k) / SAMPLE_RATE + flight]))[0])
        brir = shoebox_brir(ANECHOIC, source, LISTENER, HEAD, degrees, _rng())[:, :400]
        for ear in (0, 1):
            whole = np.convolve(part, brir[ear])
            begin = start + samples[0] + 1000 - bands.PRE_SAMPLES
            out[ear, begin : begin + len(whole)] += whole
    return out[:, 1000 : 1000 + length]


@pytest.mark.parametrize(
    ("position", "yaw"), [(_passing, _ahead), (_static, _turning)], ids=["passing", "turning"]
)
def test_direct_sound_is_that_of_fine_steps(position, yaw):
    dry, start = _noise(1000), 500
    actual = _render(dry, start, position, yaw, ANECHOIC, 2400)
    expected = _fine_steps(dry, start, position, yaw, 2400)
    error = actual - expected
    assert 10 * np.log10((error**2).sum() / (expected**2).sum()) < -40
    # A static source at the first position is clearly different.
    static = _render(
        dry,
        start,
        lambda t: np.broadcast_to(position(np.zeros(1))[0], (*np.shape(t), 3)),
        lambda t: np.full_like(np.asarray(t, float), yaw(np.zeros(1))[0]),
        ANECHOIC,
        2400,
    )
    assert 10 * np.log10(((static - expected) ** 2).sum() / (expected**2).sum()) > -15


def test_static_source_has_the_brir_of_its_position():
    dry, start = _noise(4000), 300
    actual = _render(dry, start, _static, lambda t: _ahead(t) + 25, REVERBERANT, 8000)
    brir = shoebox_brir(REVERBERANT, _static(0.0), LISTENER, HEAD, 25.0, _rng())
    whole = scipy.signal.oaconvolve(dry[None], brir, axes=1)[:, bands.PRE_SAMPLES :]
    expected = np.zeros((2, 8000))
    expected[:, start:] = whole[:, : 8000 - start]
    error = actual - expected
    assert 10 * np.log10((error**2).sum() / (expected**2).sum()) < -45


def test_doppler_shift_of_an_approaching_and_a_receding_source():
    """A tone from a source at 8 m/s, 3 m along the line of sight: f / (1 -+ v / c)."""
    tone = np.sin(2 * np.pi * 2000 * np.arange(4000) / SAMPLE_RATE).astype(np.float32)
    for speed in (8.0, -8.0):
        start = 0.6 if speed > 0 else 2.6

        def position(seconds, start=start, speed=speed):
            x = start + speed * np.asarray(seconds, float)
            return np.stack([x, np.full_like(x, 2.0), np.full_like(x, 1.5)], axis=-1)

        ears = _render(tone, 0, position, _ahead, ANECHOIC, 4500)[0, 500:4000]
        spectrum = np.abs(np.fft.rfft(ears * np.hanning(len(ears)), 1 << 18))
        hertz = np.argmax(spectrum) * SAMPLE_RATE / (1 << 18)
        assert hertz == pytest.approx(2000 / (1 - speed / rooms.SPEED_OF_SOUND), abs=2)


def test_reflections_are_rendered_without_clicks():
    dry = _noise(8000)
    actual = _render(dry, 0, _passing, _turning, REVERBERANT, 12_000)
    direct = _render(dry, 0, _passing, _turning, ANECHOIC, 12_000)
    late = (actual - direct) ** 2
    assert late.sum() > 0.3 * (direct**2).sum()
    # The dry noise ends at 7 kHz, and clicks would be above.
    sections = scipy.signal.butter(8, 7400, "highpass", fs=SAMPLE_RATE, output="sos")
    clicks = np.abs(scipy.signal.sosfilt(sections, actual)).max()
    assert clicks < 0.02 * np.abs(actual).max()


def test_source_after_the_end_is_silent():
    assert not _render(_noise(100), 900, _static, _ahead, ANECHOIC, 800).any()
    assert not _render(np.zeros(0, np.float32), 0, _static, _ahead, ANECHOIC, 800).any()
