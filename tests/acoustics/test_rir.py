# SPDX-License-Identifier: Apache-2.0
import itertools
import math

import numpy as np
import pytest
import scipy.signal

from jaxasa.acoustics import bands, foa, materials, measure, rir, rooms
from jaxasa.config import ConfigError
from jaxasa.core import keys
from jaxasa.core.audio import SAMPLE_RATE

ROOM = (6.0, 5.0, 3.0)
LISTENER = np.array([3.1, 2.4, 1.5])


def test_high_pass_removes_the_build_up_of_images():
    room = rooms.Shoebox(ROOM, rooms.absorption(ROOM, 0.4))
    response = rir.shoebox_rir(room, (1, 1, 1), LISTENER, keys.rng(0), full=True)
    spectrum = np.abs(np.fft.rfft(response[0], 16000))
    assert spectrum[:20].max() < 0.02 * spectrum[200:4000].mean()


def _pyroomacoustics(room, walls, source, listener, seconds: float) -> np.ndarray:
    """Returns its RIR [4, n] of four coincident microphones, on the time axis of this package.

    walls: an absorption, flat or in octave bands, of each of rooms.WALLS.
    """
    import pyroomacoustics as pra

    order = int(seconds * rooms.SPEED_OF_SOUND * np.linalg.norm(1 / np.asarray(room))) + 1
    pra.constants.set("rir_hpf_enable", False)
    pra.constants.set("c", rooms.SPEED_OF_SOUND)
    names = ("west", "east", "south", "north", "floor", "ceiling")
    if np.ndim(walls) == 1:
        materials = {n: pra.Material(float(a)) for n, a in zip(names, walls, strict=True)}
    else:
        octaves = {"center_freqs": list(rooms.BANDS)}
        materials = {
            n: pra.Material({"description": n, "coeffs": list(a), **octaves})
            for n, a in zip(names, walls, strict=True)
        }
    box = pra.ShoeBox(room, fs=SAMPLE_RATE, materials=materials, max_order=order)
    box.add_source(source)
    ears = [pra.directivities.Omnidirectional()]
    ears += [pra.directivities.FigureEight(axis) for axis in ([0, 1, 0], [0, 0, 1], [1, 0, 0])]
    box.add_microphone_array(np.tile(np.asarray(listener)[:, None], 4), directivity=ears)
    box.compute_rir()
    length = min(len(box.rir[c][0]) for c in range(4))
    rirs = np.stack([box.rir[c][0][:length] for c in range(4)])
    # pyroomacoustics delays all by 40 samples, this package by PRE_SAMPLES.
    return rir.high_pass(np.pad(rirs, ((0, 0), (bands.PRE_SAMPLES - 40, 0))).astype(np.float32))


@pytest.fixture(scope="module")
def pyroom_cases():
    """20 random rooms with six different walls: (room, source, listener, full, pyroom)."""
    pytest.importorskip("pyroomacoustics")
    rng, cases = np.random.default_rng(5), []
    for _ in range(20):
        room = rng.uniform([3.0, 2.8, 2.4], [4.6, 4.0, 3.0])
        source, listener = rng.uniform(0.15, 0.85, (2, 3)) * room
        rt60 = rng.uniform(0.14, 0.2)
        flat = rooms.absorption(room, rt60, air=False)[3]
        walls = np.clip(flat * rng.uniform(0.6, 1.4, 6), 0.05, 0.95)
        absorption = np.repeat(walls[:, None], 7, axis=1)
        shoebox = rooms.Shoebox(room, absorption, air=False)
        full = rir.shoebox_rir(shoebox, source, listener, keys.rng(0), full=True)
        pyroom = _pyroomacoustics(room, walls, source, listener, full.shape[1] / SAMPLE_RATE)
        cases.append((room, source, listener, full, pyroom[:, : full.shape[1]]))
    return cases


def test_full_mode_is_pyroomacoustics_wave_for_wave(pyroom_cases):
    for _, _, _, full, pyroom in pyroom_cases:
        assert 20 * np.log10(np.linalg.norm(full - pyroom) / np.linalg.norm(pyroom)) < -45


