# SPDX-License-Identifier: Apache-2.0
import csv
import dataclasses
import json
import os
import pickle
import re

import numpy as np
import pytest
import soundfile

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.data import debian, sounds
from jaxasa.data.decode import SoundFile
from jaxasa.data.sounds import Bank, SoundsUnavailable, build

RECORDINGS = 8


def noise(seconds, *key):
    return 0.1 * np.random.default_rng(key).standard_normal(int(seconds * SAMPLE_RATE))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "corpus"
    for c, label in enumerate(("dog", "key", "rain")):
        for recording in range(RECORDINGS):
            path = root / label / str(recording)
            path.mkdir(parents=True)
            for clip in range(2):
                seconds = 0.3 if label == "key" else 0.7
                soundfile.write(
                    path / f"{clip}.wav", noise(seconds, c, recording, clip), SAMPLE_RATE
                )
    return root


def settings(root, **changes):
    return config.Sounds(**({"bank": f"folder:{root}", "min_recordings": 6} | changes))


def recordings_of(bank):
    return {s: {(c.label, c.recording_id) for c in bank.clips(s)} for s in ("train", "dev", "test")}


def test_no_recording_is_in_two_splits_and_each_split_has_all_classes(folder, tmp_path):
    bank = build(settings(folder), tmp_path / "bank", 0)
    recordings = recordings_of(bank)
    assert bank.classes == ("dog", "key", "rain")
    assert {s: len(t) for s, t in recordings.items()} == {"train": 15, "dev": 3, "test": 6}
    assert len(set.union(*recordings.values())) == 24
    assert all({label for label, _ in t} == set(bank.classes) for t in recordings.values())


def test_audio_is_the_recording_and_ids_are_unique(folder, tmp_path):
    bank = build(settings(folder), tmp_path / "bank", 0)
    clips = [c for s in ("train", "dev", "test") for c in bank.clips(s)]
    assert len({c.id for c in clips}) == len(clips) == 48
    for clip in clips:
        got = bank.audio(clip.id)
        assert got.dtype == np.float32 and len(got) == round(clip.seconds * SAMPLE_RATE)
        want, _ = soundfile.read(folder / clip.id)
        length = min(len(got), len(want), 4800)
        assert np.corrcoef(got[:length], want[:length])[0, 1] > 0.95


def test_short_clips_are_repeated_with_their_recording_only(folder, tmp_path):
    bank = build(settings(folder, min_recordings=3), tmp_path / "bank", 0)
    for clip in bank.clips("test"):
        if clip.label != "key":
            assert clip.seconds == pytest.approx(0.7, abs=0.03)
            continue
        assert 1.5 <= clip.seconds < 2.2
        got = bank.audio(clip.id)
        own = [soundfile.read(p)[0] for p in (folder / clip.recording_id).iterdir()]
        other = [
            soundfile.read(p)[0]
            for p in folder.glob("key/*/*")
            if p.parent.name not in clip.recording_id
        ]

        gaps = re.findall(rb"\x01{1200,}", (got == 0).astype(np.uint8).tobytes())
        assert 2 <= len(gaps) <= 4  # of at least 75 ms, between 3 to 5 clips
        likeness = [max(_likeness(got, x) for x in group) for group in (own, other)]
        assert likeness[0] > 0.3 > likeness[1]


def _likeness(got, x):
    return np.abs(np.correlate(got, x)).max() / np.linalg.norm(x) / np.linalg.norm(got)


def test_repeated_clips_stay_under_max_seconds(folder, tmp_path):
    bank = build(settings(folder, max_seconds=0.9), tmp_path / "bank", 0)
    assert max(c.seconds for c in bank.clips("train")) <= 0.9


