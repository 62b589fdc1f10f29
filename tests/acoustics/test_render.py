# SPDX-License-Identifier: Apache-2.0
import dataclasses
import math

import numpy as np
import pytest

from jaxasa.acoustics import (
    bands,
    convolve,
    foa,
    materials,
    measure,
    render,
    rir,
    rooms,
    scenes,
)
from jaxasa.config import ConfigError, Scenes
from jaxasa.core import keys
from jaxasa.core.audio import SAMPLE_RATE

CONFIG = Scenes(train=1, dev=1, benchmark=1)
CLIPS = [scenes.Clip(str(i), f"class{i}", f"recording{i}", 1.0) for i in range(4)]


def _noise_clip(clip: str, seconds: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(int(clip))
    return (0.1 * rng.standard_normal(int(seconds * SAMPLE_RATE))).astype(np.float32)


def _source(**changes) -> scenes.Source:
    source = scenes.Source("bell", "1", "t", 0.5, 1.0, 1.0, 0.0, (3.0, 4.0, 1.5))
    return dataclasses.replace(source, **changes)


def _spec(*sources, **changes) -> scenes.SceneSpec:
    room = (6.0, 5.0, 3.0)
    spec = scenes.SceneSpec(
        seed=0,
        split="train",
        index=0,
        seconds=3.0,
        room=room,
        absorption=tuple(rooms.absorption(room, 0.4).tolist()),
        rt60=0.4,
        listener=(3.0, 2.5, 1.5),
        yaw=0.0,
        sources=sources or (_source(),),
        snr=60.0,
    )
    return dataclasses.replace(spec, **changes)


ANECHOIC = (1.0,) * 7


def _runs(active: np.ndarray, least: int) -> list[tuple[int, int]]:
    """Returns (start, end) of the runs of True, joined over gaps of less than `least`."""
    at = np.flatnonzero(active)
    cuts = np.flatnonzero(np.diff(at) >= least)
    return list(zip(at[np.r_[0, cuts + 1]], at[np.r_[cuts, len(at) - 1]] + 1, strict=True))


def test_audio_of_200_scenes_has_their_azimuths_and_onsets():
    """Up to three sources, one after the other; nothing is read but the audio."""
    ranges = dataclasses.replace(
        CONFIG, sources=(1, 3), overlap=(0.0, 0.0), snr=(60.0, 60.0), gain=(-6.0, 6.0)
    )
    clips = [dataclasses.replace(c, seconds=0.5) for c in CLIPS]
    gap = 400  # 25 ms of silence at the end of each clip part them
    sources = 0
    for i in range(200):
        spec = scenes.sample_scene(ranges, clips, 11, "train", i)
        spec = dataclasses.replace(spec, absorption=ANECHOIC)

        def audio(clip):
            return np.pad(_noise_clip(clip, 0.475), (0, gap))

        signal, scene = render.render(spec, audio)
        level = np.convolve(signal[:, 0] ** 2, np.full(32, 1 / 32), "same") ** 0.5
        runs = _runs(level > 0.05 * level.max(), gap // 2)
        assert len(runs) == len(scene["sources"])
        for (start, end), source in zip(runs, scene["sources"], strict=True):
            assert abs(start / SAMPLE_RATE - source["onset"]) < 0.005
            assert abs(end / SAMPLE_RATE - (source["offset"] - gap / SAMPLE_RATE)) < 0.005
            azimuth, elevation = foa.cartesian_to_azel(foa.intensity(signal[start:end]))
            assert abs(foa.wrap_azimuth(azimuth - source["azimuth"])) < 0.5
            assert abs(elevation - source["elevation"]) < 0.5
            sources += 1
    assert sources > 350


def test_audio_follows_described_motion_and_turning():
    ranges = dataclasses.replace(
        CONFIG,
        sources=(1, 1),
        moving_source_prob=1.0,
        listener_turn_prob=0.5,
        snr=(60.0, 60.0),
        seconds=3.0,
    )
    clips = [dataclasses.replace(c, seconds=2.5) for c in CLIPS]
    turning = 0
    for i in range(20):
        spec = scenes.sample_scene(ranges, clips, 11, "train", i)
        spec = dataclasses.replace(spec, absorption=ANECHOIC)
        signal, scene = render.render(spec, lambda clip: _noise_clip(clip, 2.5))
        (source,) = scene["sources"]
        turning += "yaw" in scene
        assert len(source["doa_trajectory"]) == 30
        for k, (azimuth, elevation, distance) in enumerate(source["doa_trajectory"]):
            if not source["onset"] < 0.1 * k < source["offset"] - 0.1:
                continue
            frame = signal[1600 * k : 1600 * (k + 1)]
            actual = foa.cartesian_to_azel(foa.intensity(frame))
            assert abs(foa.wrap_azimuth(actual[0] - azimuth)) < 1.5
            assert abs(actual[1] - elevation) < 1.5
            level = np.sqrt(np.mean(frame[:, 0] ** 2)) / (scene["gain"] * 0.1)
            level /= 10 ** (source["level"] / 20)
            assert level * distance == pytest.approx(1, abs=0.15)
        end = int(source["offset"] * SAMPLE_RATE)
        assert np.abs(signal[end + 400 :, 0]).max(initial=0) < 0.02 * np.abs(signal[:, 0]).max()
    assert 4 < turning < 16


# Samples 3000, 8000, 13000, 18000 and 23000 of two scenes without reflections or noise, as
# rendered before moving sources were added.
GOLDEN = {
    0: [
        [-6.15678e-10, -1.64738e-10, -2.22583e-10, 5.16691e-10],
        [-8.01277e-10, -5.03462e-11, -3.77089e-10, -3.21173e-10],
        [-0.00212487, 0.000683227, -0.00120981, 0.00160767],
        [-0.00064873, 0.000208591, -0.000369359, 0.000490829],
        [-0.0157143, -0.012193, 0.00664465, 0.00735667],
    ],
    1: [
        [-1.82696e-09, 2.01843e-10, 8.06204e-10, -1.19478e-10],
        [-0.0318406, 0.0251983, -0.0124729, 0.014943],
        [0.0140235, -0.0109501, 0.00673242, -0.00802288],
        [0.00903319, -0.00755498, 0.000138866, -0.000283859],
        [0.0088255, 0.000530063, -0.0029863, 0.0103188],
    ],
}


@pytest.mark.parametrize("index", GOLDEN)
def test_static_scenes_equal_stored_samples(index):
    ranges = dataclasses.replace(CONFIG, seconds=2.0, speed_perturbation=(0.9, 1.1))
    clips = [
        scenes.Clip(f"clip{i}", f"class{i % 5}", f"recording{i // 2}", 0.3 + (i % 7) * 0.6)
        for i in range(60)
    ]
    lengths = {clip.id: clip.seconds for clip in clips}
    spec = scenes.sample_scene(ranges, clips, 5, "train", index)
    spec = dataclasses.replace(spec, absorption=ANECHOIC, snr=150.0)
    actual, scene = render.render(spec, lambda c: _noise_clip(c[4:], lengths[c]))
    assert scene["gain"] == render.MAX_GAIN
    rms = np.sqrt(np.mean(actual[:, 0] ** 2))
    np.testing.assert_allclose(actual[3000:26000:5000], GOLDEN[index], atol=2e-3 * rms)


def test_turning_listener_rotates_the_field_at_each_sample():
    turning = ((0.5, 0.0), (2.0, 400.0))
    static, _ = render.render(_spec(snr=20.0), _noise_clip)
    actual, scene = render.render(_spec(snr=20.0, yaw_trajectory=turning), _noise_clip)
    yaw = np.radians(np.interp(np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE, [0.5, 2.0], [0.0, 400.0]))
    w, y, z, x = static.T
    expected = np.stack(
        [w, y * np.cos(yaw) - x * np.sin(yaw), z, x * np.cos(yaw) + y * np.sin(yaw)], 1
    )
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(static).max())
    assert foa.wrap_azimuth(scene["sources"][0]["doa_trajectory"][-1][0]) == pytest.approx(90 - 40)


def test_sensor_noise_is_white_and_independent_at_its_snr():
    quiet, _ = render.render(_spec(snr=100.0), _noise_clip)
    noisy, scene = render.render(_spec(snr=100.0, sensor_snr=15.0), _noise_clip)
    noise = (noisy - quiet)[:, :]
    source = scene["sources"][0]
    window = slice(int(source["onset"] * SAMPLE_RATE), int(source["offset"] * SAMPLE_RATE))
    snr = 10 * np.log10((quiet[window, 0] ** 2).mean() / (noise[:, 0] ** 2).mean())
    assert snr == pytest.approx(15, abs=0.1)
    covariance = noise.T @ noise / (noise[:, 0] @ noise[:, 0])
    np.testing.assert_allclose(covariance, np.eye(4), atol=0.03)
    power = np.abs(np.fft.rfft(noise[:, 1])) ** 2
    thirds = power[: len(power) // 3 * 3].reshape(3, -1).sum(axis=1)
    np.testing.assert_allclose(thirds, thirds.mean(), rtol=0.05)


def test_render_with_rirs_equals_render_with_the_same_rirs():
    sources = (_source(), _source(clip="2", onset=0.1, position=(1.0, 1.0, 1.0)))
    spec = _spec(*sources)
    expected, described = render.render(spec, _noise_clip, full=True)
    rirs = []
    for source in sources:
        response = rir.shoebox_rir(spec.shoebox(), source.position, spec.listener, None, full=True)
        rirs.append(render.measure_rir(response, math.dist(source.position, spec.listener)))
    actual, scene = render.render_with_rirs(spec, _noise_clip, rirs)
    np.testing.assert_array_equal(actual, expected)
    assert scene == described
    moving = _spec(_source(waypoints=((1.0, 3.0, 4.1, 1.5),)))
    with pytest.raises(
        ConfigError, match=r"sources\[0\].waypoints.*expected none if RIRs are given"
    ):
        render.render_with_rirs(moving, _noise_clip, rirs[:1])
    with pytest.raises(ConfigError, match="rirs is 1"):
        render.render_with_rirs(spec, _noise_clip, rirs[:1])


OFFICE = materials.room_absorption("plasterboard", "carpet", "ceiling_tile")


def test_audio_has_the_walls_and_scattering_of_the_spec():
    walls = tuple(map(tuple, OFFICE.tolist()))
    spec = _spec(absorption=walls, scattering=0.7)
    actual, scene = render.render(spec, _noise_clip)
    positions = (spec.sources[0].position, spec.listener)
    room, rng = rooms.Shoebox(spec.room, OFFICE, 0.7), keys.rng(0, "tail", "train", 0, 0)
    measured = render.measure_rir(rir.shoebox_rir(room, *positions, rng), math.dist(*positions))
    assert (scene["rt60"], scene["sources"][0]["drr"]) == (measured.rt60, measured.drr)
    expected, _ = render.render_with_rirs(spec, _noise_clip, [measured])
    np.testing.assert_array_equal(actual, expected)
    with pytest.raises(ConfigError, match="scattering is 0.7, expected 0 if full=True"):
        render.render(spec, _noise_clip, full=True)


def test_moving_scene_is_deterministic_and_labelled_at_onset():
    sources = (_source(waypoints=((1.5, 3.8, 3.6, 1.5),)), _source(clip="2"))
    spec = _spec(*sources)
    actual, scene = render.render(spec, _noise_clip)
    again, _ = render.render(spec, _noise_clip)
    np.testing.assert_array_equal(actual, again)
    _, static = render.render(_spec(_source(), _source(clip="2")), _noise_clip)
    assert scene["sources"][0]["drr"] == static["sources"][0]["drr"]
    assert scene["rt60"] == pytest.approx(static["rt60"], rel=1e-6)


def test_hybrid_of_a_moving_source_has_the_energy_of_all_images():
    source = _source(waypoints=((0.9, 3.3, 3.8, 1.5),))
    absorption = tuple(rooms.absorption((6.0, 5.0, 3.0), 0.2).tolist())
    spec = _spec(source, seconds=1.2, absorption=absorption)
    hybrid, full = (
        render.render(spec, lambda c: _noise_clip(c, 0.3), full=full)[0] for full in (False, True)
    )
    energy = [10 * np.log10((s[:, 0] ** 2).sum()) for s in (hybrid, full)]
    assert abs(energy[0] - energy[1]) < 0.5
    # Direct sound and early images are the same samples.
    start = int((0.5 + 1.5 / 343) * SAMPLE_RATE)
    off = hybrid[start : start + 400] - full[start : start + 400]
    assert np.linalg.norm(off) < 0.01 * np.linalg.norm(full[start : start + 400])


def test_render_is_deterministic_with_shape_and_labels():
    spec = scenes.sample_scene(CONFIG, CLIPS, 1, "train", 2)
    first, description = render.render(spec, _noise_clip)
    again, same = render.render(spec, _noise_clip)
    assert first.shape == (80000, 4) and first.dtype == np.float32
    np.testing.assert_array_equal(first, again)
    assert description == same
    assert np.abs(first).max() <= 0.9
    assert set(description) == {*scenes.describe(spec), "gain"}
    other, _ = render.render(dataclasses.replace(spec, index=3), _noise_clip)
    assert not np.array_equal(first, other)


def test_yaw_rotates_the_field_in_the_opposite_direction():
    straight, _ = render.render(_spec(snr=100.0), _noise_clip)
    rotated, scene = render.render(_spec(snr=100.0, yaw=50.0), _noise_clip)
    scale = np.abs(straight).max()
    assert np.abs(rotated - foa.rotate(straight, -50.0)).max() < 1e-4 * scale
    assert scene["sources"][0]["azimuth"] == pytest.approx(90 - 50)


def test_convolution_equals_the_direct_sum():
    rng = np.random.default_rng(0)
    responses = [rng.standard_normal((4, n)).astype(np.float32) for n in (900, 5000)]
    tracks = [(n, rng.standard_normal(m).astype(np.float32)) for n, m in ((7, 30000), (25000, 60))]
    actual = convolve.convolve_tracks(tracks, responses, 40000)
    expected = np.zeros((4, 80000))
    for (start, track), response in zip(tracks, responses, strict=True):
        for c in range(4):
            full = np.convolve(track, response[c])
            expected[c, start : start + len(full)] += full
    expected = expected[:, bands.PRE_SAMPLES : bands.PRE_SAMPLES + 40000]
    np.testing.assert_allclose(actual, expected, atol=1e-3 * expected.std())


def test_snr_and_covariance_of_the_noise():
    sounding, _ = render.render(_spec(snr=100.0), _noise_clip)
    noisy, scene = render.render(_spec(snr=10.0), _noise_clip)
    noise = (noisy - sounding)[:, :]
    source = scene["sources"][0]
    window = slice(int(source["onset"] * SAMPLE_RATE), int(source["offset"] * SAMPLE_RATE))
    snr = 10 * np.log10((sounding[window, 0] ** 2).mean() / (noise[:, 0] ** 2).mean())
    assert snr == pytest.approx(10, abs=0.3)
    covariance = noise.T @ noise / (noise[:, 0] @ noise[:, 0])
    np.testing.assert_allclose(covariance, np.diag([1, 1 / 3, 1 / 3, 1 / 3]), atol=0.07)
    power = np.abs(np.fft.rfft(noise[:, 0])) ** 2
    octaves = [power[3 * low : 6 * low].sum() for low in (200, 400, 800, 1600)]
    np.testing.assert_allclose(octaves, np.mean(octaves), rtol=0.25)


def test_gain_is_constant_unless_it_would_clip():
    quiet, scene = render.render(_spec(_source(gain=-6.0)), _noise_clip)
    loud, louder = render.render(_spec(_source(gain=6.0)), _noise_clip)
    assert scene["gain"] == louder["gain"] == render.MAX_GAIN
    ratio = np.linalg.norm(loud) / np.linalg.norm(quiet)
    assert 20 * np.log10(ratio) == pytest.approx(12, abs=0.05)
    clipped, loudest = render.render(_spec(_source(gain=60.0)), _noise_clip)
    assert np.abs(clipped).max() == pytest.approx(0.9, rel=1e-5)
    assert loudest["gain"] < render.MAX_GAIN


def test_level_falls_as_one_over_distance():
    spec = _spec(absorption=ANECHOIC, snr=100.0)
    near, far = (
        render.render(dataclasses.replace(spec, sources=(_source(position=p),)), _noise_clip)[0]
        for p in ((3.7, 2.5, 1.5), (4.4, 2.5, 1.5))
    )
    # Air attenuates the highest octave a little.
    assert np.linalg.norm(near) / np.linalg.norm(far) == pytest.approx(2, rel=0.01)


def test_labels_are_measured_on_the_rirs():
    sources = (_source(), _source(clip="2", onset=0.1, position=(1.0, 1.0, 1.0)))
    spec = _spec(*sources)
    _, scene = render.render(spec, _noise_clip, full=True)
    assert [s["clip"] for s in scene["sources"]] == ["2", "1"]
    decays = []
    for described, source in zip(scene["sources"], sources[::-1], strict=True):
        response = rir.shoebox_rir(spec.shoebox(), source.position, spec.listener, None, full=True)
        distance = math.dist(source.position, spec.listener)
        assert described["drr"] == pytest.approx(measure.drr(response, distance))
        decays.append(measure.rt60(response))
    assert scene["rt60"] == pytest.approx(np.mean(decays))
    _, dry = render.render(_spec(absorption=ANECHOIC), _noise_clip)
    assert dry["rt60"] == 0.4


def test_expected_drr_is_near_the_measured():
    error = []
    for i in range(12):
        spec = scenes.sample_scene(CONFIG, CLIPS, 3, "train", i)
        _, scene = render.render(spec, _noise_clip)
        pairs = zip(scene["sources"], scenes.describe(spec)["sources"], strict=True)
        error += [measured["drr"] - expected["drr"] for measured, expected in pairs]
    assert abs(np.median(error)) < 2
    assert np.std(error) < 2


def test_clip_is_cut_with_a_fade_and_resampled():
    tone = np.sin(2 * np.pi * 500 * np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE).astype(np.float32)
    cut = render.dry_source(_source(seconds=0.5), tone)
    assert len(cut) == 8000 and cut[-1] == 0
    np.testing.assert_array_equal(cut[:7840], tone[:7840])
    whole = render.dry_source(_source(seconds=2.0), tone)
    np.testing.assert_array_equal(whole, tone)
    fast = render.dry_source(_source(seconds=1.0, playback_rate=2.0), tone)
    assert len(fast) == SAMPLE_RATE
    assert int(np.abs(np.fft.rfft(fast)).argmax()) == 1000
    assert tone[0] == 0 and np.abs(tone).max() > 0.99


@pytest.mark.parametrize(
    "clip, words",
    [
        (np.zeros(0, np.float32), r"clip 1 is \(0,\)"),
        (np.zeros((9, 2)), r"clip 1 is \(9, 2\)"),
        (np.array([0.0, np.nan]), "clip 1, sample 1 is nan, expected finite"),
        (np.array([-np.inf, 0.0]), "clip 1, sample 0 is -inf, expected finite"),
    ],
)
def test_bad_clip_raises_with_its_id(clip, words):
    with pytest.raises(ConfigError, match=words):
        render.render(_spec(), lambda _: clip)


def test_silence_renders_to_silence():
    signal, scene = render.render(_spec(), lambda _: np.zeros(SAMPLE_RATE, np.float32))
    assert not signal.any()
    assert scene["gain"] == render.MAX_GAIN
