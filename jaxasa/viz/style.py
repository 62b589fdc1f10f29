"""Colours and the spectrogram that all figures share."""

import numpy as np
import scipy.signal

from jaxasa.core.audio import SAMPLE_RATE

EXTRA_COLOURS = ("#d55e00", "#7a6fd0", "#b0a030", "#56b4e9")


def source_colour(index: int) -> str:
    """The colour of a source of a scene, by its number."""
    colours = ("#3b8ed0", "#e69f00", "#1fa187", "#cc79a7", *EXTRA_COLOURS)
    return colours[index % len(colours)]


FLOOR_DB = -70.0  # dB under the loudest that a spectrogram shows


def spectrogram(samples: np.ndarray) -> np.ndarray:
    """Power [F, T] of a channel [N] at 16 kHz in dB under its loudest, at least FLOOR.

    Frames of 32 ms at hops of 20 ms, 0 to 8 kHz from the first row.
    """
    padded = np.pad(np.asarray(samples, float), (0, max(0, 512 - len(samples))))
    _, _, power = scipy.signal.spectrogram(padded, SAMPLE_RATE, "hann", 512, 192, detrend=False)
    return 10 * np.log10(np.maximum(power / max(power.max(), 1e-30), 10 ** (FLOOR_DB / 10)))
