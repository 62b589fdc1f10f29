"""How numba compiles loops: once, kept on disk for the next process, with vector instructions.

>>> import numpy as np
>>> from jaxasa.acoustics import compiled
>>> compiled.energy_left(np.ones(6, np.float32), 2)
array([6., 4., 2.])
"""

import numba
import numpy as np

# Numba leaves out this pass of LLVM's unless asked. It puts sums that stand beside each other
# into one instruction: an image adds to 24 of them.
numba.config.SLP_VECTORIZE = 1

exact = numba.njit(cache=True)
fast = numba.njit(cache=True, fastmath=True)  # sums in any order; nothing is NaN or infinite


@exact
def energy_left(signal, step):
    """Returns the energy of a signal [n] from each `step` samples on; an odd end is left out."""
    left = np.empty(len(signal) // step)
    total = 0.0
    for k in range(len(left) - 1, -1, -1):
        for t in range(k * step, (k + 1) * step):
            total += np.float64(signal[t]) ** 2
        left[k] = total
    return left


@fast
def interleaved(channels, gain):
    """Returns gain times channels [4, T] float32 as [T, 4]."""
    out = np.empty((channels.shape[1], 4), np.float32)
    for t in range(channels.shape[1]):
        for c in range(4):
            out[t, c] = gain * channels[c, t]
    return out
