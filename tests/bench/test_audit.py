# SPDX-License-Identifier: Apache-2.0
"""The audit of a suite, and the reproducibility of suites and renders."""

import importlib.util
import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest

from jaxasa import config
from jaxasa.acoustics import scenes
from jaxasa.bench import audit, build, suite
from jaxasa.config import ConfigError
from jaxasa.core.workdir import WorkFolder
from jaxasa.data import simulate, sounds
from jaxasa.pipeline import steps

TASKS = dict.fromkeys(
    (
        *("class_present", "azimuth", "reverberance", "class_in_sector"),
        *("distance_in_sector", "sector_after_turn", "turn_to_face"),
    ),
    1,
)
RENDER = """
import sys, numpy as np
from jaxasa.acoustics import render, scenes
spec = scenes.SceneSpec.from_json(open(sys.argv[1]).read())
noise = np.random.default_rng(0).standard_normal(8000).astype(np.float32) * 0.05
audio, _ = render.render(spec, lambda clip: noise)
np.save(sys.argv[2], np.round(audio * 32767).astype(np.int16))
"""


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """A bank, rendered scenes, and suites built of them with one worker and with two."""
    from jaxasa.data import procedural

    root = tmp_path_factory.mktemp("rendered")
    with pytest.MonkeyPatch.context() as patch:
        keep = ("alarm", "blast", "drum", "typing", "bird", "rain")
        patch.setattr(procedural, "CLASSES", {name: procedural.CLASSES[name] for name in keep})
        patch.setattr(procedural, "CLIPS_PER_RECORDING", 1)
        bank = sounds.build(config.Sounds("procedural"), root / "bank", 0)
    folders = []
    for workers in (1, 2):
        ranges = config.Scenes(
            train=1,
            dev=1,
            benchmark=60,
            seconds=1.2,
            workers=workers,
            scenes_per_shard=30,
            rt60=(0.15, 0.6),
        )
        where = root / f"scenes{workers}"
        simulate.simulate(ranges, bank.folder, "benchmark", where, 0, 60)
        run = types.SimpleNamespace(
            bench=config.Bench(l1=16, l2=8, l3=8, probe_items=60),
            questions=config.Questions(TASKS),
            scenes=ranges,
            seed=0,
        )
        build.build(run, bank.folder, where, root / f"suite{workers}")
        folders.append(root / f"suite{workers}")
    return types.SimpleNamespace(bank=bank, folders=folders, run=run)


def test_suite_does_not_depend_on_the_number_of_workers(rendered):
    one, two = (
        {p.relative_to(f): p.read_bytes() for p in sorted(f.rglob("*")) if p.is_file()}
        for f in rendered.folders
    )
    # The stamp depends on the records, hence on the shards, that a suite is made from.
    facts = [json.loads(x.pop(next(p for p in x if p.name == "manifest.json"))) for x in (one, two)]
    assert one == two and len(one) > 20
    assert facts[0]["sha256"] == facts[1]["sha256"]


def test_audit_scores_the_probe_and_the_oracle(rendered):
    report = json.loads((rendered.folders[0] / audit.FILE).read_text())
    assert report["chance"] == 0.25 and 50 <= report["drawn"] <= 70
    assert set(report["tasks"]) == set(TASKS)
    for scores in (*report["levels"].values(), *report["tasks"].values()):
        assert scores["oracle"] == 1.0
        assert 0 <= scores["text_only"] <= 1 and 0 <= scores["options_only"] <= 1
    assert report["recordings"]["shared"] == []
    assert len({report["recordings"][s]["sha256"] for s in ("train", "dev", "test")}) == 3
    card = (rendered.folders[0] / "card.md").read_text()
    assert "not measured" not in card and "100.0 %" in card
    probe = suite.manifest(rendered.folders[0])["shortcut_probe"]
    assert probe["text"]["L1"] == report["levels"]["L1"]["text_only"]


def test_oracle_reads_the_scene(rendered):
    items, classes = suite.load(rendered.folders[0]), rendered.bank.classes
    assert audit.oracle(items, classes).all()
    for item in items:
        if item.task in ("azimuth", "sector_after_turn", "turn_to_face"):
            rotated = scenes.rotate_scene(item.scene, 90.0)
            assert audit.answer_in_scene(item, rotated, classes) != item.answer_text


