# SPDX-License-Identifier: Apache-2.0
import collections
import dataclasses
import hashlib
import json
import re

import numpy as np
import pytest
import soundfile

from jaxasa import config
from jaxasa.bench import build, suite
from jaxasa.bench.select_items import select_items
from jaxasa.config import ConfigError
from jaxasa.data import sounds


def test_counts_are_exact_and_letters_balanced(large):
    questions = [q for _, q in large]
    assert collections.Counter(q.level for q in questions) == {"L1": 385, "L2": 279, "L3": 336}
    tasks = collections.Counter(q.task for q in questions)
    # All types but those about motion, and place_type; three of L1 depend on direction.
    assert len(tasks) == 33
    assert {tasks[t] for t in ("azimuth", "side_count", "elevation")} == {71, 70}
    assert max(tasks.values()) <= 71 and min(tasks.values()) >= 23
    for level in ("L1", "L2", "L3"):
        assert np.mean([q.direction for q in questions if q.level == level]) >= 0.55
    for task in tasks:
        letters = collections.Counter(q.answer for q in questions if q.task == task)
        assert max(letters.values()) - min(letters[x] for x in "ABCD") <= 1
    assert set(collections.Counter(q.answer for q in questions).values()) == {250}


def test_right_answers_are_equally_common_and_scenes_spread(large):
    counts = collections.Counter(q.answer_text for _, q in large if q.task == "side_count")
    assert sorted(counts) == ["0", "1", "2", "3"]
    assert max(counts.values()) - min(counts.values()) <= 1
    num_answers = {"azimuth": 8, "sector_after_turn": 8, "sector_when_facing": 7}
    for task, num in (num_answers | {"elevation": 4, "room_type": 4}).items():
        counts = collections.Counter(q.answer_text for _, q in large if q.task == task)
        assert len(counts) == num and max(counts.values()) <= 1.1 * min(counts.values()) + 2
    per_task = collections.Counter((s["id"], q.task) for s, q in large)
    assert max(per_task.values()) <= 2
    assert max(collections.Counter(s["id"] for s, _ in large).values()) <= 4
    assert len({(s["id"], q.trace, q.task) for s, q in large}) == 1000


def test_selection_is_a_function_of_the_seed(make):
    weights = {"class_present": 1, "azimuth": 1, "class_in_sector": 1}
    weights |= {"sector_after_turn": 2, "turn_to_face": 1}
    described, bench = make.describe(60), config.Bench(l1=8, l2=4, l3=4)

    def select(seed, split, *accept):
        which = config.Questions(weights)
        return select_items(described, make.Bank.classes, bench, which, seed, split, *accept)

    a, same, b = (select(seed, "benchmark") for seed in (1, 1, 2))
    assert a == same and a != b and a[1] == []
    tasks = collections.Counter(q.task for _, q in a[0])
    # 55 % of eight, rounded up, depend on direction; weights hold among those that do.
    assert tasks == {
        **{"class_present": 3, "azimuth": 5, "class_in_sector": 4},
        **{"sector_after_turn": 3, "turn_to_face": 1},
    }
    assert a != select(1, "dev")
    even, _ = select(1, "benchmark", lambda index, q: index % 2 == 0)
    assert {index % 2 for index, _ in even} == {0}


def test_too_few_scenes_raise_with_the_number_needed(make):
    weights = {"azimuth": 1, "class_in_sector": 1, "sector_after_turn": 1}
    described, which = make.describe(60), config.Questions(weights)
    with pytest.raises(ConfigError, match=r"Scenes\.dev is 60, expected about (\d+): task") as e:
        select_items(described, make.Bank.classes, config.Bench(), which, 0, "dev")
    needed = int(re.search(r"about (\d+)", str(e.value))[1])
    assert 60 < needed < 3000


def test_invalid_question_types_are_refused(make):
    scenes, bench = make.describe(4), config.Bench()
    for tasks, message in {
        ("class_present", "class_in_sector"): "a question type of L1 that depends on direction",
        ("azimuth", "juggle"): r"\['juggle'\], expected names out of class_present",
    }.items():
        which = config.Questions(dict.fromkeys(tasks, 1))
        with pytest.raises(ConfigError, match=message):
            select_items(scenes, make.Bank.classes, bench, which, 0, "dev")
    for field, value in (("tasks", {"azimuth": 0}), ("margin", 22.5), ("training_margin", -1)):
        with pytest.raises(ConfigError, match=rf"Questions\.{field}"):
            config.Questions(**{field: value})


