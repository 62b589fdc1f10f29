# SPDX-License-Identifier: Apache-2.0
"""Dry sounds through room responses: overlap-add, all sources in one inverse transform.

y_c = sum over sources s of x_s * h_sc, in blocks: transforms are linear, so the spectra of the
sources are summed before the way back, and four inverse transforms a block do for any number.

    >>> import numpy as np
    >>> from jaxasa.acoustics import bands, convolve
    >>> echo = np.zeros((4, bands.PRE_SAMPLES + 10), np.float32)
    >>> echo[0, bands.PRE_SAMPLES + 5] = 0.5
    >>> convolve.convolve_tracks([(2, np.ones(1, np.float32))], [echo], 10)[0].round(3) + 0.0
    array([0. , 0. , 0. , 0. , 0. , 0. , 0. , 0.5, 0. , 0. ], dtype=float32)
"""

import math
from collections.abc import Sequence

import numpy as np
import scipy.fft

from jaxasa.acoustics import numba_jit
from jaxasa.acoustics.bands import PRE_SAMPLES


@numba_jit.njit_fastmath
def _add_product(out, dry, response, fresh):
    """Adds dry [F] times response [C, F] to out [C, F], or stores it where out is `fresh`."""
    for c in range(out.shape[0]):
        row, heard = out[c], response[c]
        if fresh:
            for f in range(len(dry)):
                row[f] = dry[f] * heard[f]
        else:
            for f in range(len(dry)):
                row[f] += dry[f] * heard[f]


def _transform_size(length: int, longest: int, sources: int, channels: int) -> int:
    """Returns the size of the transforms that together are shortest."""
    best = (math.inf, 0)
    for blocks in range(1, 65):
        size = scipy.fft.next_fast_len(-(-length // blocks) + longest - 1, real=True)
        # The blocks of a source go in fours: the library works on so many at once.
        fours = 4 * -(-blocks // 4)
        rows = fours * sources + blocks * channels + sources * channels
        best = min(best, (size * rows, size))
    return best[1]


def convolve_tracks(
    tracks: Sequence[tuple[int, np.ndarray]], responses: Sequence[np.ndarray], length: int
) -> np.ndarray:
    """Returns the sum [C, length] of each track (start sample, signal) through its response [C, n].

    Time zero of a response is LEAD (see rir.response). What would sound after `length` is cut.
    """
    longest, channels = max(r.shape[1] for r in responses), responses[0].shape[0]
    size = _transform_size(length, longest, len(tracks), channels)
    hop = size - longest + 1
    heard = []
    for (start, track), response in zip(tracks, responses, strict=True):
        end = min(start + len(track), length)
        if start < end:
            first, last = start // hop, (end - 1) // hop
            dry = np.zeros((last - first + 1, hop), np.float32)
            dry.reshape(-1)[start - first * hop : end - first * hop] = track[: end - start]
            parts = scipy.fft.rfft(dry, size)
            heard.append((first, parts, scipy.fft.rfft(response, size)))
    out = np.zeros((channels, length + PRE_SAMPLES + size), np.float32)
    spectrum = np.empty((channels, size // 2 + 1), np.complex64)
    for block in range(-(-length // hop)):
        fresh = True
        for first, parts, through in heard:
            if first <= block < first + len(parts):
                _add_product(spectrum, parts[block - first], through, fresh)
                fresh = False
        if not fresh:
            start = block * hop
            out[:, start : start + size] += scipy.fft.irfft(spectrum, size)
    return out[:, PRE_SAMPLES : length + PRE_SAMPLES]
