"""Audio features in JAX, on the device: Whisper's log-mel, STFT parts, intensity vectors.

Letters: B batch, N samples, T frames, F frequency bins, M mel bands, C channels.
Audio is 16 kHz; FOA channels are W, Y, Z, X (SN3D), binaural ones the left and the right ear.

Clips of several lengths in one array are padded at the end; `lengths` [B] (samples, more than half
a window) says where each ends. Its frames are then what they are without the padding; frames
beyond its end mean nothing. None: every clip fills the array.
"""

from functools import cache

import jax
import jax.numpy as jnp
import librosa
import numpy as np

from jaxasa.core.audio import SAMPLE_RATE

HOP = 160
WINDOW = 400
LEAST = 1e-10  # mel power under which Whisper hears nothing
WHISPER_RANGE = 4.0  # decades of power to one unit of Whisper's log-mel


@cache
def _hann(length: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


@cache
def mel_matrix(fft: int, mels: int) -> np.ndarray:
    """Slaney mel filters `[fft / 2 + 1, mels]`, as Whisper's."""
    return librosa.filters.mel(sr=SAMPLE_RATE, n_fft=fft, n_mels=mels).T.astype(np.float32)


def stft(audio: jax.Array, fft: int, hop: int, lengths: jax.Array | None = None) -> jax.Array:
    """Centred, reflected, Hann: `[..., N] -> complex64 [..., 1 + N // hop, fft / 2 + 1]`.

    lengths [B] of audio [B, ..., N]: a clip is reflected at its own end.
    """
    if lengths is None:
        pad = [(0, 0)] * (audio.ndim - 1) + [(fft // 2, fft // 2)]
        audio = jnp.pad(audio, pad, mode="reflect")
    else:
        place = np.abs(np.arange(-(fft // 2), audio.shape[-1] + fft // 2))
        last = lengths[:, None] - 1
        place = jnp.where(place > last, jnp.maximum(2 * last - place, 0), place)
        place = place.reshape(len(place), *[1] * (audio.ndim - 2), -1)
        audio = jnp.take_along_axis(audio, place, axis=-1)
    frames = 1 + (audio.shape[-1] - fft) // hop
    index = np.arange(frames)[:, None] * hop + np.arange(fft)[None]
    return jnp.fft.rfft(audio[..., index] * _hann(fft), axis=-1).astype(jnp.complex64)


def log_mel(audio: jax.Array, mels: int, lengths: jax.Array | None = None) -> jax.Array:
    """Whisper's features: `[B, N] -> [B, N // 160, mels]`.

    log10 of mel power, floored 8 decades below the clip's peak, then (x + 4) / 4.
    """
    power = jnp.abs(stft(audio, WINDOW, HOP, lengths)[..., :-1, :]) ** 2
    logs = jnp.log10(jnp.maximum(power @ mel_matrix(WINDOW, mels), LEAST))
    if lengths is not None:
        real = np.arange(logs.shape[1]) < (lengths // HOP)[:, None]
        logs = jnp.where(real[..., None], logs, np.log10(LEAST))  # no frame there is the peak
    logs = jnp.maximum(logs, logs.max(axis=(-2, -1), keepdims=True) - 8.0)
    return (logs + 4.0) / WHISPER_RANGE


def stft_parts(audio: jax.Array, fft: int, hop: int, lengths: jax.Array | None = None) -> jax.Array:
    """Real parts of all channels, then imaginary ones: `[B, N, C] -> [B, T, F, 2C]`, compressed.

    So 8 channels of FOA, 4 of two ears. Magnitudes enter as |X|^0.3 with their phase, which keeps
    quiet bins visible.
    """
    spectra = jnp.moveaxis(stft(jnp.moveaxis(audio, -1, 1), fft, hop, lengths), 1, -1)
    size = jnp.sqrt(jnp.real(spectra) ** 2 + jnp.imag(spectra) ** 2 + 1e-10)
    spectra = spectra * size**-0.7
    return jnp.concatenate([jnp.real(spectra), jnp.imag(spectra)], axis=-1)


def intensity(
    audio: jax.Array, fft: int, hop: int, mels: int, lengths: jax.Array | None = None
) -> jax.Array:
    """Log-mel of W and what the sound field says of direction: `[B, N, 4] -> [B, T, M, 5]`.

    Channels: log-mel power of W; active intensity Re(W* [X, Y, Z]) in mel bands over the
    band's energy (|W|^2 + |Y|^2 + |Z|^2 + |X|^2) / 2, so a plane wave has length 1 (axes x, y,
    z); and diffuseness 1 - |intensity| (DirAC, Pulkki 2007). A silent band has zero vectors.
    """
    spectra = stft(jnp.moveaxis(audio, -1, 1), fft, hop, lengths)
    w, y, z, x = (spectra[:, c] for c in range(4))
    mel = mel_matrix(fft, mels)
    power = (jnp.abs(w) ** 2) @ mel
    energy = (jnp.sum(jnp.abs(spectra) ** 2, axis=1) / 2) @ mel
    active = [jnp.real(jnp.conj(w) * c) @ mel for c in (x, y, z)]
    vector = jnp.stack(active, -1) / (energy + 1e-7)[..., None]
    logs = (jnp.log10(power + 1e-7) + 4.0) / WHISPER_RANGE
    diffuse = 1.0 - jnp.sqrt(jnp.sum(vector**2, -1) + 1e-12)
    return jnp.concatenate([logs[..., None], vector, diffuse[..., None]], axis=-1)


def interaural(
    audio: jax.Array, fft: int, hop: int, mels: int, lengths: jax.Array | None = None
) -> jax.Array:
    """What two ears say of direction, the counterpart of `intensity`: `[B, N, 2] -> [B, T, M, 5]`.

    Channels: log-mel of the ears' mean power; sine and cosine of the interaural phase difference
    (left before right: positive below the first turn of phase), each times the band's coherence
    |sum L R*| / sqrt(sum |L|^2 sum |R|^2), so that a band of unlike phases has a short vector; the
    interaural level difference log10 of |L|^2 / |R|^2 (bel); and 1 - coherence. Sums are over the
    bins of a mel band, weighted by it. Silence has no phase and no level difference: zeros.
    """
    left, right = jnp.moveaxis(stft(jnp.moveaxis(audio, -1, 1), fft, hop, lengths), 1, 0)
    mel = mel_matrix(fft, mels)
    powers = [(jnp.abs(ear) ** 2) @ mel + 1e-7 for ear in (left, right)]
    cross = left * jnp.conj(right)
    size = jnp.sqrt(powers[0] * powers[1])
    cosine, sine = (jnp.real(cross) @ mel) / size, (jnp.imag(cross) @ mel) / size
    logs = (jnp.log10((powers[0] + powers[1]) / 2) + 4.0) / WHISPER_RANGE
    level = jnp.log10(powers[0] / powers[1])
    diffuse = 1.0 - jnp.sqrt(cosine**2 + sine**2 + 1e-12)
    return jnp.stack([logs, sine, cosine, level, diffuse], axis=-1)
