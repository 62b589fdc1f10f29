# SPDX-License-Identifier: Apache-2.0
import numpy as np

from jaxasa.acoustics import rooms, tail
from jaxasa.core import keys
from jaxasa.core.audio import SAMPLE_RATE

ROOM = (6.0, 5.0, 3.0)
# Shares of the octave bands, cut midway between their centres, of the spectrum to 8 kHz.
SHARES = np.diff([0.0, *(2**0.5 * np.array(rooms.BANDS[:-1])), 8000.0]) / 8000.0


def test_tail_has_energy_and_covariance_of_the_closed_form():
    room = rooms.Shoebox(ROOM, rooms.absorption(ROOM, 0.5))
    length = 6400
    tails = [tail.noise_tail(room, length, keys.rng(i)).astype(float) for i in range(30)]
    times = (np.arange(length) + 0.5) / SAMPLE_RATE
    expected = np.tensordot(SHARES, rooms.tail_energy(room, times), 1)
    expected = expected.reshape(4, 4, -1).mean(axis=2) / SAMPLE_RATE
    blocks = np.stack(tails).reshape(30, 4, 4, -1)
    energy = (blocks**2).mean(axis=(0, 3))
    np.testing.assert_allclose(10 * np.log10(energy / expected), 0, atol=0.2)
    # Channels are uncorrelated: energy from opposite directions is equal.
    covariance = np.einsum("ictn,idtn->cd", blocks, blocks)
    scale = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(scale, scale)
    assert np.abs(correlation - np.eye(4)).max() < 0.02


def test_tail_of_a_cube_is_isotropic():
    energy = rooms.tail_energy(rooms.Shoebox((4, 4, 4), np.full(7, 0.1)), np.array([0.0]))[..., 0]
    np.testing.assert_allclose(energy[:, 1:] / energy[:, :1], 1 / 3, rtol=1e-6)


def test_scattering_mixes_directions_towards_the_isotropic():
    flat, times = (9.0, 8.0, 2.4), np.array([0.1, 0.3])
    energies = [
        rooms.tail_energy(rooms.Shoebox(flat, np.full(7, 0.2), s), times) for s in (0.0, 0.5, 1.0)
    ]
    for energy in energies:
        np.testing.assert_allclose(energy[:, 0], energies[0][:, 0])
    np.testing.assert_allclose(energies[2][:, 1:], np.repeat(energies[2][:, :1], 3, 1) / 3)
    np.testing.assert_allclose(energies[1], (energies[0] + energies[2]) / 2)
    # Unscattered sound in a flat room lies near the floor plan, ever more so.
    vertical = energies[0][:, 2] / energies[0][:, 0]
    assert np.all(vertical[:, 1] < vertical[:, 0]) and np.all(vertical < 0.25)


def test_noise_tail_has_the_scattering_of_the_room():
    for scattering, expected in ((0.0, 0.25), (1.0, 1 / 3)):
        room = rooms.Shoebox((9.0, 8.0, 2.4), np.full(7, 0.2), scattering)
        tails = [tail.noise_tail(room, 8000, keys.rng(i)) for i in range(20)]
        energy = sum((t.astype(float) ** 2).sum(axis=1) for t in tails)
        assert abs(energy[2] / energy[0] - expected) < 0.02
