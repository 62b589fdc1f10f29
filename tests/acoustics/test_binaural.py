# SPDX-License-Identifier: Apache-2.0
"""Two ears in a room: against the exact series image by image, and against all images."""

import dataclasses
import math

import numpy as np
import pytest

from jaxasa.acoustics import bands as octaves
from jaxasa.acoustics import binaural, binaural_rir, hrtf, images, render, rir, rooms, scenes
from jaxasa.config import ConfigError, Scenes
from jaxasa.core import keys
from jaxasa.core.audio import SAMPLE_RATE

HEAD = hrtf.SphereHrtf()
ANECHOIC = np.ones(7)
SIZE = 8192
FREQUENCY = np.fft.rfftfreq(SIZE, 1 / SAMPLE_RATE)
COMB = np.arange(77, 3584, 8)  # bins from 150 to 7000 Hz at which the series is summed
BANDS = ((150, 300), (300, 600), (600, 1200), (1200, 2400), (2400, 4800), (4800, 7000))
ROOM = (6.0, 5.0, 3.0)
LISTENER = np.array([2.6, 2.2, 1.5])


@pytest.fixture
def no_air(monkeypatch):
    monkeypatch.setattr(rooms, "AIR_ABSORPTION", np.zeros(7))


def _exact(offset) -> np.ndarray:
    """The series at both ears [2, COMB], at 1 / distance and after the flight, high-passed."""
    distance = float(np.linalg.norm(offset))
    angle = np.radians(hrtf.EAR_AZIMUTH)
    ears = np.array([[np.cos(angle), s * np.sin(angle), 0] for s in (1, -1)])
    theta = np.arccos(np.clip(ears @ offset / distance, -1, 1))
    mu = 2 * np.pi * FREQUENCY[COMB] * hrtf.HEAD_RADIUS / rooms.SPEED_OF_SOUND
    found = hrtf.sphere_transfer_function(distance / hrtf.HEAD_RADIUS, mu, theta)
    delay = distance / rooms.SPEED_OF_SOUND + rir.PRE_SAMPLES / SAMPLE_RATE
    high_pass = np.fft.rfft(rir.high_pass(np.eye(1, SIZE)[0]))[COMB]
    return found * high_pass * np.exp(-2j * np.pi * FREQUENCY[COMB] * delay) / distance


def _turned(offset, yaw: float) -> np.ndarray:
    """What a listener who has turned left by yaw degrees sees of an offset in the room."""
    bearing = math.atan2(offset[1], offset[0]) - math.radians(yaw)
    flat = math.hypot(offset[0], offset[1])
    return np.array([flat * math.cos(bearing), flat * math.sin(bearing), offset[2]])


