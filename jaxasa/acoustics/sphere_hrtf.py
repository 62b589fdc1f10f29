# SPDX-License-Identifier: Apache-2.0
"""The HRTF of a rigid sphere with two ears, computed from its analytic series.

Duda and Martens, "Range dependence of the response of a spherical head model", JASA 104, 1998,
equation 3 (the series of Rabinowitz et al. 1993): with a the radius, mu = k a, rho = distance / a,
theta the angle between source and ear, and h_m the spherical Hankel functions,

    H(rho, mu, theta) = -(rho / mu) exp(-i mu rho) sum_m (2m + 1) P_m(cos theta)
                                                         h_m(mu rho) / h_m'(mu)

which is 1 on average over directions at low frequencies, and includes the larger level difference
of a near source. Delays are those of the shortest path around the sphere (for a distant source,
Woodworth and Schlosberg 1954): the remaining phase is small and smooth.

    >>> from jaxasa.acoustics.sphere_hrtf import SphereHrtf
    >>> taps, delay = SphereHrtf().filters([[0.0, 1.5, 0.0]])  # a source 1.5 m to the left
    >>> round(float(delay[0, 1] - delay[0, 0]), 1)  # delay of the right ear in samples
    9.8
"""

import functools

import numpy as np
import scipy.special

from jaxasa.acoustics import rooms
from jaxasa.acoustics.hrtf import window_hrir
from jaxasa.config import check
from jaxasa.core.audio import SAMPLE_RATE

HEAD_RADIUS = 0.0875  # m
EAR_AZIMUTH = 100.0  # degrees, of the left ear: slightly to the back (Blauert 1997)
# 1 / rho of the tabulated distances, between which filters are interpolated; the first is nearest.
_INVERSE_RHO = np.array([1 / 1.2, 0.74, 0.65, 0.56, 0.48, 0.4, 0.32, 0.24, 0.16, 0.08, 0.0])
_ANGLES = 361  # tabulated angles from 0 to 180 degrees
_TAPS, _SIZE = 72, 512


class SphereHrtf:
    """The HRTF of a rigid sphere with two ears on its equator; see hrtf.Hrtf.

    radius: m. ear_azimuth: of the left ear, degrees; the right ear is its mirror image. Sources
    nearer than 1.2 radii are rendered at 1.2 radii. Raises ConfigError for values out of range.
    """

    def __init__(self, radius: float = HEAD_RADIUS, ear_azimuth: float = EAR_AZIMUTH):
        check(0.05 <= radius <= 0.15, "head radius", radius, "0.05 to 0.15 metres")
        check(60 <= ear_azimuth <= 120, "ear azimuth", ear_azimuth, "60 to 120 degrees")
        self.name = f"sphere of {radius} m, ears at {ear_azimuth} degrees"
        self._radius = radius
        angle = np.radians(ear_azimuth)
        self._ears = np.array([[np.cos(angle), s * np.sin(angle), 0] for s in (1, -1)])

    def filters(self, offset) -> tuple[np.ndarray, np.ndarray]:
        """See hrtf.Hrtf.filters."""
        offset = np.atleast_2d(np.asarray(offset, float))
        distance = np.linalg.norm(offset, axis=1)
        cosine = np.clip(offset @ self._ears.T / distance[:, None], -1, 1)
        theta = np.arccos(cosine)
        rho = np.maximum(distance / self._radius, 1 / _INVERSE_RHO[0])[:, None]
        delay = extra_path(rho, theta) * (self._radius / rooms.SPEED_OF_SOUND * SAMPLE_RATE)
        table = _hrir_table(self._radius)
        count = len(_INVERSE_RHO)
        row = np.clip(np.interp(1 / rho, _INVERSE_RHO[::-1], np.arange(count)[::-1]), 0, None)
        r, r_weight = _split(np.broadcast_to(row, theta.shape), count)
        t, t_weight = _split(theta / np.pi * (_ANGLES - 1), _ANGLES)
        taps = (1 - r_weight) * ((1 - t_weight) * table[r, t] + t_weight * table[r, t + 1])
        taps += r_weight * ((1 - t_weight) * table[r + 1, t] + t_weight * table[r + 1, t + 1])
        return taps, delay


