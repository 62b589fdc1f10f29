# SPDX-License-Identifier: Apache-2.0
"""Scenes with RIRs by pyroomacoustics agree with their labels, and with the built-in engine."""

import dataclasses
import sys

import numpy as np
import pytest

from jaxasa.acoustics import foa, measure, pyroom_engine, render, rir, rooms, scenes
from jaxasa.config import ConfigError, Scenes
from jaxasa.core.audio import SAMPLE_RATE

pytest.importorskip("pyroomacoustics")
RANGES = Scenes(
    train=1, dev=1, benchmark=1, seconds=2.0, sources=(1, 2), snr=(60.0, 60.0), rt60=(0.15, 0.2),
    length=(3.0, 4.0), width=(3.0, 4.0), overlap=(0.0, 0.0), engine="pyroomacoustics",
)  # fmt: skip
CLIPS = [scenes.Clip(str(i), f"class{i}", f"recording{i}", 0.5) for i in range(4)]


def noise(clip):
    """0.5 s of noise, with 25 ms of silence at the end that separates two sources."""
    rng = np.random.default_rng(int(clip))
    return np.pad(0.1 * rng.standard_normal(7600), (0, 400)).astype(np.float32)


def test_direction_level_and_onset_agree_with_the_labels():
    sources = 0
    for i in range(12):
        spec = scenes.sample_scene(RANGES, CLIPS, 3, "train", i)
        spec = dataclasses.replace(spec, absorption=(1.0,) * 7)
        pyroom, scene = pyroom_engine.render_scene(spec, noise)
        builtin, described = render.render(spec, noise)
        strip = lambda s: {k: v for k, v in s.items() if k not in ("rt60", "sources", "gain")}  # noqa: E731
        assert strip(scene) == strip(described)
        for source, expected_source in zip(scene["sources"], described["sources"], strict=True):
            for name in ("class", "azimuth", "elevation", "distance", "onset", "offset"):
                assert source[name] == expected_source[name]
            start = round(source["onset"] * SAMPLE_RATE)
            part = slice(start, start + 7600)
            azimuth, elevation = foa.cartesian_to_azel(foa.intensity(pyroom[part]))
            assert abs(foa.wrap_azimuth(azimuth - source["azimuth"])) < 0.5
            assert abs(elevation - source["elevation"]) < 0.5
            # A power of 0.01 at 1 m, minus the distance, at the gain of the source.
            level = 10 * np.log10(np.mean(pyroom[part, 0] ** 2) / scene["gain"] ** 2)
            expected = -20 + source["level"] - 20 * np.log10(source["distance"])
            assert level == pytest.approx(expected, abs=0.5)
            builtin_level = 10 * np.log10(np.mean(builtin[part, 0] ** 2) / described["gain"] ** 2)
            assert level == pytest.approx(builtin_level, abs=0.3)
            before, after = (
                pyroom[max(start - 60, 0) : start - 20, 0],
                pyroom[start : start + 40, 0],
            )
            assert np.abs(before).max() < 0.2 * np.abs(after).max()
            sources += 1
    assert sources >= 15


def test_rir_has_the_parameters_of_the_builtin_engine():
    size, source, listener = (3.4, 3.0, 2.5), (1.0, 0.8, 1.1), (2.4, 2.1, 1.4)
    room = rooms.Shoebox(size, rooms.absorption(size, 0.25))
    pyroom = pyroom_engine.pyroom_rir(room, source, listener)
    builtin = rir.shoebox_rir(room, source, listener, np.random.default_rng(0), full=True)
    assert np.argmax(np.abs(pyroom[0])) == np.argmax(np.abs(builtin[0]))
    assert measure.rt60(pyroom) == pytest.approx(measure.rt60(builtin), rel=0.06)
    distance = float(np.linalg.norm(np.subtract(source, listener)))
    assert measure.drr(pyroom, distance) == pytest.approx(measure.drr(builtin, distance), abs=0.7)
    length = min(pyroom.shape[1], builtin.shape[1])
    energy = [10 * np.log10((h[:, :length] ** 2).sum(1)) for h in (pyroom, builtin)]
    np.testing.assert_allclose(energy[0], energy[1], atol=0.7)


def test_unsupported_options_raise(monkeypatch):
    with pytest.raises(ConfigError, match=r"Scenes\.moving_source_prob is 0\.5.*pyroomacoustics"):
        dataclasses.replace(RANGES, moving_source_prob=0.5)
    with pytest.raises(ConfigError, match=r"Scenes\.rir_rooms is 3.*pyroomacoustics"):
        dataclasses.replace(RANGES, rir_rooms=3)
    with pytest.raises(ConfigError, match=r"Scenes\.engine is 'other', expected one of jaxasa"):
        dataclasses.replace(RANGES, engine="other")
    with pytest.raises(
        ConfigError, match=r"Scenes\.scattering is \(0\.1, 0\.2\), expected \(\) for"
    ):
        dataclasses.replace(RANGES, scattering=(0.1, 0.2))
    spec = scenes.sample_scene(RANGES, CLIPS, 3, "train", 0)
    walk = tuple((5.0, *spec.sources[0].position) for _ in range(1))
    walking = dataclasses.replace(spec.sources[0], waypoints=walk)
    with pytest.raises(ConfigError, match=r"sources\[0\]\.waypoints.*no moving sources"):
        pyroom_engine.render_scene(dataclasses.replace(spec, sources=(walking,)), noise)
    from jaxasa.data import formats

    with pytest.raises(ConfigError, match=r"Scenes\.engine is 'pyroomacoustics'.*binaural"):
        formats.get_format("binaural", "pyroomacoustics")
    monkeypatch.setitem(sys.modules, "pyroomacoustics", None)
    with pytest.raises(ConfigError, match="pip install 'jaxasa"):
        formats.get_format("records", "pyroomacoustics")


def test_binaural_model_raises():
    from jaxasa.config import gin_files

    files = ["run/smoke.gin", "model/binaural.gin", "data/pyroomacoustics.gin"]
    with pytest.raises(ConfigError, match=r"Scenes\.engine.*binaural"):
        gin_files.load(files)


@pytest.mark.parametrize("trained", ["run/smoke.gin", "run/demo_long.gin"])
def test_engine_overrides_the_scenes_of_any_run(trained):
    """Also of one that mixes its scenes from a bank of RIRs."""
    from jaxasa.config import gin_files

    run, _ = gin_files.load([trained, "data/pyroomacoustics.gin"])
    assert run.scenes.engine == "pyroomacoustics" and run.scenes.rir_rooms == 0
