# SPDX-License-Identifier: Apache-2.0
"""BRIRs and binaural scenes: compared with the exact series per image, and with all images."""

import dataclasses
import math

import numpy as np
import pytest

from jaxasa.acoustics import (
    bands,
    binaural,
    binaural_rir,
    hrtf,
    image_source,
    render,
    rir,
    rooms,
    scenes,
)
from jaxasa.acoustics.load_hrtf import load_hrtf
from jaxasa.acoustics.sphere_hrtf import (
    EAR_AZIMUTH,
    HEAD_RADIUS,
    SphereHrtf,
    sphere_transfer_function,
)
from jaxasa.config import ConfigError, Scenes
from jaxasa.core import keys
from jaxasa.core.audio import SAMPLE_RATE

HEAD = SphereHrtf()
SIZE = 8192
FREQUENCY = np.fft.rfftfreq(SIZE, 1 / SAMPLE_RATE)
COMB = np.arange(77, 3584, 8)  # bins from 150 to 7000 Hz at which the series is summed
BANDS = ((150, 300), (300, 600), (600, 1200), (1200, 2400), (2400, 4800), (4800, 7000))
ROOM = (6.0, 5.0, 3.0)
ANECHOIC = rooms.Shoebox(ROOM, np.ones(7), air=False)
LISTENER = np.array([2.6, 2.2, 1.5])


def _exact(offset) -> np.ndarray:
    """The series at both ears [2, COMB], at 1 / distance and after the flight, high-passed."""
    distance = float(np.linalg.norm(offset))
    angle = np.radians(EAR_AZIMUTH)
    ears = np.array([[np.cos(angle), s * np.sin(angle), 0] for s in (1, -1)])
    theta = np.arccos(np.clip(ears @ offset / distance, -1, 1))
    mu = 2 * np.pi * FREQUENCY[COMB] * HEAD_RADIUS / rooms.SPEED_OF_SOUND
    actual = sphere_transfer_function(distance / HEAD_RADIUS, mu, theta)
    delay = distance / rooms.SPEED_OF_SOUND + bands.PRE_SAMPLES / SAMPLE_RATE
    high_pass = np.fft.rfft(rir.high_pass(np.eye(1, SIZE)[0]))[COMB]
    return actual * high_pass * np.exp(-2j * np.pi * FREQUENCY[COMB] * delay) / distance


def _in_head_frame(offset, yaw: float) -> np.ndarray:
    """Returns an offset in room coordinates in the frame of a head at `yaw` degrees."""
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
def test_direct_sound_is_the_hrtf(azimuth, elevation, distance, yaw):
    """Level differences within 0.5 dB and delays within 20 microseconds: far better."""
    a, e = np.radians([azimuth, elevation])
    offset = distance * np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)])
    where = (ANECHOIC, LISTENER + offset, LISTENER, HEAD, yaw, keys.rng(0))
    actual = np.fft.rfft(binaural_rir.shoebox_brir(*where), SIZE)[:, COMB]
    expected = _exact(_in_head_frame(offset, yaw))
    (level, cross), (expected_level, other) = _differences(actual), _differences(expected)
    assert np.abs(level - expected_level).max() < 0.1
    for (low, high), here, there in zip(BANDS, cross, other, strict=True):
        lag = np.angle((here * there.conj()).sum()) / (2 * np.pi * (low + high) / 2)
        assert abs(lag) < 1e-6
    error = np.abs(actual - expected)
    assert 20 * np.log10(np.sqrt(np.mean(error**2)) * distance) < -45
    # Each ear's own arrival, and not only their difference.
    lag = np.angle((actual * expected.conj()).sum(axis=1)) / (2 * np.pi * 3000)
    assert np.abs(lag).max() < 1e-6


