# SPDX-License-Identifier: Apache-2.0
import doctest

import numpy as np
import pytest

from jaxasa.acoustics import foa
from jaxasa.bench import classical, doa

PLACES = {1: [(60, 20)], 2: [(60, 20), (-100, -10)], 3: [(60, 20), (-100, -10), (170, 0)]}


def test_doctest():
    assert doctest.testmod(classical).failed == 0


def bursts(places, seconds=3.0):
    """Noise bursts in turn, which overlap a little, from (azimuth, elevation), with faint hiss."""
    rng = np.random.default_rng(0)
    samples = round(seconds * 16_000)
    field = 1e-3 * rng.normal(size=(samples, 4))
    length = round(1.2 * samples / len(places))
    for k, (azimuth, elevation) in enumerate(places):
        start = max(0, k * samples // len(places) - length // 12)
        part = field[start : start + length]
        part += rng.normal(size=(len(part), 1)) * foa.encode(azimuth, elevation)
    return field


def truth(places):
    return foa.encode(*np.array(places, float).T)[:, [3, 1, 2]]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_histogram_peaks_at_free_field_sources(count):
    peaks = classical.histogram_peaks(bursts(PLACES[count]), count)
    np.testing.assert_allclose(np.linalg.norm(peaks, axis=1), 1, atol=1e-9)
    assert doa.angular_errors(peaks, truth(PLACES[count])).max() < 4


@pytest.mark.parametrize("count", [1, 2])
def test_music_peaks_at_one_and_two_sources(count):
    peaks = classical.music_peaks(bursts(PLACES[count]), count)
    assert doa.angular_errors(peaks, truth(PLACES[count])).max() < 4


def test_weights_select_the_frames():
    places = PLACES[2]
    audio = bursts(places)
    for k, place in enumerate(places):
        weights = np.zeros(12)
        weights[8 * k : 8 * k + 4] = 1  # a third in which this one sounds alone
        peaks = classical.histogram_peaks(audio, 1, weights)
        assert doa.angular_errors(peaks, truth([place])).max() < 3


def test_silence_gives_the_front():
    assert classical.histogram_peaks(np.zeros((8000, 4)), 2).shape == (2, 3)


def test_errors_are_of_the_best_assignment():
    true = truth(PLACES[3])
    for order in ([0, 1, 2], [2, 0, 1], [1, 0, 2]):
        np.testing.assert_allclose(doa.angular_errors(true[order], true), 0, atol=1e-5)
    moved = truth([(70, 20), (-100, -10), (170, 30)])
    errors = doa.angular_errors(moved[[2, 0, 1]], true)
    assert errors[1] < 1e-5 and errors[2] == pytest.approx(30) and 9 < errors[0] < 10
