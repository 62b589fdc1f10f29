# SPDX-License-Identifier: Apache-2.0
"""Commands of the benchmark: jaxasa bench build, run, external, score, audit, doa, seld, ablate,
report, speed."""

import argparse
import functools
import importlib
import sys
import tempfile
from pathlib import Path

from jaxasa.cli import options
from jaxasa.cli.options import RegistryNames, Result
from jaxasa.config import ConfigError, gin_files
from jaxasa.core.workdir import WorkFolder


def add_commands(commands) -> None:
    bench = commands.add_parser("bench", help="Build, answer, score and report the benchmark.")
    parts = bench.add_subparsers(metavar="COMMAND", required=True)
    _add_build(parts)
    _add_run(parts)
    _add_external(parts)
    _add_score(parts)
    _add_audit(parts)
    _add_doa(parts)
    _add_seld(parts)
    _add_ablate(parts)
    _add_report(parts)
    _add_speed(parts)


def _add_build(commands) -> None:
    command = options.add_command(
        commands,
        "build",
        build_suite,
        "Select the items of a suite and write them with their audio.",
        reads="DIR/sounds and DIR/scenes/SPLIT",
        writes="DIR/benchmark (or DIR/dev/benchmark): audio, metadata.jsonl, manifest, card",
        examples=["jaxasa bench build --workdir runs/demo --split dev"],
    )
    options.add_suite(command)
    options.add_workdir(command)
    options.add_gin(command)


def build_suite(args: argparse.Namespace) -> Result:
    from jaxasa.pipeline import steps

    run, _, work = options.open_workdir(args)
    items = steps.build_suite(run, work, args.split)
    folder = work.evaluation(args.split).benchmark
    print(f"{len(items)} items in {folder}")
    return {"items": len(items), "folder": str(folder)}


def _add_run(commands) -> None:
    command = options.add_command(
        commands,
        "run",
        run_benchmark,
        "Answer a suite with the trained models and their controls.",
        reads="the suite and DIR/checkpoints/{sft,grpo}, or the model of --checkpoint",
        writes="DIR/predictions/*.jsonl and DIR/results.json (--split dev: in DIR/dev)",
        examples=["jaxasa bench run --workdir runs/demo --split dev"],
    )
    command.add_argument(
        "--checkpoint",
        action=options.LocalPath,
        metavar="FOLDER",
        help="a checkpoint or export to answer instead",
    )
    options.add_suite(command)
    options.add_workdir(command)
    options.add_gin(command)


def run_benchmark(args: argparse.Namespace) -> Result:
    from jaxasa.bench import score
    from jaxasa.pipeline import steps

    run, _, work = options.open_workdir(args)
    results = steps.run_benchmark(run, work, args.split, args.checkpoint)
    print(score.format_table(results["systems"]))
    return results


def _add_external(commands) -> None:
    command = options.add_command(
        commands,
        "external",
        run_external,
        "Evaluate a model on scenes unlike its training's: suite, answers with controls, report.",
        reads="a checkpoint with its config, over which gin files say what is different (an\n"
        "export has none: a whole run file comes first); or the recordings that\n"
        "`jaxasa import dcase` wrote to DIR/scenes/benchmark",
        writes="DIR: sounds, scenes/benchmark, benchmark, predictions, results.json, report",
        examples=[
            "jaxasa bench external runs/demo/checkpoints/grpo --workdir runs/outside "
            "--gin_file gin/data/outside_large.gin",
            "jaxasa import dcase STARSS23 runs/starss/scenes/benchmark --split dev-test "
            "--seconds 4 --classes gin/data/starss23_classes.txt",
            "jaxasa bench external runs/demo/checkpoints/grpo --workdir runs/starss "
            "--gin_file gin/data/external.gin",
        ],
    )
    command.add_argument(
        "checkpoint", action=options.LocalPath, help="DIR/checkpoints/STAGE or an export folder"
    )
    options.add_workdir(command)
    options.add_gin(command)


def run_external(args: argparse.Namespace) -> Result:
    from jaxasa.bench import score
    from jaxasa.pipeline import steps
    from jaxasa.train import checkpoint

    own = args.checkpoint / checkpoint.CONFIG
    is_begun = WorkFolder(args.workdir).config.is_file()
    if own.is_file() and (args.gin_file or not is_begun):
        args.gin_file = [str(own), *args.gin_file]
    run, _, work = options.open_workdir(args)
    results = steps.run_external(run, work, args.checkpoint)
    print(score.format_table(results["systems"]))
    print(work.report)
    return results


