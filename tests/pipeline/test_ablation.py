# SPDX-License-Identifier: Apache-2.0
import concurrent.futures
import functools
import json
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from jaxasa import config
from jaxasa.bench import run as bench_run
from jaxasa.bench import suite
from jaxasa.cli import main
from jaxasa.config import ConfigError, gin_files
from jaxasa.core import files
from jaxasa.core.workdir import WorkFolder
from jaxasa.inference import qa
from jaxasa.pipeline import steps
from jaxasa.pipeline.ablation import runner
from jaxasa.pipeline.ablation.log import Log
from jaxasa.pipeline.ablation.plan import Plan, bindings_of
from jaxasa.train import loop

SMALL = {
    "p2": (),
    "p1": ("Projector.kind='p1'",),
    "mono": tuple(f"{s}Stage.mono_prob=1.0" for s in ("Spatial", "Align", "Sft")),
    "without_align": ("Run.stages=('text','spatial','sft')",),
    "binaural": ("Spatial.format='binaural'", "Spatial.features='interaural'"),
    "grpo": ("Run.stages=('text','spatial','align','sft','grpo')",),
}


def loader(*bindings, variants=SMALL, seeds=(0, 1), projector_steps=5):
    base = [
        "Run.stages=('text','spatial','align','sft')",
        f"Ablation.variants={variants!r}",
        f"Ablation.seeds={seeds!r}",
        f"Ablation.projector_steps={projector_steps}",
        *bindings,
    ]
    return lambda more: gin_files.load(["gin/run/smoke.gin"], [*base, *more])


@pytest.fixture(scope="module")
def plan():
    return Plan(loader())


def chain(plan, name, seed=0):
    """kind -> job of a variant with a seed, back from its answers."""
    job, found = plan.answers[name, seed], {}
    while job is not None:
        found[job.kind] = job
        job = job.parent
    return found


def same(plan, a, b, seeds=(0, 0)):
    """The kinds of job that two variants share."""
    one, two = chain(plan, a, seeds[0]), chain(plan, b, seeds[1])
    return {kind for kind in one if kind in two and one[kind] is two[kind]}


def test_variants_share_exactly_their_equal_jobs(plan):
    assert same(plan, "p2", "p1") == {"text", "spatial"}
    assert same(plan, "p2", "mono") == same(plan, "p2", "binaural") == {"text"}
    assert same(plan, "p2", "without_align") == {"text", "spatial", "projector"}
    assert same(plan, "p2", "grpo") == {"text", "spatial", "projector", "align", "sft"}
    assert same(plan, "p2", "p2", (0, 1)) == {"text"}
    assert chain(plan, "mono")["answers"].audio == "mono"
    suites = {name: plan.suite(name) for name in SMALL}
    assert suites["p2"] is suites["mono"] and suites["p2"] is not suites["binaural"]
    # Each job comes after what it needs.
    order = list(plan.jobs)
    for job in plan.jobs.values():
        for other in (job.parent, *job.needs):
            assert other is None or order.index(other.name) < order.index(job.name)


def test_without_projector_steps_each_variant_trains_all_of_stage_1():
    plan = Plan(loader(projector_steps=0))
    assert same(plan, "p2", "p1") == {"text"} and "projector" not in chain(plan, "p2")


@pytest.mark.parametrize(
    ("binding", "kept"),
    [
        ("GrpoStage.steps=7", {"text", "spatial", "projector", "align", "sft", "answers"}),
        ("SftStage.learning_rate=1e-4", {"text", "spatial", "projector", "align"}),
        ("Lora.rank=2", {"text", "spatial", "projector", "align"}),
        ("AlignStage.steps=9", {"text", "spatial", "projector"}),
        ("Projector.hidden_width=64", {"text"}),
        ("TextStage.steps=9", set()),
        ("Bench.l1=20", {"text", "spatial", "projector", "align", "sft"}),
        ("SftStage.log_every=3", {"text", "spatial", "projector", "align", "sft", "answers"}),
        ("Model.unroll=2", {"text", "spatial", "projector", "align", "sft", "answers"}),
        ("Scenes.rt60=(0.2, 0.3)", set()),
    ],
)
def test_key_changes_only_with_dependencies(plan, binding, kept):
    two = {"p2": ()}
    changed = chain(Plan(loader(binding, variants=two, seeds=(0,))), "p2")
    before = chain(plan, "p2")
    assert {kind for kind in before if before[kind].key == changed[kind].key} == kept


