# SPDX-License-Identifier: Apache-2.0
"""Scenes, a sound bank and small suites for the benchmark's tests; nothing is rendered."""

import dataclasses
import json
import shutil
import types

import numpy as np
import pytest

from jaxasa import config
from jaxasa.acoustics import foa, scenes
from jaxasa.acoustics.scenes import Clip
from jaxasa.bench import build, controls, perturbations, report, run, select_items, slots, suite
from jaxasa.data import records, sounds

CLASSES = tuple(f"sound{n:02d}" for n in range(16))


class Bank:
    """A bank with four recordings of each class in each split."""

    name, classes, folder, digest = "made-up sounds", CLASSES, "bank", "none"

    def clips(self, split):
        return [
            Clip(f"{c}/{split}{t}/{k}", c, f"{c}-{split}{t}", 2.0)
            for c in CLASSES
            for t in range(4)
            for k in range(2)
        ]

    def audio(self, clip):
        return np.frombuffer(clip.encode(), np.uint8).astype(np.float32)


def describe(count, seed=0, split="benchmark", clips="test"):
    ranges = config.Scenes(train=1, dev=1, benchmark=count)
    pool = Bank().clips(clips)
    return [
        scenes.describe(scenes.sample_scene(ranges, pool, seed, split, i)) for i in range(count)
    ]


def write_records(folder, described):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    audio = rng.integers(-30_000, 30_000, (len(described), 800, 4)).astype(np.int16)
    shard = records.write_shard(folder / "a.array_record", zip(audio, described, strict=True))
    records.write_manifest(folder, {}, [shard])
    return audio


@pytest.fixture(scope="session")
def make():
    """The helpers, for tests that build suites of their own."""
    return types.SimpleNamespace(describe=describe, write_records=write_records, Bank=Bank)


@pytest.fixture(scope="session")
def run_config():
    """The parts of config.Run that build.build reads."""
    return types.SimpleNamespace(
        bench=config.Bench(l1=20, l2=12, l3=12, bootstrap_samples=200, probe_items=0),
        questions=config.Questions(),
        seed=3,
    )


@pytest.fixture(scope="session")
def small(tmp_path_factory, run_config):
    """A built suite of 44 items: its folder, items, records' audio and descriptions."""
    root = tmp_path_factory.mktemp("small")
    described = describe(120)
    audio = write_records(root / "records", described)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sounds.Bank, "load", staticmethod(lambda folder: Bank()))
        items = build.build(run_config, root / "bank", root / "records", root / "benchmark")
    return types.SimpleNamespace(
        root=root, folder=root / "benchmark", items=items, audio=audio, scenes=described
    )


@pytest.fixture(scope="session")
def large():
    """A full-size selection of items from 800 scenes: [(scene, question)]."""
    described = describe(800, seed=1)
    bench, which = config.Bench(), config.Questions()
    items, left_out = select_items.select_items(described, CLASSES, bench, which, 1, "benchmark")
    assert left_out == ["source_motion", "listener_turn", "place_type"]
    return [(described[i], q) for i, q in items]


class Oracle:
    """A model that knows the answers, by question and options (unique in a small suite).

    wrong(item, audio_condition): whether to give another letter.
    """

    def __init__(self, items, wrong=lambda item, audio_condition: False):
        self._items = {(i.question, i.options): i for i in items}
        self._wrong, self.calls = wrong, []

    def respond(self, audio, questions, options, audio_condition):
        self.calls.append((audio.shape, audio.dtype, audio_condition, bool(audio.any())))
        answers = []
        for question, four in zip(questions, options, strict=True):
            item = self._items[question, tuple(four)]
            letter = item.answer
            if self._wrong(item, audio_condition):
                letter = "ABCD"[("ABCD".index(letter) + 1) % 4]
            reasoning = f"{item.scene['sources'][0]['class']} left near . so it is"
            answers.append(f"<think>{reasoning}</think><answer>{letter}</answer>")
        return answers


@pytest.fixture
def oracle():
    return Oracle


def is_wrong(item, audio_condition):
    number = int(item.id[-3:])
    if audio_condition == "full":
        return item.level == "L2" and item.answer in "AB"
    if audio_condition == "none":
        return number % 4 > 0
    return item.direction


def describe_by_slots(scene):
    """A description with azimuths 5 degrees too far left, and without the last source."""
    sources = [s | {"azimuth": foa.wrap_azimuth(s["azimuth"] + 5)} for s in scene["sources"]]
    return {"seconds": scene["seconds"], "sources": sources[: max(1, len(sources) - 1)]}


@pytest.fixture(scope="session")
def whole(small, tmp_path_factory):
    """A work folder with everything that the report reads."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(small.folder, folder / "benchmark")
    names = ("question_only", "mono", "rotated", "mirrored")
    systems = controls.systems(("sft", "grpo"), controls.select(names))
    both = dict.fromkeys(("sft", "grpo"), Oracle(small.items, is_wrong))
    for name in ("rotated", "mirrored"):
        systems[name] = dataclasses.replace(systems[name], perturb=identity_with_other_answers)
    run.evaluate(
        systems,
        both,
        folder / "benchmark",
        folder,
        config.Bench(batch_size=44, bootstrap_samples=200),
    )
    results = json.loads((folder / "results.json").read_text())
    cell = {f"{m}_{k}": 5.0 for m in ("ours", "histogram", "music") for k in ("low", "high")}
    cell |= {f"{m}_median_deg": 4.5 for m in ("ours", "histogram", "music")}
    cell |= {"rt60": 0.3, "sources": 2, "scenes": 50, "ours_frac_over_20_deg": 0.1}
    cell |= {"difference": -1.25, "low": -2.0, "high": -0.5, "best_classical": "music"}
    results |= {"seconds": {"sft": 83.2, "total": 700.0}, "peak_memory_gb": 2.34, "doa": [cell]}
    (folder / "results.json").write_text(json.dumps(results))
    scenes = {suite.name_of(i.file): describe_by_slots(i.scene) for i in small.items}
    rows = [{"file_name": name, "scene": scene} for name, scene in scenes.items()]
    write_lines(folder / "predictions" / slots.FILE, rows)
    rows = [{"step": s, "loss": 3.0 / s, "steps_per_s": 4.0} for s in (10, 20, 30)]
    rows += [{"step": s, "eval/loss": 3.2 / s, "eval/accuracy": 0.3} for s in (15, 30)]
    write_lines(folder / "logs" / "sft" / "metrics.jsonl", rows)
    row = {"question": "what is heard first ?", "target": "B", "rewards": {"answer": 1.0}}
    rows = [
        row | {"step": s, "completion": f"so B {s}", "advantage": 0.5} for s in range(10, 60, 10)
    ]
    write_lines(folder / "logs" / "grpo" / "samples.jsonl", rows)
    (folder / "config.gin").write_text("Run.name = '<script>gin</script>'\n")
    return folder


@pytest.fixture(scope="session")
def written(whole, tmp_path_factory):
    """The report of `whole`."""
    return report.write(whole, page=tmp_path_factory.mktemp("page") / "index.html")


def identity_with_other_answers(items, classes):
    """Changes nothing, and claims that each answer was another one originally."""
    original = {i.id: "ABCD"["ABCD".index(i.answer) - 1] for i in items}
    return perturbations.PerturbedSuite(items, suite.Item.audio, original)


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def workdir(whole, tmp_path):
    """A copy of `whole`, to be changed."""
    return shutil.copytree(whole, tmp_path / "work")
