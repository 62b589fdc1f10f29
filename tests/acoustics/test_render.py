import dataclasses
import math

import numpy as np
import pytest

from jaxasa.acoustics import convolve, foa, render, rir, rooms, scenes
from jaxasa.config import ConfigError, Scenes

RATE = 16000
CONFIG = Scenes(train=1, dev=1, benchmark=1)
CLIPS = [scenes.Clip(str(i), f"class{i}", f"take{i}", 1.0) for i in range(4)]


def _noise_clip(clip: str, seconds: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(int(clip))
    return (0.1 * rng.standard_normal(int(seconds * RATE))).astype(np.float32)


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


def _first_arrival(signal: np.ndarray) -> int:
    """Returns where W's energy rises most: a step of noise power, to a few samples."""
    loud = np.abs(signal[:, 0]) > 0.25 * np.abs(signal[:, 0]).std()
    return int(np.argmax(loud))


def test_azimuth_and_onset_are_in_the_audio():
    one = dataclasses.replace(CONFIG, sources=(1, 1), snr=(60.0, 60.0), seconds=3.0)
    for i in range(30):
        spec = scenes.draw(one, CLIPS, 11, "train", i)
        spec = dataclasses.replace(spec, absorption=ANECHOIC)
        signal, scene = render.render(spec, _noise_clip)
        (source,) = scene["sources"]
        start = _first_arrival(signal)
        assert abs(start / RATE - source["onset"]) < 0.002
        heard = signal[start : start + 4000]
        azimuth, elevation = foa.direction(foa.intensity(heard))
        assert abs(foa.wrap(azimuth - source["azimuth"])) < 0.5
        assert abs(elevation - source["elevation"]) < 0.5
        end = int(source["offset"] * RATE)
        after = np.abs(signal[end + 400 : end + 4000, 0])
        assert len(after) == 0 or after.max() < 0.05 * np.abs(heard[:, 0]).max()


def test_render_is_deterministic_and_shaped():
    spec = scenes.draw(CONFIG, CLIPS, 1, "train", 2)
    first, description = render.render(spec, _noise_clip)
    again, same = render.render(spec, _noise_clip)
    assert first.shape == (80000, 4) and first.dtype == np.float32
    np.testing.assert_array_equal(first, again)
    assert description == same
    assert np.abs(first).max() <= 0.9
    assert set(description) == {*scenes.describe(spec), "gain"}
    other, _ = render.render(dataclasses.replace(spec, index=3), _noise_clip)
    assert not np.array_equal(first, other)


def test_turned_listener_hears_the_field_turned_back():
    straight, _ = render.render(_spec(snr=100.0), _noise_clip)
    turned, scene = render.render(_spec(snr=100.0, yaw=50.0), _noise_clip)
    scale = np.abs(straight).max()
    assert np.abs(turned - foa.rotate(straight, -50.0)).max() < 1e-4 * scale
    assert scene["sources"][0]["azimuth"] == pytest.approx(90 - 50)


def test_convolution_equals_the_direct_sum():
    rng = np.random.default_rng(0)
    responses = [rng.standard_normal((4, n)).astype(np.float32) for n in (900, 5000)]
    tracks = [(n, rng.standard_normal(m).astype(np.float32)) for n, m in ((7, 30000), (25000, 60))]
    found = convolve.convolve(tracks, responses, 40000)
    expected = np.zeros((4, 80000))
    for (start, track), response in zip(tracks, responses, strict=True):
        for c in range(4):
            full = np.convolve(track, response[c])
            expected[c, start : start + len(full)] += full
    expected = expected[:, rir.LEAD : rir.LEAD + 40000]
    np.testing.assert_allclose(found, expected, atol=1e-3 * expected.std())


def test_snr_and_covariance_of_the_noise():
    sounding, _ = render.render(_spec(snr=100.0), _noise_clip)
    noisy, scene = render.render(_spec(snr=10.0), _noise_clip)
    noise = (noisy - sounding)[:, :]
    source = scene["sources"][0]
    window = slice(int(source["onset"] * RATE), int(source["offset"] * RATE))
    snr = 10 * np.log10((sounding[window, 0] ** 2).mean() / (noise[:, 0] ** 2).mean())
    assert snr == pytest.approx(10, abs=0.3)
    covariance = noise.T @ noise / (noise[:, 0] @ noise[:, 0])
    np.testing.assert_allclose(covariance, np.diag([1, 1 / 3, 1 / 3, 1 / 3]), atol=0.07)
    power = np.abs(np.fft.rfft(noise[:, 0])) ** 2
    octaves = [power[3 * low : 6 * low].sum() for low in (200, 400, 800, 1600)]
    np.testing.assert_allclose(octaves, np.mean(octaves), rtol=0.25)


def test_gain_is_one_reference_until_it_would_clip():
    quiet, scene = render.render(_spec(_source(gain=-6.0)), _noise_clip)
    loud, louder = render.render(_spec(_source(gain=6.0)), _noise_clip)
    assert scene["gain"] == louder["gain"] == render.LEVEL
    ratio = np.linalg.norm(loud) / np.linalg.norm(quiet)
    assert 20 * np.log10(ratio) == pytest.approx(12, abs=0.05)
    clipped, loudest = render.render(_spec(_source(gain=60.0)), _noise_clip)
    assert np.abs(clipped).max() == pytest.approx(0.9, rel=1e-5)
    assert loudest["gain"] < render.LEVEL


def test_level_falls_as_one_over_distance():
    spec = _spec(absorption=ANECHOIC, snr=100.0)
    near, far = (
        render.render(dataclasses.replace(spec, sources=(_source(position=p),)), _noise_clip)[0]
        for p in ((3.7, 2.5, 1.5), (4.4, 2.5, 1.5))
    )
    # Air takes a little of the highest octave.
    assert np.linalg.norm(near) / np.linalg.norm(far) == pytest.approx(2, rel=0.01)


def test_labels_are_measured_on_the_responses():
    sources = (_source(), _source(clip="2", onset=0.1, position=(1.0, 1.0, 1.0)))
    spec = _spec(*sources)
    _, scene = render.render(spec, _noise_clip, full=True)
    assert [s["clip"] for s in scene["sources"]] == ["2", "1"]
    decays = []
    for described, source in zip(scene["sources"], sources[::-1], strict=True):
        response = rir.response(
            spec.room, spec.absorption, source.position, spec.listener, None, full=True
        )
        distance = math.dist(source.position, spec.listener)
        assert described["drr"] == pytest.approx(rir.drr(response, distance))
        decays.append(rir.rt60(response))
    assert scene["rt60"] == pytest.approx(np.mean(decays))
    _, dry = render.render(_spec(absorption=ANECHOIC), _noise_clip)
    assert dry["rt60"] == 0.4


def test_expected_drr_is_near_the_measured():
    error = []
    for i in range(12):
        spec = scenes.draw(CONFIG, CLIPS, 3, "train", i)
        _, scene = render.render(spec, _noise_clip)
        pairs = zip(scene["sources"], scenes.describe(spec)["sources"], strict=True)
        error += [measured["drr"] - expected["drr"] for measured, expected in pairs]
    assert abs(np.median(error)) < 2
    assert np.std(error) < 2


def test_clip_is_cut_with_a_fade_and_resampled():
    tone = np.sin(2 * np.pi * 500 * np.arange(2 * RATE) / RATE).astype(np.float32)
    cut = render._dry(_source(seconds=0.5), tone)
    assert len(cut) == 8000 and cut[-1] == 0
    np.testing.assert_array_equal(cut[:7840], tone[:7840])
    whole = render._dry(_source(seconds=2.0), tone)
    np.testing.assert_array_equal(whole, tone)
    fast = render._dry(_source(seconds=1.0, speed=2.0), tone)
    assert len(fast) == RATE
    assert int(np.abs(np.fft.rfft(fast)).argmax()) == 1000
    assert tone[0] == 0 and np.abs(tone).max() > 0.99


@pytest.mark.parametrize("clip", [np.zeros(0, np.float32), np.zeros((9, 2)), np.array([np.nan])])
def test_bad_clip_is_named(clip):
    with pytest.raises(ConfigError, match="clip 1"):
        render.render(_spec(), lambda _: clip)


def test_silence_renders_to_silence():
    signal, scene = render.render(_spec(), lambda _: np.zeros(RATE, np.float32))
    assert not signal.any()
    assert scene["gain"] == render.LEVEL
