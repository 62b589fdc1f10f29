# SPDX-License-Identifier: Apache-2.0
"""Suites of recordings in DCASE's layout: answers derived independently from the CSV files."""

import csv
import importlib.util
import json
import types
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jaxasa import config
from jaxasa.acoustics import scenes
from jaxasa.bench import (
    audit,
    baselines,
    build,
    external_suite,
    report,
    run,
    scene_viewer,
    slots,
    suite,
)
from jaxasa.cli import main
from jaxasa.config import ConfigError, gin_files
from jaxasa.core.workdir import WorkFolder
from jaxasa.data import dcase, import_scenes, records
from jaxasa.pipeline import steps

path = Path(__file__).parents[1] / "data" / "test_answers.py"
spec = importlib.util.spec_from_file_location("answers", path)
answers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(answers)

CLASSES, RATE, SECONDS, FRAMES = answers.CLASSES, 24_000, 4, 40
# Types that need more than labels: RT60, level, DRR; and those that need a distance.
UNLABELLED = {"reverberance", "room_type", "loudest_source", "listener_turn"}
NEED_DISTANCE = {
    *("distance", "nearest_source", "sector_of_nearest", "distance_in_sector"),
    *("relative_distance", "sector_after_walk", "multi_hop"),
}


def write(root, has_distance):
    """40 recordings of two windows and one second; up to three sounds per window, some moving."""
    rng = np.random.default_rng(3)
    for folder in ("foa_dev/dev-test", "metadata_dev/dev-test"):
        (root / folder).mkdir(parents=True)
    audio = (0.01 * rng.standard_normal((9 * RATE, 4))).astype(np.float32)
    for n in range(40):
        name = f"fold4_room1_mix{n:03d}"
        soundfile.write(root / f"foa_dev/dev-test/{name}.wav", audio, RATE)
        rows = []
        for window in range(2):
            labels = rng.permutation(len(CLASSES) + 1)[: rng.integers(1, 4)]
            azimuths = rng.permutation(8)[:3] * 45 + rng.integers(-6, 7, 3)
            starts = rng.permutation(4)[:3] * 8
            for k, label in enumerate(labels):
                first = window * FRAMES + int(starts[k])
                direction = [int(azimuths[k] + 180) % 360 - 180, int(rng.integers(-20, 50))]
                metres = int(100 * rng.choice([0.7, 1.2, 2.0, 3.4]))
                is_moving = k == 2 and n % 5 == 0
                for f in range(first, first + 8):
                    azimuth = direction[0] + 5 * (f - first) * is_moving
                    rows.append([f, label, k, azimuth, direction[1]] + [metres] * has_distance)
        rng.shuffle(rows)
        with open(root / f"metadata_dev/dev-test/{name}.csv", "w", newline="") as out:
            csv.writer(out).writerows(rows)


def read(root, name):
    """The scene of a window, "audio/dev-test-fold4_room1_mix000@4.flac", from the CSV file."""
    stem, _, start = Path(name).stem.removeprefix("dev-test-").partition("@")
    by_label = defaultdict(list)
    with open(root / f"metadata_dev/dev-test/{stem}.csv", newline="") as lines:
        for frame, label, _, azimuth, elevation, *cm in csv.reader(lines):
            f = int(frame) - 10 * int(start)
            if 0 <= f < FRAMES:
                metres = int(cm[0]) / 100 if cm else 1.0
                by_label[int(label)].append((f, int(azimuth), int(elevation), metres))
    sources = [
        {
            "class": CLASSES[label],
            "azimuth": sorted(rows)[0][1],
            "elevation": sorted(rows)[0][2],
            "distance": sorted(rows)[0][3],
            "onset": min(rows)[0] / 10,
            "offset": (max(rows)[0] + 1) / 10,
            "level": 0.0,
            "drr": 0.0,
        }
        for label, rows in by_label.items()
    ]
    return {"seconds": SECONDS, "sources": sorted(sources, key=lambda s: s["onset"])}


