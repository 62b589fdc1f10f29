# SPDX-License-Identifier: Apache-2.0
import json
import os

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from jaxasa.acoustics import foa
from jaxasa.config import ConfigError
from jaxasa.data import dcase, import_scenes, records, so_dataset
from jaxasa.data.import_scenes import convert as importing

RATE = 24_000


def wave(seconds, azimuth, rate=RATE, seed=0):
    """Noise from a direction: [n, 4]."""
    noise = 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * rate))
    return noise[:, None] * foa.encode(azimuth, 0)


def azimuth_of(audio):
    return foa.cartesian_to_azel(foa.intensity(records.to_float(audio)))[0]


def rows_of(folder):
    return [
        json.loads(line)
        for line in (folder / import_scenes.QUESTIONS_FILE).read_text().splitlines()
    ]


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))


@pytest.fixture
def starss(tmp_path):
    """Two recordings as STARSS23 has them: 24 kHz, 7 s, and one with two channels."""
    root = tmp_path / "STARSS23"
    (root / "foa_dev/dev-train-sony").mkdir(parents=True)
    (root / "metadata_dev/dev-train-sony").mkdir(parents=True)
    sounds = {"fold3_room1_mix001": wave(7, 90), "fold4_room2_mix001": wave(7, -45)}
    sounds["fold3_room1_mix002"] = wave(7, 0)[:, :2]
    for name, samples in sounds.items():
        soundfile.write(root / f"foa_dev/dev-train-sony/{name}.wav", samples, RATE)
        # A bell stands at the left from 1 s to 4 s, a man walks from 2 s on.
        lines = [f"{f},11,0,90,10,150" for f in range(10, 40)]
        lines += [f"{f},1,0,{-90 + 2 * (f - 20)},0,200" for f in range(20, 70)]
        text = "\n".join(lines[:30] if name.startswith("fold4") else lines)
        (root / f"metadata_dev/dev-train-sony/{name}.csv").write_text(text)
    return root


def test_starss_becomes_windows_with_events_and_questions(starss, tmp_path):
    data = importing("dcase", starss, tmp_path / "out", split="fold3", seconds=2.0)
    names = [data[k][1]["id"].rpartition("/")[2] for k in range(len(data))]
    # 7 s: the fourth window has but 1 s of 2, which is enough.
    assert names == [f"fold3_room1_mix001@{s}" for s in (0, 2, 4, 6)]
    assert [len(data[k][0]) for k in range(4)] == [32_000] * 3 + [16_000]
    assert all(abs(azimuth_of(data[k][0]) - 90) < 0.1 for k in range(4))
    first, second, third, _ = (data[k][1]["sources"] for k in range(4))
    assert [(s["class"], s["onset"], s["offset"]) for s in first] == [("bell", 1.0, 2.0)]
    assert {(s["class"], s["onset"], s["offset"]) for s in second} == {
        ("bell", 0.0, 2.0),
        ("man", 0.0, 2.0),
    }
    (man,) = third
    assert man["doa_trajectory"][0] == [-50.0, 0.0, 2.0] and len(man["doa_trajectory"]) == 20
    (name,) = data.manifest["refused"]
    assert name.endswith("fold3_room1_mix002.wav")
    assert "has 2 channels, expected 4" in data.manifest["refused"][name]
    # Only the window in which nothing moves is asked about.
    questions = rows_of(tmp_path / "out")
    assert questions and {row["record"] for row in questions} == {0}
    assert data.manifest["questions"] == len(questions)
    for row in questions:
        assert row["answer"] in row["options"] and len(set(row["options"])) == 4
    assert {r["answer"] for r in questions if r["task"] == "azimuth"} <= {"left"}


def test_simulated_dcase_set_keeps_its_class_names(bank, tmp_path):
    from jaxasa import config
    from jaxasa.data.simulate import simulate

    ranges = config.Scenes(
        train=1, dev=1, benchmark=1, seconds=2.0, rt60=(0.15, 0.2), workers=1, sources=(1, 2)
    )
    simulate(ranges, bank.folder, "train", tmp_path / "dcase", 1, 6, "dcase")
    plain = simulate(ranges, bank.folder, "train", tmp_path / "records", 1, 6)
    data = importing("dcase", tmp_path / "dcase", tmp_path / "out", seconds=2.0)
    assert len(data) == 6 and not data.manifest["refused"]
    for (audio, scene), (got, back) in zip(plain, data, strict=True):
        assert len(got) == len(audio)
        low = [np.fft.rfft(records.to_float(x), axis=0)[:12_000] for x in (audio, got)]
        assert np.linalg.norm(low[0] - low[1]) < 0.02 * np.linalg.norm(low[0])
        for a, b in zip(scene["sources"], back["sources"], strict=True):
            assert a["class"] == b["class"] and abs(a["distance"] - b["distance"]) <= 0.0051
            assert abs(foa.wrap_azimuth(a["azimuth"] - b["azimuth"])) <= 0.51


