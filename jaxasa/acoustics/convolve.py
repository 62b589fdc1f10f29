"""Dry sounds through room responses: overlap-add, all sources in one inverse transform.

y_c = sum over sources s of x_s * h_sc, in blocks: transforms are linear, so the spectra of the
sources are summed before the way back, and four inverse transforms a block do for any number.

    >>> import numpy as np
    >>> from jaxasa.acoustics import bands, convolve
    >>> echo = np.zeros((4, bands.LEAD + 10), np.float32)
    >>> echo[0, bands.LEAD + 5] = 0.5
    >>> convolve.convolve([(2, np.ones(1, np.float32))], [echo], 10)[0].round(3) + 0.0
    array([0. , 0. , 0. , 0. , 0. , 0. , 0. , 0.5, 0. , 0. ], dtype=float32)
"""

from collections.abc import Sequence

import numba
import numpy as np
import scipy.fft

from jaxasa.acoustics.bands import LEAD

_BLOCK = 16384  # least size of a transform: larger ones leave the cache


@numba.njit(cache=True, fastmath=True)
def _multiply_add(out, dry, response):
    """Adds dry [F] times response [C, F] to out [C, F]."""
    for c in range(out.shape[0]):
        for f in range(out.shape[1]):
            out[c, f] += dry[f] * response[c, f]


def convolve(
    tracks: Sequence[tuple[int, np.ndarray]], responses: Sequence[np.ndarray], length: int
) -> np.ndarray:
    """Returns the sum [C, length] of each track (start sample, signal) through its response [C, n].

    Time zero of a response is LEAD (see rir.response). What would sound after `length` is cut.
    """
    longest = max(r.shape[1] for r in responses)
    size = scipy.fft.next_fast_len(max(_BLOCK, 2 * longest), real=True)
    hop = size - longest + 1
    total = length + LEAD
    spectra: dict[int, np.ndarray] = {}
    for (start, track), response in zip(tracks, responses, strict=True):
        end = min(start + len(track), length)
        if start >= end:
            continue
        first, last = start // hop, (end - 1) // hop
        # One call for all blocks: the library then works on several at once.
        dry = np.zeros((last - first + 1) * hop, np.float32)
        dry[start - first * hop : end - first * hop] = track[: end - start]
        parts = scipy.fft.rfft(dry.reshape(-1, hop), size)
        through = scipy.fft.rfft(response, size)
        for block, part in enumerate(parts, first):
            if block not in spectra:
                spectra[block] = np.zeros_like(through)
            _multiply_add(spectra[block], part, through)
    out = np.zeros((responses[0].shape[0], total + size), np.float32)
    for block, spectrum in spectra.items():
        out[:, block * hop : block * hop + size] += scipy.fft.irfft(spectrum, size)
    return out[:, LEAD:total]