@pytest.fixture(scope="module", params=[True, False], ids=["distance", "no_distance"])
def built(request, tmp_path_factory):
    """A DCASE set with or without distances, imported, and the suite made of it."""
    root = tmp_path_factory.mktemp("dcase")
    write(root / "set", request.param)
    names = [*CLASSES, import_scenes.UNNAMED_CLASS]
    folder = root / "scenes" / "benchmark"
    import_scenes.convert("dcase", root / "set", folder, seconds=SECONDS, classes=names)
    run_config = types.SimpleNamespace(
        bench=config.Bench(l1=40, l2=30, l3=30, probe_items=1000, bootstrap_samples=50),
        questions=config.Questions(),
        seed=0,
    )
    items = build.build(run_config, root / "nothing", folder, root / "benchmark")
    return types.SimpleNamespace(
        root=root, has_distance=request.param, folder=folder, items=items, suite=root / "benchmark"
    )


def test_answers_follow_from_the_csv_files(built):
    assert len(built.items) >= 60 and {i.level for i in built.items} == {"L1", "L2", "L3"}
    tasks = set()
    for item in built.items:
        scene = read(built.root / "set", suite.name_of(item.file))
        answer = answers.derive(scene, item.task, item.question, item.options)
        assert answer == item.answer_text, (item.task, item.question, scene)
        tasks.add(item.task)
    assert not tasks & UNLABELLED
    assert bool(tasks & NEED_DISTANCE) == built.has_distance
    common = {"class_present", "azimuth", "onset_order", "class_in_sector", "sector_after_turn"}
    assert common <= tasks


def test_manifest_and_card_name_the_origin_of_the_scenes(built):
    facts = suite.manifest(built.suite)
    assert facts["scene_source"] == "dcase" and facts["sounds"] == "dcase recordings"
    assert facts["classes"] == sorted(CLASSES) and facts["seconds"] == SECONDS
    assert not any(facts["recordings"]["train"].values())
    assert all(facts["recordings"]["test"].values())
    card = (built.suite / "card.md").read_text()
    assert "windows of recordings in DCASE's layout" in card and "shoebox" not in card
    assert ("| distance, m |" in card) == built.has_distance and "| RT60, s |" not in card
    scores = json.loads((built.suite / audit.FILE).read_text())
    assert scores["drawn"] == 0 and all(s["oracle"] == 1 for s in scores["levels"].values())
    data = records.Records(built.folder)
    reasons = data.manifest["reasons"]
    assert reasons["a sound of a class without a name"] > 0
    used = {i.scene["id"] for i in built.items}
    for k in range(len(data)):
        scene = data[k][1]
        # The last second of a recording is not a window.
        assert not scene["id"].endswith("@8") or scene["id"] not in used


def test_report_of_an_imported_set(built, tmp_path, monkeypatch):
    if built.has_distance:
        return  # missing distances are the harder case
    monkeypatch.setattr(scene_viewer, "MAX_AUDIO_CHARS", 0)  # no audio in the page, which is faster
    oracle = {"oracle": baselines.oracle(CLASSES)}
    results = run.evaluate(
        {}, {}, built.suite, tmp_path, config.Bench(bootstrap_samples=50), baselines=oracle
    )
    assert results["systems"]["oracle"]["overall"]["accuracy"] == 1
    assert results["benchmark"]["scene_source"] == "dcase"
    rows = [
        {"file_name": suite.name_of(i.file), "scene": _with_distances(i.scene)} for i in built.items
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "predictions" / slots.FILE).write_text(lines)
    page = report.write(tmp_path, benchmark=built.suite).read_text()
    assert "windows of recordings in DCASE" in page and "nan" not in page.lower().split()
    assert "median factor between found and true distance" not in page


def test_imported_set_needs_no_sounds_and_no_simulation(built, monkeypatch):
    if not built.has_distance:
        return
    run_config = gin_files.load(["run/demo.gin", "data/external.gin"])[0]
    monkeypatch.setattr(steps.load, "read_meta", lambda model: {"classes": CLASSES})
    monkeypatch.setattr(steps, "run_benchmark", lambda run, work, split, model: {"answered": model})
    monkeypatch.setattr(steps, "write_report", lambda folder, split: None)
    for name in ("build_sound_bank", "render_scenes"):
        monkeypatch.setattr(steps, name, None)
    folder = built.root / "work"
    folder.mkdir()
    (folder / "scenes").symlink_to(built.root / "scenes")
    results = steps.run_external(run_config, WorkFolder(folder), Path("model"))
    assert results == {"answered": Path("model")}
    items = suite.load(folder / "benchmark")
    assert {i.task for i in items} <= set(run_config.questions.tasks)
    assert len(items) <= run_config.bench.l1 + run_config.bench.l2 + run_config.bench.l3
    monkeypatch.setattr(steps.load, "read_meta", lambda model: {"classes": CLASSES[1:]})
    with pytest.raises(ConfigError, match=r"classes of the scenes is \['bird'\]"):
        steps.run_external(run_config, WorkFolder(folder), Path("model"))


