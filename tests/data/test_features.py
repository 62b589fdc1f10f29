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
    found = np.asarray(jax.jit(features.log_mel, static_argnums=1)(audio, 80))
    assert found.shape == (2, N // 160, 80)
    for row, samples in zip(found, audio, strict=True):
        power = np.abs(spectra(samples, 400, 160)[:-1]) ** 2
        logs = np.log10(np.maximum(power @ slaney(400, 80), 1e-10))
        expected = (np.maximum(logs, logs.max() - 8) + 4) / 4
        assert (expected == expected.min()).sum() > 80
        np.testing.assert_allclose(row, expected, atol=1e-4)


@pytest.mark.parametrize("mels", [80, 128])
def test_log_mel_is_whispers(mels):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    twin = transformers.WhisperFeatureExtractor(feature_size=mels)
    audio = clip(8000)
    made = twin(list(audio), sampling_rate=16_000, padding="longest", return_tensors="np")
    expected = np.moveaxis(made["input_features"], 1, 2)
    found = jax.jit(features.log_mel, static_argnums=1)(audio, mels)
    assert expected.shape == (2, 50, mels)
    np.testing.assert_allclose(np.asarray(found), expected, atol=1e-4)


def test_foa_stft_keeps_phase_and_compresses_size():
    audio = np.random.default_rng(1).normal(size=(1, 1600, 4)).astype(np.float32)
    found = np.asarray(features.foa_stft(audio, FFT, HOP))
    assert found.shape == (1, 6, 257, 8)
    for channel in range(4):
        expected = spectra(audio[0, :, channel], FFT, HOP)
        made = found[0, ..., channel] + 1j * found[0, ..., 4 + channel]
        np.testing.assert_allclose(made, expected * np.abs(expected) ** -0.7, atol=1e-3)


@pytest.fixture(scope="module")
def intensity():
    return jax.jit(lambda audio: features.intensity(audio, FFT, HOP, MELS))


@given(st.floats(-180, 180), st.floats(-90, 90))
@settings(max_examples=25)
def test_intensity_of_a_plane_wave_points_at_it(intensity, azimuth, elevation):
    noise = 0.1 * np.random.default_rng(2).normal(size=(1, N, 1))
    found = np.asarray(intensity((noise * foa.encode(azimuth, elevation)).astype(np.float32)))
    assert found.shape == (1, 1 + N // HOP, MELS, 5)
    a, e = np.radians([azimuth, elevation])
    unit = [np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)]
    np.testing.assert_allclose(found[..., 1:4], np.broadcast_to(unit, (1, 13, MELS, 3)), atol=1e-3)
    assert np.abs(found[..., 4]).max() < 1e-3
    power = np.abs(spectra(noise[0, :, 0].astype(np.float32), FFT, HOP)) ** 2
    logs = (np.log10(power @ slaney(FFT, MELS) + 1e-7) + 4) / 4
    np.testing.assert_allclose(found[0, ..., 0], logs, atol=1e-3)


def test_intensity_of_w_alone_and_of_silence_is_zero(intensity):
    noise = 0.1 * np.random.default_rng(2).normal(size=(1, N, 1))
    alone = np.asarray(intensity((noise * [1, 0, 0, 0]).astype(np.float32)))
    silent = np.asarray(intensity(np.zeros((1, N, 4), np.float32)))
    for found in (alone, silent):
        assert (found[..., 1:4] == 0).all()
        np.testing.assert_allclose(found[..., 4], 1.0, atol=1e-5)
