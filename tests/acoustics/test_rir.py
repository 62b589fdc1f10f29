import math

import numpy as np
import pytest

from jaxasa.acoustics import foa, keys, rir, rooms

pra = pytest.importorskip("pyroomacoustics")

ROOM = (6.0, 5.0, 3.0)
LISTENER = np.array([3.1, 2.4, 1.5])
ANECHOIC = np.ones(7)


def _anechoic(source, listener=LISTENER, room=ROOM) -> np.ndarray:
    return rir.response(room, ANECHOIC, source, listener, keys.rng(0))


@pytest.fixture
def no_air(monkeypatch):
    monkeypatch.setattr(rooms, "AIR", np.zeros(7))


@pytest.mark.parametrize("azimuth, elevation", [(0, 0), (90, 0), (-135, 20), (30, 40), (170, -35)])
def test_anechoic_gains_are_exact(azimuth, elevation, no_air):
    unit = foa.encode(azimuth, elevation)[[3, 1, 2]]
    response = _anechoic(LISTENER + 1.3 * unit)
    # In the band where neither the high-pass nor the delay filter acts.
    spectrum = np.fft.rfft(response, 4096)[:, 200:1600]
    np.testing.assert_allclose(np.abs(spectrum[0]), 1 / 1.3, rtol=5e-3)
    gains = (spectrum / spectrum[0]).real.mean(axis=1)
    np.testing.assert_allclose(gains, foa.encode(azimuth, elevation), atol=2e-4)


def test_level_falls_with_distance_and_delay_rises(no_air):
    near, far = (_anechoic(LISTENER + [d, 0, 0])[0] for d in (0.7, 1.4))
    assert np.linalg.norm(near) / np.linalg.norm(far) == pytest.approx(2, rel=3e-3)
    for d, response in ((0.7, near), (1.4, far)):
        assert abs(int(np.argmax(response)) - rir.LEAD - d / 343 * 16000) <= 0.5


def test_fractional_delay_is_accurate(no_air):
    """Between 200 Hz and 7 kHz, against the exact phase, at -55 dB or better (rms)."""
    frequency = np.fft.rfftfreq(8192, 1 / rir.RATE)
    use = (frequency > 200) & (frequency < 7000)
    spectrum = [np.fft.rfft(_anechoic(LISTENER + [d, 0, 0])[0], 8192)[use] for d in (1.0, 1.01)]
    exact = np.exp(-2j * np.pi * frequency[use] * 0.01 / 343) / 1.01
    error = np.abs(spectrum[1] / spectrum[0] - exact)
    assert 20 * np.log10(np.sqrt(np.mean(error**2))) < -55


def test_first_reflection_has_the_walls_colour(no_air):
    """Floor only near: its reflection is the direct sound times sqrt(1 - absorption) per band."""
    absorption = np.array([0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9])
    room, listener = (60.0, 60.0, 60.0), np.array([30.0, 30.0, 3.0])
    images = rir._images(room, absorption, listener + [2.0, 0, 0], listener, 10.0, 10.0)[0]
    direct = 2.0 * np.abs(np.fft.rfft(images[: rir.LEAD + 187], 16000))
    floor = math.hypot(2, 6) * np.abs(np.fft.rfft(images[rir.LEAD + 187 :], 16000))
    assert floor[250] / direct[250] == pytest.approx(0.9**0.5, rel=0.05)
    assert floor[2000] / direct[2000] == pytest.approx(0.1**0.5, rel=0.05)


def test_high_pass_removes_what_images_build_up():
    absorption = rooms.absorption(ROOM, 0.4)
    response = rir.response(ROOM, absorption, (1, 1, 1), LISTENER, keys.rng(0), full=True)
    spectrum = np.abs(np.fft.rfft(response[0], 16000))
    assert spectrum[:20].max() < 0.02 * spectrum[200:4000].mean()


def _cases(count):
    rng = np.random.default_rng(5)
    for _ in range(count):
        room = rng.uniform([3.6, 3.4, 2.7], [5.0, 4.4, 3.2])
        listener = room / 2 + rng.uniform(-0.3, 0.3, 3)
        azimuth = rng.uniform(-np.pi, np.pi)
        offset = rng.uniform(0.7, 1.0) * np.array([np.cos(azimuth), np.sin(azimuth), 0])
        offset[2] = rng.uniform(-0.3, 0.3)
        yield room, rng.uniform(0.16, 0.24), listener + offset, listener


def _pyroomacoustics(room, absorption: float, source, listener, seconds: float) -> np.ndarray:
    order = int(seconds * rooms.SPEED * np.linalg.norm(1 / np.asarray(room))) + 1
    pra.constants.set("rir_hpf_enable", False)
    pra.constants.set("c", rooms.SPEED)
    box = pra.ShoeBox(room, fs=rir.RATE, materials=pra.Material(absorption), max_order=order)
    box.add_source(source)
    ears = [pra.directivities.Omnidirectional()]
    ears += [pra.directivities.FigureEight(axis) for axis in ([0, 1, 0], [0, 0, 1], [1, 0, 0])]
    box.add_microphone_array(np.tile(np.asarray(listener)[:, None], 4), directivity=ears)
    box.compute_rir()
    length = min(len(box.rir[c][0]) for c in range(4))
    rirs = np.stack([box.rir[c][0][:length] for c in range(4)])
    # pyroomacoustics delays all by 40 samples, this package by LEAD.
    return rir.high_pass(np.pad(rirs, ((0, 0), (rir.LEAD - 40, 0))).astype(np.float32))


