import collections
import dataclasses
import hashlib
import json
import re

import numpy as np
import pytest
import soundfile

from jaxasa import config
from jaxasa.bench import suite
from jaxasa.config import ConfigError
from jaxasa.data import sounds

PLACES = "front front-left left back-left back back-right right front-right".split()
TURN = {"left": 90, "right": -90, "around": 180}


def place(azimuth):
    return PLACES[int(((azimuth + 22.5) % 360) // 45)]


def derive(scene, q):
    """The answer, from the scene and the wording alone, sharing no code with questions.py."""
    sources = {s["class"]: s for s in scene["sources"]}
    named = [w for w in q.question.split() if w in sources]
    side = {"left": 1, "right": -1}
    if q.task == "heard":
        (present,) = [o for o in q.options if o in sources]
        return present
    ends = {
        "first": min(sources, key=lambda c: sources[c]["onset"]),
        "last": max(sources, key=lambda c: sources[c]["onset"]),
    }
    end = next((ends[w] for w in q.question.split() if w in ends), None)
    closest = min(sources, key=lambda c: sources[c]["distance"])
    if q.task == "first":
        return end
    if q.task == "where_in_time":
        return place(sources[end]["azimuth"])
    if q.task == "nearest":
        return closest
    if q.task == "where_nearest":
        return place(sources[closest]["azimuth"])
    if q.task == "azimuth":
        return place(sources[named[0]]["azimuth"])
    if q.task in ("side_count", "turn_count"):
        which = re.search(r"on the (left|right)", q.question)[1]
        facing = 180 if q.task == "turn_count" else 0
        seen = [np.radians(s["azimuth"] - facing) for s in sources.values()]
        return str(sum(np.sin(azimuth) * side[which] > 0 for azimuth in seen))
    turned = re.search(r"turn (left|right|around)", q.question)
    angle = TURN[turned[1]] if turned else 0
    if q.task == "face":
        angle = sources[named[0]]["azimuth"]
        return place(sources[named[1]]["azimuth"] - angle)
    if q.task == "turn":
        return place(sources[named[0]]["azimuth"] - angle)
    assert q.task in ("at", "turn_at")
    (where,) = [w for w in q.question.partition("turn")[2].split()[1:] if w in PLACES] or [
        w for w in q.question.split() if w in PLACES
    ]
    (found,) = [c for c, s in sources.items() if place(s["azimuth"] - angle) == where]
    return found


def test_every_answer_follows_from_the_scene(large):
    for scene, q in large:
        assert q.options["ABCD".index(q.answer)] == derive(scene, q), (scene["id"], q)
        assert len(set(q.options)) == 4


def test_counts_are_exact_and_letters_balanced(large):
    questions = [q for _, q in large]
    assert collections.Counter(q.level for q in questions) == {"L1": 385, "L2": 279, "L3": 336}
    tasks = collections.Counter(q.task for q in questions)
    # L1 has two tasks of each kind: those with direction get 55 %, the rest is equal.
    assert tasks == {
        **{"heard": 87, "first": 86, "azimuth": 106, "side_count": 106},
        **{"at": 70, "where_in_time": 70, "nearest": 69, "where_nearest": 70},
        **{"turn": 84, "turn_at": 84, "face": 84, "turn_count": 84},
    }
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
    for task, texts in {"azimuth": 8, "turn": 8, "face": 7, "where_nearest": 8}.items():
        counts = collections.Counter(q.answer_text for _, q in large if q.task == task)
        assert len(counts) == texts and max(counts.values()) <= 1.1 * min(counts.values()) + 2
    per_task = collections.Counter((s["id"], q.task) for s, q in large)
    assert max(per_task.values()) <= 2
    assert max(collections.Counter(s["id"] for s, _ in large).values()) <= 4
    assert len({(s["id"], q.trace, q.task) for s, q in large}) == 1000


def test_texts_alone_tell_nothing_and_the_check_would_see_a_leak(large):
    items = as_items(large)
    by_task = [dataclasses.replace(i, level=i.task) for i in items]
    for key in ("task", "question"):
        # Three standard errors: 8 points of the smallest level, 16 of the smallest task.
        assert all(0.1 < share < 0.33 for share in suite.leak(items, key).values()), key
        shares = suite.leak(by_task, key)
        assert max(shares.values()) < 0.41, (key, shares)
    # Wrong options that are never right elsewhere give an item away.
    leaky = [
        dataclasses.replace(
            i,
            options=tuple(
                o if o == i.answer_text else f"wrong {n}" for n, o in enumerate(i.options)
            ),
        )
        for i in items
    ]
    assert min(suite.leak(leaky).values()) > 0.95


def as_items(large):
    names = ("level", "task", "question", "options", "answer", "direction")
    return [
        suite.Item(id=str(n), scene=s, file="", **{k: getattr(q, k) for k in names})
        for n, (s, q) in enumerate(large)
    ]


def test_the_choice_is_a_function_of_the_seed(make):
    described, bench = make.describe(60), config.Bench(l1=8, l2=4, l3=4)
    a, again, b = (
        suite.choose(described, make.Bank.classes, bench, seed, "benchmark") for seed in (1, 1, 2)
    )
    assert a == again and a != b
    assert a != suite.choose(described, make.Bank.classes, bench, 1, "dev")


def test_too_few_scenes_say_how_many_are_needed(make):
    described = make.describe(60)
    with pytest.raises(ConfigError, match=r"Scenes\.dev is 60, expected about (\d+): task") as e:
        suite.choose(described, make.Bank.classes, config.Bench(), 0, "dev")
    needed = int(re.search(r"about (\d+)", str(e.value))[1])
    assert 60 < needed < 3000


def test_build_writes_lossless_audio_metadata_and_checksums(small):
    lines = [json.loads(x) for x in (small.folder / "metadata.jsonl").read_text().splitlines()]
    keys = "file_name id level task question direction options answer scene".split()
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
    assert on_disk == set(facts["files"]) | {"manifest.json"}
    assert len([f for f in on_disk if f.endswith(".flac")]) == len({x["file_name"] for x in lines})
    for name, digest in facts["files"].items():
        assert hashlib.sha256((small.folder / name).read_bytes()).hexdigest() == digest
    assert facts["levels"] == {"L1": 20, "L2": 12, "L3": 12} and facts["sounds"] == "made-up sounds"
    assert facts["takes"]["train"]["sound00"] == 4
    assert sorted(p.name for p in small.root.iterdir()) == ["benchmark", "records"]
    card = (small.folder / "card.md").read_text()
    assert "W, Y, Z, X" in card and "| L1 | side_count | " in card and "Chance is 25 %" in card


def test_load_gives_back_what_was_built(small):
    assert suite.load(small.folder) == small.items
    assert small.items[0].audio().shape == (800, 4)
    source = small.items[0].scene["sources"][0]
    assert small.items[0].takes[0] == (source["class"], source["take"])


def test_build_keeps_a_finished_suite_and_replaces_another(small, run_config, make, monkeypatch):
    monkeypatch.setattr(sounds.Bank, "load", staticmethod(lambda folder: make.Bank()))
    before = (small.folder / "metadata.jsonl").stat().st_mtime_ns
    suite.build(run_config, small.root / "bank", small.root / "records", small.folder)
    assert (small.folder / "metadata.jsonl").stat().st_mtime_ns == before
    other = small.root / "other"
    suite.build(run_config, "", small.root / "records", other)
    run_config = type(run_config)(bench=config.Bench(l1=8, l2=4, l3=4), seed=3)
    assert len(suite.build(run_config, "", small.root / "records", other)) == 16
    assert suite.manifest(other)["items"] == 16
    (other / "card.md").unlink()


def test_build_refuses_recordings_of_another_split(tmp_path, make, run_config, monkeypatch):
    monkeypatch.setattr(sounds.Bank, "load", staticmethod(lambda folder: make.Bank()))
    make.write_records(tmp_path / "records", make.describe(60, clips="train"))
    with pytest.raises(ConfigError, match="is in the train split .* expected only takes of test"):
        suite.build(run_config, "", tmp_path / "records", tmp_path / "benchmark")
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
    soundfile.write(item.file, np.zeros((10, 2), np.int16), 16_000, format="FLAC")
    with pytest.raises(ConfigError, match="2 channels at 16000 Hz, expected 4"):
        item.audio()
