# SPDX-License-Identifier: Apache-2.0
"""`jaxasa listen` and `simulate --format binaural`, on a work folder of three short scenes."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jaxasa import config
from jaxasa.acoustics import binaural, foa, foa_decoder, render, scenes
from jaxasa.acoustics.sphere_hrtf import SphereHrtf
from jaxasa.config import ConfigError
from jaxasa.core import keys
from jaxasa.data import procedural, records, sounds, specs
from jaxasa.data.simulate import simulate
from jaxasa.viz import binauralize

SCENES = config.Scenes(
    train=1, dev=1, benchmark=1, seconds=1.5, rt60=(0.15, 0.2), scenes_per_shard=2, workers=1
)
HEAD = SphereHrtf()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        keep = ("alarm", "blast", "drum", "typing")
        patch.setattr(procedural, "CLASSES", {name: procedural.CLASSES[name] for name in keep})
        patch.setattr(procedural, "CLIPS_PER_RECORDING", 1)
        bank = sounds.build(config.Sounds("procedural"), folder / "sounds", 0)
    for kind, form in (("scenes", "records"), ("binaural", "binaural:sphere")):
        simulate(SCENES, bank.folder, "train", folder / kind / "train", 7, 3, form)
    return folder


def read_stereo(path: Path) -> np.ndarray:
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == 16_000 and samples.ndim == 2 and samples.shape[1] == 2
    assert [p.name for p in path.parent.iterdir() if p.suffix == ".tmp"] == []
    return samples


def test_binaural_and_foa_data_sets_share_scenes_and_labels(workdir):
    foa_records = records.Records(workdir / "scenes" / "train")
    binaural_records = records.Records(workdir / "binaural" / "train")
    assert len(binaural_records) == len(foa_records) == 3
    bank = sounds.Bank.load(workdir / "sounds")
    for index in range(3):
        sound, labels = binaural_records[index]
        assert sound.shape == (24_000, 2)
        assert {**labels, "gain": 0} == {**foa_records[index][1], "gain": 0}
        spec = scenes.sample_scene(SCENES, bank.clips("train"), 7, "train", index)
        expected, scene = binaural.render(spec, bank.audio, HEAD)
        assert scene == labels
        assert np.abs(records.to_float(sound) - expected).max() < 2e-4
    assert binaural_records.manifest["channels"] == "left, right ear"
    assert binaural_records.manifest["hrtf"] == HEAD.name
    assert binaural_records.manifest["key"] != foa_records.manifest["key"]
    with pytest.raises(ConfigError, match="other settings"):
        simulate(SCENES, bank.folder, "train", binaural_records.folder, 7, 3)


def test_stored_scene_is_rendered_by_image_sources(workdir, tmp_path):
    out = tmp_path / "scene.wav"
    result = binauralize.binauralize(workdir / "scenes" / "train", out, index=1)
    assert result["method"] == "images" and result["hrtf"] == HEAD.name and result["gain"] == 1
    expected = records.to_float(records.Records(workdir / "binaural" / "train")[1][0])
    assert np.abs(read_stereo(out) - expected).max() < 2e-4
    stored = binauralize.binauralize(workdir / "binaural" / "train", out, index=1)
    assert stored["method"] == "stored" and stored["hrtf"] is None
    assert np.abs(read_stereo(out) - expected).max() < 1e-4


def test_scene_in_json_needs_its_sound_bank(workdir, tmp_path):
    bank = sounds.Bank.load(workdir / "sounds")
    spec = specs.scene_of_record(records.Records(workdir / "scenes" / "train"), 2, bank)
    path, out = tmp_path / "scene.json", tmp_path / "scene.wav"
    path.write_text(spec.to_json())
    assert specs.load_scene(path, None, None) == spec
    assert binauralize.binauralize(path, out, sounds=bank.folder)["method"] == "images"
    expected, _ = binaural.render(spec, bank.audio, HEAD)
    assert np.abs(read_stereo(out) - expected).max() < 1e-4
    with pytest.raises(ConfigError, match="--sounds"):
        binauralize.binauralize(path, out)
    source = dataclasses.replace(spec.sources[0], clip="none")
    path.write_text(dataclasses.replace(spec, sources=(source,)).to_json())
    with pytest.raises(ConfigError, match=r"clip 'none'.*bank"):
        binauralize.binauralize(path, out, sounds=bank.folder)


def test_stored_scene_without_its_bank_is_decoded_from_foa(workdir, tmp_path):
    """A moved folder, and one whose scenes are sampled differently by this version."""
    moved = tmp_path / "moved" / "train"
    moved.mkdir(parents=True)
    for file in (workdir / "scenes" / "train").iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    out = tmp_path / "scene.wav"
    assert binauralize.binauralize(moved, out)["method"] == "foa"
    stored = records.to_float(records.Records(moved)[0][0])
    expected = foa_decoder.decode(stored, HEAD)
    scale = min(1, 0.9 / np.abs(expected).max())
    assert np.abs(read_stereo(out) - scale * expected).max() < 1e-4
    manifest = json.loads((moved / "manifest.json").read_text())
    manifest["seed"] = 8
    (moved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="another version"):
        binauralize.binauralize(moved, out, sounds=workdir / "sounds")


@pytest.mark.parametrize("convention", ["ambix", "n3d", "fuma"])
def test_foa_file_in_each_convention_at_48_khz(tmp_path, convention):
    noise = 0.2 * keys.rng(0).standard_normal(48_000)
    field = noise[:, None] * foa.encode(90, 0)
    stored = {
        "ambix": field,
        "n3d": field * [1, 3**0.5, 3**0.5, 3**0.5],
        "fuma": field[:, [0, 3, 1, 2]] * [0.5**0.5, 1, 1, 1],
    }[convention]
    path, out = tmp_path / "a.wav", tmp_path / "out.wav"
    soundfile.write(path, stored, 48_000, subtype="FLOAT")
    result = binauralize.binauralize(path, out, convention=convention)
    assert result["method"] == "foa" and result["seconds"] == 1.0
    left, right = read_stereo(out).T
    level = 10 * np.log10((left**2).sum() / (right**2).sum())
    assert level > 6
    lag = np.argmax(np.correlate(left, right, "full")) - (len(left) - 1)
    assert -14 < lag < -8


def test_loud_recording_is_scaled_below_clipping(tmp_path):
    path, out = tmp_path / "a.wav", tmp_path / "out.wav"
    soundfile.write(path, keys.rng(0).standard_normal((8000, 4)), 16_000, subtype="FLOAT")
    result = binauralize.binauralize(path, out)
    assert result["gain"] < 1
    assert np.abs(read_stereo(out)).max() == pytest.approx(render.MAX_PEAK, abs=1e-3)


def test_invalid_arguments_are_named(workdir, tmp_path):
    out, train = tmp_path / "out.wav", workdir / "scenes" / "train"
    for arguments, words in (
        ((train, tmp_path / "out.mp3"), r"out\.mp3"),
        ((train, tmp_path / "no" / "out.wav"), "folder that exists"),
        ((train, out, 3), "--index is 3, expected 0 to 2"),
        ((train, out, -1), "--index"),
        ((tmp_path, out), "manifest"),
        ((tmp_path / "none.wav", out), "none.wav"),
        ((tmp_path / "none.json", out), "none.json"),
        ((train, out, 0, "none.sofa"), "none.sofa"),
        ((train, out, 0, "sphere", None, tmp_path), "sound bank"),
    ):
        with pytest.raises(ConfigError, match=words):
            binauralize.binauralize(*arguments)
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"bad\.json.*SceneSpec"):
        binauralize.binauralize(tmp_path / "bad.json", out)
    assert not out.exists()


def test_full_disk_leaves_no_partial_file(workdir, tmp_path, monkeypatch):
    def full(file, *_, **__):
        Path(file).write_bytes(b"RIFF")
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr(soundfile, "write", full)
    with pytest.raises(OSError, match="No space"):
        binauralize.binauralize(workdir / "scenes" / "train", tmp_path / "out.wav")
    assert list(tmp_path.iterdir()) == []


def test_inapplicable_options_are_refused(workdir, tmp_path):
    out, bank, sound = tmp_path / "out.wav", workdir / "sounds", tmp_path / "a.wav"
    soundfile.write(sound, np.zeros((160, 4)), 16_000)
    scene, stored = workdir / "scenes" / "train", workdir / "binaural" / "train"
    data = tmp_path / "scene.json"
    data.write_text(specs.load_scene(scene, 0, bank).to_json())
    for source, options, word in (
        (sound, {"index": 0}, "--index 0"),
        (sound, {"sounds": bank}, "--sounds"),
        (scene, {"convention": "ambix"}, "--convention ambix"),
        (stored, {"hrtf_name": "sphere"}, "--hrtf sphere"),
        (stored, {"sounds": bank}, "--sounds"),
        (data, {"convention": "fuma", "sounds": bank}, "--convention fuma"),
        (data, {"index": 1, "sounds": bank}, "--index 1"),
    ):
        with pytest.raises(ConfigError, match=f"{word}.*expected none with it"):
            binauralize.binauralize(source, out, **options)
    with pytest.raises(ConfigError, match="--sounds .*scene in JSON"):
        specs.load_scene(data, None, bank)
    assert not out.exists()
