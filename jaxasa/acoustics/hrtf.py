# SPDX-License-Identifier: Apache-2.0
"""Head-related transfer functions (HRTFs): what the head does to sound on its way to each ear.

An HRTF is the pressure at an ear over the pressure that a listener who is not there would have
at the place of the head's centre, as a function of the direction that sound comes from. Any
HRTF here is an object with `at`, which gives for each offset of a source from the head a delay
and a short filter: the delay is taken out of the filters, so that filters of neighbouring
directions can be interpolated, and it is put back to a fraction of a sample by the renderer.

The built-in one is a rigid sphere (Duda and Martens, "Range dependence of the response of a
spherical head model", JASA 104, 1998, equation 3, the series of Rabinowitz et al. 1993): with a
the radius, mu = k a, rho = distance / a, theta the angle between the source and the ear, and
h_m the spherical Hankel functions,

    H(rho, mu, theta) = -(rho / mu) exp(-i mu rho) sum_m (2m + 1) P_m(cos theta)
                                                         h_m(mu rho) / h_m'(mu)

which is 1 on average over directions at low frequencies, and carries what a near source adds
to the level difference. Delays are those of the shortest path around the sphere (Woodworth and
Schlosberg 1954 for a far source): the phase that remains is small and smooth. `sofa.read` gives
a measured HRTF instead.

    >>> from jaxasa.acoustics import hrtf
    >>> taps, delay = hrtf.SphereHrtf().filters([[0.0, 1.5, 0.0]])  # a source 1.5 m to the left
    >>> round(float(delay[0, 1] - delay[0, 0]), 1)  # samples by which the right ear is later
    9.8
"""

import functools
from typing import Protocol

import numpy as np
import scipy.special

from jaxasa.acoustics import rooms
from jaxasa.config import check
from jaxasa.core.audio import SAMPLE_RATE

PRE_TAPS = 24  # samples of a filter before its delay: band-limited filters ring on both sides
HEAD_RADIUS = 0.0875  # metres
EAR_AZIMUTH = 100.0  # degrees: azimuth of the left ear, behind the middle (Blauert 1997)


class Hrtf(Protocol):
    """A head. `name` says which, for manifests and for people."""

    name: str

    def filters(self, offset) -> tuple[np.ndarray, np.ndarray]:
        """Returns filters [N, 2, n] float32 and delays [N, 2] of the left and the right ear.

        offset [N, 3]: x (front), y (left), z (up) of the source from the head's centre, metres.
        Delays are samples after the arrival at the centre of the absent head, mostly between
        -5 and 7; sample LEAD of a filter is its time zero. The gain 1 / distance is not in it.
        """
        ...


@functools.lru_cache(maxsize=4)
def load(name: str) -> Hrtf:
    """Returns the HRTF called "sphere", or the one in a SOFA file; raises ConfigError."""
    if name == "sphere":
        return SphereHrtf()
    from jaxasa.acoustics import sofa

    return sofa.read_sofa(name)


def hrtf_spectrum(head: Hrtf, offset, size: int) -> np.ndarray:
    """Returns the HRTF [N, 2, size // 2 + 1] at the frequencies of an rfft of `size` samples.

    Delays included, so that a direction's interaural phase is in it; offset as in Hrtf.at.
    """
    taps, delay = head.filters(offset)
    spectrum = np.fft.rfft(taps, size)
    turn = -2j * np.pi / size * np.arange(spectrum.shape[-1])
    return spectrum * np.exp(turn * (delay[..., None] - PRE_TAPS))