def test_bindings_of_a_job_make_its_run(plan, tmp_path):
    load = loader()
    for kind, job in chain(plan, "p1", 1).items():
        if kind != "answers":
            run, _ = load(bindings_of(job, WorkFolder(tmp_path)))
            own = {part: getattr(job.run, part) for part in ("seed", "stages", "model", "spatial")}
            assert own == {part: getattr(run, part) for part in own}, kind
            assert run.init_parts == job.run.init_parts
            if job.parent:
                assert run.init_from.endswith(f"{job.parent.name}/checkpoints/{job.parent.stage}")
    spatial, projector = (chain(plan, "p1")[kind].run for kind in ("spatial", "projector"))
    assert spatial.model.projector.kind == "p2" and spatial.init_parts == ("decoder",)
    assert projector.model.projector.kind == "p1" and projector.spatial.steps == 5
    assert projector.init_parts == ("semantic", "spatial", "decoder")
    assert all(path.startswith("projector/") for path in projector.spatial.trainable)


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (("Projector.kind='p7'",), "variants\\['odd'\\].*kind is 'p7'"),
        (("Scenes.rt60=(0.2, 0.3)",), "scenes.rt60 was .* expected the same for all variants"),
        (("Run.stages=('text','spatial')",), "last of Run.stages is 'spatial', expected sft"),
        ((*SMALL["mono"], *SMALL["grpo"]), "expected none that ends in grpo"),
    ],
)
def test_invalid_variant_is_refused_before_any_job(tmp_path, variant, message):
    with pytest.raises(ConfigError, match=message):
        runner.ablate(loader(variants={"p2": (), "odd": variant}), tmp_path / "new")
    assert not (tmp_path / "new").exists()


