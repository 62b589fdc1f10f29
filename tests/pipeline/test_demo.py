# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys

import pytest

from jaxasa.config import ConfigError, gin_files
from jaxasa.pipeline import demo, steps

A = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "items": 10}
RESULTS = {
    "benchmark": {"items": 10, "levels": {"L1": 5, "L2": 3, "L3": 2}, "sounds": "fake"},
    "systems": {"sft": {"overall": A, "L1": A, "L2": A, "L3": A}},
}


class Fake:
    """Steps that only leave their files; `calls` says which ran, `fail` is where one stops."""

    def __init__(self):
        self.calls: list[str] = []
        self.fail = ""
        self.on = lambda name: None

    def leave(self, name, path, text=""):
        self.calls.append(name)
        self.on(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == self.fail:
            raise KeyboardInterrupt
        path.write_text(text)

    def table(self):
        return ""

    def build_sound_bank(self, run, work):
        self.leave("sounds", work.sounds / "bank.json")
        return self

    def render_scenes(self, run, work, split):
        self.leave(f"scenes_{split}", work.scenes(split) / "manifest.json")

    def train(self, run, work, stage, text):
        self.leave(stage, work.checkpoint(stage) / "meta.json")

    def build_suite(self, run, work, split):
        self.leave("suite", work.benchmark / "manifest.json")

    def run_benchmark(self, run, work, split):
        self.leave("benchmark", work.results, json.dumps(RESULTS))

    def write_export(self, run, work):
        self.leave("export", work.export / "config.json")

    def write_report(self, work, split):
        self.leave("report", work.report)


@pytest.fixture
def fake(monkeypatch):
    fake = Fake()
    for name in (
        *("build_sound_bank", "render_scenes", "train", "build_suite"),
        *("run_benchmark", "write_export", "write_report"),
    ):
        monkeypatch.setattr(steps, name, getattr(fake, name))
    return fake


def job(folder, *bindings):
    run, text = gin_files.load(["gin/run/smoke.gin"], bindings)
    return demo.run_demo(run, folder, text)


ALL = [
    *("sounds", "scenes_train", "scenes_dev", "scenes_benchmark"),
    *("text", "spatial", "align", "sft", "grpo", "suite", "benchmark", "export", "report"),
]


def test_runs_every_step_once(fake, tmp_path):
    job(tmp_path)
    assert fake.calls == ALL
    job(tmp_path)
    assert fake.calls == ALL


def test_results_hold_seconds_and_cpu_seconds_of_each_step(fake, tmp_path):
    job(tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["systems"] == RESULTS["systems"]
    for unit in ("seconds", "cpu_seconds"):
        spent = results[unit]
        assert list(spent) == [*ALL, "total"]
        assert spent["total"] == pytest.approx(sum(spent[name] for name in ALL), abs=0.1)
    assert 0.05 < results["peak_memory_gb"] < 100


@pytest.mark.parametrize("name", ALL)
def test_resumes_at_the_interrupted_step(fake, tmp_path, name):
    fake.fail = name
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path)
    fake.fail = ""
    before = json.loads((tmp_path / "steps.json").read_text())[name]
    assert not before["done"]
    job(tmp_path)
    assert fake.calls == ALL[: ALL.index(name)] + [name] + ALL[ALL.index(name) :]
    after = json.loads((tmp_path / "steps.json").read_text())[name]
    assert after["done"] and after["seconds"] > before["seconds"]


def test_a_repeated_step_is_not_done_before_it_ends(fake, tmp_path):
    """A checkpoint is there at its first save; a kill then leaves no time to say so."""
    job(tmp_path)
    (tmp_path / "checkpoints/grpo/meta.json").unlink()
    (tmp_path / "checkpoints/grpo").rmdir()
    seen = []
    fake.on = lambda name: seen.append(json.loads((tmp_path / "steps.json").read_text())[name])
    job(tmp_path)
    assert [s["done"] for s in seen] == [False] * len(seen) and seen


def test_benchmark_is_repeated_after_training_again(fake, tmp_path):
    job(tmp_path)
    (tmp_path / "checkpoints/grpo/meta.json").unlink()
    (tmp_path / "checkpoints/grpo").rmdir()
    fake.calls.clear()
    job(tmp_path)
    assert fake.calls == ALL[ALL.index("grpo") :]


def test_refuses_a_stage_whose_parent_checkpoint_is_gone(fake, tmp_path):
    job(tmp_path)
    (tmp_path / "checkpoints/sft/meta.json").unlink()
    (tmp_path / "checkpoints/sft").rmdir()
    with pytest.raises(ConfigError, match="checkpoints/grpo was trained from it"):
        job(tmp_path)


def test_refuses_another_config(fake, tmp_path):
    job(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.decoder\.width was \d+, is 24"):
        job(tmp_path, "Decoder.width=24")
    with pytest.raises(ConfigError, match=r"sft\.steps was \d+, is 9999"):
        job(tmp_path, "SftStage.steps=9999")
    with pytest.raises(ConfigError, match=r"bench\.l1"):
        job(tmp_path, "Bench.l1=12")
    # These change no result.
    job(tmp_path, "Scenes.workers=1", "SftStage.log_every=3", "Bench.batch_size=3")
    assert fake.calls == ALL


def test_options_of_a_later_stage_may_change(fake, tmp_path):
    fake.fail = "spatial"
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path)
    fake.fail = ""
    job(tmp_path, "SftStage.steps=9999")
    run, _ = gin_files.load([str(tmp_path / "config.gin")])
    assert run.sft.steps == 9999


def test_damaged_steps_json_is_refused(fake, tmp_path):
    (tmp_path / "steps.json").write_text("{")
    with pytest.raises(ConfigError, match=r"steps\.json"):
        job(tmp_path)


def test_a_second_run_in_the_same_folder_is_refused(fake, tmp_path, monkeypatch):
    def again(*_):
        with pytest.raises(ConfigError, match="another jaxasa command is at work"):
            job(tmp_path)

    monkeypatch.setattr(steps, "render_scenes", again)
    job(tmp_path)
    assert fake.calls == [name for name in ALL if not name.startswith("scenes")]


def test_cpu_seconds_count_ended_children(fake, tmp_path):
    """Rendering is done in worker processes, whose time the step's clock does not show."""
    code = "import time\nwhile time.process_time() < 0.5: pass"
    fake.on = lambda name: name == "sft" and subprocess.run([sys.executable, "-c", code])
    job(tmp_path)
    spent = json.loads((tmp_path / "results.json").read_text())["cpu_seconds"]
    assert spent["sft"] >= 0.5 > spent["align"]