@pytest.fixture
def so(tmp_path):
    """An SO-Dataset of 48 kHz with three sounds, and lines that cannot be used."""
    root = tmp_path / "SO"
    for name, azimuth in (("a", 30), ("b", -120), ("stereo", 0)):
        path = root / f"audio/train/{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = wave(1.5, azimuth, 48_000)
        soundfile.write(path, samples[:, :2] if name == "stereo" else samples, 48_000)
    reference = {"class_name": "dog bark", "azimuth_deg": 30, "elevation_deg": 0, "distance_m": 2}
    where = {"question": "Where is the dog?", "answer": "Front left.", "canonical_answer": "30"}
    write_lines(
        root / "qa/train.jsonl",
        [
            {"audio_path": "audio/train/a.wav", "task_name": "azimuth"}
            | where
            | {"source_refs": [reference]},
            {"audio_path": "audio/train/a.wav", "question": "How far?", "answer": 2.0}
            | {"source_refs": [reference]},
            {"audio_path": "b.wav", "question": "What is heard?", "answer": "Rain."},
            {"audio_path": "audio/train/stereo.wav", "question": "What?", "answer": "Rain."},
            {"audio_path": "audio/train/none.wav", "question": "What?", "answer": "Rain."},
            {"audio_path": "audio/train/a.wav", "question": "What?"},
            {"audio_path": "audio/train/a.wav", "question": "?", "answer": "x", "source_refs": 3},
            "{not json\n",
            "[1, 2]\n",
            {"audio_path": "b.wav", "question": "What?", "answer": "x", "source_refs": ["a"]},
            {"audio_path": "x" * 5000, "question": "What?", "answer": "x"},
            '{"audio_path": "b.wav", "question": "What\\ud800?", "answer": "x"}\n',
            '{"audio_path": "b.wav", "question": "What?", "answer": "x", "source_refs": '
            '[{"class_name": "dog", "azimuth_deg": 1e999}]}\n',
            "\n",
        ],
    )
    return root


def test_so_dataset_becomes_records_and_questions(so, tmp_path):
    data = importing("so", so, tmp_path / "out")
    assert [data[k][1]["id"] for k in range(len(data))] == ["a", "b"]
    assert [round(azimuth_of(data[k][0])) for k in range(2)] == [30, -120]
    assert all(data[k][0].shape == (24_000, 4) for k in range(2))
    (source,) = data[0][1]["sources"]
    assert source == {"class": "dog bark", "azimuth": 30, "elevation": 0, "distance": 2}
    rows = rows_of(tmp_path / "out")
    assert [(r["record"], r["question"], r["answer"]) for r in rows] == [
        (0, "Where is the dog?", "Front left."),
        (0, "How far?", "2.0"),
        (1, "What is heard?", "Rain."),
    ]
    assert rows[0]["task"] == "azimuth" and rows[0]["canonical"] == "30"
    refused = {name.rpartition("/")[2]: why for name, why in data.manifest["refused"].items()}
    assert refused == {
        "stereo.wav": "has 2 channels, expected 4 (W, Y, Z, X)",
        "none.wav": "no such file, expected a WAV or FLAC file with 4 channels",
        "train.jsonl:6": "no answer",
        "train.jsonl:7": "malformed",
        "train.jsonl:8": "not a JSON object",
        "train.jsonl:9": "not a JSON object",
        "train.jsonl:10": "malformed",
        "train.jsonl:11": "malformed",
        "train.jsonl:12": "not a JSON object",
        "train.jsonl:13": "a source reference is not finite",
    }
    assert data.manifest["reasons"]["not a JSON object"] == 3
    with pytest.raises(ConfigError, match="qa/eval.jsonl"):
        importing("so", so, tmp_path / "other", split="eval")


def test_annotations_are_read_if_classes_are_given(so, tmp_path):
    folder = so / "annotations/train"
    folder.mkdir(parents=True)
    (folder / "a.csv").write_text("0,1,0,30,0,200\n1,1,0,30,0,200\n")
    (folder / "b.csv").write_text("nonsense\n")
    data = importing("so", so, tmp_path / "out", classes=["rain", "dog"])
    (source,) = data[0][1]["sources"]
    assert source["class"] == "dog" and source["offset"] == 0.2 and source["distance"] == 2.0
    assert data[1][1]["sources"] == [] and "b.csv" in data.manifest["refused"]