def test_each_image_is_filtered_by_its_own_direction():
    """Against the sum of the exact series over all images, from pyroomacoustics' list."""
    pra = pytest.importorskip("pyroomacoustics")
    room, source, yaw = (7.0, 6.5, 6.0), np.array([4.4, 4.1, 2.9]), 25.0
    listener = np.array([3.1, 2.6, 3.3])
    shoebox = rooms.Shoebox(room, np.full(7, 0.995), air=False)
    where = (shoebox, source, listener, HEAD, yaw)
    actual = binaural_rir.shoebox_brir(*where, keys.rng(0), full=True)
    box = pra.ShoeBox(room, fs=SAMPLE_RATE, materials=pra.Material(0.995), max_order=2)
    box.add_source(source)
    box.add_microphone(listener)
    box.image_source_model()
    offsets = box.sources[0].images.T - listener
    damping = np.ravel(box.sources[0].damping)
    radius = (actual.shape[1] - bands.PRE_SAMPLES) / SAMPLE_RATE * rooms.SPEED_OF_SOUND
    near = np.linalg.norm(offsets, axis=1) < radius - 1
    assert near.sum() > 6
    expected = sum(
        gain * _exact(_in_head_frame(o, yaw))
        for o, gain in zip(offsets[near], damping[near], strict=True)
    )
    error = np.fft.rfft(actual, SIZE)[:, COMB] - expected
    # Without the reflections the error would be -20 dB.
    assert 20 * np.log10(np.linalg.norm(error) / np.linalg.norm(expected)) < -38


def _pairs(count: int):
    rng = np.random.default_rng(3)
    for i in range(count):
        room = rng.uniform([3.6, 3.4, 2.5], [5.0, 4.5, 3.0])
        source, listener = rng.uniform(0.15, 0.85, (2, 3)) * room
        shoebox = rooms.Shoebox(room, rooms.absorption(room, rng.uniform(0.2, 0.3)))
        where = (shoebox, source, listener, HEAD, rng.uniform(-180, 180))
        yield [binaural_rir.shoebox_brir(*where, keys.rng(i), full=f) for f in (False, True)]


def test_tail_has_energy_and_coherence_of_all_images():
    total, late, coherence = [], [], []
    for pair in _pairs(10):
        energy = [(r.astype(float) ** 2).sum(axis=1) for r in pair]
        total.append(10 * np.log10(energy[0] / energy[1]))
        rest = [r[:, bands.PRE_SAMPLES + 1120 :].astype(float) for r in pair]
        late.append(10 * np.log10(np.divide(*[(r**2).sum(axis=1) for r in rest])))
        coherence.append([_coherence(r) for r in rest])
    np.testing.assert_allclose(total, 0, atol=0.4)
    assert np.abs(np.mean(late, axis=0)).max() < 0.8 and np.std(late) < 1.0
    hybrid, full = np.mean(coherence, axis=0)
    np.testing.assert_allclose(hybrid[2:], full[2:], atol=0.15)
    # At lower frequencies images in such small rooms interfere as modes: no energy integral.
    np.testing.assert_allclose(hybrid[:2], full[:2], atol=0.25)