def _differences(ears: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Level difference (dB) in each band, and the cross-spectra, of spectra [2, COMB]."""
    use = [(low <= FREQUENCY[COMB]) & (high > FREQUENCY[COMB]) for low, high in BANDS]
    levels = [10 * np.log10((np.abs(ears[:, u]) ** 2).sum(axis=1)) for u in use]
    return np.array([a - b for a, b in levels]), [ears[0, u] * ears[1, u].conj() for u in use]


@pytest.mark.parametrize(
    ("azimuth", "elevation", "distance", "yaw"),
    [(0, 0, 1.0, 0), (90, 0, 1.5, 0), (-30, 20, 1.2, 0), (150, -30, 0.9, 40), (100, 5, 0.2, -75)],
)
def test_the_direct_sound_is_the_hrtf(no_air, azimuth, elevation, distance, yaw):
    """Level differences within 0.5 dB and delays within 20 microseconds: far better."""
    a, e = np.radians([azimuth, elevation])
    offset = distance * np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)])
    where = (ROOM, ANECHOIC, LISTENER + offset, LISTENER, HEAD, yaw, keys.rng(0))
    found = np.fft.rfft(binaural_rir.shoebox_brir(*where), SIZE)[:, COMB]
    expected = _exact(_turned(offset, yaw))
    (level, cross), (wanted, other) = _differences(found), _differences(expected)
    assert np.abs(level - wanted).max() < 0.1
    for (low, high), here, there in zip(BANDS, cross, other, strict=True):
        lag = np.angle((here * there.conj()).sum()) / (2 * np.pi * (low + high) / 2)
        assert abs(lag) < 1e-6
    error = np.abs(found - expected)
    assert 20 * np.log10(np.sqrt(np.mean(error**2)) * distance) < -45
    # Each ear's own arrival, and not only their difference.
    lag = np.angle((found * expected.conj()).sum(axis=1)) / (2 * np.pi * 3000)
    assert np.abs(lag).max() < 1e-6


def test_every_image_comes_through_its_own_direction(no_air):
    """Against the sum of the exact series over all images, from pyroomacoustics' list."""
    pra = pytest.importorskip("pyroomacoustics")
    room, source, yaw = (7.0, 6.5, 6.0), np.array([4.4, 4.1, 2.9]), 25.0
    listener = np.array([3.1, 2.6, 3.3])
    absorption = np.full(7, 0.995)
    where = (room, absorption, source, listener, HEAD, yaw)
    found = binaural_rir.shoebox_brir(*where, keys.rng(0), full=True)
    box = pra.ShoeBox(room, fs=SAMPLE_RATE, materials=pra.Material(0.995), max_order=2)
    box.add_source(source)
    box.add_microphone(listener)
    box.image_source_model()
    offsets = box.sources[0].images.T - listener
    damping = np.ravel(box.sources[0].damping)
    reach = (found.shape[1] - rir.PRE_SAMPLES) / SAMPLE_RATE * rooms.SPEED_OF_SOUND
    near = np.linalg.norm(offsets, axis=1) < reach - 1
    assert near.sum() > 6
    expected = sum(
        gain * _exact(_turned(o, yaw)) for o, gain in zip(offsets[near], damping[near], strict=True)
    )
    error = np.fft.rfft(found, SIZE)[:, COMB] - expected
    # Without the reflections the error would be -20 dB.
    assert 20 * np.log10(np.linalg.norm(error) / np.linalg.norm(expected)) < -38


def _pairs(count: int):
    rng = np.random.default_rng(3)
    for i in range(count):
        room = rng.uniform([3.6, 3.4, 2.5], [5.0, 4.5, 3.0])
        source, listener = rng.uniform(0.15, 0.85, (2, 3)) * room
        absorption = rooms.absorption(room, rng.uniform(0.2, 0.3))
        where = (room, absorption, source, listener, HEAD, rng.uniform(-180, 180))
        yield [binaural_rir.shoebox_brir(*where, keys.rng(i), full=f) for f in (False, True)]


def test_the_tail_is_that_of_all_images():
    total, late, coherence = [], [], []
    for pair in _pairs(10):
        energy = [(r.astype(float) ** 2).sum(axis=1) for r in pair]
        total.append(10 * np.log10(energy[0] / energy[1]))
        rest = [r[:, rir.PRE_SAMPLES + 1120 :].astype(float) for r in pair]
        late.append(10 * np.log10(np.divide(*[(r**2).sum(axis=1) for r in rest])))
        coherence.append([_coherence(r) for r in rest])
    np.testing.assert_allclose(total, 0, atol=0.4)
    assert np.abs(np.mean(late, axis=0)).max() < 0.8 and np.std(late) < 1.0
    hybrid, full = np.mean(coherence, axis=0)
    np.testing.assert_allclose(hybrid[2:], full[2:], atol=0.15)
    # Below, images of so small rooms interfere as modes do, which no energy integral sees.
    np.testing.assert_allclose(hybrid[:2], full[:2], atol=0.25)


def test_the_tail_s_covariance_is_the_images():
    """Late images taken as uncorrelated: their HRTFs' covariances, one by one, add up to it.

    From 1.5 kHz up, where no closed form has much of single modes.
    """
    room, yaw = (4.6, 3.7, 2.6), 35.0
    absorption = rooms.absorption(room, 0.25)
    offset, gain = images.image_sources(room, absorption, (1.2, 2.8, 0.9), (3.1, 1.3, 1.6), 70.0)
    late = np.linalg.norm(offset, axis=1) > 25.0
    offset, gain = offset[late], gain[late]
    frequency = np.fft.rfftfreq(binaural_rir._FRAME, 1 / SAMPLE_RATE)
    bands = octaves.gains(frequency)
    summed = np.zeros((3, len(frequency)), complex)
    for low in range(0, len(offset), 4096):
        part = slice(low, low + 4096)
        ears = hrtf.hrtf_spectrum(
            HEAD, binaural_rir.rotate_about_z(offset[part], -yaw), binaural_rir._FRAME
        )
        power = (gain[part] @ bands) ** 2
        pairs = ((0, 0), (1, 1), (0, 1))
        summed += [(power * ears[:, a] * ears[:, b].conj()).sum(axis=0) for a, b in pairs]
    times = np.arange(25.0, 70.0, 0.5) / rooms.SPEED_OF_SOUND
    energy = binaural_rir.directional_energy(room, absorption, times)
    power = np.einsum("bdt,bf->tfd", np.sqrt(energy), bands) ** 2
    left, right, real, imaginary = np.einsum("tfd,fdp->pf", power, binaural_rir._octants(HEAD, yaw))
    step = 0.5 / rooms.SPEED_OF_SOUND
    for found, wanted in ((left, summed[0].real), (right, summed[1].real)):
        assert np.abs(10 * np.log10(found[24:120] * step / wanted[24:120])).max() < 0.8
    scale = np.sqrt(left * right)
    cross = summed[2] / np.sqrt(summed[0].real * summed[1].real)
    assert np.abs((real + 1j * imaginary) / scale - cross)[24:120].max() < 0.12


def _coherence(ears: np.ndarray) -> np.ndarray:
    """Interaural correlation of the signals [2, n] in each band, real part."""
    spectrum = np.fft.rfft(ears, SIZE)
    found = []
    for low, high in BANDS:
        part = spectrum[:, (low <= FREQUENCY) & (high > FREQUENCY)]
        covariance = (part @ part.conj().T).real
        found.append(covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]))
    return np.array(found)