def test_bad_files_are_reported_and_counted(folder, tmp_path):
    (folder / "dog/0/bad.wav").write_bytes(b"RIFF no")
    soundfile.write(folder / "dog/0/silent.wav", np.zeros(SAMPLE_RATE), SAMPLE_RATE)
    soundfile.write(folder / "dog/1/short.wav", noise(0.1, 9), SAMPLE_RATE)
    soundfile.write(
        folder / "dog/2/loud.wav",
        np.clip(np.sin(np.arange(SAMPLE_RATE) / 9), -0.7, 0.7),
        SAMPLE_RATE,
    )
    (folder / "rain/6/copy.wav").write_bytes((folder / "rain/5/0.wav").read_bytes())
    bank = build(settings(folder), tmp_path / "bank", 0)
    assert bank.report["refused"] == {
        "dog/0/bad.wav": "unreadable",
        "dog/0/silent.wav": "silent",
        "dog/1/short.wav": "shorter than 0.15 s",
        "dog/2/loud.wav": "clipped",
        "rain/6/copy.wav": "the same audio as another file",
    }
    assert "refused: 1 x silent" in bank.table()
    assert len([c for s in ("train", "dev", "test") for c in bank.clips(s)]) == 48


def test_a_filtered_duplicate_joins_its_recording(folder, tmp_path):
    samples, rate = soundfile.read(folder / "rain/5/0.wav")
    soundfile.write(folder / "rain/6/again.wav", 0.5 * samples[200:], rate)
    bank = build(settings(folder), tmp_path / "bank", 0)
    ids = {c.id: c.recording_id for s in ("train", "dev", "test") for c in bank.clips(s)}
    assert ids["rain/6/0.wav"] == ids["rain/5/0.wav"] == ids["rain/6/again.wav"]


def test_classes_too_large_for_duplicate_search_are_reported(folder, tmp_path, monkeypatch):
    samples, rate = soundfile.read(folder / "rain/5/0.wav")
    soundfile.write(folder / "rain/6/again.wav", 0.5 * samples[200:], rate)
    monkeypatch.setattr("jaxasa.data.dedup.MAX_COMPARED_CLIPS", 16)
    bank = build(settings(folder), tmp_path / "bank", 0)
    assert bank.report["unmerged"] == {"rain": 17}
    assert "not searched for duplicates: rain (17 clips, at most 16 are compared)" in bank.table()


def test_classes_with_few_recordings_are_left_out_and_reported(folder, tmp_path):
    soundfile.write(folder / "dog/0/x.wav", noise(1, 3), SAMPLE_RATE)
    (folder / "bell").mkdir()
    soundfile.write(folder / "bell/x.wav", noise(1, 4), SAMPLE_RATE)
    bank = build(settings(folder), tmp_path / "bank", 0)
    assert bank.report["left_out"] == {"bell": 1} and "bell" not in bank.classes
    assert "left out: bell (1 recordings)" in bank.table()
    with pytest.raises(ConfigError, match="min_recordings"):
        build(settings(folder, min_recordings=9), tmp_path / "other", 0)


def test_classes_combine_labels(folder, tmp_path):
    classes = {"water": ("rain", "dog"), "typing": ("key",)}
    bank = build(settings(folder, classes=classes), tmp_path / "bank", 0)
    assert bank.classes == ("typing", "water")
    assert bank.report["classes"]["water"]["test"]["recordings"] == 4
    with pytest.raises(ConfigError, match="'kay'"):
        build(settings(folder, classes={"a": ("kay",)}), tmp_path / "bank", 0)
    with pytest.raises(ConfigError, match="'key'"):
        build(settings(folder, classes={"a": ("key",), "b": ("key",)}), tmp_path / "bank", 0)


def test_a_recording_in_two_classes_stays_in_one(tmp_path):
    lines = ["path,class,recording_id"]
    for k in range(8):
        for label in ("dog", "cat"):
            name = f"{label}{k}.wav"
            soundfile.write(tmp_path / name, noise(0.6, k, len(lines)), SAMPLE_RATE)
            lines.append(f"{name},{label},{label}{k if k else ''}")
    soundfile.write(tmp_path / "both.wav", noise(0.6, 77), SAMPLE_RATE)
    lines.append("both.wav,cat,dog3")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    bank = build(
        config.Sounds(f"manifest:{tmp_path / 'list.csv'}", min_recordings=4), tmp_path / "bank", 0
    )
    everything = [
        (s, c.label, c.recording_id) for s in ("train", "dev", "test") for c in bank.clips(s)
    ]
    assert {label for _, label, name in everything if name == "dog3"} in ({"cat"}, {"dog"})
    assert "its recording_id has more clips of another class" in bank.report["reasons"]