def test_tail_covariance_is_the_sum_over_late_images():
    """Covariances of the HRTFs of late images, taken as uncorrelated, one by one.

    From 1.5 kHz up, above single modes.
    """
    size, yaw = (4.6, 3.7, 2.6), 35.0
    room = rooms.Shoebox(size, rooms.absorption(size, 0.25))
    offset, gain = image_source.image_sources(room, (1.2, 2.8, 0.9), (3.1, 1.3, 1.6), 70.0)
    late = np.linalg.norm(offset, axis=1) > 25.0
    offset, gain = offset[late], gain[late]
    frequency = np.fft.rfftfreq(binaural_rir._FRAME, 1 / SAMPLE_RATE)
    band_gains = bands.gains(frequency)
    summed = np.zeros((3, len(frequency)), complex)
    for low in range(0, len(offset), 4096):
        part = slice(low, low + 4096)
        ears = hrtf.hrtf_spectrum(
            HEAD, binaural_rir.rotate_about_z(offset[part], -yaw), binaural_rir._FRAME
        )
        power = (gain[part] @ band_gains) ** 2
        pairs = ((0, 0), (1, 1), (0, 1))
        summed += [(power * ears[:, a] * ears[:, b].conj()).sum(axis=0) for a, b in pairs]
    times = np.arange(25.0, 70.0, 0.5) / rooms.SPEED_OF_SOUND
    energy = binaural_rir.directional_energy(room, times)
    power = np.einsum("bdt,bf->tfd", np.sqrt(energy), band_gains) ** 2
    covariance = binaural_rir._octant_covariance(HEAD, yaw)
    left, right, real, imaginary = np.einsum("tfd,fdp->pf", power, covariance)
    step = 0.5 / rooms.SPEED_OF_SOUND
    for actual, expected in ((left, summed[0].real), (right, summed[1].real)):
        assert np.abs(10 * np.log10(actual[24:120] * step / expected[24:120])).max() < 0.8
    scale = np.sqrt(left * right)
    cross = summed[2] / np.sqrt(summed[0].real * summed[1].real)
    assert np.abs((real + 1j * imaginary) / scale - cross)[24:120].max() < 0.12


def _coherence(ears: np.ndarray) -> np.ndarray:
    """Interaural correlation of the signals [2, n] in each band, real part."""
    spectrum = np.fft.rfft(ears, SIZE)
    actual = []
    for low, high in BANDS:
        part = spectrum[:, (low <= FREQUENCY) & (high > FREQUENCY)]
        covariance = (part @ part.conj().T).real
        actual.append(covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]))
    return np.array(actual)


def test_tail_of_a_cube_is_a_diffuse_field():
    """Interaural coherence and spectrum are those of the HRTF."""
    room = rooms.Shoebox((4.0, 4.0, 4.0), rooms.absorption((4.0, 4.0, 4.0), 0.5))
    tails = [
        binaural_rir._noise_tail(room, HEAD, 20.0, 8000, keys.rng(i)).astype(float)
        for i in range(12)
    ]
    spectrum = np.fft.rfft(np.stack(tails), SIZE)
    diffuse = hrtf.diffuse_field(HEAD, SIZE)
    w = rooms.tail_energy(room, np.arange(8000) / SAMPLE_RATE)[:, 0].sum(axis=1) / SAMPLE_RATE
    for low, high in BANDS:
        use = (low <= FREQUENCY) & (high > FREQUENCY)
        cross = np.einsum("kef,kgf->eg", spectrum[..., use], spectrum[..., use].conj()).real
        expected_cross = diffuse[..., use].sum(axis=-1).real
        coherence = [c[0, 1] / np.sqrt(c[0, 0] * c[1, 1]) for c in (cross, expected_cross)]
        assert coherence[0] == pytest.approx(coherence[1], abs=0.1)
        # Mean power per bin: that of W by tail_energy, times the diffuse-field response.
        expected = (np.sqrt(w) @ bands.gains(FREQUENCY[use])) ** 2 * np.abs(diffuse[0, 0, use])
        power = np.diag(cross) / (len(tails) * use.sum())
        assert 10 * np.log10(power / expected.mean()) == pytest.approx([0, 0], abs=0.7)


