"""`jaxasa listen` and `simulate --format binaural`, on a work folder of three short scenes."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jaxasa import config
from jaxasa.acoustics import binaural, foa, foa_decoder, hrtf, render, scenes
from jaxasa.config import ConfigError
from jaxasa.core import keys
from jaxasa.data import procedural, records, sounds, specs
from jaxasa.data.simulate import simulate
from jaxasa.viz import binauralize

SCENES = config.Scenes(
    train=1, dev=1, benchmark=1, seconds=1.5, rt60=(0.15, 0.2), scenes_per_shard=2, workers=1
)
HEAD = hrtf.Sphere()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        keep = ("alarm", "blast", "drum", "typing")
        patch.setattr(procedural, "CLASSES", {name: procedural.CLASSES[name] for name in keep})
        patch.setattr(procedural, "CLIPS", 1)
        bank = sounds.build(config.Sounds("procedural"), folder / "sounds", 0)
    for kind, form in (("scenes", "records"), ("binaural", "binaural:sphere")):
        simulate(SCENES, bank.folder, "train", folder / kind / "train", 7, 3, form)
    return folder


def heard(path: Path) -> np.ndarray:
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == 16_000 and samples.ndim == 2 and samples.shape[1] == 2
    assert [p.name for p in path.parent.iterdir() if p.suffix == ".tmp"] == []
    return samples


def test_a_binaural_data_set_has_the_scenes_and_labels_of_the_foa_one(workdir):
    around = records.Records(workdir / "scenes" / "train")
    ears = records.Records(workdir / "binaural" / "train")
    assert len(ears) == len(around) == 3
    bank = sounds.Bank.load(workdir / "sounds")
    for index in range(3):
        sound, labels = ears[index]
        assert sound.shape == (24_000, 2)
        assert {**labels, "gain": 0} == {**around[index][1], "gain": 0}
        spec = scenes.draw(SCENES, bank.clips("train"), 7, "train", index)
        expected, scene = binaural.render(spec, bank.audio, HEAD)
        assert scene == labels
        assert np.abs(records.to_float(sound) - expected).max() < 2e-4
    assert ears.manifest["channels"] == "left, right ear"
    assert ears.manifest["hrtf"] == HEAD.name
    assert ears.manifest["key"] != around.manifest["key"]
    with pytest.raises(ConfigError, match="other settings"):
        simulate(SCENES, bank.folder, "train", ears.folder, 7, 3)


def test_scene_of_a_folder_is_rendered_image_by_image(workdir, tmp_path):
    out = tmp_path / "scene.wav"
    found = binauralize.listen(workdir / "scenes" / "train", out, index=1)
    assert found["from"] == "images" and found["hrtf"] == HEAD.name and found["gain"] == 1
    expected = records.to_float(records.Records(workdir / "binaural" / "train")[1][0])
    assert np.abs(heard(out) - expected).max() < 2e-4
    stored = binauralize.listen(workdir / "binaural" / "train", out, index=1)
    assert stored["from"] == "stored" and stored["hrtf"] is None
    assert np.abs(heard(out) - expected).max() < 1e-4


def test_scene_in_json(workdir, tmp_path):
    bank = sounds.Bank.load(workdir / "sounds")
    spec = specs.of_record(records.Records(workdir / "scenes" / "train"), 2, bank)
    path, out = tmp_path / "scene.json", tmp_path / "scene.wav"
    path.write_text(scenes.to_json(spec))
    assert specs.find(path, None, None) == spec
    assert binauralize.listen(path, out, sounds=bank.folder)["from"] == "images"
    expected, _ = binaural.render(spec, bank.audio, HEAD)
    assert np.abs(heard(out) - expected).max() < 1e-4
    with pytest.raises(ConfigError, match="--sounds"):
        binauralize.listen(path, out)
    source = dataclasses.replace(spec.sources[0], clip="none")
    path.write_text(scenes.to_json(dataclasses.replace(spec, sources=(source,))))
    with pytest.raises(ConfigError, match=r"clip 'none'.*bank"):
        binauralize.listen(path, out, sounds=bank.folder)


def test_without_its_bank_a_stored_scene_is_decoded(workdir, tmp_path):
    """A folder that was moved, and one whose scenes are drawn otherwise today."""
    moved = tmp_path / "moved" / "train"
    moved.mkdir(parents=True)
    for file in (workdir / "scenes" / "train").iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    out = tmp_path / "scene.wav"
    assert binauralize.listen(moved, out)["from"] == "foa"
    stored = records.to_float(records.Records(moved)[0][0])
    expected = foa_decoder.decode(stored, HEAD)
    scale = min(1, 0.9 / np.abs(expected).max())
    assert np.abs(heard(out) - scale * expected).max() < 1e-4
    manifest = json.loads((moved / "manifest.json").read_text())
    manifest["seed"] = 8
    (moved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="another version"):
        binauralize.listen(moved, out, sounds=workdir / "sounds")


@pytest.mark.parametrize("order", ["ambix", "n3d", "fuma"])
def test_a_recording_at_48_khz(tmp_path, order):
    noise = 0.2 * keys.rng(0).standard_normal(48_000)
    field = noise[:, None] * foa.encode(90, 0)
    stored = {
        "ambix": field,
        "n3d": field * [1, 3**0.5, 3**0.5, 3**0.5],
        "fuma": field[:, [0, 3, 1, 2]] * [0.5**0.5, 1, 1, 1],
    }[order]
    path, out = tmp_path / "a.wav", tmp_path / "out.wav"
    soundfile.write(path, stored, 48_000, subtype="FLOAT")
    found = binauralize.listen(path, out, order=order)
    assert found["from"] == "foa" and found["seconds"] == 1.0
    left, right = heard(out).T
    level = 10 * np.log10((left**2).sum() / (right**2).sum())
    assert level > 6
    lag = np.argmax(np.correlate(left, right, "full")) - (len(left) - 1)
    assert -14 < lag < -8


def test_a_loud_recording_does_not_clip(tmp_path):
    path, out = tmp_path / "a.wav", tmp_path / "out.wav"
    soundfile.write(path, keys.rng(0).standard_normal((8000, 4)), 16_000, subtype="FLOAT")
    found = binauralize.listen(path, out)
    assert found["gain"] < 1
    assert np.abs(heard(out)).max() == pytest.approx(render.PEAK, abs=1e-3)


def test_bad_input_is_named(workdir, tmp_path):
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
            binauralize.listen(*arguments)
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"bad\.json.*SceneSpec"):
        binauralize.listen(tmp_path / "bad.json", out)
    assert not out.exists()


def test_a_full_disk_leaves_no_half_file(workdir, tmp_path, monkeypatch):
    def full(file, *_, **__):
        Path(file).write_bytes(b"RIFF")
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr(soundfile, "write", full)
    with pytest.raises(OSError, match="No space"):
        binauralize.listen(workdir / "scenes" / "train", tmp_path / "out.wav")
    assert list(tmp_path.iterdir()) == []


def test_options_that_a_source_has_no_use_for_are_refused(workdir, tmp_path):
    out, bank, sound = tmp_path / "out.wav", workdir / "sounds", tmp_path / "a.wav"
    soundfile.write(sound, np.zeros((160, 4)), 16_000)
    scene, stored = workdir / "scenes" / "train", workdir / "binaural" / "train"
    data = tmp_path / "scene.json"
    data.write_text(scenes.to_json(specs.find(scene, 0, bank)))
    for source, options, word in (
        (sound, {"index": 0}, "--index 0"),
        (sound, {"sounds": bank}, "--sounds"),
        (scene, {"order": "ambix"}, "--order ambix"),
        (stored, {"head": "sphere"}, "--hrtf sphere"),
        (stored, {"sounds": bank}, "--sounds"),
        (data, {"order": "fuma", "sounds": bank}, "--order fuma"),
        (data, {"index": 1, "sounds": bank}, "--index 1"),
    ):
        with pytest.raises(ConfigError, match=f"{word}.*expected none with it"):
            binauralize.listen(source, out, **options)
    with pytest.raises(ConfigError, match="--sounds .*scene in JSON"):
        specs.find(data, None, bank)
    assert not out.exists()
