# SPDX-License-Identifier: Apache-2.0
"""The rigid-sphere HRTF, compared with other formulations and with limits in closed form."""

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxasa.acoustics import hrtf, rooms
from jaxasa.acoustics.load_hrtf import load_hrtf
from jaxasa.acoustics.sphere_hrtf import (
    EAR_AZIMUTH,
    HEAD_RADIUS,
    SphereHrtf,
    sphere_transfer_function,
)
from jaxasa.config import ConfigError
from jaxasa.core.audio import SAMPLE_RATE

A, C = HEAD_RADIUS, rooms.SPEED_OF_SOUND
EARS = np.radians(EAR_AZIMUTH)
FREQUENCY = np.arange(100, 7001, 50.0)
MU = 2 * np.pi * FREQUENCY * A / C


def _other_series(rho: float, mu: np.ndarray, theta: float) -> np.ndarray:
    """The same series by half-integer Hankel functions, and a recurrence for P_m.

    Incident field of a point source expanded about the centre plus an outgoing field that makes
    the radial velocity zero on the sphere; at the surface the two join to -i / (mu^2 h_m').
    """
    terms = int(mu.max()) + 60
    cosine = np.cos(theta)
    legendre = [1.0, cosine]
    for m in range(1, terms):
        legendre.append(((2 * m + 1) * cosine * legendre[m] - m * legendre[m - 1]) / (m + 1))

    def h(m, x):
        return np.sqrt(np.pi / (2 * x)) * scipy.special.hankel1(m + 0.5, x)

    total = np.zeros(len(mu), complex)
    for m in range(terms):
        slope = m / mu * h(m, mu) - h(m + 1, mu)
        # Green's function expansion: i k (2m+1) P_m h_m(k r) [j_m - j_m'/h_m' h_m](k a),
        # whose bracket is the Wronskian i / (mu^2 h_m'(mu)); free field exp(i k r) / r.
        term = 1j * (2 * m + 1) * legendre[m] * h(m, mu * rho) * 1j / (mu**2 * slope)
        total += np.where(np.isfinite(term), term, 0)
    free = np.exp(1j * mu * rho) / (mu * rho)
    return (total / free).conj()


@pytest.mark.parametrize("rho", [1.25, 2.0, 8.0, 100.0])
@pytest.mark.parametrize("theta", [0.0, 0.7, 1.9, 2.9])
def test_series_equals_the_scattering_of_a_point_source(rho, theta):
    mu = MU[MU > 0.3]
    expected = _other_series(rho, mu, theta)
    actual = sphere_transfer_function(rho, mu, np.array([theta]))[0]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_plane_wave_is_the_limit_of_a_far_source():
    theta = np.linspace(0, np.pi, 20)
    far = sphere_transfer_function(3000.0, MU, theta)
    np.testing.assert_allclose(far, sphere_transfer_function(np.inf, MU, theta), atol=0.02)


def test_limits_of_a_plane_wave():
    # No effect of a small head, twice the pressure on a large one, and its bright spot behind.
    small = sphere_transfer_function(np.inf, np.array([1e-2]), np.linspace(0, np.pi, 7))
    np.testing.assert_allclose(np.abs(small), 1, atol=0.02)
    front, behind, spot = np.abs(
        sphere_transfer_function(np.inf, np.array([12.0]), np.radians([0, 150, 180]))[:, 0]
    )
    assert front == pytest.approx(2, rel=0.02)
    assert spot > 2 * behind


@pytest.mark.parametrize("theta", np.radians([10, 30, 60, 80]))
def test_interaural_time_is_kuhns_at_low_and_woodworths_at_high_frequencies(theta):
    """Ears at 90 degrees: 3 (a/c) sin(theta) at low frequencies, (a/c) (theta + sin) at high."""
    angles = np.array([np.pi / 2 - theta, np.pi / 2 + theta])
    mu = 2 * np.pi * np.array([60.0, 7000.0, 7050.0]) * A / C
    left, right = sphere_transfer_function(np.inf, mu, angles)
    phase = np.angle(left * right.conj())
    assert phase[0] / (mu[0] * C / A) == pytest.approx(3 * A / C * np.sin(theta), rel=0.02)
    # The creeping wave in the shadow: at ka = 11 it is still a few percent slower than rays.
    group = np.angle(np.exp(1j * (phase[2] - phase[1]))) / ((mu[2] - mu[1]) * C / A)
    assert group == pytest.approx(A / C * (theta + np.sin(theta)), abs=45e-6)
    head = SphereHrtf(ear_azimuth=90)
    degrees = np.degrees(theta)
    _, delay = head.filters([[50 * np.cos(theta), 50 * np.sin(theta), 0]])
    woodworth = A / C * (theta + np.sin(theta))
    assert (delay[0, 1] - delay[0, 0]) / 16000 == pytest.approx(woodworth, abs=1e-6), degrees


def _offset(distance, azimuth, elevation):
    a, e = np.radians([azimuth, elevation])
    return distance * np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)])


def _exact(offset) -> np.ndarray:
    """The series at both ears [2, F] of FREQUENCY."""
    rho = np.linalg.norm(offset) / A
    ears = np.array([[np.cos(EARS), s * np.sin(EARS), 0] for s in (1, -1)])
    theta = np.arccos(np.clip(ears @ offset / np.linalg.norm(offset), -1, 1))
    return sphere_transfer_function(rho, MU, theta)


