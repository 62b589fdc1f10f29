# SPDX-License-Identifier: Apache-2.0
"""Colours and the spectrogram shared by all figures."""

import numpy as np
import scipy.signal

from jaxasa.core.audio import SAMPLE_RATE

EXTRA_COLOURS = ("#d55e00", "#7a6fd0", "#b0a030", "#56b4e9")
FLOOR_DB = -70.0  # lowest level of a spectrogram, relative to its peak


def source_colour(index: int) -> str:
    """Colour of source number `index` of a scene."""
    colours = ("#3b8ed0", "#e69f00", "#1fa187", "#cc79a7", *EXTRA_COLOURS)
    return colours[index % len(colours)]


def spectrogram(samples: np.ndarray) -> np.ndarray:
    """Power spectrogram [F, T] of samples [N] at 16 kHz in dB below its peak, at least FLOOR_DB.

    Frames of 32 ms, hop 20 ms; rows are 0 to 8 kHz.
    """
    padded = np.pad(np.asarray(samples, float), (0, max(0, 512 - len(samples))))
    _, _, power = scipy.signal.spectrogram(padded, SAMPLE_RATE, "hann", 512, 192, detrend=False)
    return 10 * np.log10(np.maximum(power / max(power.max(), 1e-30), 10 ** (FLOOR_DB / 10)))
