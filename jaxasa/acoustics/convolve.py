# SPDX-License-Identifier: Apache-2.0
"""Convolution of dry signals with RIRs: overlap-add, with one inverse FFT for all sources.

y_c = sum over sources s of x_s * h_sc, block by block: the FFT is linear, so the spectra of all
sources are summed before the inverse transforms, four per block for any number of sources.

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
def _add_product(out, dry, rir, overwrite):
    """Adds the spectrum dry [F] times rir [C, F] to out [C, F], or overwrites it."""
    for c in range(out.shape[0]):
        row, filters = out[c], rir[c]
        if overwrite:
            for f in range(len(dry)):
                row[f] = dry[f] * filters[f]
        else:
            for f in range(len(dry)):
                row[f] += dry[f] * filters[f]


def _fft_size(length: int, longest: int, sources: int, channels: int) -> int:
    """Returns the FFT size with the lowest total cost of all transforms."""
    best = (math.inf, 0)
    for blocks in range(1, 65):
        size = scipy.fft.next_fast_len(-(-length // blocks) + longest - 1, real=True)
        # scipy transforms four rows at a time (SIMD).
        fours = 4 * -(-blocks // 4)
        rows = fours * sources + blocks * channels + sources * channels
        best = min(best, (size * rows, size))
    return best[1]


def convolve_tracks(
    tracks: Sequence[tuple[int, np.ndarray]], rirs: Sequence[np.ndarray], length: int
) -> np.ndarray:
    """Returns the sum [C, length] of tracks (start sample, signal), each through its RIR [C, n].

    Time zero of an RIR is sample PRE_SAMPLES. The result is cut after `length` samples.
    """
    longest, channels = max(rir.shape[1] for rir in rirs), rirs[0].shape[0]
    size = _fft_size(length, longest, len(tracks), channels)
    hop = size - longest + 1
    spectra = []
    for (start, track), rir in zip(tracks, rirs, strict=True):
        end = min(start + len(track), length)
        if start < end:
            first, last = start // hop, (end - 1) // hop
            blocks = np.zeros((last - first + 1, hop), np.float32)
            blocks.reshape(-1)[start - first * hop : end - first * hop] = track[: end - start]
            spectra.append((first, scipy.fft.rfft(blocks, size), scipy.fft.rfft(rir, size)))
    out = np.zeros((channels, length + PRE_SAMPLES + size), np.float32)
    total = np.empty((channels, size // 2 + 1), np.complex64)
    for block in range(-(-length // hop)):
        empty = True
        for first, dry, rir in spectra:
            if first <= block < first + len(dry):
                _add_product(total, dry[block - first], rir, empty)
                empty = False
        if not empty:
            start = block * hop
            out[:, start : start + size] += scipy.fft.irfft(total, size)
    return out[:, PRE_SAMPLES : length + PRE_SAMPLES]