def test_full_mode_has_the_parameters_of_pyroomacoustics(pyroom_cases):
    """Onset, early energy per channel, RT60 per band, DRR, direction of the direct sound."""
    for room, source, listener, full, pyroom in pyroom_cases:
        distance = float(np.linalg.norm(source - listener))
        arrival = bands.PRE_SAMPLES + round(distance / rooms.SPEED_OF_SOUND * SAMPLE_RATE)
        onsets = [int(np.argmax(np.abs(r[0, : arrival + 20]))) for r in (full, pyroom)]
        assert abs(onsets[0] - onsets[1]) <= 1 and abs(onsets[0] - arrival) <= 1
        energy = [(r[:, : arrival + 800] ** 2).sum(axis=1) for r in (full, pyroom)]
        np.testing.assert_allclose(10 * np.log10(energy[0] / energy[1]), 0, atol=0.5)
        actual, expected = (measure.octave_rt60(r, rooms.BANDS[:6]) for r in (full, pyroom))
        assert np.all(np.abs(actual - expected) <= np.maximum(0.05 * expected, 0.02))
        assert measure.drr(full, distance) == pytest.approx(measure.drr(pyroom, distance), abs=0.5)
        azimuth, elevation = foa.cartesian_to_azel(source - listener)
        direct = [foa.intensity(r[:, arrival - 4 : arrival + 5].T) for r in (full, pyroom)]
        # Geometry gives the expected direction, or pyroomacoustics if a reflection follows closely.
        behind = 4 * np.minimum(source * listener, (room - source) * (room - listener))
        clear = np.sqrt(distance**2 + behind.min()) - distance > 0.6
        for one in direct if clear else direct[:1]:
            expected = (azimuth, elevation) if clear else foa.cartesian_to_azel(direct[1])
            actual = foa.cartesian_to_azel(one)
            assert abs(foa.wrap_azimuth(actual[0] - expected[0])) < 0.5
            assert abs(actual[1] - expected[1]) < 0.5


def test_octave_bands_decay_as_pyroomacoustics():
    pytest.importorskip("pyroomacoustics")
    room, source, listener = (3.4, 3.0, 2.5), (1.0, 0.8, 1.1), (2.4, 2.1, 1.4)
    absorption = np.array([0.4, 0.42, 0.45, 0.5, 0.55, 0.6, 0.6])
    shoebox = rooms.Shoebox(room, absorption, air=False)
    full = rir.shoebox_rir(shoebox, source, listener, keys.rng(0), full=True)
    seconds = full.shape[1] / SAMPLE_RATE
    pyroom = _pyroomacoustics(room, np.tile(absorption, (6, 1)), source, listener, seconds)
    actual, expected = (measure.octave_rt60(r, rooms.BANDS[1:6]) for r in (full, pyroom))
    assert np.all(np.abs(actual - expected) <= np.maximum(0.05 * expected, 0.02))


@pytest.fixture(scope="module", params=[0, 1, 4])
def hybrids(request):
    """Hybrid and full RIRs of 50 random rooms, for three seeds."""
    rng, pairs = np.random.default_rng(request.param), []
    for i in range(50):
        room = rng.uniform([3.5, 3.0, 2.4], [9.0, 7.0, 3.6])
        source, listener = rng.uniform(0.12, 0.88, (2, 3)) * room
        rt60 = rng.uniform(max(0.2, 1.2 * rooms.sabine_min_rt60(room)), 0.6)
        where = (rooms.Shoebox(room, rooms.absorption(room, rt60)), source, listener)
        pairs.append([rir.shoebox_rir(*where, keys.rng(0, i), full=full) for full in (False, True)])
    return pairs


def _t20(response: np.ndarray) -> float:
    return measure.t20(measure.decay_curve(response[0, bands.PRE_SAMPLES :]))


def test_hybrid_decays_like_full_mode(hybrids):
    """T20 of W within 5 % in the median room and 10 % in the worst; energies, decay curves."""
    ratio = [_t20(hybrid) / _t20(full) for hybrid, full in hybrids]
    assert np.median(np.abs(np.array(ratio) - 1)) < 0.05
    assert np.abs(np.array(ratio) - 1).max() < 0.10
    energy = [10 * np.log10((h**2).sum(axis=1) / (f**2).sum(axis=1)) for h, f in hybrids]
    assert np.abs(np.mean(energy, axis=0)).max() < 0.05
    assert np.abs(np.array(energy)[:, 0]).max() < 0.3
    furthest = []
    for hybrid, full in hybrids:
        n = min(hybrid.shape[1], full.shape[1])
        curves = [measure.decay_curve(r[0, :n]) for r in (hybrid, full)]
        furthest.append(np.abs(curves[0] - curves[1])[curves[1] > -40].max())
    assert np.median(furthest) < 1.0
    assert np.max(furthest) < 4.0


