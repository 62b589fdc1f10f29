# SPDX-License-Identifier: Apache-2.0
"""What a room response tells: decay time, direct-to-reverberant ratio.

Decay is Schroeder's backward integration (1965), E(t) = the energy after t, and a line fitted
from -5 to -25 dB (T20 of ISO 3382), in octaves of third-order Butterworth shape (IEC 61260).

    >>> import numpy as np
    >>> from jaxasa.acoustics import bands, measure
    >>> noise = np.random.default_rng(0).standard_normal((1, 9600))
    >>> decay = 10 ** (-3 * np.arange(9600) / SAMPLE_RATE / 0.3)  # 60 dB in 0.3 s
    >>> round(measure.rt60(np.pad(noise * decay, ((0, 0), (bands.PRE_SAMPLES, 0)))), 1)
    0.3
"""

import functools

import numpy as np
import scipy.fft

from jaxasa.acoustics import numba_jit
from jaxasa.acoustics.bands import PRE_SAMPLES
from jaxasa.acoustics.rooms import SPEED_OF_SOUND
from jaxasa.core.audio import SAMPLE_RATE


def rt60(response: np.ndarray) -> float:
    """Returns the RT60 (s) of a response [4, n]: T20 on W, mean of the 500 Hz and 1 kHz octaves.

    NaN where the direct sound alone exceeds the rest by so much that no line can be fitted.
    """
    return float(np.mean(octave_rt60(response, (500.0, 1000.0))))


def octave_rt60(response: np.ndarray, centres) -> np.ndarray:
    """Returns the RT60 (s) [len(centres)] of W in the octaves around `centres` (Hz): T20."""
    signal = response[0, PRE_SAMPLES:]
    size = scipy.fft.next_fast_len((len(signal) + 2048) // 4, real=True) * 4
    spectrum = scipy.fft.rfft(signal, size)
    decays = []
    for centre in centres:
        # Octaves up to 1 kHz have nothing to speak of above 4 kHz: half the samples will do.
        fewer = 2 if centre <= 1000 else 1
        kept = size // fewer
        band = spectrum[: kept // 2 + 1] * _octave(centre, size)[: kept // 2 + 1]
        decays.append(t20(scipy.fft.irfft(band, kept)[: len(signal) // fewer], 8 // fewer, fewer))
    return np.array(decays)


@functools.lru_cache(maxsize=64)
def _octave(centre: float, size: int) -> np.ndarray:
    """Returns the amplitudes [size // 2 + 1] of the octave around `centre` (Hz)."""
    f = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 1e-3)
    return (1 / np.sqrt(1 + (2**0.5 * (f / centre - centre / f)) ** 6)).astype(np.float32)


def decay_curve(signal: np.ndarray, step: int = 8) -> np.ndarray:
    """Returns the energy left (dB, from 0 down) of a signal [n] after each `step` samples."""
    decay = _energy_left(signal, step)
    return 10 * np.log10(decay / decay[0] + 1e-12)


@numba_jit.njit_strict
def _energy_left(signal, step):
    """Returns the energy of a signal [n] from each `step` samples on; an odd end is left out."""
    left = np.empty(len(signal) // step)
    total = 0.0
    for k in range(len(left) - 1, -1, -1):
        for t in range(k * step, (k + 1) * step):
            total += np.float64(signal[t]) ** 2
        left[k] = total
    return left


def t20(signal: np.ndarray, step: int = 8, fewer: int = 1) -> float:
    """Returns the T20 (s, extrapolated to 60 dB) of a signal [n]; NaN where none can be fitted.

    The decay is read in steps of `step` samples; the rate of the signal is SAMPLE_RATE / fewer.
    """
    level = decay_curve(signal, step)
    use = np.flatnonzero((level <= -5) & (level >= -25))
    if len(use) * step * fewer < SAMPLE_RATE // 200:
        return float("nan")
    x, y = use - use.mean(), level[use]
    return float(-60 * step * fewer * (x @ x) / (x @ y) / SAMPLE_RATE)


def drr(response: np.ndarray, distance: float) -> float:
    """Returns the direct-to-reverberant ratio (dB) on W of a response [4, n].

    Direct is what comes up to 2.5 ms after the direct sound of a source at `distance` (m).
    """
    split = PRE_SAMPLES + round(distance / SPEED_OF_SOUND * SAMPLE_RATE) + SAMPLE_RATE // 400
    energy = response[0].astype(float) ** 2
    return float(10 * np.log10(energy[:split].sum() / max(energy[split:].sum(), 1e-12)))