def test_the_tail_of_a_cube_is_a_diffuse_field():
    """Coherence and colour at the ears are the HRTF's own; identical ears would have 1."""
    room = (4.0, 4.0, 4.0)
    absorption = rooms.absorption(room, 0.5)
    tails = [
        binaural_rir._tail(room, absorption, HEAD, 20.0, 8000, keys.rng(i), 0.0).astype(float)
        for i in range(12)
    ]
    spectrum = np.fft.rfft(np.stack(tails), SIZE)
    diffuse = hrtf.diffuse_field(HEAD, SIZE)
    w = (
        rooms.tail_energy(room, absorption, np.arange(8000) / SAMPLE_RATE)[:, 0].sum(axis=1)
        / SAMPLE_RATE
    )
    for low, high in BANDS:
        use = (low <= FREQUENCY) & (high > FREQUENCY)
        cross = np.einsum("kef,kgf->eg", spectrum[..., use], spectrum[..., use].conj()).real
        wanted = diffuse[..., use].sum(axis=-1).real
        coherence = [c[0, 1] / np.sqrt(c[0, 0] * c[1, 1]) for c in (cross, wanted)]
        assert coherence[0] == pytest.approx(coherence[1], abs=0.1)
        # Mean power a bin over W's, whose octaves have what tail_energy says.
        weights = octaves.gains(FREQUENCY[use])
        expected = (np.sqrt(w) @ weights) ** 2 * np.abs(diffuse[0, 0, use])
        power = np.diag(cross) / (len(tails) * use.sum())
        assert 10 * np.log10(power / expected.mean()) == pytest.approx([0, 0], abs=0.7)


def test_the_tail_turns_with_the_listener():
    """In a flat room late sound comes from the sides: both ears, but not from one's front."""
    room, absorption = (12.0, 3.0, 2.5), np.full(7, 0.25)
    times = np.array([0.0, 0.2])
    energy = binaural_rir.directional_energy(room, absorption, times)
    unit, weight = hrtf.octant_nodes(10)
    moments = np.einsum("bdt,dc,d->bct", energy, np.c_[np.ones(len(unit)), unit**2], weight)
    expected = rooms.tail_energy(room, absorption, times)[:, [0, 3, 1, 2]]
    np.testing.assert_allclose(moments[:, 0], expected[:, 0], rtol=1e-6)
    # Where an axis has next to nothing, what is left of it has no energy below zero.
    np.testing.assert_allclose(moments[3:], expected[3:], rtol=0.01)
    along, across = (
        binaural_rir._octants(HEAD, yaw).transpose(2, 0, 1) @ energy[3, :, 1] for yaw in (0.0, 90.0)
    )
    # Sound along x: with the ears across it, it is alike at both; with an ear towards it, not.
    assert along[2, 8] / along[0, 8] > across[2, 8] / across[0, 8] + 0.3


CONFIG = Scenes(train=1, dev=1, benchmark=1, seconds=3.0)
CLIPS = [scenes.Clip(str(i), f"class{i}", f"recording{i}", 1.0) for i in range(4)]


def _clip(clip: str) -> np.ndarray:
    return (0.1 * np.random.default_rng(int(clip)).standard_normal(SAMPLE_RATE)).astype(np.float32)