class Fake:
    """Steps that only leave their files; `fail(job folder's name, stage)` may raise."""

    def __init__(self, suite_folder):
        self.calls, self.fail, self._suite = [], lambda run, stage: None, suite_folder
        self.pause = lambda: None

    def build_sound_bank(self, run, work):
        self._leave("sounds", work.sounds / "bank.json")

    def render_scenes(self, run, work, split):
        folder = work.scenes_of(run, split)
        self._leave(f"{folder.parent.name} {split}", folder / "manifest.json")

    def train(self, run, work, stage, text):
        assert (work.sounds / "bank.json").is_file()
        assert stage == "text" or (work.scenes("dev") / "manifest.json").is_file()
        assert not run.init_from or (run.init_parts and Path(run.init_from).is_dir())
        self.fail(run, stage)
        work.tokenizer.write_text("{}")
        path = work.checkpoint(stage) / "meta.json"
        self._leave(f"{stage} {run.model.projector.kind} {run.seed}", path)

    def build_suite(self, run, work, split):
        self.pause()
        self.calls.append("suite")
        folder = work.evaluation(split).benchmark
        folder.parent.mkdir(exist_ok=True)
        folder.symlink_to(self._suite)

    def evaluate(self, systems, models, items_folder, out, bench, digests):
        work = WorkFolder(out)
        rows = [json.dumps({"id": i.id, "answer": i.answer}) for i in suite.load(items_folder)]
        self._leave("answers", work.predictions / "answers.jsonl", "\n".join(rows))
        work.results.write_text("{}")

    def _leave(self, name, path, text=""):
        self.pause()
        self.calls.append(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture(scope="module")
def suite_folder(tmp_path_factory):
    """A suite of 24 items about 12 scenes, without audio."""
    folder = tmp_path_factory.mktemp("suite")
    source = {"class": "dog", "recording_id": "a"}
    items = [
        {
            "id": f"{level}-task-{n:03d}",
            "level": level,
            "task": "task",
            "question": "Where?",
            "options": ["left", "right", "front", "back"],
            "answer": "ABCD"[n % 4],
            "direction": True,
            "scene": {"id": f"test/{n:06d}", "sources": [source]},
            "file_name": f"audio/{n}.flac",
        }
        for n in range(12)
        for level in ("L1", "L2")
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items))
    facts = {"split": "benchmark", "items": 24, "levels": {"L1": 12, "L2": 12}, "scenes": 12}
    facts |= {"sounds": "procedural", "seed": 0, "sha256": "0"}
    (folder / "manifest.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture
def fake(monkeypatch, suite_folder):
    fake = Fake(suite_folder)
    for name in ("build_sound_bank", "render_scenes", "train", "build_suite"):
        monkeypatch.setattr(steps, name, getattr(fake, name))
    monkeypatch.setattr(bench_run, "evaluate", fake.evaluate)
    fake.option_fallbacks = set()

    def load(path, option_fallback):
        fake.option_fallbacks.add(option_fallback)
        return model

    model = type("Model", (), {"digest": "d", "load": staticmethod(load)})
    monkeypatch.setattr(qa, "QaModel", model)
    monkeypatch.setattr(runner.gc, "collect", lambda: None)  # slow among all that tests hold
    return fake


PAIR = {"p2": (), "p1": SMALL["p1"]}


def test_dev_split_renders_no_benchmark_scenes(fake, tmp_path):
    result = runner.ablate(loader("Ablation.split='dev'", variants=PAIR, seeds=(0,)), tmp_path)
    assert fake.calls[:4] == ["sounds", "scenes train", "scenes dev", "suite"]
    assert "scenes benchmark" not in fake.calls and fake.calls.count("answers") == 2
    assert set(result["variants"]) == set(PAIR) and not result["failed"]
    # Another suite, other answers; the same training.
    keys = [Plan(loader(f"Ablation.split={s!r}")).jobs.keys() for s in ("dev", "benchmark")]
    apart = {name.partition("-")[0] for name in keys[0] ^ keys[1]}
    assert apart == {"scenes", "binaural", "suite", "answers"}
    with pytest.raises(ConfigError, match="Ablation.split"):
        Plan(loader("Ablation.split='train'"))


def test_option_fallback_changes_answers_but_not_training(fake, tmp_path):
    given = dict(variants=PAIR, seeds=(0,))
    runner.ablate(loader("Bench.option_fallback=True", **given), tmp_path)
    assert fake.option_fallbacks == {True}
    count = len(fake.calls)
    runner.ablate(loader("Bench.option_fallback=False", **given), tmp_path)
    assert fake.option_fallbacks == {True, False} and fake.calls[count:] == ["answers"] * 2


def test_each_job_is_done_once_and_a_finished_ablation_does_nothing(fake, tmp_path, capsys):
    load = loader(variants=PAIR)
    result = runner.ablate(load, tmp_path)
    assert fake.calls[:5] == ["sounds", *(f"scenes {s}" for s in config.SPLITS), "suite"]
    # Stage 1 of the encoders and of two projectors, with each seed.
    assert [c for c in fake.calls if c.startswith("spatial")] == [
        *("spatial p2 0", "spatial p2 0", "spatial p1 0"),
        *("spatial p2 1", "spatial p2 1", "spatial p1 1"),
    ]
    assert fake.calls.count("text p2 0") == 1 and fake.calls.count("answers") == 4
    assert result["variants"]["p1"]["overall"]["accuracy"] == 1.0 and not result["failed"]
    assert result["matched"]["met"] and result["matched"]["spread"] < 0.05
    output = capsys.readouterr().out
    assert "[1/" in output and "left" in output and "projectors are matched" in output
    count = len(fake.calls)
    assert runner.ablate(load, tmp_path)["variants"] == result["variants"]
    assert len(fake.calls) == count
    # What is known is the measure of what is to come: a third seed alone is left.
    plan = runner.ablate(loader(variants=PAIR, seeds=(0, 1, 2)), tmp_path, dry_run=True)
    left = {row["kind"]: row["jobs"] - row["done"] for row in plan["rows"]}
    assert left["text"] == 0 and left["spatial"] == 1 and not plan["unknown"]
    assert len(fake.calls) == count


@pytest.mark.parametrize("error", [KeyboardInterrupt, loop.Preempted("stopped")])
def test_resumes_at_the_interrupted_job(fake, tmp_path, error):
    def fail(run, stage):
        if stage == "align" and run.model.projector.kind == "p1":
            raise error

    fake.fail = fail
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        runner.ablate(loader(variants=PAIR, seeds=(0,)), tmp_path)
    partly = json.loads((tmp_path / "ablation.json").read_text())
    assert list(partly["variants"]) == ["p2"]
    fake.fail, before = lambda run, stage: None, list(fake.calls)
    result = runner.ablate(loader(variants=PAIR, seeds=(0,)), tmp_path)
    assert fake.calls[len(before) :] == ["align p1 0", "sft p1 0", "answers"]
    assert list(result["variants"]) == ["p2", "p1"]


def test_processes_share_the_jobs_and_return_the_same_result(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "PAUSE", 0.01)
    at, together, slow = [], [], time.sleep

    def work(*_):
        at.append(0)
        together.append(len(at))
        slow(0.03)
        at.pop()

    load = functools.cache(loader(variants=PAIR))
    plan = Plan(load)
    for job in plan.jobs.values():  # read here: gin reads in one thread only
        load(bindings_of(job, WorkFolder(tmp_path)))
    fake.pause = work
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: runner.ablate(load, tmp_path), range(3)))
    assert max(together) >= 2
    assert len(fake.calls) == len(plan.jobs) and fake.calls.count("answers") == 4
    assert results[0]["variants"] == results[1]["variants"] == results[2]["variants"]
    assert list(results[0]["variants"]["p1"]["seeds"]) == ["0", "1"]


