# SPDX-License-Identifier: Apache-2.0
"""Binaural decoding of FOA, compared with the HRTF: plane waves, diffuse fields and scenes."""

import dataclasses

import numpy as np
import pytest

from jaxasa.acoustics import binaural, foa, foa_decoder, hrtf, render, scenes
from jaxasa.acoustics.sphere_hrtf import SphereHrtf
from jaxasa.config import ConfigError, Scenes
from jaxasa.core.audio import SAMPLE_RATE

HEAD = SphereHrtf()
LOW = ((100, 200), (200, 400), (400, 600))
HIGH = ((600, 1200), (1200, 2400), (2400, 4800), (4800, 7000))
FREQUENCY = np.fft.rfftfreq(2048, 1 / SAMPLE_RATE)


def _noise(index: int, seconds: float = 1.0) -> np.ndarray:
    return np.random.default_rng(index).standard_normal(int(seconds * SAMPLE_RATE))


def _covariance(ears: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns the complex covariance [2, 2] of a signal [T, 2] in a band."""
    frames = np.lib.stride_tricks.sliding_window_view(ears, 2048, axis=0)[::512]
    spectrum = np.fft.rfft(frames * np.hanning(2048))
    part = spectrum[..., (low <= FREQUENCY) & (high > FREQUENCY)]
    return np.einsum("tef,tgf->eg", part, part.conj())


def _through(signal: np.ndarray, azimuth: float, elevation: float) -> np.ndarray:
    """Returns the ears [T, 2] of a plane wave by the HRTF."""
    far = 100 * foa.encode(azimuth, elevation)[[3, 1, 2]]
    size = 2 * len(signal)
    actual = np.fft.rfft(signal, size) * hrtf.hrtf_spectrum(HEAD, [far], size)[0]
    return np.fft.irfft(actual, size)[:, : len(signal)].T


def _errors(ears, expected_ears, band) -> tuple[float, float, float]:
    """Returns errors of level difference (dB), interaural delay (s) and levels of the ears (dB)."""
    actual, expected = (_covariance(e, *band) for e in (ears, expected_ears))
    power = [10 * np.log10(np.diag(c).real) for c in (actual, expected)]
    level = float(np.abs((power[0] - power[1]) @ [1, -1]))
    lag = float(np.angle(actual[0, 1] * expected[0, 1].conj())) / (2 * np.pi * sum(band) / 2)
    return level, abs(lag), float(np.abs(power[0] - power[1]).max())


DIRECTIONS = [(0, 0), (40, 0), (90, 0), (-100, 10), (135, -25), (180, 0), (-60, 50)]


@pytest.mark.parametrize(("azimuth", "elevation"), DIRECTIONS)
def test_plane_wave_is_rendered_as_the_hrtf(azimuth, elevation):
    """Below 600 Hz and above: within 0.5 dB and 20 microseconds of the HRTF."""
    signal = _noise(0)
    ears = foa_decoder.decode(signal[:, None] * foa.encode(azimuth, elevation), HEAD)
    assert ears.shape == (SAMPLE_RATE, 2) and ears.dtype == np.float32
    expected_ears = _through(signal, azimuth, elevation)
    for band in LOW + HIGH:
        level, lag, own = _errors(ears, expected_ears, band)
        assert level < 0.3 and own < 0.3 and lag < 5e-6
    # In time too, sample by sample.
    error = (ears - expected_ears)[1000:-1000]
    assert 10 * np.log10((error**2).mean() / (expected_ears**2).mean()) < -20


def test_linear_decoder_alone_is_accurate_at_low_frequencies_only():
    """Limits of first order: 2 dB and 30 microseconds up to 200 Hz, unusable near 2 kHz."""
    decoder = foa_decoder.linear_decoder(HEAD, 1024)
    frequency = np.fft.rfftfreq(1024, 1 / SAMPLE_RATE)
    error = {}
    for azimuth, elevation in DIRECTIONS:
        decoded = decoder @ foa.encode(azimuth, elevation)
        far = 100 * foa.encode(azimuth, elevation)[[3, 1, 2]]
        expected_ears = hrtf.hrtf_spectrum(HEAD, [far], 1024)[0].T
        ratio = decoded[:, 0] / decoded[:, 1] / (expected_ears[:, 0] / expected_ears[:, 1])
        for hertz in (150, 400, 2000):
            at = ratio[np.argmin(np.abs(frequency - hertz))]
            row = abs(20 * np.log10(abs(at))), abs(np.angle(at)) / (2 * np.pi * hertz)
            error[hertz] = np.maximum(error.get(hertz, 0), row)
    assert error[150][0] < 0.3 and error[150][1] < 30e-6
    assert error[400][0] < 1.2 and error[400][1] < 120e-6
    assert error[2000][0] > 3


def test_linear_decoder_has_the_diffuse_field_covariance():
    decoder = foa_decoder.linear_decoder(HEAD, 512)
    power = np.array([1, 1 / 3, 1 / 3, 1 / 3])
    actual = np.einsum("fec,fgc,c->egf", decoder, decoder.conj(), power)
    expected_ears = hrtf.diffuse_field(HEAD, 512)
    above = slice(20, 250)  # from the limit up; below it the fit is by least squares
    np.testing.assert_allclose(actual[..., above], expected_ears[..., above], atol=2e-3)


def test_two_simultaneous_sources_below_600_hz():
    """Uncorrelated at +50 and -70 degrees: covariances of the ears add up."""
    where = ((50, 0), (-70, 10))
    signals = [_noise(i, 2.0) for i in (2, 3)]
    field = sum(s[:, None] * foa.encode(*w) for s, w in zip(signals, where, strict=True))
    expected_ears = sum(_through(s, *w) for s, w in zip(signals, where, strict=True))
    ears = foa_decoder.decode(field, HEAD)
    for band in LOW:
        actual, expected = (_covariance(e, *band) for e in (ears, expected_ears))
        power = [np.diag(c).real for c in (actual, expected)]
        assert np.abs(10 * np.log10(power[0] / power[1])).max() < 1.5
        coherence = [
            c[0, 1] / np.sqrt(p.prod()) for c, p in zip((actual, expected), power, strict=True)
        ]
        # At 500 Hz one tile contains both sources, and first order separates them less well.
        assert abs(coherence[0] - coherence[1]) < (0.15 if band[1] <= 400 else 0.35)


def test_diffuse_field_has_the_coherence_of_the_hrtf():
    offset, weight = hrtf.sphere_nodes(4)
    noise = np.random.default_rng(4).standard_normal((2 * SAMPLE_RATE, len(weight))) * np.sqrt(
        weight
    )
    gains = np.concatenate([np.ones((len(weight), 1)), offset[:, [1, 2, 0]] / 100], axis=1)
    field = noise @ gains
    ears = foa_decoder.decode(field, HEAD)
    diffuse = hrtf.diffuse_field(HEAD, 2048)
    for band in LOW + HIGH:
        use = (band[0] <= FREQUENCY) & (band[1] > FREQUENCY)
        expected_ears = diffuse[..., use].mean(axis=-1).real
        actual = _covariance(ears, *band)
        power = np.diag(actual).real / _covariance(field[:, [0, 0]], *band)[0, 0].real
        assert np.abs(10 * np.log10(power / np.diag(expected_ears))).max() < (
            0.7 if band in LOW else 2
        )
        coherence = actual[0, 1] / np.sqrt(actual[0, 0].real * actual[1, 1].real)
        assert (
            abs(
                coherence - expected_ears[0, 1] / np.sqrt(expected_ears[0, 0] * expected_ears[1, 1])
            )
            < 0.2
        )


def test_decoded_scene_equals_the_binaural_scene_below_600_hz():
    """Compares the decoded FOA render with the binaural render."""
    config = Scenes(train=1, dev=1, benchmark=1, seconds=3.0, sources=(1, 1), snr=(60.0, 60.0))
    clips = [scenes.Clip(str(i), f"class{i}", f"recording{i}", 2.0) for i in range(3)]
    error = []
    for i in range(6):
        spec = scenes.sample_scene(config, clips, 9, "train", i)
        spec = dataclasses.replace(spec, sources=(dataclasses.replace(spec.sources[0], gain=0.0),))
        around, labels = render.render(spec, lambda clip: 0.1 * _noise(int(clip), 2.0))
        ears, actual = binaural.render(spec, lambda clip: 0.1 * _noise(int(clip), 2.0), HEAD)
        decoded = foa_decoder.decode(around / labels["gain"], HEAD)
        error.append([_errors(decoded, ears / actual["gain"], band) for band in LOW])
    level, _, own = np.moveaxis(np.array(error), -1, 0)
    # The random tails are independent, so single scenes differ.
    assert np.abs(np.mean(level)) < 1.0 and level.max() < 2.5
    assert np.mean(own) < 1.0 and own.max() < 3.0


def test_delay_is_zero_and_silence_stays_silent():
    click = np.zeros((3000, 4), np.float32)
    click[1000] = foa.encode(0, 0)
    ears = foa_decoder.decode(click, HEAD)
    # Sound from the front reaches the ears, slightly to the back, a little after the centre.
    assert np.argmax(np.abs(ears), axis=0) == pytest.approx([1000, 1000], abs=2)
    assert np.abs(ears[:900]).max() < 0.01 * np.abs(ears).max()
    for length in (0, 1, 100, 513):
        assert foa_decoder.decode(np.zeros((length, 4), np.float32), HEAD).shape == (length, 2)
    assert not foa_decoder.decode(np.zeros((5000, 4), np.float32), HEAD).any()


def test_long_signals_are_decoded_in_blocks(monkeypatch):
    signal = np.random.default_rng(0).standard_normal((6000, 4)).astype(np.float32)
    whole = foa_decoder.decode(signal, HEAD)
    monkeypatch.setattr(foa_decoder, "_BLOCK", 7)
    np.testing.assert_allclose(foa_decoder.decode(signal, HEAD), whole, atol=1e-4)


@pytest.mark.parametrize(
    "signal", [np.zeros((10, 2)), np.zeros(40), np.full((10, 4), np.nan)], ids=str
)
def test_bad_signals_raise(signal):
    with pytest.raises(ConfigError, match="FOA signal"):
        foa_decoder.decode(signal, HEAD)
