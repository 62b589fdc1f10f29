# SPDX-License-Identifier: Apache-2.0
"""Head-related transfer functions (HRTFs): the interface, and operations on any of them.

An HRTF is the sound pressure at an ear divided by the pressure at the centre of the absent head, as
a function of the source direction. An `Hrtf` returns for each offset of a source a delay and a
short filter per ear. The delay is taken out of the filters, so that those of neighbouring
directions can be interpolated; the renderer puts it back, to a fraction of a sample.
Implementations are the rigid sphere (sphere_hrtf.py) and measurements (sofa.py).

    >>> from jaxasa.acoustics import hrtf
    >>> from jaxasa.acoustics.sphere_hrtf import SphereHrtf
    >>> front, left = abs(hrtf.hrtf_spectrum(SphereHrtf(), [[1, 0, 0], [0, 1, 0]], 512))[:, :, 128]
    >>> bool(front[0] == front[1]), bool(left[0] > left[1])  # left and right ear at 4 kHz
    (True, True)
"""

import functools
from typing import Protocol

import numpy as np

PRE_TAPS = 24  # taps of a filter before its time zero: band-limited filters ring on both sides


class Hrtf(Protocol):
    """A head-related transfer function. `name` identifies it in manifests and for people."""

    name: str

    def filters(self, offset) -> tuple[np.ndarray, np.ndarray]:
        """Returns HRIRs [N, 2, n] float32 and delays [N, 2] of the left and the right ear.

        offset [N, 3]: x (front), y (left), z (up) of the source from the head's centre (m).
        Delays are in samples relative to the arrival at the centre of the absent head, mostly from
        -5 to 7; time zero of a filter is tap PRE_TAPS. The gain 1 / distance is not included.
        """
        ...


def hrtf_spectrum(hrtf: Hrtf, offset, size: int) -> np.ndarray:
    """Returns the HRTF [N, 2, size // 2 + 1] at the frequencies of an rfft of `size` samples.

    Delays are included, and so the interaural phase; offset as in Hrtf.filters.
    """
    taps, delay = hrtf.filters(offset)
    spectrum = np.fft.rfft(taps, size)
    phase = -2j * np.pi / size * np.arange(spectrum.shape[-1])
    return spectrum * np.exp(phase * (delay[..., None] - PRE_TAPS))


@functools.cache
def sphere_nodes(n: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Returns quadrature nodes [8 n*n, 3] on a sphere of 100 m, and weights, which sum to 1.

    Gauss-Legendre in height and in azimuth in each octant. The octants are mirror images of the
    first, one after another.
    """
    unit, weight = octant_nodes(n)
    signs = np.stack(np.meshgrid(*[[1, -1]] * 3, indexing="ij"), axis=-1).reshape(8, 1, 3)
    return 100.0 * (signs * unit).reshape(-1, 3), np.tile(weight / 8, 8)


@functools.cache
def octant_nodes(n: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Returns unit vectors [n*n, 3] of the octant x, y, z > 0, and weights, which sum to 1."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    nodes, weights = (nodes + 1) / 2, weights / 2
    z, phi = np.repeat(nodes, n), np.tile(nodes, n) * np.pi / 2
    horizontal = np.sqrt(1 - z * z)
    unit = np.stack([horizontal * np.cos(phi), horizontal * np.sin(phi), z], axis=1)
    return unit, np.repeat(weights, n) * np.tile(weights, n)


def diffuse_field(hrtf: Hrtf, size: int) -> np.ndarray:
    """Returns the diffuse-field covariance of the ears [2, 2, size // 2 + 1]: the mean of H H^*.

    The diagonal is the power at each ear in a diffuse field of power 1. The interaural coherence
    is |[0, 1]| / sqrt([0, 0] [1, 1]), near 1 at low and near 0 at high frequencies.
    """
    offset, weight = sphere_nodes()
    spectrum = hrtf_spectrum(hrtf, offset, size)
    return np.einsum("n,nef,ngf->egf", weight, spectrum, spectrum.conj())


def window_hrir(spectrum: np.ndarray, taps: int) -> np.ndarray:
    """Returns HRIRs [..., taps] of spectra [..., F] with about zero delay; time zero is PRE_TAPS.

    The fades at both ends truncate the ringing of the band limit at 8 kHz.
    """
    full = np.fft.irfft(spectrum)
    cut = np.concatenate([full[..., -PRE_TAPS:], full[..., : taps - PRE_TAPS]], axis=-1)
    fade = PRE_TAPS * 2 // 3
    window = np.ones(taps)
    window[:fade] = np.sin(np.pi / 2 * (np.arange(fade) + 0.5) / fade) ** 2
    window[-fade:] = window[:fade][::-1]
    return (cut * window).astype(np.float32)