def test_build_writes_lossless_audio_metadata_and_checksums(small):
    lines = [json.loads(x) for x in (small.folder / "metadata.jsonl").read_text().splitlines()]
    keys = "file_name id level task question direction options answer scene".split()
    keys += ["template_args", "open_answer"]
    assert len(lines) == 44 and all(list(x) == keys for x in lines)
    by_id = {s["id"]: n for n, s in enumerate(small.scenes)}
    for line in lines:
        n = by_id[line["scene"]["id"]]
        audio, rate = soundfile.read(small.folder / line["file_name"], dtype="int16")
        assert rate == 16_000 and np.array_equal(audio, small.audio[n])
        assert line["scene"] == small.scenes[n]
    assert soundfile.info(small.folder / lines[0]["file_name"]).subtype == "PCM_16"
    facts = suite.manifest(small.folder)
    on_disk = {str(p.relative_to(small.folder)) for p in small.folder.rglob("*") if p.is_file()}
    assert on_disk == set(facts["files"]) | {"manifest.json", "audit.json"}
    assert len([f for f in on_disk if f.endswith(".flac")]) == len({x["file_name"] for x in lines})
    for name, digest in facts["files"].items():
        assert hashlib.sha256((small.folder / name).read_bytes()).hexdigest() == digest
    assert facts["levels"] == {"L1": 20, "L2": 12, "L3": 12} and facts["sounds"] == "made-up sounds"
    assert facts["recordings"]["train"]["sound00"] == 4
    assert sorted(p.name for p in small.root.iterdir()) == ["benchmark", "records"]
    card = (small.folder / "card.md").read_text()
    assert "W, Y, Z, X" in card and "| L1 | side_count | " in card and "Chance is 25 %" in card
    assert "dead below 0.22 s, dry to 0.35, live to 0.5, echoing above" in card
    assert "motion, listener_turn" in card and "| distance, m | " in card
    rows = json.dumps([[x[k] for k in ("id", "question", "options", "answer")] for x in lines])
    assert facts["sha256_of"]["questions"] == hashlib.sha256(rows.encode()).hexdigest()


def test_load_inverts_build(small):
    assert suite.load(small.folder) == small.items
    assert small.items[0].audio().shape == (800, 4)
    source = small.items[0].scene["sources"][0]
    assert small.items[0].recordings[0] == (source["class"], source["recording_id"])


def test_random_streams_keep_their_keys_when_a_question_type_is_renamed(small):
    first = {i.task: i for i in reversed(small.items)}
    assert first["class_present"].id == "L1-class_present-001"
    assert first["class_present"].rng_key == "L1-heard-001"
    assert first["azimuth"].rng_key == first["azimuth"].id
    unknown = dataclasses.replace(first["azimuth"], id="x-other-001", task="other")
    assert unknown.rng_key == "x-other-001"


def test_build_keeps_a_suite_of_the_same_config_and_replaces_others(
    small, run_config, make, monkeypatch
):
    monkeypatch.setattr(sounds.Bank, "load", staticmethod(lambda folder: make.Bank()))
    before = (small.folder / "metadata.jsonl").stat().st_mtime_ns
    build.build(run_config, small.root / "bank", small.root / "records", small.folder)
    assert (small.folder / "metadata.jsonl").stat().st_mtime_ns == before
    other = small.root / "other"
    build.build(run_config, "", small.root / "records", other)
    tasks = ("class_present", "azimuth", "class_in_sector", "sector_after_turn")
    which = config.Questions(dict.fromkeys(tasks, 1))
    bench = config.Bench(l1=8, l2=4, l3=4, probe_items=0)
    run_config = type(run_config)(bench=bench, questions=which, seed=3)
    assert len(build.build(run_config, "", small.root / "records", other)) == 16
    assert suite.manifest(other)["items"] == 16
    (other / "card.md").unlink()


def test_build_refuses_recordings_of_another_split(tmp_path, make, run_config, monkeypatch):
    monkeypatch.setattr(sounds.Bank, "load", staticmethod(lambda folder: make.Bank()))
    make.write_records(tmp_path / "records", make.describe(60, clips="train"))
    with pytest.raises(
        ConfigError, match="is in the train split .* expected only recordings of test"
    ):
        build.build(run_config, "", tmp_path / "records", tmp_path / "benchmark")
    assert not (tmp_path / "benchmark").exists()


def test_load_names_file_and_line(tmp_path, small):
    lines = (small.folder / "metadata.jsonl").read_text().splitlines()
    path = tmp_path / "metadata.jsonl"
    with pytest.raises(ConfigError, match="metadata.jsonl: no such file"):
        suite.load(tmp_path)
    cases = {
        "metadata.jsonl:2: '{oops', expected a JSON object": [lines[0], "{oops"],
        "metadata.jsonl: id is 'L1-class_present-001', expected each id once": lines[:1] * 2,
        "metadata.jsonl:1: answer is 'E', expected A, B, C or D": [
            json.dumps(json.loads(lines[0]) | {"answer": "E"})
        ],
        r"metadata.jsonl:1: missing fields is \['scene'\], expected none": [
            json.dumps({k: v for k, v in json.loads(lines[0]).items() if k != "scene"})
        ],
    }
    for message, text in cases.items():
        path.write_text("\n".join(text))
        with pytest.raises(ConfigError, match=message):
            suite.load(tmp_path)
    path.write_text(lines[0])
    (item,) = suite.load(tmp_path)
    with pytest.raises(ConfigError, match=r"\.flac: cannot be read"):
        item.audio()
    item.file.parent.mkdir()
    soundfile.write(item.file, np.zeros((10, 3), np.int16), 16_000, format="FLAC")
    with pytest.raises(ConfigError, match="3 channels at 16000 Hz, expected 4 or 2"):
        item.audio()
