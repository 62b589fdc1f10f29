# SPDX-License-Identifier: Apache-2.0
"""The steps from sounds to report, each on a work folder that the one before it has filled.

`jaxasa demo` takes all of them (pipeline/demo.py); the other commands take one each. See
core/workdir.py for the layout of the folder.
"""

import dataclasses
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from jaxasa import config
from jaxasa.bench import (
    audit,
    baselines,
    build,
    controls,
    doa,
    external_suite,
    report,
    slots,
    suite,
)
from jaxasa.bench import run as bench_run
from jaxasa.config import ConfigError
from jaxasa.core import files, text_files
from jaxasa.core.provenance import made_by
from jaxasa.core.workdir import WorkFolder, output_of
from jaxasa.data import records, rir_bank, simulate, sounds
from jaxasa.hf import export, load
from jaxasa.inference import qa
from jaxasa.stages import runner
from jaxasa.stages.registry import ANSWERING, STAGES


def build_sound_bank(run: config.Run, work: WorkFolder) -> sounds.Bank:
    """Builds DIR/sounds; if the recordings are unavailable, warns and takes the procedural bank."""
    try:
        return sounds.build(run.sounds, work.sounds, run.seed)
    except sounds.SoundsUnavailable as error:
        print(f"{error}; using the procedural bank instead", file=sys.stderr)
        synthetic = dataclasses.replace(run.sounds, bank="procedural", classes={})
        return sounds.build(synthetic, work.sounds, run.seed)


def default_format(run: config.Run) -> str:
    """The format (data/formats.py) that the run's model is trained on."""
    return "binaural" if run.model.spatial.format == "binaural" else "records"


def render_scenes(
    run: config.Run,
    work: WorkFolder,
    split: str,
    format: str | None = None,
    beam_runner: str | None = None,
    beam_options: Sequence[str] = (),
) -> Path:
    """Renders the scenes of a split from DIR/sounds; returns the folder of the data set.

    format: of data/formats.py; None for `default_format`. If Scenes.rir_rooms is set, the
    records of train are room impulse responses instead (DIR/rirs), which need no sounds.
    beam_runner: of Apache Beam; None for local processes.
    """
    format = format or default_format(run)
    kind = format.partition(":")[0]
    out = work.scenes_of(run, split) if kind == default_format(run) else work.scenes(split, kind)
    if out == work.rirs:
        expected = f"none, as {out} is rendered by this process"
        config.check(beam_runner is None, "--runner", beam_runner, expected)
        rir_bank.build(run.scenes, out, run.seed)
        return out
    count = getattr(run.scenes, split)
    paths = (work.sounds, split, out)
    simulate.simulate(run.scenes, *paths, run.seed, count, format, beam_runner, beam_options)
    return out


def train(run: config.Run, work: WorkFolder, stage: str, text: str, profile: int = 0) -> None:
    """Trains DIR/checkpoints/STAGE, from its last checkpoint if there is one.

    text: the resolved gin config. profile: steps to trace into DIR/logs/STAGE/profile.
    """
    runner.train(run, stage, work, text, profile)


def build_suite(run: config.Run, work: WorkFolder, split: str) -> Sequence[suite.Item]:
    """Chooses the items of the suite of "benchmark" or "dev" from the scenes of that split."""
    out = work.evaluation(split).benchmark
    return build.build(run, work.sounds, work.scenes_of(run, split), out, split)


def run_benchmark(
    run: config.Run, work: WorkFolder, split: str, checkpoint: Path | None = None
) -> dict:
    """Answers a suite with the trained models and their controls; returns results.json.

    checkpoint: a checkpoint or export folder to answer in place of DIR/checkpoints.
    """
    out = work.evaluation(split)
    folders: Mapping[str, Path]
    if checkpoint is not None:
        folders = {load.read_meta(checkpoint)["stage"]: checkpoint}
    else:
        folders = {s: path for s in ANSWERING if (path := work.checkpoint(s)).is_dir()}
    is_foa = run.model.spatial.format == "foa"
    chosen = [c for c in controls.select(run.bench.controls) if is_foa or not c.needs_foa]
    systems = controls.systems(list(folders), chosen)
    if not systems:
        stages = " or ".join(ANSWERING)
        command = "" if checkpoint else f": {output_of(work.checkpoint(ANSWERING[0]), '')}"
        raise ConfigError(
            f"{checkpoint or work.checkpoints}: expected a model after stage {stages}{command}"
        )
    models = {
        stage: qa.QaModel.load(path, run.bench.option_fallback) for stage, path in folders.items()
    }
    digests = {stage: model.digest for stage, model in models.items()}
    last = models[list(folders)[-1]]
    _check_classes(suite.manifest(out.benchmark)["classes"], last.classes)
    described = out.predictions / slots.FILE
    rules = {
        "oracle": baselines.oracle(last.classes),
        "slots": baselines.description_baseline(last.describe, last.classes, "slots", described),
    }
    if is_foa and "semantic" not in run.model.projector.drop_experts:
        describe = baselines.cascade(last.tags, last.classes, run.scenes.distance)
        rules["cascade"] = baselines.description_baseline(describe, last.classes, "cascade")
    results = bench_run.evaluate(
        systems, models, out.benchmark, out.path, run.bench, digests, rules
    )
    audit.add_scores(out.benchmark, results)
    return results