def test_hybrid_begins_as_the_images_themselves(hybrids):
    for hybrid, full in hybrids[:8]:
        # Two thirds of the shortest mixing time, minus the ringing of the octave filters.
        early = slice(0, bands.PRE_SAMPLES + int(16000 * 0.02))
        error = np.linalg.norm(hybrid[:, early] - full[:, early]) / np.linalg.norm(full[:, early])
        assert 20 * np.log10(error) < -50


@pytest.mark.parametrize(
    "room, rt60", [((4.5, 3.6, 2.7), 0.3), ((8.0, 6.0, 3.0), 0.4), ((6.0, 5.0, 3.0), 0.6)]
)
def test_hybrid_is_the_full_mode_on_average(room, rt60):
    """50 seeds: RT60 of each band, DRR, and the covariance of the tail.

    The covariance is above the two low octaves, after all images of the others have faded out.
    """
    shoebox = rooms.Shoebox(room, rooms.absorption(room, rt60))
    rng = np.random.default_rng(0)
    decays, ratios, covariances = [], [], np.zeros((2, 4, 4))
    above = scipy.signal.butter(8, 450, "highpass", fs=SAMPLE_RATE, output="sos")
    for i in range(50):
        source, listener = rng.uniform(0.15, 0.85, (2, 3)) * room
        where, distance = (shoebox, source, listener), math.dist(source, listener)
        both = [rir.shoebox_rir(*where, keys.rng(0, i), full=full) for full in (False, True)]
        decays.append([measure.octave_rt60(r, rooms.BANDS[:6]) for r in both])
        ratios.append([measure.drr(r, distance) for r in both])
        for k, response in enumerate(both):
            start = bands.PRE_SAMPLES + int(
                rir.EARLY_MIXING_TIMES * rir.mixing_time_at(room, distance) * SAMPLE_RATE
            )
            late = scipy.signal.sosfilt(above, response, axis=1)[:, start:]
            covariances[k] += late @ late.T
    actual, expected = np.mean(decays, axis=0)
    assert np.all(np.abs(actual - expected) <= np.maximum(0.05 * expected, 0.02))
    assert np.abs(np.subtract(*np.transpose(ratios))).max() < 0.5
    assert covariances[0, 0, 0] / covariances[1, 0, 0] == pytest.approx(1, abs=0.1)
    shares = [np.diag(c) / c[0, 0] for c in covariances]
    np.testing.assert_allclose(shares[0], shares[1], rtol=0.1)
    for c in covariances:
        scale = np.sqrt(np.diag(c))
        assert np.abs(c / np.outer(scale, scale) - np.eye(4)).max() < 0.04


def _nonuniform_rooms():
    rng = np.random.default_rng(2)
    wall_materials = ("plasterboard", "wooden_lining", "curtains", "acoustic_plaster")
    ceilings, floors = ("ceiling_tile", "mineral_wool"), ("carpet", "linoleum")
    for _ in range(40):
        walls = materials.room_absorption(
            tuple(rng.choice(wall_materials, 4)), *map(rng.choice, (floors, ceilings))
        )
        size = rng.uniform([3.0, 2.6, 2.4], [5.0, 4.0, 3.0])
        room = rooms.Shoebox(size, walls)
        if 0.4 < rir.rir_duration(room, 1.0) < 0.7:  # the full mode is fast enough
            yield room, *(rng.uniform(0.15, 0.85, (2, 3)) * size)


def test_hybrid_with_nonuniform_absorption_decays_like_full_mode():
    """T20 of W and of each octave from 125 Hz on; the closed form alone is wrong by half."""
    whole, octaves, furthest = [], [], []
    for where in itertools.islice(_nonuniform_rooms(), 5):
        both = [rir.shoebox_rir(*where, keys.rng(0), full=full) for full in (False, True)]
        n = min(r.shape[1] for r in both)
        actual, expected = (r[:, :n] for r in both)
        whole.append(_t20(actual) / _t20(expected) - 1)
        octaves.append(np.divide(*(measure.octave_rt60(r, rooms.BANDS[:6]) for r in both)) - 1)
        curves = [measure.decay_curve(r[0]) for r in (actual, expected)]
        furthest.append(np.abs(curves[0] - curves[1])[curves[1] > -40].max())
    assert np.median(np.abs(whole)) < 0.01 and np.abs(whole).max() < 0.05
    assert np.abs(octaves).max() < 0.1
    assert np.median(furthest) < 0.3 and np.max(furthest) < 2.0