def _split(position: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the index below each position (at most count - 2), and the weight of the next."""
    index = np.minimum(position.astype(int), count - 2)
    return index, (position - index)[..., None].astype(np.float32)


def extra_path(rho, theta):
    """Returns the extra path length (in radii) to a point of a sphere, relative to its centre.

    rho: distance of the source (in radii), theta: angle between source and point (radians). The
    path is straight if the point is visible from the source, otherwise along a tangent and around
    the sphere. For a distant source: -cos(theta), or theta - pi / 2.
    """
    rho, theta = np.broadcast_arrays(np.asarray(rho, float), np.asarray(theta, float))
    limit = np.arccos(1 / rho)
    cosine = np.cos(theta)
    # sqrt(rho^2 - 2 rho cos + 1) - rho and sqrt(rho^2 - 1) - rho, exact also for a distant source.
    length = np.sqrt(rho**2 - 2 * rho * cosine + 1)
    straight = (1 - 2 * rho * cosine) / (length + rho)
    around = -1 / (np.sqrt(rho**2 - 1) + rho) + theta - limit
    return np.where(theta <= limit, straight, around)


def sphere_transfer_function(rho: float, mu: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Returns H [len(theta), len(mu)] of a rigid sphere, by the series in the module's docstring.

    Signals are exp(+i omega t), so a later arrival has the more negative phase. rho > 1: distance
    in radii (np.inf for plane waves). mu > 0: frequencies as k a.
    """
    mu = np.asarray(mu, float)[:, None]
    # A distant source needs mu + 20 terms; for a near one they fall as rho^-m: 1.2^-70 is 3e-6.
    m = np.arange(72)
    with np.errstate(over="ignore", invalid="ignore"):
        slope = _hankel(m, mu, derivative=True)
        if np.isinf(rho):
            term = (-1j) ** (m + 1) / mu / slope
        else:
            term = rho * np.exp(-1j * mu * rho) * _hankel(m, mu * rho) / slope
    # Beyond the range of floats h_m(mu rho) / h_m'(mu) is zero to any relevant precision.
    term = np.where(np.isfinite(term), term, 0) * (-(2 * m + 1) / mu)
    legendre = scipy.special.eval_legendre(m, np.cos(np.asarray(theta, float))[:, None])
    return (legendre @ term.T).conj()


def _hankel(m, x, derivative: bool = False):
    return scipy.special.spherical_jn(m, x, derivative) + 1j * scipy.special.spherical_yn(
        m, x, derivative
    )


@functools.lru_cache(maxsize=4)
def _hrir_table(radius: float) -> np.ndarray:
    """Returns filters [distances, angles, taps] without the delay of `extra_path`."""
    theta = np.linspace(0, np.pi, _ANGLES)
    frequency = np.fft.rfftfreq(_SIZE, 1 / SAMPLE_RATE)
    mu = 2 * np.pi * frequency * radius / rooms.SPEED_OF_SOUND
    out = np.empty((len(_INVERSE_RHO), _ANGLES, _TAPS), np.float32)
    for i, inverse in enumerate(_INVERSE_RHO):
        rho = 1 / inverse if inverse else np.inf
        spectrum = np.empty((_ANGLES, len(mu)), complex)
        spectrum[:, 0] = _static_transfer_function(rho, theta)
        spectrum[:, 1:] = sphere_transfer_function(rho, mu[1:], theta)
        phase = extra_path(rho if inverse else 1e6, theta)[:, None] * mu
        out[i] = window_hrir(spectrum * np.exp(1j * phase), _TAPS)
    return out


def _static_transfer_function(rho: float, theta: np.ndarray) -> np.ndarray:
    """Returns H at 0 Hz: sum_m (2m + 1) / (m + 1) rho^-m P_m, the limit of the series."""
    m = np.arange(96)
    legendre = scipy.special.eval_legendre(m, np.cos(theta)[:, None])
    return legendre @ ((2 * m + 1) / (m + 1) * (1 / rho) ** m)