def test_a_scene_keeps_its_labels():
    for i in range(3):
        spec = scenes.sample_scene(CONFIG, CLIPS, 5, "train", i)
        around, labels = render.render(spec, _clip)
        ears, found = binaural.render(spec, _clip, HEAD)
        assert ears.shape == (len(around), 2) and ears.dtype == np.float32
        assert {**found, "gain": 0} == {**labels, "gain": 0}
        assert np.abs(ears).max() <= 0.9
        again, _ = binaural.render(spec, _clip, HEAD)
        np.testing.assert_array_equal(ears, again)
        # Ears get the diffuse field's power and a little from the head, whatever the gain.
        level = 20 * np.log10(np.std(ears) / found["gain"] / np.std(around[:, 0]) * labels["gain"])
        assert 0 < level < 3.5


def test_side_and_onset_are_in_the_audio():
    one = dataclasses.replace(CONFIG, sources=(1, 1), snr=(60.0, 60.0))
    for i in range(8):
        spec = dataclasses.replace(
            scenes.sample_scene(one, CLIPS, 2, "train", i), absorption=(1.0,) * 7
        )
        ears, scene = binaural.render(spec, _clip, HEAD)
        (source,) = scene["sources"]
        start = int(source["onset"] * SAMPLE_RATE)
        before = np.abs(ears[: max(start - 16, 1)]).max()
        heard = ears[start : start + 8000]
        assert before < 0.1 * np.abs(heard).max()
        first = np.argmax(np.abs(ears).max(axis=1) > 0.2 * np.abs(heard).max())
        assert abs(first / SAMPLE_RATE - source["onset"]) < 0.003
        left, right = heard.T
        lag = np.argmax(np.correlate(left, right, "full")) - (len(left) - 1)
        side = np.sin(np.radians(source["azimuth"])) * np.cos(np.radians(source["elevation"]))
        # Left ahead is a negative lag; a front or back source may fall on either side.
        assert abs(side) < 0.2 or np.sign(-lag) == np.sign(side)
        assert (
            abs(-lag / SAMPLE_RATE - 2.2 * hrtf.HEAD_RADIUS / rooms.SPEED_OF_SOUND * side) < 1.3e-4
        )


def test_ambient_noise_is_as_loud_as_in_foa_and_diffuse():
    spec = scenes.sample_scene(
        dataclasses.replace(CONFIG, snr=(100.0, 100.0)), CLIPS, 1, "train", 0
    )
    spec = dataclasses.replace(spec, seconds=6.0)
    noise = {}
    for kind, rendered in (
        ("foa", lambda s: render.render(s, _clip)),
        ("ears", lambda s: binaural.render(s, _clip, HEAD)),
    ):
        quiet, quieter = rendered(spec)
        loud, louder = rendered(dataclasses.replace(spec, snr=0.0))
        noise[kind] = (loud / louder["gain"] - quiet / quieter["gain"]).T
    w = np.abs(np.fft.rfft(noise["foa"][0])) ** 2
    ears = np.fft.rfft(noise["ears"])
    frequency = np.fft.rfftfreq(noise["ears"].shape[1], 1 / SAMPLE_RATE)
    diffuse = hrtf.diffuse_field(HEAD, 512)
    grid = np.fft.rfftfreq(512, 1 / SAMPLE_RATE)
    for low, high in BANDS:
        use = (low <= frequency) & (high > frequency)
        part = diffuse[..., (low <= grid) & (high > grid)].mean(axis=-1).real
        gain = (np.abs(ears[:, use]) ** 2).sum(axis=1) / w[use].sum()
        np.testing.assert_allclose(10 * np.log10(gain / np.diag(part)), 0, atol=0.9)
        coherence = (ears[0, use] @ ears[1, use].conj()).real / np.sqrt(
            np.prod((np.abs(ears[:, use]) ** 2).sum(axis=1))
        )
        assert coherence == pytest.approx(part[0, 1] / np.sqrt(part[0, 0] * part[1, 1]), abs=0.12)


def _first_and_last(ears: np.ndarray) -> list[float]:
    """Level difference of left over right (dB) in the first and the last fifth of the sound."""
    loud = np.flatnonzero(np.abs(ears).max(axis=1) > 0.05 * np.abs(ears).max())
    parts = np.array_split(ears[loud[0] : loud[-1]].astype(float), 5)
    return [
        10 * np.log10((p[:, 0] ** 2).sum() / (p[:, 1] ** 2).sum()) for p in (parts[0], parts[-1])
    ]