@pytest.mark.parametrize("convention", ["ambix", "n3d", "fuma"])
def test_plain_jsonl_in_any_channel_convention(tmp_path, convention):
    w, y, z, x = wave(1, 135, 16_000).T
    stored = {
        "ambix": [w, y, z, x],
        "n3d": [w, *(3**0.5 * c for c in (y, z, x))],
        "fuma": [w / 2**0.5, x, y, z],
    }[convention]
    soundfile.write(tmp_path / "a.wav", np.stack(stored, 1), 16_000, subtype="FLOAT")
    options = ["left", "right", "front", "back-left"]
    write_lines(
        tmp_path / "q.jsonl",
        [
            {"audio": "a.wav", "question": "Where?", "answer": "D", "options": options},
            {"audio_path": "a.wav", "question": "Where?", "answer": "left", "options": options},
            {"file_name": "a.wav", "question": "Where?", "answer": "back-left", "level": "L1"},
            {"audio": "a.wav", "question": "Where?", "answer": "up", "options": options},
            {"audio": "a.wav", "question": "Where?", "answer": "A", "options": ["left"]},
        ],
    )
    data = importing("jsonl", tmp_path / "q.jsonl", tmp_path / "out", convention=convention)
    (audio, _), rows = data[0], rows_of(tmp_path / "out")
    assert len(data) == 1 and abs(azimuth_of(audio) - 135) < 0.1
    np.testing.assert_allclose(records.to_float(audio), wave(1, 135, 16_000), atol=2e-5)
    assert [r["answer"] for r in rows] == ["back-left", "left", "back-left"]
    assert "options" not in rows[2] and rows[2]["level"] == "L1"
    assert sorted(data.manifest["reasons"]) == [
        "options are not two to 10",
        "the answer is no option",
    ]
    with pytest.raises(ConfigError, match="'acn'"):
        importing("jsonl", tmp_path / "q.jsonl", tmp_path / "b", convention="acn")


def test_importing_again_opens_and_other_content_is_refused(so, tmp_path):
    out = tmp_path / "out"
    first = importing("so", so, out)
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    assert len(importing("so", so, out)) == len(first)
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == before
    with pytest.raises(ConfigError, match="another data set"):
        importing("so", so, out, convention="n3d")
    soundfile.write(so / "audio/train/b.wav", wave(1, 0), RATE)
    with pytest.raises(ConfigError, match="another data set"):
        importing("so", so, out)