def test_other_commands_are_locked_out_meanwhile(fake, tmp_path):
    with files.lock(tmp_path), pytest.raises(ConfigError, match="is at work in it"):
        runner.ablate(loader(variants=PAIR), tmp_path)
    errors = []

    def work(*_):
        with pytest.raises(ConfigError, match="is at work in it") as caught:
            with files.lock(tmp_path):
                pass
        errors.append(caught.value)

    fake.pause = work
    runner.ablate(loader(variants={"p2": ()}, seeds=(0,)), tmp_path)
    assert len(errors) == len(fake.calls)


def test_other_settings_are_refused_while_a_process_works(fake, tmp_path):
    load, is_unchanged = loader(variants={"p2": ()}, seeds=(0,)), []

    def work(*_):
        other = loader("SftStage.steps=7", variants={"p2": ()}, seeds=(0,))
        with pytest.raises(ConfigError, match="with other settings"):
            runner.ablate(other, tmp_path)
        is_unchanged.append((tmp_path / "config.gin").read_text() == load(())[1])

    fake.pause = work
    runner.ablate(load, tmp_path)
    assert is_unchanged and all(is_unchanged)
    fake.pause = lambda: None
    runner.ablate(loader("SftStage.steps=7", variants={"p2": ()}, seeds=(0,)), tmp_path)


def test_gin_files_are_read_once(fake, tmp_path):
    """Jobs begin hours after the command: files are read once, as they are then."""
    own, folder, lengths = tmp_path / "own.gin", tmp_path / "folder", []
    text = """
        from __gin__ import dynamic_registration
        from jaxasa import config
        include "run/smoke.gin"
        config.Run.stages = ("text", "spatial", "align", "sft")
        config.Ablation.variants = {"p2": (), "p1": ("Projector.kind='p1'",)}
        config.Ablation.seeds = (0,)
        config.AlignStage.steps = %s
    """
    own.write_text(textwrap.dedent(text % 7))

    def see(run, stage):
        own.write_text(textwrap.dedent(text % 9))
        lengths.append(run.align.steps)

    fake.fail = see
    options = ["bench", "ablate", "--gin_file", str(own), "--workdir", str(folder)]
    assert main.main(options) == 0
    assert len(lengths) > 4 and set(lengths) == {7}


def test_a_job_that_fails_here_and_succeeds_elsewhere_is_done(fake, tmp_path):
    """A job fails here and is done elsewhere, while this process is at another variant's."""
    load = loader(variants=PAIR, seeds=(0,))
    job, whole = chain(Plan(load), "p2")["align"], WorkFolder(tmp_path)

    def fail(run, stage):
        if stage == "align" and run.model.projector.kind == "p2":
            raise RuntimeError("lost")
        if stage == "align":  # of p1, later: meanwhile all of p2 has been done
            for other in chain(Plan(load), "p2").values():
                if not Log(whole, {}).is_done(other):
                    with Log(whole, {}).record(other):
                        elsewhere(other)

    def elsewhere(other):
        if other.kind == "answers":
            items, out = other.needs[0].suite(whole), other.work(whole).path
            fake.evaluate(None, None, items, out, None, None)
        else:
            output = other.output(whole)
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text("")

    fake.fail = fail
    result = runner.ablate(load, tmp_path)
    assert Log(WorkFolder(tmp_path), {}).is_done(job)
    assert list(result["variants"]) == ["p2", "p1"] and not result["failed"]