@functools.cache
def sphere_nodes(n: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Returns far offsets [8 n*n, 3] (unit vectors times 100 m) and weights, which sum to 1.

    Gauss-Legendre in height and in azimuth over each octant; octants are the mirror images of
    the first, one after another.
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
    flat = np.sqrt(1 - z * z)
    unit = np.stack([flat * np.cos(phi), flat * np.sin(phi), z], axis=1)
    return unit, np.repeat(weights, n) * np.tile(weights, n)


def diffuse_field(head: Hrtf, size: int) -> np.ndarray:
    """Returns the mean of H H^* over directions [2, 2, size // 2 + 1]: a diffuse field's ears.

    The diagonal is the power that an ear gets from a diffuse field of power 1; the interaural
    coherence is |[0, 1]| / sqrt([0, 0] [1, 1]), near 1 at low and near 0 at high frequencies.
    """
    offset, weight = sphere_nodes()
    found = hrtf_spectrum(head, offset, size)
    return np.einsum("n,nef,ngf->egf", weight, found, found.conj())


def extra_path(rho, theta):
    """Returns the extra path (in radii) to a point of a sphere at the angle theta (radians).

    Against the way to the centre, for a source at rho radii: straight where the ear sees the
    source, else along a tangent and around. Far away -cos(theta), or theta - pi / 2.
    """
    rho, theta = np.broadcast_arrays(np.asarray(rho, float), np.asarray(theta, float))
    limit = np.arccos(1 / rho)
    cosine = np.cos(theta)
    # sqrt(rho^2 - 2 rho cos + 1) - rho and sqrt(rho^2 - 1) - rho, exact for a far source too.
    straight = np.sqrt(rho**2 - 2 * rho * cosine + 1)
    seen = (1 - 2 * rho * cosine) / (straight + rho)
    around = -1 / (np.sqrt(rho**2 - 1) + rho) + theta - limit
    return np.where(theta <= limit, seen, around)


def sphere_transfer_function(rho: float, mu: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Returns H [len(theta), len(mu)] of a rigid sphere, by the series in the module's docstring.

    Signals go as exp(+i omega t), so a later arrival has the more negative phase. rho > 1 is
    the distance in radii (np.inf for plane waves), mu > 0 are frequencies as k a.
    """
    mu = np.asarray(mu, float)[:, None]
    # A far source needs mu + 20 terms; a near one what rho^-m leaves: 1.2^-70 is 3e-6.
    m = np.arange(72)
    with np.errstate(over="ignore", invalid="ignore"):
        slope = _hankel(m, mu, derivative=True)
        if np.isinf(rho):
            term = (-1j) ** (m + 1) / mu / slope
        else:
            term = rho * np.exp(-1j * mu * rho) * _hankel(m, mu * rho) / slope
    # Beyond the range of floats h_m(mu rho) / h_m'(mu) is zero to any precision that matters.
    term = np.where(np.isfinite(term), term, 0) * (-(2 * m + 1) / mu)
    legendre = scipy.special.eval_legendre(m, np.cos(np.asarray(theta, float))[:, None])
    return (legendre @ term.T).conj()


def _hankel(m, x, derivative: bool = False):
    return scipy.special.spherical_jn(m, x, derivative) + 1j * scipy.special.spherical_yn(
        m, x, derivative
    )


class SphereHrtf:
    """The HRTF of a rigid sphere with two ears on its equator.

    radius: metres. ears: azimuth of the left ear in degrees, the right one's mirrored. Sources
    nearer than 1.2 radii are heard as from there. Raises ConfigError for values out of range.
    """

    def __init__(self, radius: float = HEAD_RADIUS, ear_azimuth: float = EAR_AZIMUTH):
        check(0.05 <= radius <= 0.15, "head radius", radius, "0.05 to 0.15 metres")
        check(60 <= ear_azimuth <= 120, "ear azimuth", ear_azimuth, "60 to 120 degrees")
        self.name = f"sphere of {radius} m, ears at {ear_azimuth} degrees"
        self._radius = radius
        angle = np.radians(ear_azimuth)
        self._ears = np.array([[np.cos(angle), s * np.sin(angle), 0] for s in (1, -1)])

    def filters(self, offset) -> tuple[np.ndarray, np.ndarray]:
        """See Hrtf.at."""
        offset = np.atleast_2d(np.asarray(offset, float))
        distance = np.linalg.norm(offset, axis=1)
        cosine = np.clip(offset @ self._ears.T / distance[:, None], -1, 1)
        theta = np.arccos(cosine)
        rho = np.maximum(distance / self._radius, 1 / _NEAR[0])[:, None]
        delay = extra_path(rho, theta) * (self._radius / rooms.SPEED_OF_SOUND * SAMPLE_RATE)
        table = _table(self._radius)
        near = np.clip(np.interp(1 / rho, _NEAR[::-1], np.arange(len(_NEAR))[::-1]), 0, None)
        r, r_share = _split(np.broadcast_to(near, theta.shape), len(_NEAR))
        t, t_share = _split(theta / np.pi * (_ANGLES - 1), _ANGLES)
        taps = (1 - r_share) * ((1 - t_share) * table[r, t] + t_share * table[r, t + 1])
        taps += r_share * ((1 - t_share) * table[r + 1, t] + t_share * table[r + 1, t + 1])
        return taps, delay


# 1 / rho of the tabulated distances (filters between them are interpolated), and angles from
# 0 to 180 degrees.
_NEAR = np.array([1 / 1.2, 0.74, 0.65, 0.56, 0.48, 0.4, 0.32, 0.24, 0.16, 0.08, 0.0])
_ANGLES = 361
_TAPS, _SIZE = 72, 512


def _split(position: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the index below each position (at most count - 2), and the share of the next."""
    index = np.minimum(position.astype(int), count - 2)
    return index, (position - index)[..., None].astype(np.float32)


@functools.lru_cache(maxsize=4)
def _table(radius: float) -> np.ndarray:
    """Returns filters [distances, angles, taps] without the delay of `path`."""
    theta = np.linspace(0, np.pi, _ANGLES)
    frequency = np.fft.rfftfreq(_SIZE, 1 / SAMPLE_RATE)
    mu = 2 * np.pi * frequency * radius / rooms.SPEED_OF_SOUND
    out = np.empty((len(_NEAR), _ANGLES, _TAPS), np.float32)
    for i, near in enumerate(_NEAR):
        rho = 1 / near if near else np.inf
        found = np.empty((_ANGLES, len(mu)), complex)
        found[:, 0] = _static(rho, theta)
        found[:, 1:] = sphere_transfer_function(rho, mu[1:], theta)
        shift = extra_path(rho if near else 1e6, theta)[:, None] * mu
        out[i] = window_hrir(found * np.exp(1j * shift), _TAPS)
    return out


def _static(rho: float, theta: np.ndarray) -> np.ndarray:
    """Returns H at 0 Hz: sum_m (2m + 1) / (m + 1) rho^-m P_m, the limit of the series."""
    m = np.arange(96)
    legendre = scipy.special.eval_legendre(m, np.cos(theta)[:, None])
    return legendre @ ((2 * m + 1) / (m + 1) * (1 / rho) ** m)


def window_hrir(spectrum: np.ndarray, taps: int) -> np.ndarray:
    """Returns filters [..., taps] of spectra [..., F] whose delay is about zero, now at LEAD.

    The ends are faded: what is cut there is the ringing of the limit at 8 kHz.
    """
    long = np.fft.irfft(spectrum)
    cut = np.concatenate([long[..., -PRE_TAPS:], long[..., : taps - PRE_TAPS]], axis=-1)
    fade = PRE_TAPS * 2 // 3
    window = np.ones(taps)
    window[:fade] = np.sin(np.pi / 2 * (np.arange(fade) + 0.5) / fade) ** 2
    window[-fade:] = window[:fade][::-1]
    return (cut * window).astype(np.float32)