def _with_distances(scene):
    return scene | {"sources": [s | {"distance": s["distance"] or 2.0} for s in scene["sources"]]}


@pytest.mark.parametrize("name", ["outside_large", "outside_small"])
def test_rooms_of_outside_suites_are_outside_the_training_ranges(name):
    """Every scene of these gin files is outside the ranges of training scenes."""
    inside = gin_files.load(["run/demo.gin"])[0].scenes
    ranges = gin_files.load(["run/demo.gin", f"data/{name}.gin"])[0].scenes
    clips = [scenes.Clip(c, c, c, 1.0) for c in CLASSES]
    specs = [scenes.sample_scene(ranges, clips, 0, "benchmark", i) for i in range(60)]
    far = []
    for scene in specs:
        length, width, height = scene.room
        if name == "outside_large":
            assert length > inside.length[1] and width >= inside.width[1]
            assert height >= inside.height[1] and scene.snr <= inside.snr[0]
            assert inside.rt60[1] <= scene.rt60 <= 1.4
        else:
            assert length < inside.length[0] and width <= inside.width[0]
            assert height <= inside.height[0] and scene.rt60 <= inside.rt60[0]
        far += [s["distance"] for s in scenes.describe(scene)["sources"]]
    if name == "outside_large":
        assert np.mean(np.array(far) > inside.distance[1]) > 0.3


def test_unknown_classes_training_clips_and_other_layouts_are_refused(built, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"classes of the scenes is \['owl'\].*bird"):
        steps._check_classes(["owl", "bird"], CLASSES)
    clip = types.SimpleNamespace(id="a")
    bank = types.SimpleNamespace(
        folder="bank", clips=lambda split: [clip], audio=lambda name: np.arange(5)
    )
    with pytest.raises(ConfigError, match="test clip 'a' is 'a' of bank, expected recordings"):
        audit.check_no_train_overlap(bank, bank)
    other = types.SimpleNamespace(folder="b", clips=bank.clips, audio=lambda name: np.arange(6))
    audit.check_no_train_overlap(bank, other)
    source = records.Records(built.folder)
    monkeypatch.setitem(source.manifest, "layout", "so")
    with pytest.raises(ConfigError, match="layout of .* is 'so', expected one of dcase"):
        external_suite.layout(source)
    assert not external_suite.is_imported(tmp_path)
    assert main.main(["bench", "external", str(tmp_path), "--workdir", str(tmp_path / "w")]) == 2


def test_with_three_known_classes_no_question_asks_for_a_class(built, tmp_path):
    """Four classes could not be offered without some that are never right."""
    if not built.has_distance:
        return
    text = (Path(__file__).parents[2] / "gin/data/starss23_classes.txt").read_text()
    assert dict(zip(dcase.STARSS23, text.split(), strict=True)) == {
        **dict.fromkeys(dcase.STARSS23, import_scenes.UNNAMED_CLASS),
        **{"woman": "speech", "man": "speech", "footsteps": "steps"},
        **{"music": "music", "instrument": "music"},
    }
    three = [*["music", "speech", "steps"] * 3][:8] + [import_scenes.UNNAMED_CLASS]
    folder = tmp_path / "imported"
    import_scenes.convert("dcase", built.root / "set", folder, seconds=SECONDS, classes=three)
    run_config = types.SimpleNamespace(
        bench=config.Bench(l1=20, l2=20, l3=20, probe_items=0),
        questions=gin_files.load(["run/demo.gin"])[0].questions,
        seed=0,
    )
    items = build.build(run_config, tmp_path / "none", folder, tmp_path / "suite")
    assert {i.task for i in items} >= {"azimuth", "sector_by_onset", "sector_after_turn"}
    assert not {o for i in items for o in i.options} & set(three)
    left_out = suite.manifest(tmp_path / "suite")["left_out"]
    about_classes = {"class_present", "onset_order", "class_in_sector", "nearest_source"}
    assert about_classes | {"class_after_turn"} <= set(left_out)