def test_equal_settings_reuse_the_bank_and_others_rebuild_it(folder, tmp_path, monkeypatch):
    first = build(settings(folder), tmp_path / "bank", 0)
    with monkeypatch.context() as patch:
        patch.setattr(sounds, "_decode", None)
        assert build(settings(folder), tmp_path / "bank", 0).digest == first.digest
    assert build(settings(folder), tmp_path / "other", 0).digest == first.digest
    assert build(settings(folder), tmp_path / "bank", 1).digest != first.digest
    assert sorted(p.name for p in (tmp_path / "bank").iterdir()) == ["audio.i16", "bank.json"]


def test_more_files_of_an_old_recording_move_nothing(folder, tmp_path):
    before = recordings_of(build(settings(folder), tmp_path / "bank", 0))
    soundfile.write(folder / "dog/0/more.wav", noise(1, 5), SAMPLE_RATE)
    assert recordings_of(build(settings(folder), tmp_path / "new", 0)) == before


def test_changed_files_are_read_and_recordings_keep_their_split(folder, tmp_path):
    """The bank was reused when only settings were compared."""
    first = build(settings(folder), tmp_path / "bank", 0)
    for k in range(12):
        soundfile.write(folder / f"dog/new{k}.wav", noise(1, 5, k), SAMPLE_RATE)
    soundfile.write(folder / "rain/0/0.wav", noise(0.9, 6), SAMPLE_RATE)
    before = {key: s for s, mine in recordings_of(first).items() for key in mine}
    more = build(settings(folder), tmp_path / "bank", 0)
    after = {key: s for s, mine in recordings_of(more).items() for key in mine}
    assert more.digest != first.digest and len(after) == 24 + 12
    assert {key: after[key] for key in before} == before
    counts = [c["recordings"] for c in more.report["classes"]["dog"].values()]
    assert counts == [12, 3, 5]
    assert len(more.audio("rain/0/0.wav")) == pytest.approx(
        0.9 * SAMPLE_RATE, abs=SAMPLE_RATE // 50
    )


def test_an_interrupted_rebuild_keeps_the_splits(folder, tmp_path, monkeypatch):
    first = recordings_of(build(settings(folder), tmp_path / "bank", 0))
    soundfile.write(folder / "dog/new.wav", noise(1, 5), SAMPLE_RATE)
    with monkeypatch.context() as patch:
        patch.setattr(sounds, "_write_credits", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(settings(folder), tmp_path / "bank", 0)
    again = recordings_of(build(settings(folder), tmp_path / "bank", 0))
    assert all(first[s] <= again[s] for s in first)
    assert sorted(p.name for p in (tmp_path / "bank").iterdir()) == ["audio.i16", "bank.json"]


def test_a_bank_whose_files_are_gone_is_kept(folder, tmp_path, capsys):
    first = build(settings(folder), tmp_path / "bank", 0)
    folder.rename(tmp_path / "moved")
    assert build(settings(folder), tmp_path / "bank", 0).digest == first.digest
    assert "keeping the sound bank" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="a folder per class"):
        build(settings(folder), tmp_path / "bank", 1)


def test_bank_pickles_small(folder, tmp_path):
    bank = build(settings(folder), tmp_path / "bank", 0)
    clip = bank.clips("dev")[0]
    bank.audio(clip.id)
    data = pickle.dumps(bank)
    assert len(data) < 500
    np.testing.assert_array_equal(pickle.loads(data).audio(clip.id), bank.audio(clip.id))


def test_incomplete_and_damaged_banks_are_refused_and_rebuilt(folder, tmp_path):
    with pytest.raises(ConfigError, match="not a complete sound bank"):
        Bank.load(tmp_path / "bank")
    digest = build(settings(folder), tmp_path / "bank", 0).digest
    audio = tmp_path / "bank/audio.i16"
    audio.write_bytes(audio.read_bytes()[:-2])
    with pytest.raises(ConfigError, match="damaged"):
        Bank.load(tmp_path / "bank")
    assert build(settings(folder), tmp_path / "bank", 0).digest == digest


def test_long_recordings_give_several_clips_of_one_recording(folder, tmp_path):
    soundfile.write(folder / "dog/3/long.wav", noise(40, 8), SAMPLE_RATE)
    bank = build(settings(folder, max_seconds=2.0), tmp_path / "bank", 0)
    mine = [c for s in ("train", "dev", "test") for c in bank.clips(s) if "long" in c.id]
    assert [c.id for c in mine] == [f"dog/3/long.wav#{k}" for k in range(6)]
    assert {c.recording_id for c in mine} == {"dog/3"}