def test_a_failed_import_leaves_nothing(so, tmp_path, monkeypatch):
    monkeypatch.setattr(import_scenes.records, "write_manifest", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        importing("so", so, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["SO"]
    write_lines(tmp_path / "q.jsonl", ["{}\n"])
    with pytest.raises(ConfigError, match="nothing to import: 1 refused.*q.jsonl:1"):
        importing("jsonl", tmp_path / "q.jsonl", tmp_path / "out")


def test_a_file_of_two_windows_is_read_once(starss, tmp_path, monkeypatch):
    read = []
    real = import_scenes.foa_file.read_foa
    monkeypatch.setattr(import_scenes.foa_file, "read_foa", lambda *a: read.append(a) or real(*a))
    importing("dcase", starss, tmp_path / "out", split="fold4", seconds=1.0)
    assert len(read) == 1


json_value = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
fields = ("audio", "audio_path", "question", "answer", "options", "level", "trace", "source_refs")


@given(st.lists(st.dictionaries(st.sampled_from(fields), json_value) | json_value, max_size=5))
def test_any_line_is_a_question_or_is_refused(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("q") / "q.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    refused = {}
    try:
        sounds = so_dataset.read_jsonl(path, refused)
    except ConfigError:  # one line that is a list of objects is one JSON document
        assert len(lines) == 1
        return
    used = sum(len(rows) for _, rows in sounds.values())
    assert used + len(refused) == len(lines)
    for _, rows in sounds.values():
        for row in rows:
            assert row["question"].strip() and row["answer"].strip()


def test_events_are_relative_to_the_window(starss, tmp_path):
    data = importing("dcase", starss, tmp_path / "out", split="fold4", seconds=3.5)
    (first,), (second,) = data[0][1]["sources"], data[1][1]["sources"]
    assert (first["onset"], first["offset"]) == (1.0, 3.5)
    assert (second["onset"], second["offset"]) == (0.0, 0.5)
    assert dcase.STARSS23[11] == first["class"]


def test_questions_on_recordings_keep_the_margin_of_the_benchmark():
    """A source 10 degrees from one would be asked about in training on simulated scenes."""
    classes = [f"class {k}" for k in range(8)]

    def tasks(azimuth):
        source = dict(azimuth=azimuth, elevation=0.0, distance=2.0, onset=0.5, offset=1.5)
        drawn = (
            import_scenes._questions([source | {"class": "class 0"}], classes, str(k))
            for k in range(40)
        )
        return {q["task"] for one in drawn for q in one}

    assert {"azimuth", "sector_after_turn"} <= tasks(45.0)
    assert not {"azimuth", "sector_after_turn"} & tasks(32.5)


def rewrite_distances(starss, form):
    for path in starss.rglob("*.csv"):
        rows = [line.split(",") for line in path.read_text().splitlines()]
        path.write_text("".join(",".join([*r[:5], form(float(r[5]))]) + "\n" for r in rows))


def test_distances_in_metres_are_read_as_such_and_said(starss, tmp_path, capsys):
    in_cm = importing("dcase", starss, tmp_path / "cm", split="fold4", seconds=2.0)
    rewrite_distances(starss, lambda cm: f"{cm / 100:.3f}")  # as SpatialScaper wrote them
    in_m = importing("dcase", starss, tmp_path / "m", split="fold4", seconds=2.0)
    assert in_m[0][1]["sources"] == in_cm[0][1]["sources"]
    assert in_m[0][1]["sources"][0]["distance"] == 1.5
    assert "count as m" in capsys.readouterr().err and in_m.manifest["notes"]
    assert not in_cm.manifest["notes"]
    rewrite_distances(starss, lambda m: f"{m:.0f}")
    with pytest.raises(ConfigError, match="may be m or cm, expected --unit"):
        importing("dcase", starss, tmp_path / "other", split="fold4", seconds=2.0)
    by_hand = importing("dcase", starss, tmp_path / "x", split="fold4", seconds=2.0, unit="m")
    assert by_hand[0][1]["sources"][0]["distance"] == 2.0 and not by_hand.manifest["notes"]


def test_two_sounds_of_one_class_and_number_are_two_sources(starss, tmp_path):
    (path,) = starss.rglob("fold4_room2_mix001.csv")
    path.write_text("".join(f"{f},1,0,{a},0,200\n" for f in range(10) for a in (-90, 90)))
    data = importing("dcase", starss, tmp_path / "out", split="fold4", seconds=2.0)
    sources = data[0][1]["sources"]
    assert [(s["class"], s["azimuth"]) for s in sources] == [("man", -90.0), ("man", 90.0)]
    assert not any("doa_trajectory" in s for s in sources) and not rows_of(tmp_path / "out")


def test_options_with_letters_and_answers_in_any_dress():
    def answer(text, options):
        line = {"question": "Where?", "answer": text, "options": options}
        return so_dataset.parse_row(line)["answer"]

    four = ["left", "right", "front-left", "back"]
    lettered = [f"({x}) {o}" for x, o in zip("ABCD", four, strict=True)]
    for text in ("C", "c", "(c)", "**C**", "C. front-left", "Front left", "The answer is C."):
        assert answer(text, four) == answer(text, lettered) == "front-left"
    assert answer("B", ["yes", "no"]) == "no" and answer("J", list("0123456789")) == "9"
    for text, options in (("up", four), ("A or B", four), ("C", ["yes", "no"]), ("A", ["left"])):
        with pytest.raises(ValueError):
            answer(text, options)


def test_one_json_document_is_named(tmp_path):
    path = tmp_path / "q.json"
    rows = [{"audio": "a.wav", "question": "Where?", "answer": "left"}] * 9
    for content, kind in (
        (json.dumps(rows), "a list of 9"),
        (json.dumps(rows, indent=1), "a list of 9"),
        (json.dumps({"data": rows}), "a list of 9 in 'data'"),
    ):
        path.write_text(content)
        with pytest.raises(ConfigError, match=f"is one JSON document .{kind}.*JSON object a line"):
            importing("jsonl", path, tmp_path / "out")


def test_a_dcase_set_with_links_and_names_that_are_not_utf8(starss, tmp_path):
    expected = dcase.list_recordings(starss)
    for part in ("foa_dev", "metadata_dev"):
        (starss / part / "dev-train-sony").rename(tmp_path / part)
        (starss / part / "dev-train-sony").symlink_to(tmp_path / part)
    assert dcase.list_recordings(starss) == expected
    for part, suffix in (("foa_dev", b".wav"), ("metadata_dev", b".csv")):
        for name in (b"fold3_room1_mix001", b"fold3_room1_mix002"):
            path = os.path.join(os.fsencode(tmp_path / part), name)
            os.rename(path + suffix, path + b"caf\xe9" + suffix)
    data = importing("dcase", starss, tmp_path / "out", seconds=5.0)
    ids = {data[i][1]["id"].partition("@")[0] for i in range(len(data))}
    assert "dev-train-sony/fold3_room1_mix001caf\\xe9" in ids
    refused = records.read_manifest(tmp_path / "out")["refused"]
    (path,) = (path for path, reason in refused.items() if "2 channels" in reason)
    assert path.endswith("mix002caf\\xe9.wav")
