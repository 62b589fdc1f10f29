"""The steps of the main job, each on a work folder that the one before it has filled.

DIR/config.gin            the resolved config
DIR/sounds/               the sound bank
DIR/scenes/SPLIT/         rendered scenes, of train, dev and benchmark
DIR/responses/            in place of scenes/train where Scenes.rir_rooms is set: to mix them from
DIR/FORMAT/SPLIT/         the same scenes in another format (dcase, binaural)
DIR/checkpoints/STAGE/    what a stage has trained
DIR/logs/STAGE/           its metrics
DIR/benchmark/            the suite; predictions/ and results.json beside it
DIR/dev/                  the same three for the development suite
DIR/report/  DIR/export/
"""

import dataclasses
import json
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
from jaxasa.core import files
from jaxasa.core.workdir import scenes_of
from jaxasa.data import records, rir_bank, simulate, sounds
from jaxasa.hf import export, load
from jaxasa.inference import qa
from jaxasa.stages import runner

SPLITS = ("train", "dev", "benchmark")


def sound_bank(run: config.Run, folder: Path) -> sounds.Bank:
    """Builds DIR/sounds; where recordings cannot be had, the procedural bank, and says so."""
    where = folder / "sounds"
    try:
        return sounds.build(run.sounds, where, run.seed)
    except sounds.SoundsUnavailable as error:
        print(f"{error}; using the procedural bank instead", file=sys.stderr)
        synthetic = dataclasses.replace(run.sounds, bank="procedural", classes={})
        return sounds.build(synthetic, where, run.seed)


def scenes(
    run: config.Run,
    folder: Path,
    split: str,
    format: str | None = None,
    runner: str | None = None,
    options: Sequence[str] = (),
) -> Path:
    """Renders DIR/scenes/SPLIT (or DIR/FORMAT/SPLIT) from DIR/sounds; returns that folder.

    format: None for what the run's model hears. Where Scenes.rir_rooms is set, the records of
    train are DIR/responses, made from nothing.
    """
    format = format or format_of(run)
    kind = format.partition(":")[0]
    out = folder / ("scenes" if kind == "records" else kind) / split
    if kind == format_of(run):
        out = scenes_of(run, folder, split)
    if out.name == "responses":
        expected = f"none, as {out} is rendered by this process"
        config.check(runner is None, "--runner", runner, expected)
        rir_bank.build(run.scenes, out, run.seed)
        return out
    count = getattr(run.scenes, split)
    bank = folder / "sounds"
    simulate.simulate(run.scenes, bank, split, out, run.seed, count, format, runner, options)
    return out


def format_of(run: config.Run) -> str:
    """The format of `simulate` that the run's model hears."""
    return "binaural" if run.model.spatial.format == "binaural" else "records"


def train(run: config.Run, folder: Path, stage: str, text: str, profile: int = 0) -> None:
    """Trains DIR/checkpoints/STAGE, from where it was interrupted if it was.

    profile: steps to trace into DIR/logs/STAGE/profile.
    """
    runner.train(run, stage, folder, text, profile)


def suite_of(folder: Path, split: str) -> Path:
    """Folder of the suite of "benchmark" or "dev"; results.json lies beside it."""
    return (folder / "dev" if split == "dev" else folder) / "benchmark"


def build_suite(run: config.Run, folder: Path, split: str) -> Sequence[suite.Item]:
    """Chooses the items of a suite from the scenes of SPLIT, as the run's model hears them."""
    source = scenes_of(run, folder, split)
    return build.build(run, folder / "sounds", source, suite_of(folder, split), split)


def benchmark(run: config.Run, folder: Path, split: str, model: Path | None = None) -> dict:
    """Answers the suite with every trained checkpoint and its controls; returns the results.

    model: a checkpoint or export folder to answer in place of DIR/checkpoints.
    """
    where = suite_of(folder, split)
    models: Mapping[str, Path]
    if model is not None:
        models = {load.read_meta(model)["stage"]: model}
    else:
        models = {
            stage: folder / "checkpoints" / stage
            for stage in ("sft", "grpo")
            if (folder / "checkpoints" / stage).is_dir()
        }
    is_foa = run.model.spatial.format == "foa"
    chosen = [n for n in run.bench.controls if is_foa or n not in controls.FOA_ONLY]
    systems = controls.systems(list(models), chosen)
    if not systems:
        raise ConfigError(
            f"{model or folder / 'checkpoints'}: expected a model after stage sft or grpo"
        )
    loaded = {
        stage: qa.Model.load(path, run.bench.option_fallback) for stage, path in models.items()
    }
    marks = {stage: model.digest for stage, model in loaded.items()}
    last = loaded[list(models)[-1]]
    _check_known(suite.manifest(where)["classes"], last.classes)
    readers = {
        "oracle": baselines.oracle(last.classes),
        "slots": baselines.reader(last.describe, last.classes, "slots", where.parent / slots.FILE),
    }
    if is_foa and "semantic" not in run.model.projector.drop_experts:
        heard = baselines.cascade(last.tags, last.classes, run.scenes.distance)
        readers["cascade"] = baselines.reader(heard, last.classes, "cascade")
    results = bench_run.run(systems, loaded, where, where.parent, run.bench, marks, readers)
    audit.add_scores(where, results)
    return results


