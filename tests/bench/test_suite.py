import collections
import hashlib
import json
import re

import numpy as np
import pytest
import soundfile

from jaxasa import config
from jaxasa.bench import build, select_items, suite
from jaxasa.config import ConfigError
from jaxasa.data import sounds


def test_counts_are_exact_and_letters_balanced(large):
    questions = [q for _, q in large]
    assert collections.Counter(q.level for q in questions) == {"L1": 385, "L2": 279, "L3": 336}
    tasks = collections.Counter(q.task for q in questions)
    # All but what needs motion or classes with a home; L1 has three tasks with direction.
    assert len(tasks) == 33 and {tasks[t] for t in ("azimuth", "side_count", "elevation")} == {
        71,
        70,
    }
    assert max(tasks.values()) <= 71 and min(tasks.values()) >= 23
    for level in ("L1", "L2", "L3"):
        kinds = [q.direction for q in questions if q.level == level]
        assert np.mean(kinds) >= 0.55
    for task in tasks:
        letters = collections.Counter(q.answer for q in questions if q.task == task)
        assert max(letters.values()) - min(letters[x] for x in "ABCD") <= 1
    assert set(collections.Counter(q.answer for q in questions).values()) == {250}


def test_right_answers_are_equally_common_and_scenes_spread(large):
    counts = collections.Counter(q.answer_text for _, q in large if q.task == "side_count")
    assert sorted(counts) == ["0", "1", "2", "3"]
    assert max(counts.values()) - min(counts.values()) <= 1
    for task, texts in {"azimuth": 8, "turn": 8, "face": 7, "elevation": 4, "room": 4}.items():
        counts = collections.Counter(q.answer_text for _, q in large if q.task == task)
        assert len(counts) == texts and max(counts.values()) <= 1.1 * min(counts.values()) + 2
    per_task = collections.Counter((s["id"], q.task) for s, q in large)
    assert max(per_task.values()) <= 2
    assert max(collections.Counter(s["id"] for s, _ in large).values()) <= 4
    assert len({(s["id"], q.trace, q.task) for s, q in large}) == 1000


def test_the_choice_is_a_function_of_the_seed(make):
    described, bench = make.describe(60), config.Bench(l1=8, l2=4, l3=4)
    which = config.Questions({"heard": 1, "azimuth": 1, "at": 1, "turn": 2, "aim": 1})
    a, again, b = (
        select_items.choose(described, make.Bank.classes, bench, which, seed, "benchmark")
        for seed in (1, 1, 2)
    )
    assert a == again and a != b and a[1] == []
    tasks = collections.Counter(q.task for _, q in a[0])
    # 55 % of eight, rounded up; weights within a kind.
    assert tasks == {"heard": 3, "azimuth": 5, "at": 4, "turn": 3, "aim": 1}
    assert a != select_items.choose(described, make.Bank.classes, bench, which, 1, "dev")
    held = select_items.choose(
        described, make.Bank.classes, bench, which, 1, "benchmark", lambda index, q: index % 2 == 0
    )
    assert {index % 2 for index, _ in held[0]} == {0}


def test_too_few_scenes_say_how_many_are_needed(make):
    described, which = make.describe(60), config.Questions({"azimuth": 1, "at": 1, "turn": 1})
    arguments = (described, make.Bank.classes, config.Bench(), which, 0, "dev")
    with pytest.raises(ConfigError, match=r"Scenes\.dev is 60, expected about (\d+): task") as e:
        select_items.choose(*arguments)
    needed = int(re.search(r"about (\d+)", str(e.value))[1])
    assert 60 < needed < 3000


def test_selections_that_cannot_be_are_refused(make):
    scenes, bench = make.describe(4), config.Bench()
    for tasks, message in {
        ("heard", "at", "turn"): "expected a task of L1 to which direction matters",
        ("azimuth", "at", "juggle"): r"\['juggle'\], expected names out of heard",
    }.items():
        which = config.Questions(dict.fromkeys(tasks, 1))
        with pytest.raises(ConfigError, match=message):
            select_items.choose(scenes, make.Bank.classes, bench, which, 0, "dev")
    for field, value in (("tasks", {"at": 0}), ("margin", 22.5), ("training_margin", -1)):
        with pytest.raises(ConfigError, match=rf"Questions\.{field}"):
            config.Questions(**{field: value})


def test_build_writes_lossless_audio_metadata_and_checksums(small):
    lines = [json.loads(x) for x in (small.folder / "metadata.jsonl").read_text().splitlines()]
    keys = "file_name id level task question direction options answer scene about open".split()
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
    elsewhere = json.dumps([[x[k] for k in ("id", "question", "options", "answer")] for x in lines])
    assert facts["sha256_of"]["questions"] == hashlib.sha256(elsewhere.encode()).hexdigest()


def test_load_gives_back_what_was_built(small):
    assert suite.load(small.folder) == small.items
    assert small.items[0].audio().shape == (800, 4)
    source = small.items[0].scene["sources"][0]
    assert small.items[0].recordings[0] == (source["class"], source["recording_id"])


def test_build_keeps_a_finished_suite_and_replaces_another(small, run_config, make, monkeypatch):
    monkeypatch.setattr(sounds.Bank, "load", staticmethod(lambda folder: make.Bank()))
    before = (small.folder / "metadata.jsonl").stat().st_mtime_ns
    build.build(run_config, small.root / "bank", small.root / "records", small.folder)
    assert (small.folder / "metadata.jsonl").stat().st_mtime_ns == before
    other = small.root / "other"
    build.build(run_config, "", small.root / "records", other)
    which = config.Questions({"heard": 1, "azimuth": 1, "at": 1, "turn": 1})
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
    with pytest.raises(ConfigError, match="metadata.jsonl: cannot be read"):
        suite.load(tmp_path)
    cases = {
        "metadata.jsonl:2: '{oops', expected a JSON object": [lines[0], "{oops"],
        r"metadata.jsonl: id is 'L1-heard-001', expected each id once": [lines[0], lines[0]],
        "metadata.jsonl:1: answer is 'E', expected A, B, C or D": [
            json.dumps(json.loads(lines[0]) | {"answer": "E"})
        ],
        r"metadata.jsonl:1 is \['scene'\]": [
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
