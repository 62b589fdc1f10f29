# SPDX-License-Identifier: Apache-2.0
import jax
import numpy as np
import pytest

from jaxasa.acoustics import bands, jax_rir, measure, rir, rooms
from jaxasa.config import ConfigError
from jaxasa.core import keys
from jaxasa.core.audio import SAMPLE_RATE

SIZES = np.array([[4.2, 3.6, 2.6], [5.0, 4.0, 2.8]])
LISTENERS = 0.45 * SIZES
SOURCES = np.array([[0.2, 0.7, 0.6], [0.8, 0.3, 0.4], [0.6, 0.8, 0.7]]) * SIZES[:, None]
WALLS = np.stack([rooms.absorption(size, [0.3, 0.3, 0.3, 0.25, 0.25, 0.2, 0.2]) for size in SIZES])
BATCH = (SIZES, WALLS, SOURCES, LISTENERS)


@pytest.fixture(scope="module")
def batch():
    """Its shape, and 4 draws of its RIRs: [4, rooms, sources, 4, n]."""
    shape = jax_rir.plan_shape(*BATCH)
    draws = [jax_rir.batch_rirs(*BATCH, jax.random.key(k), shape, 0.0) for k in range(4)]
    return shape, np.asarray(draws)


def _numba(r, s, seed=0):
    room = rooms.Shoebox(SIZES[r], WALLS[r])
    return rir.shoebox_rir(room, SOURCES[r, s], LISTENERS[r], keys.rng(seed))


def test_early_images_are_those_of_numba(batch):
    for r in range(2):
        # Before the cross-fade of the room; the octave filters ring a little further.
        fade = int(rooms.mixing_time(SIZES[r]) * rir.FADE_START * SAMPLE_RATE)
        early = bands.PRE_SAMPLES + fade - 200
        for s in range(3):
            jax_rirs, numba_rirs = batch[1][0, r, s, :, :early], _numba(r, s)[:, :early]
            error = np.linalg.norm(jax_rirs - numba_rirs) / np.linalg.norm(numba_rirs)
            assert 20 * np.log10(error) < -60


def test_tails_have_the_energy_and_decay_of_numba(batch):
    for r in range(2):
        start = bands.PRE_SAMPLES + int(rooms.mixing_time(SIZES[r]) * SAMPLE_RATE)
        for s in range(3):
            numba_rirs = np.stack([_numba(r, s, seed) for seed in range(4)])
            n = numba_rirs.shape[-1]
            jax_rirs = batch[1][:, r, s, :, :n]
            energy = [
                (x[..., start:].astype(float) ** 2).sum(axis=(0, 2)) for x in (jax_rirs, numba_rirs)
            ]
            np.testing.assert_allclose(10 * np.log10(energy[0] / energy[1]), 0, atol=0.25)
            decays = [
                [measure.octave_rt60(x, (500.0, 2000.0)) for x in y] for y in (jax_rirs, numba_rirs)
            ]
            np.testing.assert_allclose(*np.mean(decays, axis=1), rtol=0.05)


def test_full_mode_with_six_frequency_independent_walls():
    walls = np.repeat(np.linspace(0.3, 0.8, 6)[:, None], 7, axis=1)
    where = (SIZES[:1], walls[None], SOURCES[:1, :2], LISTENERS[:1])
    shape = jax_rir.plan_shape(*where, full=True, air=False)
    assert not shape.octaves
    actual = np.asarray(jax_rir.batch_rirs(*where, jax.random.key(0), shape))
    with pytest.raises(ConfigError, match="scattering is 0.5, expected 0 if full=True"):
        jax_rir.batch_rirs(*where, jax.random.key(0), shape, 0.5)
    for s in range(2):
        room = rooms.Shoebox(SIZES[0], walls, air=False)
        expected = rir.shoebox_rir(room, SOURCES[0, s], LISTENERS[0], keys.rng(0), full=True)
        n = min(expected.shape[1], actual.shape[-1])
        error = np.linalg.norm(actual[0, s, :, :n] - expected[:, :n]) / np.linalg.norm(expected)
        assert 20 * np.log10(error) < -60


def test_nonuniform_absorption_has_the_late_images_of_numba():
    walls = np.linspace([0.2, 0.3, 0.5, 0.3, 0.9, 0.7], [0.3, 0.2, 0.5, 0.6, 0.8, 0.7], 7).T
    uniform = np.tile(rooms.absorption(SIZES[1], 0.25), (6, 1))
    where = (SIZES, np.stack([walls, uniform]), SOURCES[:, :1], LISTENERS)
    shape = jax_rir.plan_shape(*where)
    assert shape.seconds[2] > 0 and jax_rir.plan_shape(*where, scattering=0.3).seconds[2] == 0
    rirs = jax_rir.batch_rirs(*where, jax.random.key(0), shape, rooms_per_chunk=1)
    actual = np.asarray(rirs)[:, 0]
    for r in range(2):
        room = rooms.Shoebox(SIZES[r], where[1][r])
        expected = rir.shoebox_rir(room, SOURCES[r, 0], LISTENERS[r], keys.rng(0))
        n = min(expected.shape[1], actual.shape[-1])
        error = 20 * np.log10(
            np.linalg.norm(actual[r, :, :n] - expected[:, :n]) / np.linalg.norm(expected[:, :n])
        )
        # In single precision few late images round to another sample; noise is drawn differently.
        assert error < -45 if r == 0 else error > -40


def test_room_is_the_same_in_batches_of_any_size(batch):
    shape, draws = batch
    single = jax_rir.batch_rirs(
        *(part[:1] for part in BATCH), jax.random.key(0), shape, 0.0, rooms_per_chunk=1
    )
    np.testing.assert_allclose(single[0], draws[0, 0], atol=2e-5)
    assert np.abs(draws[1, 0] - draws[0, 0]).max() > 1e-3


def test_scattering_makes_the_tail_isotropic(batch):
    shape, draws = batch
    start = bands.PRE_SAMPLES + int(rooms.mixing_time(SIZES[1]) * SAMPLE_RATE)
    per_room = np.array([0.0, 1.0])
    scattered = np.asarray(jax_rir.batch_rirs(*BATCH, jax.random.key(0), shape, per_room))
    np.testing.assert_allclose(scattered[0], draws[0, 0], atol=2e-5)
    shares = []
    for responses in (draws[:, 1], scattered[None, 1]):
        energy = (responses[..., start:].astype(float) ** 2).sum(axis=(0, 1, 3))
        shares.append(energy[2] / energy[0])
    assert shares[0] < 0.22 and abs(shares[1] - 1 / 3) < 0.05


def test_plan_raises_for_invalid_rooms():
    with pytest.raises(ConfigError, match="source is"):
        jax_rir.plan_shape(SIZES, WALLS, SOURCES + 3.0, LISTENERS)
    with pytest.raises(ConfigError, match="absorption is"):
        jax_rir.plan_shape(SIZES, 0 * WALLS, SOURCES, LISTENERS)