def test_tail_depends_on_the_yaw_of_the_listener():
    """In a long room late sound comes along its axis: along the ears, or across them."""
    room, times = rooms.Shoebox((12.0, 3.0, 2.5), np.full(7, 0.25)), np.array([0.0, 0.2])
    energy = binaural_rir.directional_energy(room, times)
    unit, weight = hrtf.octant_nodes(10)
    moments = np.einsum("bdt,dc,d->bct", energy, np.c_[np.ones(len(unit)), unit**2], weight)
    expected = rooms.tail_energy(room, times)[:, [0, 3, 1, 2]]
    np.testing.assert_allclose(moments[:, 0], expected[:, 0], rtol=1e-6)
    # Along an axis with almost no energy, it is not negative.
    np.testing.assert_allclose(moments[3:], expected[3:], rtol=0.01)
    along, across = (
        binaural_rir._octant_covariance(HEAD, yaw).transpose(2, 0, 1) @ energy[3, :, 1]
        for yaw in (0.0, 90.0)
    )
    # Sound along x is the same at both ears if they are across it, but not if one faces it.
    assert along[2, 8] / along[0, 8] > across[2, 8] / across[0, 8] + 0.3


CONFIG = Scenes(train=1, dev=1, benchmark=1, seconds=3.0)
CLIPS = [scenes.Clip(str(i), f"class{i}", f"recording{i}", 1.0) for i in range(4)]


def _clip(clip: str) -> np.ndarray:
    return (0.1 * np.random.default_rng(int(clip)).standard_normal(SAMPLE_RATE)).astype(np.float32)


def test_labels_are_those_of_the_foa_scene():
    for i in range(3):
        spec = scenes.sample_scene(CONFIG, CLIPS, 5, "train", i)
        foa, labels = render.render(spec, _clip)
        ears, actual = binaural.render(spec, _clip, HEAD)
        assert ears.shape == (len(foa), 2) and ears.dtype == np.float32
        assert {**actual, "gain": 0} == {**labels, "gain": 0}
        assert np.abs(ears).max() <= 0.9
        again, _ = binaural.render(spec, _clip, HEAD)
        np.testing.assert_array_equal(ears, again)
        # Without the gain, the ears have about the power of W, and a little more by the head.
        level = 20 * np.log10(np.std(ears) / actual["gain"] / np.std(foa[:, 0]) * labels["gain"])
        assert 0 < level < 3.5


def test_audio_has_side_and_onset_of_the_labels():
    one = dataclasses.replace(CONFIG, sources=(1, 1), snr=(60.0, 60.0))
    for i in range(8):
        spec = dataclasses.replace(
            scenes.sample_scene(one, CLIPS, 2, "train", i), absorption=(1.0,) * 7
        )
        ears, scene = binaural.render(spec, _clip, HEAD)
        (source,) = scene["sources"]
        start = int(source["onset"] * SAMPLE_RATE)
        before = np.abs(ears[: max(start - 16, 1)]).max()
        sound = ears[start : start + 8000]
        assert before < 0.1 * np.abs(sound).max()
        first = np.argmax(np.abs(ears).max(axis=1) > 0.2 * np.abs(sound).max())
        assert abs(first / SAMPLE_RATE - source["onset"]) < 0.003
        left, right = sound.T
        lag = np.argmax(np.correlate(left, right, "full")) - (len(left) - 1)
        side = np.sin(np.radians(source["azimuth"])) * np.cos(np.radians(source["elevation"]))
        # Left ahead is a negative lag; a front or back source may fall on either side.
        assert abs(side) < 0.2 or np.sign(-lag) == np.sign(side)
        assert abs(-lag / SAMPLE_RATE - 2.2 * HEAD_RADIUS / rooms.SPEED_OF_SOUND * side) < 1.3e-4


def test_ambient_noise_has_the_level_of_foa_and_is_diffuse():
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


