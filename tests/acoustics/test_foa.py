# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from jaxasa.acoustics import foa
from jaxasa.config import ConfigError

AZIMUTH = st.floats(-360, 360)
ELEVATION = st.floats(-90, 90)


@pytest.mark.parametrize(
    "azimuth, elevation, gains",
    [
        (0, 0, [1, 0, 0, 1]),
        (90, 0, [1, 1, 0, 0]),
        (180, 0, [1, 0, 0, -1]),
        (-90, 0, [1, -1, 0, 0]),
        (0, 90, [1, 0, 1, 0]),
        (30, 60, [1, 0.25, 3**0.5 / 2, 3**0.5 / 4]),
    ],
)
def test_encode_follows_ambix(azimuth, elevation, gains):
    np.testing.assert_allclose(foa.encode(azimuth, elevation), gains, atol=1e-12)


@given(AZIMUTH, ELEVATION, st.floats(-720, 720))
def test_rotation_moves_azimuth_and_nothing_else(azimuth, elevation, yaw):
    rotated = foa.rotate(foa.encode(azimuth, elevation), yaw)
    np.testing.assert_allclose(rotated, foa.encode(azimuth + yaw, elevation), atol=1e-5)


ANGLE = st.floats(-720, 720)


@given(AZIMUTH, ELEVATION, ANGLE, ANGLE, ANGLE)
def test_rotation_by_yaw_pitch_and_roll_is_exact(azimuth, elevation, yaw, pitch, roll):
    """encode(rotate(direction)) = rotate(encode(direction)); scipy rotates the direction."""
    unit = foa.encode(azimuth, elevation)[[3, 1, 2]]
    # By fixed axes: roll about x (left rises), pitch about y (front rises: negative), yaw about z.
    rotated = Rotation.from_euler("xyz", [roll, -pitch, yaw], degrees=True).apply(unit)
    actual = foa.rotate(foa.encode(azimuth, elevation), yaw, pitch, roll)
    np.testing.assert_allclose(actual, foa.encode(*foa.cartesian_to_azel(rotated)), atol=1e-5)
    np.testing.assert_allclose(
        actual[[3, 1, 2]], foa.rotation_matrix(yaw, pitch, roll) @ unit, atol=1e-9
    )
    back = foa.rotate(actual, yaw, pitch, roll, inverse=True)
    np.testing.assert_allclose(back, foa.encode(azimuth, elevation), atol=1e-9)


def test_signs_of_yaw_pitch_and_roll():
    front, left, up = foa.encode(0, 0), foa.encode(90, 0), foa.encode(0, 90)
    np.testing.assert_allclose(foa.rotate(front, yaw=90), left, atol=1e-12)
    np.testing.assert_allclose(foa.rotate(front, pitch=90), up, atol=1e-12)
    np.testing.assert_allclose(foa.rotate(left, roll=90), up, atol=1e-12)


@given(ANGLE, ANGLE, ANGLE)
def test_rotation_keeps_energy_and_handedness(yaw, pitch, roll):
    turn = foa.rotation_matrix(yaw, pitch, roll)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1)


def test_rotation_of_each_sample_by_its_own_angles():
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((50, 4)).astype(np.float32)
    yaw, pitch, roll = rng.uniform(-180, 180, (3, 50))
    actual = foa.rotate(signal, yaw, pitch, roll)
    one_by_one = [foa.rotate(signal[t], yaw[t], pitch[t], roll[t]) for t in range(50)]
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, one_by_one, atol=1e-5)
    # One sound field in many orientations.
    np.testing.assert_allclose(foa.rotate(signal[0], yaw)[7], foa.rotate(signal[0], yaw[7]))


@given(st.floats(-1e4, 1e4))
def test_wrap_is_in_range_and_the_same_angle(azimuth):
    wrapped = foa.wrap_azimuth(azimuth)
    assert -180 < wrapped <= 180
    turns = (wrapped - azimuth) / 360
    assert abs(turns - round(turns)) < 1e-9


def test_wrap_of_180_degrees():
    assert foa.wrap_azimuth(-180.0) == 180.0
    assert foa.wrap_azimuth(180.0) == 180.0
    assert foa.wrap_azimuth(np.nextafter(180.0, 181.0)) <= 180.0
    np.testing.assert_allclose(foa.wrap_azimuth(np.array([190.0, -190.0, 540.0])), [-170, 170, 180])


@given(st.floats(-179, 179), st.floats(-89, 89))
def test_intensity_points_to_the_source(azimuth, elevation):
    carrier = np.random.default_rng(0).standard_normal(64)
    signal = carrier[:, None] * foa.encode(azimuth, elevation)
    np.testing.assert_allclose(
        foa.cartesian_to_azel(foa.intensity(signal)), (azimuth, elevation), atol=1e-6
    )


def test_fuma_and_n3d_are_converted():
    w, y, z, x = foa.encode(30.0, 20.0)
    fuma = np.array([w / 2**0.5, x, y, z])
    n3d = np.array([w, y * 3**0.5, z * 3**0.5, x * 3**0.5])
    np.testing.assert_allclose(foa.to_ambix(fuma, "fuma"), [w, y, z, x])
    np.testing.assert_allclose(foa.to_ambix(n3d, "n3d"), [w, y, z, x])
    with pytest.raises(ConfigError, match="acn"):
        foa.to_ambix(n3d, "acn")
    with pytest.raises(ConfigError, match="channels is 3"):
        foa.to_ambix(n3d[:3], "n3d")