def test_full_mode_agrees_with_pyroomacoustics(no_air):
    for room, rt60, source, listener in _cases(4):
        absorption = rooms.absorption(room, rt60)
        flat = np.full(7, absorption[3])
        ours = rir.response(room, flat, source, listener, keys.rng(0), full=True)
        theirs = _pyroomacoustics(room, float(flat[0]), source, listener, ours.shape[1] / rir.RATE)
        theirs = theirs[:, : ours.shape[1]]
        distance = float(np.linalg.norm(source - listener))
        arrival = rir.LEAD + round(distance / rooms.SPEED * rir.RATE)
        assert abs(int(np.argmax(np.abs(ours[0, :300]))) - arrival) <= 1
        assert abs(int(np.argmax(np.abs(theirs[0, :300]))) - arrival) <= 1
        early = slice(0, arrival + 800)
        energy = [(r[:, early] ** 2).sum(axis=1) for r in (ours, theirs)]
        np.testing.assert_allclose(10 * np.log10(energy[0] / energy[1]), 0, atol=0.5)
        expected = rir.rt60(theirs)
        assert abs(rir.rt60(ours) - expected) <= max(0.05 * expected, 0.02)
        assert rir.drr(ours, distance) == pytest.approx(rir.drr(theirs, distance), abs=0.5)
        azimuth, elevation = foa.direction(source - listener)
        for response in (ours, theirs):
            direct = response[:, arrival - 8 : arrival + 9].T
            found = foa.direction(foa.intensity(direct))
            assert abs(foa.wrap(found[0] - azimuth)) < 0.5
            assert abs(found[1] - elevation) < 0.5


def _pairs(count):
    rng = np.random.default_rng(2)
    for i in range(count):
        room = rng.uniform([4.0, 3.5, 2.5], [7.0, 5.5, 3.4])
        source, listener = rng.uniform(0.15, 0.85, (2, 3)) * room
        absorption = rooms.absorption(room, rng.uniform(0.2, 0.4))
        yield [
            rir.response(room, absorption, source, listener, keys.rng(0, i), full=full)
            for full in (False, True)
        ]


def test_hybrid_decays_like_full_mode():
    pairs = list(_pairs(16))
    ratio = [rir.rt60(hybrid) / rir.rt60(full) for hybrid, full in pairs]
    assert abs(np.median(ratio) - 1) < 0.05
    energy = [(h[0] ** 2).sum() / (f[0] ** 2).sum() for h, f in pairs]
    np.testing.assert_allclose(10 * np.log10(energy), 0, atol=0.4)
    # The energy decay curve has no step where the tail begins, and stays near.
    for hybrid, full in pairs:
        n = min(hybrid.shape[1], full.shape[1])
        curves = [np.cumsum(r[0, n - 1 :: -1].astype(float) ** 2)[::-1] for r in (hybrid, full)]
        level = 10 * np.log10(curves[1] / curves[1][0])
        difference = 10 * np.log10(curves[0] / curves[1])[level > -20]
        assert np.abs(difference).max() < 3


def test_early_part_is_the_images_themselves():
    for hybrid, full in _pairs(2):
        # Two thirds of the shortest mixing time; the octave filters ring a little further.
        early = slice(0, rir.LEAD + int(16000 * 0.03))
        error = np.linalg.norm(hybrid[:, early] - full[:, early]) / np.linalg.norm(full[:, early])
        assert 20 * np.log10(error) < -50


def test_tail_has_the_closed_forms_energy_and_covariance():
    absorption = rooms.absorption(ROOM, 0.5)
    length = 6400
    tails = [rir._tail(ROOM, absorption, length, keys.rng(i)).astype(float) for i in range(30)]
    times = (np.arange(length) + 0.5) / rir.RATE
    expected = np.tensordot(rooms._BANDWIDTH, rooms.tail_energy(ROOM, absorption, times), 1)
    expected = expected.reshape(4, 4, -1).mean(axis=2) / rir.RATE
    blocks = np.stack(tails).reshape(30, 4, 4, -1)
    energy = (blocks**2).mean(axis=(0, 3))
    np.testing.assert_allclose(10 * np.log10(energy / expected), 0, atol=0.2)
    # No channel knows another: diffuse sound from opposite sides cancels in the products.
    covariance = np.einsum("ictn,idtn->cd", blocks, blocks)
    scale = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(scale, scale)
    assert np.abs(correlation - np.eye(4)).max() < 0.02


def test_tail_of_a_cube_is_isotropic():
    energy = rooms.tail_energy((4, 4, 4), np.full(7, 0.1), np.array([0.0]))[..., 0]
    np.testing.assert_allclose(energy[:, 1:] / energy[:, :1], 1 / 3, rtol=1e-6)


def test_rt60_of_a_known_decay():
    noise = np.random.default_rng(0).standard_normal((40, 1, 9600))
    decay = 10 ** (-3 * np.arange(9600) / 16000 / 0.3)
    found = [rir.rt60(np.pad(n * decay, ((0, 0), (rir.LEAD, 0)))) for n in noise]
    assert np.mean(found) == pytest.approx(0.3, rel=0.03)


def test_rt60_of_a_direct_sound_alone_is_nan():
    assert math.isnan(rir.rt60(_anechoic(LISTENER + [1.0, 0, 0])))


def test_drr_of_two_known_impulses():
    response = np.zeros((4, 4000), np.float32)
    response[0, rir.LEAD + round(16000 / 343)] = 1.0
    response[0, 1000] = 0.1
    assert rir.drr(response, 1.0) == pytest.approx(20, abs=1e-3)
