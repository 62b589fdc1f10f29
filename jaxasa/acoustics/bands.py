# SPDX-License-Identifier: Apache-2.0
"""Octave bands of an RIR, and the sample index of its time zero.

The bands of rooms.BANDS overlap as sin^2 and cos^2 of the octave, with zero phase, so a wall that
reflects all bands equally reflects an undistorted impulse. The lowest band extends down to 0 Hz,
the highest (5.6 kHz and up) to the Nyquist frequency.

    >>> from jaxasa.acoustics import bands
    >>> bands.gains([1000.0, 2**0.5 * 1000.0]).round(2)[3:5]  # of the 1 and 2 kHz bands
    array([[1. , 0.5],
           [0. , 0.5]])
"""

import functools

import numpy as np

from jaxasa.acoustics import rooms
from jaxasa.core.audio import SAMPLE_RATE

PRE_SAMPLES = 64  # samples of an RIR before time zero: fractional-delay filters are symmetric


def gains(frequencies) -> np.ndarray:
    """Returns the gain of each octave band [7, F] at frequencies (Hz); gains sum to 1."""
    octave = np.log2(np.maximum(frequencies, 1e-3) / rooms.BANDS[0])
    position = np.clip(octave, 0, len(rooms.BANDS) - 1)
    distance = np.abs(position - np.arange(len(rooms.BANDS))[:, None])
    return np.cos(np.pi / 2 * np.minimum(distance, 1)) ** 2


@functools.lru_cache(maxsize=64)
def rfft_gains(size: int) -> np.ndarray:
    """Returns the gains [7, size // 2 + 1] float32 at the bins of an rfft of `size` samples."""
    return gains(np.fft.rfftfreq(size, 1 / SAMPLE_RATE)).astype(np.float32)