@settings(max_examples=30)
@given(st.floats(0.12, 30), st.floats(-180, 180), st.floats(-90, 90))
def test_filters_and_delays_equal_the_series(distance, azimuth, elevation):
    """Within 0.15 dB and 1 microsecond of the series from 100 Hz to 7 kHz, near and far."""
    offset = _offset(distance, azimuth, elevation)
    taps, delay = SphereHrtf().filters([offset])
    assert taps.dtype == np.float32 and np.all((delay > -6) & (delay < 8))
    n = np.arange(taps.shape[-1]) - hrtf.PRE_TAPS
    turn = np.exp(-2j * np.pi / SAMPLE_RATE * FREQUENCY * (n[:, None] + delay[0][:, None, None]))
    actual = np.einsum("en,enf->ef", taps[0], turn)
    ratio = actual / _exact(offset)
    assert np.abs(20 * np.log10(np.abs(ratio))).max() < 0.15
    assert (np.abs(np.angle(ratio)) / (2 * np.pi * FREQUENCY)).max() < 1e-6


def test_spectrum_includes_the_delay():
    offset = _offset(2.0, 70, 10)
    frequency = np.fft.rfftfreq(2048, 1 / SAMPLE_RATE)
    actual = hrtf.hrtf_spectrum(SphereHrtf(), [offset], 2048)[0]
    for ear in (0, 1):
        at = np.interp(FREQUENCY, frequency, np.unwrap(np.angle(actual[ear])))
        expected = np.angle(_exact(offset)[ear])
        assert np.abs(np.angle(np.exp(1j * (at - expected)))).max() < 0.03


def test_mirrored_source_swaps_the_ears():
    offset = np.random.default_rng(0).standard_normal((50, 3))
    taps, delay = SphereHrtf().filters(offset)
    mirrored, other = SphereHrtf().filters(offset * [1, -1, 1])
    np.testing.assert_allclose(mirrored, taps[:, ::-1], atol=1e-6)
    np.testing.assert_allclose(other, delay[:, ::-1], atol=1e-9)


def test_near_sources_differ_more_between_the_ears():
    """Lateral source: 2 dB at 500 Hz if distant; at 12 cm the static limit, near 30 Hz."""
    levels = []
    for distance in (20.0, 0.12):
        actual = hrtf.hrtf_spectrum(SphereHrtf(), [_offset(distance, 90, 0)], 2048)[0, :, 64]
        levels.append(20 * np.log10(np.abs(actual[0] / actual[1])))
    assert 1.5 < levels[0] < 2.5 and levels[1] > 10
    # A charge near a sphere: H = sum (2m + 1) / (m + 1) rho^-m P_m at 0 Hz.
    m = np.arange(80)
    theta = np.array([EARS - np.pi / 2, 3 * np.pi / 2 - EARS])
    legendre = scipy.special.eval_legendre(m, np.cos(theta)[:, None])
    static = legendre @ ((2 * m + 1) / (m + 1) * (A / 0.12) ** m)
    actual = hrtf.hrtf_spectrum(SphereHrtf(), [_offset(0.12, 90, 0)], 4096)[0, :, 8]
    np.testing.assert_allclose(np.abs(actual), static, rtol=0.03)


def test_diffuse_field_equals_that_of_the_addition_theorem():
    """sum_m |A_m|^2 P_m(cos of the angle between the ears) / (2m + 1), for H = sum A_m P_m."""
    frequency = np.fft.rfftfreq(512, 1 / SAMPLE_RATE)[4:224]
    mu = 2 * np.pi * frequency * A / C
    m = np.arange(60)[:, None]
    slope = scipy.special.spherical_jn(m, mu, True) + 1j * scipy.special.spherical_yn(m, mu, True)
    weight = (2 * m + 1) / np.abs(mu**2 * slope) ** 2
    between = scipy.special.eval_legendre(m, np.cos(2 * EARS))
    power, cross = weight.sum(axis=0), (weight * between).sum(axis=0)
    actual = hrtf.diffuse_field(SphereHrtf(), 512)[..., 4:224]
    for ear in (0, 1):
        assert np.abs(10 * np.log10(actual[ear, ear].real / power)).max() < 0.05
    coherence = actual[0, 1] / np.sqrt(actual[0, 0].real * actual[1, 1].real)
    assert np.abs(coherence - cross / power).max() < 0.03
    # Two points in free field have the coherence sinc(k d): the head's is narrower.
    free = np.sinc(2 * frequency * 2 * A * np.sin(EARS) / C)
    below = np.flatnonzero(coherence.real < 0.5)[0]
    assert frequency[below] < frequency[np.flatnonzero(free < 0.5)[0]]


def test_quadratures_integrate_over_the_sphere():
    offset, weight = hrtf.sphere_nodes(4)
    unit = offset / 100
    assert weight.sum() == pytest.approx(1)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1)
    np.testing.assert_allclose((unit.T * weight) @ unit, np.eye(3) / 3, atol=1e-4)


@pytest.mark.parametrize("values", [{"radius": 0.0}, {"radius": 0.3}, {"ear_azimuth": 200.0}])
def test_sphere_out_of_range_raises(values):
    with pytest.raises(ConfigError, match=r"head radius|ear azimuth"):
        SphereHrtf(**values)


def test_unknown_hrtf_name_raises(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.sofa.*expected \"sphere\" or a SOFA file"):
        load_hrtf(str(tmp_path / "none.sofa"))
    assert load_hrtf("sphere").name == "sphere of 0.0875 m, ears at 100.0 degrees"
