# SPDX-License-Identifier: Apache-2.0
"""Audio features in torch: Whisper's log-mel, STFT parts, intensity vectors, interaural cues.

Shapes: B batch, N samples, T frames, F frequency bins, M mel bands, C channels. Audio is 16 kHz;
channels are W, Y, Z, X (SN3D) of FOA, or the left and the right ear.
"""

from functools import lru_cache

import numpy as np
import torch
from transformers.audio_utils import mel_filter_bank

SAMPLE_RATE = 16_000
HOP = 160
WINDOW = 400
DECADES_PER_UNIT = 4.0  # decades of power to one unit of Whisper's log-mel


@lru_cache
def _mel_matrix(fft, mels):
    return mel_filter_bank(
        fft // 2 + 1, mels, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
    ).astype(np.float32)


def mel_matrix(fft, mels, like):
    """Slaney mel filters [fft / 2 + 1, mels] on the device of the tensor `like`."""
    return torch.from_numpy(_mel_matrix(fft, mels)).to(like.device)


def stft(audio, fft, hop):
    """Centred STFT with a Hann window, float32 [..., N] -> complex64 [..., 1 + N // hop, F]."""
    flat = audio.reshape(-1, audio.shape[-1])
    window = torch.hann_window(fft, device=audio.device)
    spectra = torch.stft(flat, fft, hop, window=window, pad_mode="reflect", return_complex=True)
    return spectra.transpose(1, 2).reshape(*audio.shape[:-1], -1, fft // 2 + 1)


def log_mel(audio, mels):
    """Whisper's features: [B, N] -> [B, N // 160, mels], floored 8 decades below the peak."""
    power = stft(audio, WINDOW, HOP)[..., :-1, :].abs() ** 2
    logs = torch.log10(torch.clamp(power @ mel_matrix(WINDOW, mels, audio), min=1e-10))
    logs = torch.maximum(logs, logs.amax((-2, -1), keepdim=True) - 8.0)
    return (logs + 4.0) / DECADES_PER_UNIT


def compressed_stft(audio, fft, hop):
    """STFT with magnitudes to the power of 0.3, [B, N, C] -> [B, T, F, 2 C]: real parts of all
    channels, then imaginary parts."""
    spectra = stft(audio.transpose(1, 2), fft, hop).permute(0, 2, 3, 1)
    size = torch.sqrt(spectra.real**2 + spectra.imag**2 + 1e-10)
    spectra = spectra * size**-0.7
    return torch.cat([spectra.real, spectra.imag], -1)


def intensity(audio, fft, hop, mels):
    """FOA [B, N, 4] -> [B, T, M, 5]: log power of W, active intensity vector (x, y, z) over energy,
    diffuseness."""
    spectra = stft(audio.transpose(1, 2), fft, hop)
    w, y, z, x = spectra.unbind(1)
    mel = mel_matrix(fft, mels, audio)
    power = (w.abs() ** 2) @ mel
    energy = ((spectra.abs() ** 2).sum(1) / 2) @ mel
    vector = torch.stack([(w.conj() * c).real @ mel for c in (x, y, z)], -1)
    vector = vector / (energy + 1e-7)[..., None]
    logs = (torch.log10(power + 1e-7) + 4.0) / DECADES_PER_UNIT
    diffuse = 1.0 - torch.sqrt((vector**2).sum(-1) + 1e-12)
    return torch.cat([logs[..., None], vector, diffuse[..., None]], -1)


def interaural(audio, fft, hop, mels):
    """Binaural audio [B, N, 2] -> [B, T, M, 5]: log power, sine and cosine of the phase difference
    times coherence, level difference in bel, 1 - coherence."""
    left, right = stft(audio.transpose(1, 2), fft, hop).unbind(1)
    mel = mel_matrix(fft, mels, audio)
    powers = [(ear.abs() ** 2) @ mel + 1e-7 for ear in (left, right)]
    cross = left * right.conj()
    size = torch.sqrt(powers[0] * powers[1])
    cosine, sine = (cross.real @ mel) / size, (cross.imag @ mel) / size
    logs = (torch.log10((powers[0] + powers[1]) / 2) + 4.0) / DECADES_PER_UNIT
    level = torch.log10(powers[0] / powers[1])
    diffuse = 1.0 - torch.sqrt(cosine**2 + sine**2 + 1e-12)
    return torch.stack([logs, sine, cosine, level, diffuse], -1)


def resample_time(x, length):
    """Averages x [B, T, D] over equal spans of time -> [B, length, D], with fractions of frames."""
    frames = x.shape[1]
    index, out = np.arange(frames), np.arange(length)[:, None]
    low = np.maximum(out * frames, index * length)
    high = np.minimum((out + 1) * frames, (index + 1) * length)
    weights = torch.from_numpy(np.maximum(high - low, 0) / frames).to(x.device, torch.float32)
    return torch.einsum("lt,btd->bld", weights, x.float()).to(x.dtype)
