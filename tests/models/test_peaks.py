# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxasa.acoustics import foa
from jaxasa.data import features
from jaxasa.models import peaks


def towards(azimuth, elevation) -> np.ndarray:
    """Unit vector (x, y, z)."""
    return foa.encode(azimuth, elevation)[[3, 1, 2]]


TRUE = np.array([towards(30.0, 10.0), towards(-100.0, -20.0), towards(150.0, 45.0)])


def angles(a, b) -> np.ndarray:
    """Degrees between unit vectors [..., 3]."""
    return np.degrees(np.arccos(np.clip((a * b).sum(-1), -1, 1)))


def field(rng, frames=40, mels=16, shares=(0.5, 0.3, 0.2), length=0.9):
    """[F, M, 3]: each band points at one of TRUE, some degrees off, or is diffuse."""
    which = rng.choice(3, p=shares, size=(frames, mels // 2)).repeat(2, axis=1)
    vectors = TRUE[which] + rng.normal(size=(frames, mels, 3)) * 0.04
    vectors *= length / np.linalg.norm(vectors, axis=-1, keepdims=True)
    noise = rng.normal(size=vectors.shape) * 0.15
    return np.where(rng.random((frames, mels, 1)) < 0.3, noise, vectors).astype(np.float32)


def test_the_grid_is_even():
    cosines = peaks.direction_grid() @ peaks.direction_grid().T - 2 * np.eye(peaks.GRID_SIZE)
    nearest = np.degrees(np.arccos(cosines.max(1)))
    assert nearest.min() > 10 and nearest.max() < 16
    assert np.abs(peaks.direction_grid().mean(0)).max() < 0.01


def test_resultare_the_directions_strongest_first():
    rng = np.random.default_rng(0)
    vectors = np.stack([field(rng) for _ in range(4)])
    result = peaks.find_doa_peaks(jnp.asarray(vectors), 3)
    assert angles(np.asarray(result.direction), TRUE).max() < 1.0
    strength = np.asarray(result.strength)
    assert np.all(np.diff(strength, axis=1) < 0) and np.all(strength > 0.05)


def test_a_quiet_source_next_to_a_louder_one_has_a_peak():
    """Two noises in alternating bands of frequency, one 30 dB lower."""
    rng = np.random.default_rng(1)
    loud, quiet = rng.normal(size=(2, 32_000))
    spectrum = np.fft.rfft(loud), np.fft.rfft(quiet)
    band = (np.fft.rfftfreq(32_000, 1 / 16_000) // 1000) % 2 == 0
    loud = np.fft.irfft(spectrum[0] * band)
    quiet = np.fft.irfft(spectrum[1] * ~band) * 10 ** (-30 / 20)
    audio = loud[:, None] * foa.encode(70.0, 0.0) + quiet[:, None] * foa.encode(-45.0, 30.0)
    vectors = features.intensity(jnp.asarray(audio[None], jnp.float32), 512, 400, 64)[..., 1:4]
    directions = np.asarray(peaks.find_doa_peaks(vectors, 2).direction)[0]
    expected = np.array([towards(70.0, 0.0), towards(-45.0, 30.0)])
    assert angles(directions[:, None], expected).min(0).max() < 2.0


def test_resultare_equivariant_to_rotation():
    vectors = field(np.random.default_rng(2))
    yaw = np.radians(37.0)
    matrix = np.array(
        [[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]], np.float32
    )
    both = peaks.find_doa_peaks(jnp.stack([vectors, vectors @ matrix.T]), 3)
    original, rotated = np.asarray(both.direction)
    assert angles(original @ matrix.T, rotated).max() < 0.5
    np.testing.assert_allclose(both.proximity[0], both.proximity[1], atol=0.03)


def test_padding_and_silence_have_no_peaks():
    rng = np.random.default_rng(3)
    vectors = np.stack([field(rng, frames=70)] * 2)
    vectors[1, 40:] = field(rng, frames=30, shares=(0, 0, 1))
    frame_mask = jnp.arange(70) < jnp.array([[40], [40]])
    result = peaks.find_doa_peaks(jnp.asarray(vectors), 3, frame_mask)
    short = peaks.find_doa_peaks(jnp.asarray(vectors[:, :40]), 3)
    np.testing.assert_allclose(result.direction, short.direction, atol=1e-5)
    np.testing.assert_allclose(result.proximity[:, :, :40], short.proximity, atol=1e-5)
    assert np.all(np.asarray(result.proximity[:, :, 40:]) == 0)
    silent = peaks.find_doa_peaks(jnp.zeros((1, 8, 16, 3)), 3)
    assert np.isfinite(silent.direction).all() and np.abs(silent.proximity).max() == 0
    np.testing.assert_allclose(np.linalg.norm(silent.direction, axis=-1), 1, atol=1e-3)


def test_proximity_falls_with_the_angle():
    vectors = np.zeros((1, 1, 4, 3), np.float32)
    vectors[0, 0, :2] = towards(0.0, 0.0)
    vectors[0, 0, 2], vectors[0, 0, 3] = towards(30.0, 0.0), towards(60.0, 0.0)
    vectors[0, 0, 2:] *= 0.1
    result = peaks.find_doa_peaks(jnp.asarray(vectors), 1)
    edge = np.cos(np.radians(peaks.ASSOCIATION_DEG))
    expected = [1, 1, 0.1 * (np.cos(np.radians(30)) - edge) / (1 - edge), 0]
    np.testing.assert_allclose(result.proximity[0, 0, 0], expected, atol=1e-4)


def test_directions_have_no_gradient():
    vectors = jnp.asarray(field(np.random.default_rng(4))[None])

    def total(v):
        of = peaks.find_doa_peaks(v, 2)
        return of.direction.sum() + of.proximity.sum()

    assert np.abs(jax.grad(total)(vectors)).max() == 0


@pytest.mark.parametrize("frames", [1, 9])
def test_peak_spectra_are_weighted_statistics(frames):
    rng = np.random.default_rng(5)
    power, weights = rng.normal(size=(2, frames, 6)), rng.random((2, 3, frames, 6))
    spectra = peaks.peak_spectra(jnp.asarray(power), jnp.asarray(weights))
    assert spectra.shape == (2, 3, 4 * 6 + 2)
    for b, s in np.ndindex(2, 3):
        w, p = weights[b, s], power[b]
        total = w.sum(0) + 1e-2
        mean = (w * p).sum(0) / total
        spread = np.sqrt(np.maximum((w * p**2).sum(0) / total - mean**2, 0) + 1e-6)
        difference = np.abs(np.diff(p, axis=0, prepend=p[:1]))
        change = (w * difference).sum(0) / total
        fluctuation = np.abs(np.diff(w.mean(1), prepend=w[:1].mean())).mean()
        parts = [mean - mean.mean(), 3 * spread, 3 * change, 3 * total / frames, [mean.mean()]]
        expected = np.concatenate([*parts, [10 * fluctuation]])
        np.testing.assert_allclose(spectra[b, s], expected, rtol=1e-4, atol=1e-5)