def test_debian_credits_and_failure(tmp_path, monkeypatch):
    def list_files(labels, folder, with_training_only):
        return [
            SoundFile(
                f"pack:{label}{k}.ogg",
                (label,),
                f"pack/{label}{k}",
                lambda k=k, c=c: noise(0.6, c, k).astype(np.float32),
                "pack",
                "GPL-2+",
            )
            for c, label in enumerate(labels)
            for k in range(8)
        ]

    monkeypatch.setattr(debian, "list_files", list_files)
    settings = config.Sounds("debian", classes={"door": ("Door",), "drum": ("Drum",)})
    bank = build(settings, tmp_path / "bank", 0)
    assert bank.name == "debian recordings" and bank.classes == ("door", "drum")
    with open(tmp_path / "bank/credits.csv", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 16
    assert rows[0] == {
        "package": "pack", "licence": "GPL-2+", "member": "Door0.ogg", "class": "door"
    }  # fmt: skip

    def unavailable(labels, folder, with_training_only):
        raise SoundsUnavailable("no network")

    monkeypatch.setattr(debian, "list_files", unavailable)
    with pytest.raises(SoundsUnavailable):
        build(settings, tmp_path / "other", 0)
    assert not (tmp_path / "other/bank.json").exists()


def test_training_only_recordings_change_no_other_split(tmp_path, monkeypatch):
    def recording(name, samples, training_only=False):
        give = samples.astype(np.float32)
        return SoundFile(name, (name[:4],), name, lambda: give, "pack", training_only=training_only)

    own = [
        recording(f"{label}{k}", noise(0.6, c, k))
        for c, label in enumerate(("door", "drum"))
        for k in range(12)
    ]
    classes = {"door": ("door",), "drum": ("drum",)}
    settings = config.Sounds("debian", classes=classes)
    monkeypatch.setattr(debian, "list_files", lambda *_: own)
    before = recordings_of(build(settings, tmp_path / "before", 0))
    (_, copied), *_ = sorted(before["test"])
    k = int(copied[4:])
    others = [recording(f"drum-{n}", noise(0.6, 9, n), True) for n in range(30)]
    louder = 0.5 * noise(0.6, ("door", "drum").index(copied[:4]), k)[300:]
    others.append(recording(f"{copied[:4]}-again", louder, True))
    monkeypatch.setattr(
        debian, "list_files", lambda labels, folder, training: own + others if training else own
    )
    bank = build(dataclasses.replace(settings, bank="debian_more"), tmp_path / "after", 0)
    assert bank.name == "debian recordings"
    after = recordings_of(bank)
    assert after["dev"] == before["dev"] and after["test"] == before["test"]
    added = {("drum", f"drum-{n}") for n in range(30)}
    assert after["train"] == before["train"] | added
    assert bank.report["refused"] == {f"{copied[:4]}-again": f"the same recording as {copied}"}


@pytest.mark.parametrize("bank", ["debain", "debian:here", "folder", "folder:", "esc50"])
def test_unknown_kinds_of_banks_are_refused(bank):
    with pytest.raises(ConfigError, match=f"Sounds.bank is '{bank}', expected one of debian, "):
        config.Sounds(bank)


def test_report_is_plain_json(folder, tmp_path):
    bank = build(settings(folder), tmp_path / "bank", 0)
    assert json.loads(json.dumps(bank.report)) == bank.report
    assert bank.report["classes"]["dog"]["train"]["clips"] == 10


def test_file_names_that_are_not_utf8_are_used(folder, tmp_path):
    for path in (folder / "dog/0", folder / "dog"):
        os.rename(path, os.fsencode(path) + b"\xe9")
    bank = build(settings(folder), tmp_path / "bank", seed=0)
    assert bank.classes == ("dog\\xe9", "key", "rain") and not bank.report["refused"]
    clips = [c for split in ("train", "dev", "test") for c in bank.clips(split)]
    assert "dog\\xe9/0\\xe9" in {c.recording_id for c in clips}