def test_a_repeated_job_is_not_done_before_it_ends(fake, tmp_path):
    load = loader(variants={"p2": ()}, seeds=(0,))
    runner.ablate(load, tmp_path)
    job = chain(Plan(load), "p2")["sft"]
    job.output(WorkFolder(tmp_path)).unlink()
    seen = []

    def again(run, stage):
        job.output(WorkFolder(tmp_path)).write_text("")  # a checkpoint on the way
        seen.append(Log(WorkFolder(tmp_path), {}).is_done(job))

    fake.fail = again
    runner.ablate(load, tmp_path)
    assert seen == [False] and Log(WorkFolder(tmp_path), {}).is_done(job)


def test_a_failed_variant_is_named_and_stops_no_other(fake, tmp_path, capsys):
    def fail(run, stage):
        if stage == "align" and run.model.projector.kind == "p1" and run.seed == 1:
            raise RuntimeError("lost")

    fake.fail = fail
    result = runner.ablate(loader(variants=PAIR), tmp_path)
    assert list(result["failed"]) == ["p1"] and "seed 1: align" in result["failed"]["p1"]
    assert "RuntimeError: lost" in result["failed"]["p1"]
    assert list(result["variants"]["p1"]["seeds"]) == ["0"]
    assert list(result["variants"]["p2"]["seeds"]) == ["0", "1"]
    assert "failed: p1" in capsys.readouterr().err
    fake.fail = lambda run, stage: None
    assert not runner.ablate(loader(variants=PAIR), tmp_path)["failed"]


def test_nothing_is_trained_if_the_suite_cannot_be_built(fake, tmp_path, monkeypatch):
    def build(run, work, split):
        raise ConfigError("Scenes.benchmark is 24, expected about 32")

    monkeypatch.setattr(steps, "build_suite", build)
    result = runner.ablate(loader(variants=PAIR), tmp_path)
    assert fake.calls == ["sounds", *(f"scenes {split}" for split in config.SPLITS)]
    assert list(result["failed"]) == list(PAIR)
    assert all("expected about 32" in why for why in result["failed"].values())


def test_dry_run_writes_nothing_and_names_unknown_times(tmp_path):
    load = loader("Ablation.seconds={'text': 2.0}", variants=PAIR)
    plan = runner.ablate(load, tmp_path / "new", dry_run=True)
    assert not (tmp_path / "new").exists()
    assert plan["seconds"] == 24.0 and "sft" in plan["unknown"] and "text" not in plan["unknown"]
    spatial = next(row for row in plan["rows"] if row["kind"] == "spatial")
    assert spatial["for"] == ["p2", "p1"] and spatial["jobs"] == 2
    own = [row for row in plan["rows"] if row["kind"] == "projector" and row["for"] == ["p2", "p1"]]
    assert own[0]["per_variant"] and own[0]["differs_in"] == ["projector.kind"]
    log = Log(WorkFolder(tmp_path / "new"), {"sft": 3.0})
    job = chain(Plan(load), "p2")["sft"]
    assert log.remaining(job, {}) == 3.0 * job.units
    assert log.remaining(job, {"sft": 1.0}) == job.units


def test_the_folder_of_another_run_is_refused(fake, tmp_path):
    runner.ablate(loader(variants={"p2": ()}, seeds=(0,)), tmp_path)
    with pytest.raises(ConfigError, match="name was 'smoke', is 'other'"):
        runner.ablate(loader("Run.name='other'", variants={"p2": ()}), tmp_path)
    assert np.isfinite(json.loads((tmp_path / "ablation.json").read_text())["seconds"]["total"])


def test_gain_compares_the_stages_of_the_long_demo():
    run, _ = gin_files.load(["gin/run/demo_long.gin"])
    plan = Plan(lambda more: gin_files.load(["gin/run/gain.gin"], more))
    assert (*plan.base.stages, "grpo") == run.stages and len(plan.ablation.seeds) == 3
    for name in ("grpo", "answer_alone"):
        shared = same(plan, "sft", name)
        assert shared == {"text", "spatial", "align", "sft"}
        assert chain(plan, name, 2)["grpo"].run.grpo.steps == run.grpo.steps
    assert plan.suite("sft").units == 12_000
    assert not any(job.split == "benchmark" for job in plan.jobs.values())
