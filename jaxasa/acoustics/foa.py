"""First-order ambisonics (FOA), and the conventions of the whole package.

Channels are ACN order W, Y, Z, X with SN3D gains (AmbiX, as in DCASE and STARSS23): a plane
wave from azimuth a and elevation e has the gains 1, sin a cos e, sin e, cos a cos e.
x is front, y left, z up. Azimuth is in degrees, counter-clockwise, front 0, left +90, in
(-180, 180]; elevation is in degrees, up, in [-90, 90].
"""

import numpy as np

from jaxasa.config import check

CHANNELS = ("W", "Y", "Z", "X")

# What each convention's stored channels must be indexed and multiplied by to become W, Y, Z, X
# in SN3D. FuMa stores W, X, Y, Z with W attenuated by 3 dB; N3D scales first order by sqrt(3).
_CONVENTIONS = {
    "ambix": ((0, 1, 2, 3), (1.0, 1.0, 1.0, 1.0)),
    "n3d": ((0, 1, 2, 3), (1.0, 3**-0.5, 3**-0.5, 3**-0.5)),
    "fuma": ((0, 2, 3, 1), (2**0.5, 1.0, 1.0, 1.0)),
}


def wrap(azimuth):
    """Returns the azimuth (degrees, scalar or array) in (-180, 180]."""
    wrapped = 180.0 - np.mod(180.0 - np.asarray(azimuth, float), 360.0)
    # np.mod of a tiny negative number rounds up to 360 itself.
    wrapped = np.where(wrapped <= -180.0, 180.0, wrapped)
    return float(wrapped) if wrapped.ndim == 0 else wrapped


def encode(azimuth, elevation) -> np.ndarray:
    """Returns the gains [..., 4] of plane waves from (azimuth, elevation) in degrees."""
    a, e = np.radians(azimuth), np.radians(elevation)
    y, z, x = np.sin(a) * np.cos(e), np.sin(e) + 0 * a, np.cos(a) * np.cos(e)
    return np.stack([np.ones_like(z), y, z, x], axis=-1)


def direction(vector) -> tuple[np.ndarray, np.ndarray]:
    """Returns (azimuth, elevation) in degrees of vectors [..., 3] given as x, y, z."""
    x, y, z = np.moveaxis(np.asarray(vector, float), -1, 0)
    azimuth = np.degrees(np.arctan2(y, x))
    return wrap(azimuth), np.degrees(np.arctan2(z, np.hypot(x, y)))


def rotate(signal: np.ndarray, yaw: float) -> np.ndarray:
    """Rotates the sound field of a signal [..., 4] by +`yaw` degrees about z; exact.

    A source at azimuth a is then heard at a + yaw. A listener who turns by +yaw hears the
    field rotated by -yaw.
    """
    w, y, z, x = np.moveaxis(signal, -1, 0)
    c, s = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    turned = np.stack([w, c * y + s * x, z, c * x - s * y], axis=-1)
    return turned.astype(signal.dtype, copy=False)


def intensity(signal: np.ndarray) -> np.ndarray:
    """Returns the mean active intensity [3] (x, y, z) of a signal [T, 4]; it points to the source.

    For one plane wave, direction(intensity(signal)) is its azimuth and elevation.
    """
    return signal[:, 0].astype(float) @ signal[:, [3, 1, 2]] / len(signal)


def from_convention(signal: np.ndarray, name: str) -> np.ndarray:
    """Returns a signal [..., 4] stored as `name` (ambix, n3d or fuma) as W, Y, Z, X in SN3D.

    Raises ConfigError for another name or another number of channels.
    """
    check(name in _CONVENTIONS, "FOA convention", name, " or ".join(_CONVENTIONS))
    check(signal.shape[-1] == 4, "FOA channels", signal.shape[-1], "4")
    order, gains = _CONVENTIONS[name]
    return signal[..., list(order)] * np.asarray(gains, signal.dtype)
