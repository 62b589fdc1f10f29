# SPDX-License-Identifier: Apache-2.0
"""Room-acoustic parameters measured on an RIR: reverberation time and DRR.

Energy decay is Schroeder's backward integration (1965), E(t) = the energy after t. RT60 is T20 of
ISO 3382: a line fitted from -5 to -25 dB. Octave filters have a third-order Butterworth amplitude
response (IEC 61260) and zero phase.

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

DECAY_STEP = 8  # samples between two values of a decay curve


def rt60(rir: np.ndarray) -> float:
    """Returns the RT60 (s) of an RIR [4, n]: T20 on W, mean of the 500 Hz and 1 kHz octaves.

    NaN if the direct sound exceeds the rest by so much that no line can be fitted.
    """
    return float(np.mean(octave_rt60(rir, (500.0, 1000.0))))


def octave_rt60(rir: np.ndarray, centres) -> np.ndarray:
    """Returns the RT60 (s) [len(centres)] of W in the octaves around `centres` (Hz): T20."""
    return np.array([t20(curve) for curve in octave_decay_curves(rir, centres)])


def octave_decay_curves(rir: np.ndarray, centres) -> list[np.ndarray]:
    """Returns the energy decay curve (dB) of W in each of the octaves around `centres` (Hz)."""
    signal = rir[0, PRE_SAMPLES:]
    size = scipy.fft.next_fast_len((len(signal) + 2048) // 4, real=True) * 4
    spectrum = scipy.fft.rfft(signal, size)
    curves = []
    for centre in centres:
        # Octaves up to 1 kHz have next to no energy above 4 kHz: half the sample rate will do.
        decimation = 2 if centre <= 1000 else 1
        cut = size // decimation
        octave = spectrum[: cut // 2 + 1] * _octave_gain(centre, size)[: cut // 2 + 1]
        filtered = scipy.fft.irfft(octave, cut)[: len(signal) // decimation]
        curves.append(decay_curve(filtered, DECAY_STEP // decimation))
    return curves


@functools.lru_cache(maxsize=64)
def _octave_gain(centre: float, size: int) -> np.ndarray:
    """Returns the gain [size // 2 + 1] of the octave filter around `centre` (Hz)."""
    f = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 1e-3)
    return (1 / np.sqrt(1 + (2**0.5 * (f / centre - centre / f)) ** 6)).astype(np.float32)


def decay_curve(signal: np.ndarray, step: int = DECAY_STEP) -> np.ndarray:
    """Returns the energy decay curve (dB, 0 at the start) of a signal [n], every `step` samples."""
    decay = _backward_integral(signal, step)
    return 10 * np.log10(decay / decay[0] + 1e-12)


@numba_jit.njit_strict
def _backward_integral(signal, step):
    """Returns the energy of a signal [n] from every `step`-th sample on, in whole steps."""
    energy = np.empty(len(signal) // step)
    total = 0.0
    for k in range(len(energy) - 1, -1, -1):
        for t in range(k * step, (k + 1) * step):
            total += np.float64(signal[t]) ** 2
        energy[k] = total
    return energy


def t20(curve: np.ndarray) -> float:
    """Returns the T20 (s, extrapolated to 60 dB) of an energy decay curve (dB), or NaN.

    The curve has one value every DECAY_STEP samples of SAMPLE_RATE. NaN if fewer than 5 ms of it
    are between -5 and -25 dB.
    """
    use = np.flatnonzero((curve <= -5) & (curve >= -25))
    if len(use) * DECAY_STEP < SAMPLE_RATE // 200:
        return float("nan")
    x, y = use - use.mean(), curve[use]
    return float(-60 * DECAY_STEP * (x @ x) / (x @ y) / SAMPLE_RATE)


def drr(rir: np.ndarray, distance: float) -> float:
    """Returns the direct-to-reverberant ratio (dB) on W of an RIR [4, n].

    Direct sound ends 2.5 ms after the arrival from a source at `distance` (m).
    """
    split = PRE_SAMPLES + round(distance / SPEED_OF_SOUND * SAMPLE_RATE) + SAMPLE_RATE // 400
    energy = rir[0].astype(float) ** 2
    return float(10 * np.log10(energy[:split].sum() / max(energy[split:].sum(), 1e-12)))