def _add_score(commands) -> None:
    command = options.add_command(
        commands,
        "score",
        score_answers,
        "Score the answers of any system.",
        reads='a suite, and a file with {"id", "answer"} in each line, one for each item; answers\n'
        "are letters or texts. With --open_ended, one for each item whose `open_answer` in\n"
        "metadata.jsonl is not null, answered without options (azimuth within 20 degrees, ...)",
        writes="nothing but the file of --json",
        examples=["jaxasa bench score runs/demo/benchmark answers.jsonl --json scores.json"],
    )
    command.add_argument("benchmark", action=options.LocalPath, help="folder with metadata.jsonl")
    command.add_argument("predictions", action=options.LocalPath, help="the answers, a JSONL file")
    command.add_argument(
        "--open_ended", action="store_true", help="the answers were given without options"
    )


def score_answers(args: argparse.Namespace) -> Result:
    from jaxasa.bench import open_ended, score

    score_file = open_ended.score_file if args.open_ended else score.score_file
    scores = score_file(args.predictions, args.benchmark)
    print(score.format_table({args.predictions.stem: scores}))
    return scores


def _add_audit(commands) -> None:
    command = options.add_command(
        commands,
        "audit",
        audit_suite,
        "Score a suite by its texts alone and by metadata, for comparison with the systems.",
        reads="the suite, and DIR/results.json if it is there",
        writes="audit.json of the suite, with the scores of question_only and mono",
        examples=["jaxasa bench audit --workdir runs/demo"],
    )
    options.add_suite(command)
    options.add_workdir(command)
    options.add_gin(command)


def audit_suite(args: argparse.Namespace) -> Result:
    from jaxasa.pipeline import steps

    _, _, work = options.open_workdir(args)
    result = steps.audit_suite(work, args.split)
    for level, scores in result["levels"].items():
        shares = (f"{name} {s:.3f}" for name, s in scores.items() if isinstance(s, float))
        print(f"{level}: {scores['items']} items, {', '.join(shares)}")
    return result


def _add_doa(commands) -> None:
    command = options.add_command(
        commands,
        "doa",
        compare_directions,
        "Compare the slots' directions with an intensity histogram and MUSIC, by RT60.",
        reads="DIR/sounds and the checkpoint of the last stage; renders scenes of its own",
        writes='"doa" of DIR/results.json',
        examples=["jaxasa bench doa --workdir runs/demo --scenes 200"],
    )
    command.add_argument(
        "--scenes", type=int, default=200, metavar="N", help="scenes in each cell (default: 200)"
    )
    options.add_workdir(command)
    options.add_gin(command)


def compare_directions(args: argparse.Namespace) -> Result:
    from jaxasa.bench import doa
    from jaxasa.pipeline import steps

    run, _, work = options.open_workdir(args)
    rows = steps.compare_directions(run, work, args.scenes)
    print(doa.format_table(rows))
    return rows


def _add_seld(commands) -> None:
    command = options.add_command(
        commands,
        "seld",
        score_seld,
        "Score detected and localised events as DCASE task 3 does (F20, ER20, LE_CD, LR_CD, RDE).",
        reads="csv files: frame, class, source, azimuth, elevation[, distance], or as baselines\n"
        "write them, with x, y, z in place of the angles",
        writes="nothing but the file of --json",
        examples=["jaxasa bench seld metadata_dev/dev-test-tau predictions --year 2023 --official"],
    )
    command.add_argument(
        "references", action=options.LocalPath, help="a csv file, or a folder of them"
    )
    command.add_argument(
        "predictions", action=options.LocalPath, help="the same, with the same file names"
    )
    command.add_argument(
        "--year",
        type=int,
        choices=RegistryNames("jaxasa.bench.seld", "YEARS"),
        metavar="YEAR",
        default=2024,
        help="of the metrics' definition, one of: %(choices)s (default: 2024)",
    )
    command.add_argument(
        "--classes", type=int, default=13, metavar="N", help="number of classes (default: 13)"
    )
    command.add_argument(
        "--official",
        action="store_true",
        help="with the deviations of the public code (listed in jaxasa/bench/seld.py)",
    )
    for side, unit in (("reference", "cm"), ("prediction", "m")):
        command.add_argument(
            f"--{side}_unit",
            choices=RegistryNames("jaxasa.data.dcase_csv", "UNITS"),
            metavar="UNIT",
            default=unit,
            help=f"of distances, one of: %(choices)s (default: {unit})",
        )