def test_motion_of_source_and_listener_is_audible():
    scene = {
        **{"seed": 0, "split": "train", "index": 0, "seconds": 2.5, "room": (6.0, 5.0, 3.0)},
        **{"absorption": (1.0,) * 7, "rt60": 0.2, "listener": (3.0, 2.5, 1.5), "yaw": 0.0},
        "snr": 80.0,
    }
    walk = {"label": "bell", "clip": "1", "recording_id": "t", "onset": 0.2, "seconds": 1.0} | {
        **{"playback_rate": 1.0, "gain": 0.0, "position": (3.5, 4.0, 1.5)}
    }
    moving = scenes.Source(**walk, waypoints=((1.2, 3.5, 1.0, 1.5),))
    ears, _ = binaural.render(scenes.SceneSpec(**scene, sources=(moving,)), _clip, HEAD)
    first, last = _first_and_last(ears)
    assert first > 4 and last < -4
    # The source stays on the left, and the listener turns to it and beyond.
    static = scenes.Source(**walk)
    spec = scenes.SceneSpec(**scene, sources=(static,), yaw_trajectory=((0.2, 0.0), (1.2, 160.0)))
    first, last = _first_and_last(binaural.render(spec, _clip, HEAD)[0])
    assert first > 4 and last < -4
    # Sensor noise is independent at the ears; a diffuse field is coherent at low frequencies.
    spec = scenes.SceneSpec(**scene, sources=(static,), sensor_snr=0.0)
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


def test_images_are_summed_in_chunks(monkeypatch):
    room = rooms.Shoebox(ROOM, [0.2] * 7)
    offset, gain = image_source.image_sources(room, (1, 1, 1), LISTENER, 12.0)
    whole = binaural_rir._sum_images(offset, gain, HEAD, 600)
    monkeypatch.setattr(binaural_rir, "_CHUNK", 7)
    np.testing.assert_allclose(binaural_rir._sum_images(offset, gain, HEAD, 600), whole, atol=1e-6)


def test_scattering_makes_the_tail_isotropic():
    size, times = (9.0, 8.0, 2.4), np.array([0.05, 0.2, 0.4])
    walls = rooms.absorption(size, 0.5)
    none, half, full = (
        binaural_rir.directional_energy(rooms.Shoebox(size, walls, scattering), times)
        for scattering in (0.0, 0.5, 1.0)
    )
    np.testing.assert_allclose(full, np.broadcast_to(full[:, :1], full.shape), rtol=1e-9)
    np.testing.assert_allclose(half, (none + full) / 2, rtol=1e-9)
    expected = rooms.tail_energy(rooms.Shoebox(size, walls), times)[:, 0]
    np.testing.assert_allclose(full[:, 0], expected, rtol=1e-9)


def test_brir_has_the_walls_and_scattering_of_the_spec():
    walls = tuple(map(tuple, np.linspace(0.2, 0.9, 6)[:, None].repeat(7, 1).tolist()))
    clips = [scenes.Clip("0", "bell", "t", 0.5)]
    ranges = Scenes(train=1, dev=1, benchmark=1, seconds=1.5, sources=(1, 1), snr=(90.0, 90.0))
    spec = scenes.sample_scene(ranges, clips, 0, "train", 0)
    spec = dataclasses.replace(spec, absorption=walls, scattering=1.0)
    actual, scene = binaural.render(spec, _clip)
    source, start = spec.sources[0], round(spec.sources[0].onset * SAMPLE_RATE)
    room = rooms.Shoebox(spec.room, walls, scattering=1.0)
    where = (room, source.position, spec.listener, load_hrtf("sphere"), spec.yaw)
    ears = binaural_rir.shoebox_brir(*where, keys.rng(0, "binaural tail", "train", 0, 0))
    dry = render.dry_source(source, _clip("0"))
    expected = np.zeros_like(actual)
    for ear in (0, 1):
        wet = np.convolve(dry, ears[ear])[bands.PRE_SAMPLES :][: len(actual) - start]
        expected[start : start + len(wet), ear] = wet * scene["gain"]
    assert np.abs(actual - expected).max() < 2e-3 * np.abs(actual).max()
    with pytest.raises(ConfigError, match="scattering is 1.0, expected 0 if full=True"):
        binaural_rir.shoebox_brir(*where, keys.rng(0), full=True)
    with pytest.raises(ConfigError, match="scattering is 0.0, expected above 0 for a binaural"):
        binaural.render(dataclasses.replace(spec, scattering=0.0), _clip)