def external(run: config.Run, folder: Path, model: Path) -> dict:
    """Tries a model on scenes unlike its training's: suite, answers and report in `folder`.

    Those scenes are imported ones where DIR/scenes/benchmark holds such (bench/external_suite.py), or
    else made as `run` says. Steps that are finished are kept. Raises ConfigError for classes that
    the model does not know, and for recordings that its training heard, as far as the sound bank
    beside it tells.
    """
    known = load.read_meta(model)["classes"]
    where = scenes_of(run, folder, "benchmark")
    if external_suite.is_imported(where):
        _check_known(external_suite.bank(records.Records(where)).classes, known)
    else:
        bank = sound_bank(run, folder)
        _check_known(bank.classes, known)
        homes = (p / "sounds" for p in model.resolve().parents[:2])
        home = next((p for p in homes if (p / "bank.json").is_file()), None)
        if home is None:
            line = (
                "no sound bank beside it, so whether training heard these recordings is not known"
            )
            print(f"{model}: {line}", file=sys.stderr)
        else:
            audit.check_unheard(bank, sounds.Bank.load(home))
        scenes(run, folder, "benchmark")
    build_suite(run, folder, "benchmark")
    results = benchmark(run, folder, "benchmark", model)
    write_report(folder, "benchmark")
    return results


def _check_known(classes: Collection[str], known: Collection[str]) -> None:
    unknown = sorted(set(classes) - set(known))
    expected = "those that the model knows (" + ", ".join(known) + ")"
    config.check(not unknown, "classes of the scenes", unknown, expected)


def directions(run: config.Run, folder: Path, count: int) -> list[dict]:
    """Errors of the slots of the last stage beside classical estimators; see bench/doa.py.

    They go to "doa" of DIR/results.json too.
    """
    if run.model.spatial.format != "foa":
        raise ConfigError("Spatial.format is 'binaural', expected 'foa': directions need FOA")
    trained = [s for s in run.stages if (folder / "checkpoints" / s).is_dir() and s != "text"]
    if not trained:
        raise ConfigError(f"{folder / 'checkpoints'}: expected a model after stage spatial")
    model = qa.Model.load(folder / "checkpoints" / trained[-1])
    bank = sounds.Bank.load(folder / "sounds")
    rows = doa.run(model.directions, run.scenes, bank, run.seed, count)
    path = folder / "results.json"
    results = suite.read_json(path, "results of `jaxasa bench run`") if path.is_file() else {}
    files.write_text(path, json.dumps(results | {"doa": rows}, indent=1) + "\n")
    return rows


def audit_suite(folder: Path, split: str) -> dict:
    """The audit of a suite, with the scores of DIR/results.json where these are of this suite."""
    where = suite_of(folder, split)
    path = where.parent / "results.json"
    expected = "results of `jaxasa bench run`"
    results = suite.read_json(path, expected) if path.is_file() else {}
    asked = results.get("benchmark", {}).get("sha256")
    if asked != suite.manifest(where)["sha256"]:
        if asked:
            print(f"{path}: of another suite; `jaxasa bench run` answers this one", file=sys.stderr)
        results = {"systems": {}}
    return audit.add_scores(where, results)


def write_report(folder: Path, split: str, ablation: Path | None = None) -> Path:
    """DIR/report/index.html from results.json, the predictions, and ablation.json.

    ablation: another file than DIR/ablation.json.
    """
    suite_folder = suite_of(folder, split)
    where = suite_folder.parent
    results = where / "results.json"
    ablated = ablation or folder / "ablation.json"
    if ablation is not None and not ablation.is_file():
        raise ConfigError(f"--ablation {ablation}: no such file, expected one of `bench ablate`")
    if not results.is_file() and not ablated.is_file():
        raise ConfigError(f"{results}: no such file, expected one of `bench run`")
    page = where / "report" / "index.html"
    return report.write(
        folder, benchmark=suite_folder, results=results, page=page, ablation=ablated
    )


def write_export(run: config.Run, folder: Path) -> Path:
    """DIR/export from the checkpoint of the last stage."""
    return export.export(folder / "checkpoints" / run.stages[-1], folder / "export")
