# SPDX-License-Identifier: Apache-2.0
"""First-order ambisonics (FOA), and the coordinate conventions of the whole package.

Channels are in ACN order W, Y, Z, X with SN3D normalisation (AmbiX, as in DCASE and STARSS23): a
plane wave from azimuth a and elevation e has the gains 1, sin a cos e, sin e, cos a cos e.
x is front, y left, z up. Azimuth is in degrees, counter-clockwise, front 0, left +90, in
(-180, 180]; elevation is in degrees, up, in [-90, 90].

W is the pressure, and (X, Y, Z) transform as a vector in space, so a rotation of the sound field
is one 3 x 3 matrix on them, and exact:

    >>> from jaxasa.acoustics import foa
    >>> foa.encode(90, 0).round(6)  # from the left
    array([1., 1., 0., 0.])
    >>> foa.rotate(foa.encode(0, 0), yaw=90).round(6)  # from the front, rotated to the left
    array([1., 1., 0., 0.])
    >>> foa.rotate(foa.encode(0, 0), pitch=90).round(6)  # rotated to the zenith
    array([1., 0., 1., 0.])
"""

import numpy as np

from jaxasa.config import check

CHANNELS = ("W", "Y", "Z", "X")

# Per convention: indices of W, Y, Z, X in the stored channels, and gains that make them SN3D.
# FuMa stores W, X, Y, Z with W attenuated by 3 dB; N3D scales first order by sqrt(3).
CONVENTIONS = {
    "ambix": ((0, 1, 2, 3), (1.0, 1.0, 1.0, 1.0)),
    "n3d": ((0, 1, 2, 3), (1.0, 3**-0.5, 3**-0.5, 3**-0.5)),
    "fuma": ((0, 2, 3, 1), (2**0.5, 1.0, 1.0, 1.0)),
}


def wrap_azimuth(azimuth):
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


def cartesian_to_azel(vector) -> tuple[np.ndarray, np.ndarray]:
    """Returns (azimuth, elevation) in degrees of vectors [..., 3] (x, y, z)."""
    x, y, z = np.moveaxis(np.asarray(vector, float), -1, 0)
    azimuth = np.degrees(np.arctan2(y, x))
    return wrap_azimuth(azimuth), np.degrees(np.arctan2(z, np.hypot(x, y)))


def fibonacci_sphere(count: int) -> np.ndarray:
    """Returns uniform directions [count, 3] (x, y, z): a Fibonacci lattice (Gonzalez 2010)."""
    k = np.arange(count) + 0.5
    z = 1 - 2 * k / count
    angle = np.pi * (1 + 5**0.5) * k
    horizontal = np.sqrt(1 - z**2)
    return np.stack([horizontal * np.cos(angle), horizontal * np.sin(angle), z], -1)


def rotation_matrix(yaw=0.0, pitch=0.0, roll=0.0) -> np.ndarray:
    """Returns the matrix [..., 3, 3] that rotates a vector x, y, z by roll, then pitch, then yaw.

    Degrees, scalars or arrays of one shape; every rotation is about a room axis. Positive yaw
    rotates the front to the left, positive pitch lifts the front, positive roll lifts the left:
    R = Rz(yaw) Ry(-pitch) Rx(roll) by the right-hand rule.
    """
    angles = np.radians(np.broadcast_arrays(yaw, pitch, roll))
    (cy, cp, cr), (sy, sp, sr) = np.cos(angles), np.sin(angles)
    rows = [
        [cy * cp, -sy * cr - cy * sp * sr, sy * sr - cy * sp * cr],
        [sy * cp, cy * cr - sy * sp * sr, -cy * sr - sy * sp * cr],
        [sp, cp * sr, cp * cr],
    ]
    return np.moveaxis(np.array(rows), (0, 1), (-2, -1))


def rotate(signal: np.ndarray, yaw=0.0, pitch=0.0, roll=0.0, inverse: bool = False) -> np.ndarray:
    """Rotates the sound field of a signal [..., 4] by `rotation_matrix(yaw, pitch, roll)`; exact.

    The azimuth a of a source becomes a + yaw. Angles are degrees, scalars or arrays that
    broadcast against the signal's [...] (one per sample, say). inverse=True applies the inverse
    rotation: the field in the frame of a listener with that head orientation.
    """
    signal = np.asarray(signal)
    real = signal.dtype if np.issubdtype(signal.dtype, np.floating) else float
    matrix = rotation_matrix(yaw, pitch, roll).astype(real)
    if inverse:
        matrix = np.swapaxes(matrix, -1, -2)
    # Rows and columns in the order Y, Z, X of the channels.
    matrix = matrix[..., [1, 2, 0], :][..., [1, 2, 0]]
    shape = np.broadcast_shapes(signal.shape[:-1], matrix.shape[:-2])
    # In the memory layout of the signal, channel by channel, which is fastest.
    same = shape == signal.shape[:-1]
    out = np.empty_like(signal) if same else np.empty((*shape, 4), signal.dtype)
    out[..., 0] = signal[..., 0]
    for i in range(3):
        # A rotation about one axis has zeros, which need no pass over the signal.
        first, *others = [j for j in range(3) if matrix.ndim > 2 or matrix[i, j] != 0]
        np.multiply(matrix[..., i, first], signal[..., 1 + first], out=out[..., 1 + i])
        for j in others:
            out[..., 1 + i] += matrix[..., i, j] * signal[..., 1 + j]
    return out


def intensity(signal: np.ndarray) -> np.ndarray:
    """Returns the mean active intensity [3] (x, y, z) of a signal [T, 4], pointing to the source.

    For one plane wave, cartesian_to_azel(intensity(signal)) is its azimuth and elevation.
    """
    return signal[:, 0].astype(float) @ signal[:, [3, 1, 2]] / len(signal)


def to_ambix(signal: np.ndarray, convention: str) -> np.ndarray:
    """Converts a signal [..., 4] from `convention` (ambix, n3d or fuma) to W, Y, Z, X in SN3D.

    Raises ConfigError for another convention or another number of channels.
    """
    expected = " or ".join(CONVENTIONS)
    check(convention in CONVENTIONS, "FOA convention", convention, expected)
    check(signal.shape[-1] == 4, "FOA channels", signal.shape[-1], "4")
    order, gains = CONVENTIONS[convention]
    return signal[..., list(order)] * np.asarray(gains, signal.dtype)
