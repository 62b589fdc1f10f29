# SPDX-License-Identifier: Apache-2.0
"""Audio features in JAX, on the device: log-mel spectrograms, complex STFT, intensity vectors.

Audio is at 16 kHz. FOA channels are W, Y, Z, X (SN3D), binaural ones the left and the right ear.

Clips of different lengths are padded at the end; `lengths` [B] (samples, more than half a window)
are the true ones (None: no padding). The frames of a clip are then the same as without padding;
frames beyond its end are undefined.

Shapes: B batch · N samples · T time frames · F frequency bins · M mel bands · C channels
"""

from functools import cache

import jax
import jax.numpy as jnp
import librosa
import numpy as np

from jaxasa.core.audio import SAMPLE_RATE

HOP = 160
WINDOW = 400
MIN_POWER = 1e-10  # floor of mel power in Whisper's features
DECADES_PER_UNIT = 4.0  # decades of power in one unit of Whisper's log-mel


@cache
def _hann(length: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


@cache
def mel_matrix(n_fft: int, n_mels: int) -> np.ndarray:
    """Slaney mel filters [F, M] as Whisper uses them, F = n_fft / 2 + 1."""
    return librosa.filters.mel(sr=SAMPLE_RATE, n_fft=n_fft, n_mels=n_mels).T.astype(np.float32)


def stft(
    audio: jax.Array, n_fft: int, hop_length: int, lengths: jax.Array | None = None
) -> jax.Array:
    """Short-time Fourier transform: [..., N] -> complex64 [..., T, F].

    T = 1 + N // hop_length, F = n_fft / 2 + 1; Hann window, centred frames, reflected edges. With
    lengths [B] of audio [B, ..., N] each clip is reflected at its own end.
    """
    if lengths is None:
        pad = [(0, 0)] * (audio.ndim - 1) + [(n_fft // 2, n_fft // 2)]
        audio = jnp.pad(audio, pad, mode="reflect")
    else:
        index = np.abs(np.arange(-(n_fft // 2), audio.shape[-1] + n_fft // 2))
        last = lengths[:, None] - 1
        index = jnp.where(index > last, jnp.maximum(2 * last - index, 0), index)
        index = index.reshape(len(index), *[1] * (audio.ndim - 2), -1)
        audio = jnp.take_along_axis(audio, index, axis=-1)
    frames = 1 + (audio.shape[-1] - n_fft) // hop_length
    index = np.arange(frames)[:, None] * hop_length + np.arange(n_fft)[None]
    return jnp.fft.rfft(audio[..., index] * _hann(n_fft), axis=-1).astype(jnp.complex64)


def log_mel(audio: jax.Array, n_mels: int, lengths: jax.Array | None = None) -> jax.Array:
    """Whisper's log-mel spectrogram: [B, N] -> [B, N // 160, M].

    log10 of mel power, floored 8 decades below the clip's maximum, then (x + 4) / 4.
    """
    power = jnp.abs(stft(audio, WINDOW, HOP, lengths)[..., :-1, :]) ** 2
    logs = jnp.log10(jnp.maximum(power @ mel_matrix(WINDOW, n_mels), MIN_POWER))
    if lengths is not None:
        is_audio = np.arange(logs.shape[1]) < (lengths // HOP)[:, None]
        # Padding must not be the maximum.
        logs = jnp.where(is_audio[..., None], logs, np.log10(MIN_POWER))
    logs = jnp.maximum(logs, logs.max(axis=(-2, -1), keepdims=True) - 8.0)
    return (logs + 4.0) / DECADES_PER_UNIT


def compressed_stft(
    audio: jax.Array, n_fft: int, hop_length: int, lengths: jax.Array | None = None
) -> jax.Array:
    """STFT with compressed magnitude |X|^0.3 and its phase: [B, N, C] -> [B, T, F, 2C].

    Real parts of all channels, then imaginary parts. The compression keeps quiet bins visible.
    """
    spectra = jnp.moveaxis(stft(jnp.moveaxis(audio, -1, 1), n_fft, hop_length, lengths), 1, -1)
    size = jnp.sqrt(jnp.real(spectra) ** 2 + jnp.imag(spectra) ** 2 + 1e-10)
    spectra = spectra * size**-0.7
    return jnp.concatenate([jnp.real(spectra), jnp.imag(spectra)], axis=-1)


def intensity(
    audio: jax.Array, n_fft: int, hop_length: int, n_mels: int, lengths: jax.Array | None = None
) -> jax.Array:
    """Log-mel of W, intensity vectors and diffuseness of FOA: [B, N, 4] -> [B, T, M, 5].

    Channels: log-mel power of W; active intensity Re(W* [X, Y, Z]) (axes x, y, z) in mel bands,
    divided by the band's energy (|W|^2 + |Y|^2 + |Z|^2 + |X|^2) / 2, so that it is a unit vector
    for a plane wave; and diffuseness 1 - |intensity| (DirAC, Pulkki 2007). Silent bands have zero
    vectors.
    """
    spectra = stft(jnp.moveaxis(audio, -1, 1), n_fft, hop_length, lengths)
    w, y, z, x = (spectra[:, c] for c in range(4))
    mel = mel_matrix(n_fft, n_mels)
    power = (jnp.abs(w) ** 2) @ mel
    energy = (jnp.sum(jnp.abs(spectra) ** 2, axis=1) / 2) @ mel
    active = [jnp.real(jnp.conj(w) * c) @ mel for c in (x, y, z)]
    vector = jnp.stack(active, -1) / (energy + 1e-7)[..., None]
    logs = (jnp.log10(power + 1e-7) + 4.0) / DECADES_PER_UNIT
    diffuse = 1.0 - jnp.sqrt(jnp.sum(vector**2, -1) + 1e-12)
    return jnp.concatenate([logs[..., None], vector, diffuse[..., None]], axis=-1)


def interaural(
    audio: jax.Array, n_fft: int, hop_length: int, n_mels: int, lengths: jax.Array | None = None
) -> jax.Array:
    """Log-mel spectrogram and interaural cues of binaural audio: [B, N, 2] -> [B, T, M, 5].

    The counterpart of `intensity`. Channels: log-mel of the ears' mean power; sine and cosine of
    the interaural phase difference (positive if the left ear leads by less than half a period),
    each times the band's coherence |sum L R*| / sqrt(sum |L|^2 sum |R|^2), so that a band with
    different phases has a short vector; the interaural level difference log10(|L|^2 / |R|^2) (bel);
    and 1 - coherence. Sums are over the bins of a mel band with its weights. Phase and level
    differences of silence are zero.
    """
    left, right = jnp.moveaxis(stft(jnp.moveaxis(audio, -1, 1), n_fft, hop_length, lengths), 1, 0)
    mel = mel_matrix(n_fft, n_mels)
    powers = [(jnp.abs(ear) ** 2) @ mel + 1e-7 for ear in (left, right)]
    cross = left * jnp.conj(right)
    size = jnp.sqrt(powers[0] * powers[1])
    cosine, sine = (jnp.real(cross) @ mel) / size, (jnp.imag(cross) @ mel) / size
    logs = (jnp.log10((powers[0] + powers[1]) / 2) + 4.0) / DECADES_PER_UNIT
    level = jnp.log10(powers[0] / powers[1])
    diffuse = 1.0 - jnp.sqrt(cosine**2 + sine**2 + 1e-12)
    return jnp.stack([logs, sine, cosine, level, diffuse], axis=-1)
