# SPDX-License-Identifier: Apache-2.0
"""Ambient noise: an isotropic diffuse field in FOA with the pink spectrum of room noise.

Independent plane waves from all directions give W, Y, Z, X the covariance
diag(1, 1/3, 1/3, 1/3): the mean square of a coordinate on the unit sphere is 1/3.

    >>> import numpy as np
    >>> from jaxasa.acoustics import noise
    >>> field = noise.diffuse_noise(np.random.default_rng(0), 32000)
    >>> (field @ field.T / 32000).round(1) + 0.0
    array([[1. , 0. , 0. , 0. ],
           [0. , 0.3, 0. , 0. ],
           [0. , 0. , 0.3, 0. ],
           [0. , 0. , 0. , 0.3]], dtype=float32)
"""

import functools
import math

import numpy as np
import scipy.fft

from jaxasa.core.audio import SAMPLE_RATE


def random_sign_spectrum(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Returns a noise spectrum: complex64 [*shape], real and imaginary parts 1 or -1 at random.

    Its transform is close to Gaussian from a hundred bins on. Unlike Gaussian spectra it costs
    one random bit per number, and the energy of a frame does not fluctuate.
    """
    count = 2 * math.prod(shape)
    packed = np.frombuffer(rng.bytes(-(-count // 8)), np.uint8)
    signs = np.unpackbits(packed, count=count).view(np.int8)
    signs *= 2
    signs -= 1
    return signs.astype(np.float32).view(np.complex64).reshape(shape)


@functools.lru_cache(maxsize=4)
def pink_amplitudes(size: int) -> np.ndarray:
    """Returns the amplitudes [size // 2 + 1] of pink noise of power 1, flat below 100 Hz."""
    f = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 1e-3)
    shape = 1 / np.sqrt(np.maximum(f, 100.0) * (1 + (60.0 / f) ** 8))
    return (shape * np.sqrt(size / (2 * np.mean(shape**2)))).astype(np.float32)


def diffuse_noise(rng: np.random.Generator, length: int, level: float = 1.0) -> np.ndarray:
    """Returns pink diffuse noise [4, length] (W, Y, Z, X); W has the mean power level^2."""
    size = scipy.fft.next_fast_len(length, real=True)
    amplitude = pink_amplitudes(size) * np.float32(level)
    spectrum = random_sign_spectrum(rng, 4, len(amplitude))
    spectrum[0] *= amplitude
    spectrum[1:] *= amplitude * np.float32(3**-0.5)
    return scipy.fft.irfft(spectrum, size)[:, :length]