def run_external(run: config.Run, work: WorkFolder, checkpoint: Path) -> dict:
    """Evaluates a model on scenes unlike its training's: suite, answers and report.

    The scenes are imported ones if DIR/scenes/benchmark holds such (bench/external_suite.py),
    otherwise rendered as `run` says. Finished steps are kept. Raises ConfigError for classes that
    the model does not know, and for recordings of its training, as far as the sound bank beside
    it tells.
    """
    classes = load.read_meta(checkpoint)["classes"]
    scenes = work.scenes_of(run, "benchmark")
    if external_suite.is_imported(scenes):
        _check_classes(external_suite.bank(records.Records(scenes)).classes, classes)
    else:
        bank = build_sound_bank(run, work)
        _check_classes(bank.classes, classes)
        # Of DIR/export or DIR/checkpoints/STAGE.
        homes = (WorkFolder(path).sounds for path in checkpoint.resolve().parents[:2])
        trained = next((path for path in homes if (path / "bank.json").is_file()), None)
        if trained is None:
            print(
                f"{checkpoint}: has no sound bank beside it, so training may have used these "
                "recordings",
                file=sys.stderr,
            )
        else:
            audit.check_no_train_overlap(bank, sounds.Bank.load(trained))
        render_scenes(run, work, "benchmark")
    build_suite(run, work, "benchmark")
    results = run_benchmark(run, work, "benchmark", checkpoint)
    write_report(work, "benchmark")
    return results


def _check_classes(classes: Collection[str], trained: Collection[str]) -> None:
    unknown = sorted(set(classes) - set(trained))
    expected = "those that the model knows (" + ", ".join(trained) + ")"
    config.check(not unknown, "classes of the scenes", unknown, expected)


def compare_directions(run: config.Run, work: WorkFolder, count: int) -> list[dict]:
    """Direction errors of the last stage's slots and of classical estimators (bench/doa.py).

    count: scenes of each cell. The rows go to "doa" of DIR/results.json too.
    """
    if run.model.spatial.format != "foa":
        raise ConfigError("Spatial.format is 'binaural', expected 'foa': directions need FOA")
    trained = [s for s in run.stages if STAGES[s].reads_scenes and work.checkpoint(s).is_dir()]
    if not trained:
        command = output_of(work.checkpoint("spatial"), "")
        raise ConfigError(f"{work.checkpoints}: expected a model after stage spatial: {command}")
    model = qa.QaModel.load(work.checkpoint(trained[-1]))
    bank = sounds.Bank.load(work.sounds)
    rows = doa.compare(model.directions, run.scenes, bank, run.seed, count)
    results = read_results(work) | {"doa": rows, "made_by": made_by()}
    files.atomic_write_json(work.results, results)
    return rows


def read_results(work: WorkFolder) -> dict:
    """DIR/results.json, {} if it is not there. Raises ConfigError if it is not JSON."""
    if not work.results.is_file():
        return {}
    return text_files.read_json(work.results, "results of `jaxasa bench run`")


def audit_suite(work: WorkFolder, split: str) -> dict:
    """The audit of a suite, with the scores of results.json if they are of this suite."""
    out = work.evaluation(split)
    results = read_results(out)
    scored = results.get("benchmark", {}).get("sha256")
    if scored != suite.manifest(out.benchmark)["sha256"]:
        if scored:
            print(
                f"{out.results}: of another suite; `jaxasa bench run` answers this one",
                file=sys.stderr,
            )
        results = {"systems": {}}
    return audit.add_scores(out.benchmark, results)


def write_report(work: WorkFolder, split: str, ablation: Path | None = None) -> Path:
    """Writes report/index.html from results.json, the predictions, and ablation.json.

    ablation: another file than DIR/ablation.json.
    """
    out = work.evaluation(split)
    if ablation is not None and not ablation.is_file():
        expected = "the output of `jaxasa bench ablate`"
        raise ConfigError(f"--ablation {ablation}: no such file, expected {expected}")
    ablation = ablation or work.ablation_result
    if not out.results.is_file() and not ablation.is_file():
        expected = output_of(out.results, "")
        raise ConfigError(f"{out.results}: no such file, expected {expected}")
    return report.write(
        work.path, benchmark=out.benchmark, results=out.results, page=out.report, ablation=ablation
    )


def write_export(run: config.Run, work: WorkFolder) -> Path:
    """Writes DIR/export from the checkpoint of the last stage."""
    return export.export_checkpoint(work.checkpoint(run.stages[-1]), work.export)