def score_seld(args: argparse.Namespace) -> Result:
    from jaxasa.bench import seld
    from jaxasa.data import dcase_csv

    units = args.reference_unit, args.prediction_unit
    notes: list[str] = []
    references, predictions = dcase_csv.read_pairs(
        args.references, args.predictions, units, args.official, notes.append
    )
    for note in notes:
        print(note, file=sys.stderr)
    scores = seld.evaluate(
        references, predictions, year=args.year, classes=args.classes, official=args.official
    )
    print(seld.format_table(scores))
    return scores | {"notes": notes}


def _add_ablate(commands) -> None:
    command = options.add_command(
        commands,
        "ablate",
        ablate,
        "Train variants of a run over several seeds, and compare them on its benchmark.",
        reads="nothing; resumes what is in DIR. Several processes may be started on one DIR,\n"
        "and share the work",
        writes="DIR: sounds, scenes, ablation/, ablation.json; exit code 3 if a variant failed",
        examples=["jaxasa bench ablate --workdir runs/ablate --dry_run"],
    )
    command.add_argument(
        "--dry_run",
        action="store_true",
        help="print the jobs, their variants and how long they may take; write nothing",
    )
    options.add_workdir(command)
    options.add_gin(command)


def ablate(args: argparse.Namespace) -> Result:
    from jaxasa.pipeline.ablation import runner

    _, text = options.load_config(args, "gin/run/ablate.gin")
    with tempfile.TemporaryDirectory() as folder:
        # Jobs begin hours later, when the user may have changed the files.
        copy = Path(folder) / "config.gin"
        copy.write_text(text, encoding="utf-8")
        load = functools.partial(gin_files.load, [str(copy)])
        return runner.ablate(load, args.workdir, args.dry_run)


def _add_report(commands) -> None:
    command = options.add_command(
        commands,
        "report",
        write_report,
        "Write the HTML report.",
        reads="DIR/results.json, DIR/predictions, DIR/benchmark and DIR/ablation.json",
        writes="DIR/report/index.html (--split dev: in DIR/dev)",
        examples=["jaxasa bench report --workdir runs/demo --ablation runs/ablate/ablation.json"],
    )
    command.add_argument(
        "--ablation",
        action=options.LocalPath,
        metavar="FILE",
        help="result of `bench ablate` (default: DIR/ablation.json)",
    )
    options.add_suite(command)
    options.add_workdir(command)


def write_report(args: argparse.Namespace) -> Result:
    from jaxasa.pipeline import steps

    path = steps.write_report(WorkFolder(args.workdir), args.split, args.ablation)
    print(path)
    return {"report": str(path)}


def _add_speed(commands) -> None:
    command = options.add_command(
        commands,
        "speed",
        compare_speed,
        "Compare the speed of generation or of a training step with PyTorch, interleaved.",
        reads="nothing; needs the extra `speed`. Let nothing else run on the machine",
        writes="nothing but the file of --json",
        examples=["jaxasa bench speed decode --json decode.json"],
    )
    command.add_argument(
        "comparison",
        choices=RegistryNames("jaxasa.speed", "COMPARISONS"),
        metavar="COMPARISON",
        help="one of: %(choices)s",
    )
    command.add_argument(
        "--rounds", type=int, metavar="N", help="timed rounds (default: by comparison)"
    )


def compare_speed(args: argparse.Namespace) -> Result:
    from jaxasa.speed import timing

    if args.rounds is not None and args.rounds < 1:
        raise ConfigError(f"--rounds is {args.rounds}, expected a number of at least 1")
    # Each needs other PyTorch libraries, and only its own are imported.
    comparison = importlib.import_module(f"jaxasa.speed.{args.comparison}")
    result = comparison.run(**({"rounds": args.rounds} if args.rounds else {}))
    timing.print_table(result["rows"])
    return result