def test_recordings_in_two_splits_are_listed(rendered):
    class LeakyBank:
        classes = rendered.bank.classes
        audio = staticmethod(rendered.bank.audio)

        def clips(self, split):
            return rendered.bank.clips("train" if split == "dev" else split)

    shared = audit.split_contents(LeakyBank())["shared"]
    assert any(name.startswith("drum: ") for name in shared)
    assert audit.split_contents(rendered.bank)["shared"] == []


def test_scores_of_systems_are_added(rendered, tmp_path):
    folder = rendered.folders[1]
    score = {"accuracy": 0.5}
    levels = dict.fromkeys(("L1", "L2", "L3"), score)
    system = levels | {"tasks": dict.fromkeys(TASKS, score)}
    report = audit.add_scores(folder, {"systems": {"mono": system}})
    assert report == json.loads((folder / audit.FILE).read_text())
    assert report["tasks"]["class_in_sector"]["mono"] == 0.5
    assert "question_only" not in report["levels"]["L1"]
    with pytest.raises(ConfigError, match="audit.json: no such file"):
        audit.add_scores(tmp_path, {"systems": {}})


def test_scores_of_another_suite_are_not_added(rendered, tmp_path, capsys):
    (tmp_path / "benchmark").symlink_to(rendered.folders[0])
    score = {"accuracy": 0.25}
    levels = dict.fromkeys(("L1", "L2", "L3"), score)
    system = levels | {"tasks": dict.fromkeys(TASKS, score)}
    own = suite.manifest(rendered.folders[0])["sha256"]

    def audited(sha256):
        results = {"benchmark": {"sha256": sha256}, "systems": {"question_only": system}}
        (tmp_path / "results.json").write_text(json.dumps(results))
        return steps.audit_suite(WorkFolder(tmp_path), "benchmark")["levels"]["L1"]

    assert "question_only" not in audited("0" * 64)
    assert "results.json: of another suite" in capsys.readouterr().err
    assert audited(own)["question_only"] == 0.25 and not capsys.readouterr().err


def test_renders_on_older_processors_differ_by_one_quantization_step_at_most(tmp_path, described):
    """Compiled loops for a processor of 2004; XLA and numpy without newer instructions."""
    clips = [scenes.Clip("a/0", "a", "a", 0.5), scenes.Clip("b/0", "b", "b", 0.5)]
    ranges = config.Scenes(train=1, dev=1, benchmark=1, seconds=1.0, sources=(2, 2))
    spec = scenes.sample_scene(ranges, clips, 0, "benchmark", 0)
    (tmp_path / "scene.json").write_text(spec.to_json())
    features = np.show_config(mode="dicts")["SIMD Extensions"]
    old = {
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": "",
        "XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2",
        "NPY_DISABLE_CPU_FEATURES": " ".join(features.get("found", [])),
        "NUMBA_CACHE_DIR": str(tmp_path / "cache"),
    }
    made = []
    for name, settings in (("new", {}), ("old", old)):
        out = tmp_path / f"{name}.npy"
        command = [sys.executable, "-c", RENDER, str(tmp_path / "scene.json"), str(out)]
        subprocess.run(command, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu", **settings})
        made.append(np.load(out).astype(int))
    assert np.abs(made[0]).max() > 1000
    assert np.abs(made[0] - made[1]).max() <= 1


def test_a_suite_loads_as_an_audiofolder(rendered, monkeypatch):
    datasets = pytest.importorskip("datasets")
    if importlib.util.find_spec("torchcodec") is None:
        # Imported before a path is taken as it is; decoding is not what is tested here.
        for name in ("torchcodec", "torchcodec.encoders"):
            module = types.ModuleType(name)
            module.AudioEncoder = None
            monkeypatch.setitem(sys.modules, name, module)
    folder = rendered.folders[0]
    found = datasets.load_dataset(
        "audiofolder", data_dir=str(folder), split="train", cache_dir=str(folder.parent / "cache")
    ).cast_column("audio", datasets.Audio(decode=False))
    items = build.load(folder)
    assert found["id"] == [i.id for i in items]
    assert found["options"] == [list(i.options) for i in items]
    assert found[0]["answer"] == items[0].answer and found[0]["scene"]["id"] == items[0].scene["id"]
    assert found[0]["audio"]["path"].endswith(items[0].file.name)