def test_what_moves_is_heard_to_move():
    scene = {
        **{"seed": 0, "split": "train", "index": 0, "seconds": 2.5, "room": (6.0, 5.0, 3.0)},
        **{"absorption": (1.0,) * 7, "rt60": 0.2, "listener": (3.0, 2.5, 1.5), "yaw": 0.0},
        "snr": 80.0,
    }
    walk = {"label": "bell", "clip": "1", "recording_id": "t", "onset": 0.2, "seconds": 1.0} | {
        **{"playback_rate": 1.0, "gain": 0.0, "position": (3.5, 4.0, 1.5)}
    }
    walking = scenes.Source(**walk, waypoints=((1.2, 3.5, 1.0, 1.5),))
    ears, _ = binaural.render(scenes.SceneSpec(**scene, sources=(walking,)), _clip, HEAD)
    first, last = _first_and_last(ears)
    assert first > 4 and last < -4
    # The source stays on the left, and the listener turns to it and beyond.
    still = scenes.Source(**walk)
    spec = scenes.SceneSpec(**scene, sources=(still,), yaw_trajectory=((0.2, 0.0), (1.2, 160.0)))
    first, last = _first_and_last(binaural.render(spec, _clip, HEAD)[0])
    assert first > 4 and last < -4
    # Sensors hiss apart from each other, where a diffuse field has both ears in step.
    spec = scenes.SceneSpec(**scene, sources=(still,), sensor_snr=0.0)
    ears, _ = binaural.render(spec, _clip, HEAD)
    after = _coherence(ears[int(1.8 * SAMPLE_RATE) :].T.astype(float))
    assert (
        np.abs(after).max() < 0.2
        and np.abs(ears[int(1.8 * SAMPLE_RATE) :]).std() > 0.01 * ears.std()
    )


def test_silence_renders_to_silence():
    spec = scenes.sample_scene(CONFIG, CLIPS, 1, "train", 0)
    ears, scene = binaural.render(spec, lambda _: np.zeros(SAMPLE_RATE, np.float32), HEAD)
    assert not ears.any() and scene["gain"] == render.MAX_GAIN


def test_many_images_are_added_in_parts(monkeypatch):
    offset, gain = images.image_sources(ROOM, [0.2] * 7, (1, 1, 1), LISTENER, 12.0)
    whole = binaural_rir._add_up(offset, gain, HEAD, 600)
    monkeypatch.setattr(binaural_rir, "_CHUNK", 7)
    np.testing.assert_allclose(binaural_rir._add_up(offset, gain, HEAD, 600), whole, atol=1e-6)


def test_walls_that_scatter_send_late_sound_from_everywhere():
    room, times = (9.0, 8.0, 2.4), np.array([0.05, 0.2, 0.4])
    walls = rooms.absorption(room, 0.5)
    own = binaural_rir.directional_energy(room, walls, times)
    half, whole = (binaural_rir.directional_energy(room, walls, times, s) for s in (0.5, 1.0))
    np.testing.assert_allclose(whole, np.broadcast_to(whole[:, :1], whole.shape), rtol=1e-9)
    np.testing.assert_allclose(half, (own + whole) / 2, rtol=1e-9)
    np.testing.assert_allclose(whole[:, 0], rooms.tail_energy(room, walls, times)[:, 0], rtol=1e-9)


def test_ears_hear_the_walls_and_scattering_of_the_spec():
    walls = tuple(map(tuple, np.linspace(0.2, 0.9, 6)[:, None].repeat(7, 1).tolist()))
    clips = [scenes.Clip("0", "bell", "t", 0.5)]
    ranges = Scenes(train=1, dev=1, benchmark=1, seconds=1.5, sources=(1, 1), snr=(90.0, 90.0))
    spec = scenes.sample_scene(ranges, clips, 0, "train", 0)
    spec = dataclasses.replace(spec, absorption=walls, scattering=1.0)
    found, scene = binaural.render(spec, _clip)
    source, start = spec.sources[0], round(spec.sources[0].onset * SAMPLE_RATE)
    where = (spec.room, np.array(walls), source.position, spec.listener, hrtf.load("sphere"))
    rng = keys.rng(0, "binaural tail", "train", 0, 0)
    ears = binaural_rir.shoebox_brir(*where, spec.yaw, rng, scattering=1.0)
    dry = render.dry_source(source, _clip("0"))
    expected = np.zeros_like(found)
    for ear in (0, 1):
        heard = np.convolve(dry, ears[ear])[rir.PRE_SAMPLES :][: len(found) - start]
        expected[start : start + len(heard), ear] = heard * scene["gain"]
    assert np.abs(found - expected).max() < 2e-3 * np.abs(found).max()
    with pytest.raises(ConfigError, match="scattering is 1.0, expected 0"):
        binaural_rir.shoebox_brir(*where, spec.yaw, rng, full=True, scattering=1.0)
    with pytest.raises(ConfigError, match="scattering is 0.0, expected above 0 where walls"):
        binaural.render(dataclasses.replace(spec, scattering=0.0), _clip)
