# SPDX-License-Identifier: Apache-2.0
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxasa.acoustics import foa
from jaxasa.data import features

N, FFT, HOP, MELS = 4000, 512, 320, 16


def clip(samples=N):
    """Noise and a tone that stop, so that the quiet end meets the floor of 8 decades."""
    rng = np.random.default_rng(0)
    audio = 0.1 * rng.normal(size=(2, samples)) + np.sin(0.2 * np.arange(samples))
    audio[:, samples // 2 :] *= 1e-6
    return audio.astype(np.float32)


def spectra(audio, fft, hop):
    """[N] -> complex [1 + N // hop, fft / 2 + 1], a frame at a time."""
    padded = np.pad(audio.astype(float), fft // 2, mode="reflect")
    window = np.hanning(fft + 1)[:-1]
    starts = range(0, len(audio) + 1, hop)
    return np.array([np.fft.rfft(window * padded[s : s + fft]) for s in starts])


def slaney(fft, mels):
    """Triangles [fft / 2 + 1, mels] of area 2 / width, linear to 1 kHz and then logarithmic."""
    top = 15 + 27 * np.log(8.0) / np.log(6.4)
    mel = np.linspace(0, top, mels + 2)
    hertz = np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))
    bins = np.linspace(0, 8000, fft // 2 + 1)[:, None]
    low, middle, high = hertz[:-2], hertz[1:-1], hertz[2:]
    rise, fall = (bins - low) / (middle - low), (high - bins) / (high - middle)
    return np.maximum(0, np.minimum(rise, fall)) * 2 / (high - low)


def test_log_mel_follows_its_formula():
    audio = clip()
    mels = np.asarray(jax.jit(features.log_mel, static_argnums=1)(audio, 80))
    assert mels.shape == (2, N // 160, 80)
    for row, samples in zip(mels, audio, strict=True):
        power = np.abs(spectra(samples, 400, 160)[:-1]) ** 2
        logs = np.log10(np.maximum(power @ slaney(400, 80), 1e-10))
        expected = (np.maximum(logs, logs.max() - 8) + 4) / 4
        assert (expected == expected.min()).sum() > 80
        np.testing.assert_allclose(row, expected, atol=1e-4)


@pytest.mark.parametrize("mels", [80, 128])
def test_log_mel_equals_whispers(mels):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    twin = transformers.WhisperFeatureExtractor(feature_size=mels)
    audio = clip(8000)
    outputs = twin(list(audio), sampling_rate=16_000, padding="longest", return_tensors="np")
    expected = np.moveaxis(outputs["input_features"], 1, 2)
    result = jax.jit(features.log_mel, static_argnums=1)(audio, mels)
    assert expected.shape == (2, 50, mels)
    np.testing.assert_allclose(np.asarray(result), expected, atol=1e-4)


def test_compressed_stft_keeps_phase_and_compresses_magnitude():
    audio = np.random.default_rng(1).normal(size=(1, 1600, 4)).astype(np.float32)
    result = np.asarray(features.compressed_stft(audio, FFT, HOP))
    assert result.shape == (1, 6, 257, 8)
    for channel in range(4):
        expected = spectra(audio[0, :, channel], FFT, HOP)
        spectrum = result[0, ..., channel] + 1j * result[0, ..., 4 + channel]
        np.testing.assert_allclose(spectrum, expected * np.abs(expected) ** -0.7, atol=1e-3)


@pytest.fixture(scope="module")
def intensity():
    return jax.jit(lambda audio: features.intensity(audio, FFT, HOP, MELS))


@given(st.floats(-180, 180), st.floats(-90, 90))
@settings(max_examples=25)
def test_intensity_of_a_plane_wave_points_at_it(intensity, azimuth, elevation):
    noise = 0.1 * np.random.default_rng(2).normal(size=(1, N, 1))
    result = np.asarray(intensity((noise * foa.encode(azimuth, elevation)).astype(np.float32)))
    assert result.shape == (1, 1 + N // HOP, MELS, 5)
    a, e = np.radians([azimuth, elevation])
    unit = [np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)]
    np.testing.assert_allclose(result[..., 1:4], np.broadcast_to(unit, (1, 13, MELS, 3)), atol=1e-3)
    assert np.abs(result[..., 4]).max() < 1e-3
    power = np.abs(spectra(noise[0, :, 0].astype(np.float32), FFT, HOP)) ** 2
    logs = (np.log10(power @ slaney(FFT, MELS) + 1e-7) + 4) / 4
    np.testing.assert_allclose(result[0, ..., 0], logs, atol=1e-3)


def test_intensity_is_zero_for_w_only_and_for_silence(intensity):
    noise = 0.1 * np.random.default_rng(2).normal(size=(1, N, 1))
    w_only = np.asarray(intensity((noise * [1, 0, 0, 0]).astype(np.float32)))
    silent = np.asarray(intensity(np.zeros((1, N, 4), np.float32)))
    for result in (w_only, silent):
        assert (result[..., 1:4] == 0).all()
        np.testing.assert_allclose(result[..., 4], 1.0, atol=1e-5)


@pytest.fixture(scope="module")
def interaural():
    return jax.jit(lambda audio: features.interaural(audio, FFT, HOP, MELS))


def test_interaural_delay_gives_phase_and_gain_gives_level(interaural):
    """Noise that reaches the right ear 2 samples later, at half the amplitude."""
    noise = 0.1 * np.random.default_rng(3).normal(size=N + 2).astype(np.float32)
    cues = np.asarray(interaural(np.stack([noise[2:], 0.5 * noise[:-2]], -1)[None]))[0, 2:-2]
    assert cues.shape == (N // HOP - 3, MELS, 5)
    np.testing.assert_allclose(cues[..., 3], 2 * np.log10(2), atol=0.1)
    # The phase of a band is that of its middle, as far as the band is narrow.
    top = np.linspace(0, 15 + 27 * np.log(8.0) / np.log(6.4), MELS + 2)[1:-1]
    hertz = np.where(top < 15, top * 200 / 3, 1000 * np.exp((top - 15) * np.log(6.4) / 27))
    expected = 2 * np.pi * hertz * 2 / 16_000
    error = np.angle(np.exp(1j * (np.arctan2(cues[..., 1], cues[..., 2]) - expected)))
    assert np.abs(error[:, : MELS // 2]).max() < 0.25
    assert cues[:, : MELS // 2, 4].max() < 0.15
    power = np.log10((np.abs(spectra(noise[2:], FFT, HOP)) ** 2) @ slaney(FFT, MELS) * 0.625)
    np.testing.assert_allclose(cues[..., 0], (power[2:-2] + 4) / 4, atol=0.05)


def test_interaural_of_swapped_and_of_uncorrelated_ears(interaural):
    rng = np.random.default_rng(4)
    ears = 0.1 * rng.normal(size=(1, N, 2)).astype(np.float32)
    cues, swapped = np.asarray(interaural(ears)), np.asarray(interaural(ears[..., ::-1]))
    np.testing.assert_allclose(swapped, cues * [1, -1, 1, -1, 1], atol=1e-5)
    same = np.asarray(interaural(ears[..., :1].repeat(2, -1)))
    np.testing.assert_allclose(
        same[..., 1:], np.broadcast_to([0, 1, 0, 0], same[..., 1:].shape), atol=1e-3
    )
    assert cues[..., 4].mean() > 0.2 > same[..., 4].max()
    silent = np.asarray(interaural(np.zeros((1, N, 2), np.float32)))
    np.testing.assert_allclose(
        silent[..., 1:], np.broadcast_to([0, 0, 0, 1], silent[..., 1:].shape), atol=1e-5
    )


@pytest.mark.parametrize("samples", [3000, 3200, 3333, N - 7])
def test_padding_does_not_change_frames(samples):
    rng = np.random.default_rng(5)
    audio = rng.normal(size=(2, N, 2)).astype(np.float32)  # beyond its end anything may be
    lengths = np.array([N, samples], np.int32)
    for of in (features.compressed_stft, features.interaural):
        args = (FFT, HOP) if of is features.compressed_stft else (FFT, HOP, MELS)
        padded = np.asarray(of(audio, *args, lengths))
        np.testing.assert_allclose(padded[:1], of(audio[:1], *args), atol=1e-4)
        unpadded = np.asarray(of(audio[1:, :samples], *args))
        np.testing.assert_allclose(padded[1:, : unpadded.shape[1]], unpadded, atol=1e-4)
    quiet = audio[..., 0] * np.array([[1.0], [1e-3]], np.float32)
    quiet[1, samples:] *= 1e6  # louder than the clip: its peak sets no floor
    unpadded = np.asarray(features.log_mel(quiet[1:, :samples], MELS))
    padded = np.asarray(features.log_mel(quiet, MELS, lengths))
    np.testing.assert_allclose(padded[1:, : unpadded.shape[1]], unpadded, atol=1e-4)
