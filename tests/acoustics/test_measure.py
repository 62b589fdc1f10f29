# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest

from jaxasa.acoustics import bands, measure, rooms


def test_rt60_of_a_known_decay():
    noise = np.random.default_rng(0).standard_normal((40, 1, 9600))
    decay = 10 ** (-3 * np.arange(9600) / 16000 / 0.3)
    actual = [measure.rt60(np.pad(n * decay, ((0, 0), (bands.PRE_SAMPLES, 0)))) for n in noise]
    assert np.mean(actual) == pytest.approx(0.3, rel=0.03)


@pytest.mark.parametrize("centre", rooms.BANDS[1:6])
def test_octaves_are_separated(centre):
    """Noise of one octave that decays in 0.2 s, in white noise that decays in 0.6 s."""
    rng, actual = np.random.default_rng(1), []
    time = np.arange(16000) / 16000
    f = np.maximum(np.fft.rfftfreq(16000, 1 / 16000), 1e-3)
    octave = np.abs(np.log2(f / centre)) < 0.6
    for _ in range(8):
        spectrum = np.fft.rfft(rng.standard_normal(16000))
        inside, outside = (np.fft.irfft(spectrum * part, 16000) for part in (octave, ~octave))
        signal = inside * 10 ** (-3 * time / 0.2) + outside * 10 ** (-3 * time / 0.6) * 1e-2
        actual.append(measure.octave_rt60(np.pad(signal[None], ((0, 0), (64, 0))), [centre])[0])
    assert np.mean(actual) == pytest.approx(0.2, rel=0.08)


def test_rt60_of_a_direct_sound_alone_is_nan():
    response = np.zeros((4, 4000), np.float32)
    response[:, bands.PRE_SAMPLES + 40] = 1.0
    assert math.isnan(measure.rt60(response))


def test_decay_curves_fall_from_0_db():
    rng = np.random.default_rng(2)
    decay = 10 ** (-3 * np.arange(16_000) / 16_000 / 0.4)
    signal = np.pad((rng.standard_normal(16_000) * decay)[None], ((0, 0), (bands.PRE_SAMPLES, 0)))
    for curve in measure.octave_decay_curves(signal, rooms.BANDS[2:]):
        assert curve[0] == pytest.approx(0, abs=1e-9) and np.all(np.diff(curve) <= 0)
        assert len(curve) == pytest.approx(16_000 / measure.DECAY_STEP, abs=1)
        assert measure.t20(curve) == pytest.approx(0.4, rel=0.15)


def test_drr_of_two_known_impulses():
    response = np.zeros((4, 4000), np.float32)
    response[0, bands.PRE_SAMPLES + round(16000 / 343)] = 1.0
    response[0, 1000] = 0.1
    assert measure.drr(response, 1.0) == pytest.approx(20, abs=1e-3)