def test_noise_tail_replaces_images_beyond_the_maximum(monkeypatch):
    room, *positions = next(_nonuniform_rooms())
    size, walls = room.size, room.absorption
    whole = rir.shoebox_rir(room, *positions, keys.rng(0))
    assert rir.coarse_image_end_time(size, walls, 0.5) == 0.75
    assert rir.coarse_image_end_time(size, walls[0], 0.5) == 0
    monkeypatch.setattr(rir, "MAX_COARSE_IMAGES", 200_000)
    fewer = [rir.shoebox_rir(room, *positions, keys.rng(k)) for k in (1, 2)]
    end = float(rir.coarse_image_end_time(size, walls, 9.0))
    fade = bands.PRE_SAMPLES + int(end * rir.FADE_START * SAMPLE_RATE) - 200
    np.testing.assert_allclose(fewer[0][:, :fade], whole[:, :fade], atol=2e-4)
    assert np.abs(fewer[0] - fewer[1])[:, fade:].max() > 1e-4
    energy = [(r[:, fade:] ** 2).sum() for r in (*fewer, whole)]
    np.testing.assert_allclose(10 * np.log10(energy[:2] / energy[2]), 0, atol=2.0)
    # A room that scatters has a noise tail from the mixing time on.
    diffuse = rooms.Shoebox(size, walls, scattering=0.5)
    one, two = (rir.shoebox_rir(diffuse, *positions, keys.rng(k)) for k in (1, 2))
    assert np.abs(one - two).max() > 1e-4


def test_same_key_gives_the_same_rir():
    where = (rooms.Shoebox(ROOM, rooms.absorption(ROOM, 0.3)), (1, 1, 1), LISTENER)
    one, two, other = (rir.shoebox_rir(*where, keys.rng(0, k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - other).max() > 1e-4


def test_air_shortens_high_bands():
    rirs = [
        rir.shoebox_rir(
            rooms.Shoebox(ROOM, np.full(7, 0.1), air=air), (1, 1, 1), LISTENER, keys.rng(0)
        )
        for air in (True, False)
    ]
    decays = [measure.octave_rt60(response, (500.0, 4000.0)) for response in rirs]
    rates = 1 / decays[0][1] - 1 / decays[1][1]
    assert rates == pytest.approx(
        rooms.SPEED_OF_SOUND * rooms.AIR_ABSORPTION[5] / (6 * math.log(10)), rel=0.25
    )
    assert decays[0][0] == pytest.approx(decays[1][0], rel=0.1)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"size": (6, 0, 3)}, "room is .6, 0, 3., expected length, width and height above 0"),
        ({"size": (6, 5, math.nan)}, "room is"),
        ({"size": (6, 5)}, "room is"),
        ({"absorption": np.zeros(7)}, "absorption is .*expected .7. or .6, 7. above 0 and up to 1"),
        ({"absorption": np.full(7, 1.2)}, "absorption is"),
        ({"absorption": np.ones(6)}, "absorption is"),
        ({"source": (7, 1, 1)}, "source is .7, 1, 1., expected x, y, z in metres inside the room"),
        ({"source": (1, 1, 0)}, "source is"),
        ({"listener": (1, -1, 1)}, "listener is"),
        ({"source": (3, 2, 1.52)}, "source is .*expected 0.05 m or more from the listener"),
        ({"scattering": 1.5}, "scattering is 1.5, expected a number from 0 to 1"),
    ],
)
def test_bad_input_raises_with_its_name(changes, message):
    good = {
        "size": ROOM,
        "absorption": np.full(7, 0.3),
        "source": (1, 1, 1),
        "listener": (3, 2, 1.5),
    }
    arguments = good | changes
    source, listener = arguments.pop("source"), arguments.pop("listener")
    with pytest.raises(ConfigError, match=message):
        rir.shoebox_rir(rooms.Shoebox(**arguments), source, listener, keys.rng(0))


def test_full_mode_has_no_scattering():
    room = rooms.Shoebox(ROOM, np.full(7, 0.3), scattering=0.5)
    with pytest.raises(ConfigError, match="scattering is 0.5, expected 0 if full=True"):
        rir.shoebox_rir(room, (1, 1, 1), LISTENER, keys.rng(0), full=True)
