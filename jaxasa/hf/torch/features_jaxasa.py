"""Audio features in torch: Whisper's log-mel, STFT parts, intensity vectors.

Letters: B batch, N samples, T frames, F frequency bins, M mel bands. Audio is 16 kHz; channels
are W, Y, Z, X (SN3D).
"""

from functools import lru_cache

import numpy as np
import torch
from transformers.audio_utils import mel_filter_bank

RATE = 16_000
HOP = 160
WINDOW = 400
WHISPER_RANGE = 4.0  # decades of power to one unit of Whisper's log-mel


@lru_cache
def _mel_matrix(fft, mels):
    return mel_filter_bank(
        fft // 2 + 1, mels, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney"
    ).astype(np.float32)


def mel_matrix(fft, mels, like):
    """Slaney mel filters [fft / 2 + 1, mels] where the tensor `like` lies."""
    return torch.from_numpy(_mel_matrix(fft, mels)).to(like.device)


def stft(audio, fft, hop):
    """Centred, reflected, Hann: float32 [..., N] -> complex64 [..., 1 + N // hop, fft / 2 + 1]."""
    flat = audio.reshape(-1, audio.shape[-1])
    window = torch.hann_window(fft, device=audio.device)
    spectra = torch.stft(flat, fft, hop, window=window, pad_mode="reflect", return_complex=True)
    return spectra.transpose(1, 2).reshape(*audio.shape[:-1], -1, fft // 2 + 1)


def log_mel(audio, mels):
    """Whisper's features: [B, N] -> [B, N // 160, mels], floored 8 decades below the peak."""
    power = stft(audio, WINDOW, HOP)[..., :-1, :].abs() ** 2
    logs = torch.log10(torch.clamp(power @ mel_matrix(WINDOW, mels, audio), min=1e-10))
    logs = torch.maximum(logs, logs.amax((-2, -1), keepdim=True) - 8.0)
    return (logs + 4.0) / WHISPER_RANGE


def foa_stft(audio, fft, hop):
    """Real and imaginary parts of W, Y, Z, X: [B, N, 4] -> [B, T, F, 8], magnitudes to 0.3."""
    spectra = stft(audio.transpose(1, 2), fft, hop).permute(0, 2, 3, 1)
    size = torch.sqrt(spectra.real**2 + spectra.imag**2 + 1e-10)
    spectra = spectra * size**-0.7
    return torch.cat([spectra.real, spectra.imag], -1)


def intensity(audio, fft, hop, mels):
    """[B, N, 4] -> [B, T, M, 5]: log power of W, intensity vector (x, y, z), diffuseness."""
    spectra = stft(audio.transpose(1, 2), fft, hop)
    w, y, z, x = spectra.unbind(1)
    mel = mel_matrix(fft, mels, audio)
    power = (w.abs() ** 2) @ mel
    energy = ((spectra.abs() ** 2).sum(1) / 2) @ mel
    vector = torch.stack([(w.conj() * c).real @ mel for c in (x, y, z)], -1)
    vector = vector / (energy + 1e-7)[..., None]
    logs = (torch.log10(power + 1e-7) + 4.0) / WHISPER_RANGE
    diffuse = 1.0 - torch.sqrt((vector**2).sum(-1) + 1e-12)
    return torch.cat([logs[..., None], vector, diffuse[..., None]], -1)


def resample_time(x, length):
    """[B, T, D] -> [B, length, D]: means over equal spans of time, fractions of frames counted."""
    frames = x.shape[1]
    edges = np.linspace(0, frames, length + 1)
    index = np.arange(frames)
    low = np.maximum(edges[:-1, None], index[None])
    high = np.minimum(edges[1:, None], index[None] + 1)
    weights = np.maximum(high - low, 0) / (frames / length)
    return torch.einsum("lt,btd->bld", torch.from_numpy(weights).to(x), x)
