"""The command line: a verb for each step, which works on what the one before it wrote.

Exit codes: 0 done; 2 something that the user must mend (one line says what); 75 stopped, what
was done is saved, start it again; 130 interrupted; 1 a bug, with its traceback.

Heavy libraries are imported inside the verbs, so that --help answers at once.
"""

import argparse
import errno
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from jaxasa import cpu, gin_io, workdir
from jaxasa.config import STAGES, ConfigError, Run

DEFAULT_GIN = "gin/run/demo.gin"
BAD_INPUT, UNFINISHED, INTERRUPTED = 2, 75, 130
# A full disk or a folder without permission is no bug.
_FOR_THE_USER = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)

Result = dict | list


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns its exit code. A bug raises."""
    before = signal.signal(signal.SIGTERM, _stop)
    cpu.tune()
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except ConfigError as error:
        return _say(" ".join(str(error).split()), BAD_INPUT)
    except OSError as error:
        if error.errno not in _FOR_THE_USER:
            raise
        return _say(f"{error.filename or 'writing'}: {error.strerror}", BAD_INPUT)
    except KeyboardInterrupt:
        return _say("interrupted; run the same command again to go on", INTERRUPTED)
    except Exception as error:
        # Looked up, not imported: importing the loop would start jax for every --help.
        loop = sys.modules.get("jaxasa.loop")
        if loop is None or not isinstance(error, loop.Preempted):
            raise
        return _say(str(error), UNFINISHED)
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(argv: Sequence[str]) -> int:
    arguments, bindings = gin_io.split_gin(argv)
    options = parser().parse_args(arguments)
    options.bindings = bindings
    if bindings and not hasattr(options, "gin_file"):
        raise ConfigError(f"--gin.{bindings[0]}: this verb reads no gin file")
    if options.json is not None and not options.json.parent.is_dir():
        raise ConfigError(f"--json {options.json}: {options.json.parent} is no folder")
    result = options.verb(options)
    if options.json is not None:
        workdir.write_text(options.json, json.dumps(result, indent=1) + "\n")
    return 0


def _say(line: str, code: int) -> int:
    print(f"jaxasa: {line}", file=sys.stderr)
    return code


def _stop(number: int, frame: FrameType | None) -> None:
    """SIGTERM outside the training loop (which saves first): every step can be gone on with."""
    print("jaxasa: stopped; run the same command again to go on", file=sys.stderr)
    raise SystemExit(UNFINISHED)


def _config(options: argparse.Namespace) -> tuple[Run, str]:
    return gin_io.load(options.gin_file or [DEFAULT_GIN], options.bindings)


def _workdir(options: argparse.Namespace) -> tuple[Run, str, Path]:
    """The config, and the work folder that belongs to it.

    Without gin arguments, a folder that a run was begun in keeps that run's config.
    """
    made = options.workdir / "config.gin"
    if made.is_file() and not options.gin_file:
        options.gin_file = [str(made)]
    run, text = _config(options)
    return run, text, workdir.claim(options.workdir, run, text)


def sounds(options: argparse.Namespace) -> Result:
    from jaxasa import steps

    run, _, folder = _workdir(options)
    bank = steps.sound_bank(run, folder)
    print(bank.table())
    return {"bank": bank.name, "classes": list(bank.classes), "report": bank.report}


def simulate(options: argparse.Namespace) -> Result:
    if options.benchmark:
        others = (options.workdir, options.split, options.gin_file, options.bindings)
        if any(others) or options.dry_run or options.runner or options.beam:
            raise ConfigError("--benchmark times scenes of its own, expected no option but --json")
        from jaxasa.acoustics import benchmark

        return benchmark.run()
    if options.workdir is None:
        raise ConfigError("--workdir is missing, expected the run's folder")
    from jaxasa import steps
    from jaxasa.data import records

    splits = [options.split] if options.split else list(steps.SPLITS)
    if options.dry_run:
        return _estimate(options, splits)
    if options.beam and options.runner is None:
        raise ConfigError(f"{' '.join(options.beam)}: expected --runner NAME before Beam's options")
    run, _, folder = _workdir(options)
    counts = {}
    for split in splits:
        out = steps.scenes(run, folder, split, options.format, options.runner, options.beam)
        counts[split] = records.read_manifest(out)["count"]
        print(f"{counts[split]} {'responses' if out.name == 'responses' else 'scenes'} in {out}")
    return counts


def _estimate(options: argparse.Namespace, splits: Sequence[str]) -> Result:
    from jaxasa.data import simulate as simulating

    made = options.workdir / "config.gin"
    options.gin_file = options.gin_file or ([str(made)] if made.is_file() else [])
    run, _ = _config(options)
    table = {}
    for split in splits:
        count = getattr(run.scenes, split)
        bank = options.workdir / "sounds"
        row = simulating.estimate(run.scenes, bank, split, run.seed, count, options.format)
        table[split] = row
        print(
            f"{split}: {count} scenes, {row['hours']:.2f} hours, {row['shards']} shards, "
            f"{row['bytes'] / 1e6:,.1f} MB, {row['core_hours']:.3g} core-hours "
            f"(+-{row['core_hours_95']:.1g}, from {row['sample']} scenes)"
        )
    return table


def import_(options: argparse.Namespace) -> Result:
    from jaxasa.data import convert

    classes = None
    if options.classes is not None:
        if not options.classes.is_file():
            raise ConfigError(f"--classes {options.classes}: no such file, expected names in lines")
        classes = options.classes.read_text("utf-8").split("\n")
        classes = [name.strip() for name in classes if name.strip()]
    made = convert.convert(
        options.layout,
        options.source,
        options.out,
        options.split,
        options.order,
        options.seconds,
        classes,
    )
    facts = made.manifest
    print(f"{len(made)} recordings, {facts['questions']} questions in {options.out}")
    for reason, count in facts["reasons"].items():
        print(f"refused: {count} x {reason}")
    return {name: facts[name] for name in ("count", "questions", "reasons", "refused")}


def train(options: argparse.Namespace) -> Result:
    from jaxasa import steps

    run, text, folder = _workdir(options)
    if options.stage not in run.stages:
        raise ConfigError(f"stage {options.stage!r}: expected one of {', '.join(run.stages)}")
    steps.train(run, folder, options.stage, text)
    out = folder / "checkpoints" / options.stage
    print(f"stage {options.stage} is trained: {out}")
    return {"stage": options.stage, "checkpoint": str(out)}


def bench_build(options: argparse.Namespace) -> Result:
    from jaxasa import steps

    run, _, folder = _workdir(options)
    items = steps.build_suite(run, folder, options.split)
    print(f"{len(items)} items in {steps.suite_of(folder, options.split)}")
    return {"items": len(items), "folder": str(steps.suite_of(folder, options.split))}


def bench_run(options: argparse.Namespace) -> Result:
    from jaxasa import steps

    run, _, folder = _workdir(options)
    results = steps.benchmark(run, folder, options.split, options.checkpoint)
    for name, scores in results["systems"].items():
        _print_scores(name, scores)
    return results


def bench_score(options: argparse.Namespace) -> Result:
    from jaxasa.bench import score

    scores = score.score_file(options.predictions, options.benchmark)
    _print_scores(options.predictions.stem, scores)
    return scores


def bench_seld(options: argparse.Namespace) -> Result:
    from jaxasa.bench import dcase, seld

    references, predictions = dcase.read_both(
        options.references,
        options.predictions,
        (options.reference_unit, options.prediction_unit),
        official=options.official,
    )
    scores = seld.evaluate(
        references,
        predictions,
        year=options.year,
        classes=options.classes,
        official=options.official,
    )
    print(seld.table(scores))
    return scores


def bench_report(options: argparse.Namespace) -> Result:
    from jaxasa import steps

    path = steps.write_report(options.workdir, options.split)
    print(path)
    return {"report": str(path)}


def ask(options: argparse.Namespace) -> Result:
    from jaxasa import ask as asking

    answer = asking.ask(
        options.checkpoint, options.audio, options.question, options.options, options.order
    )
    print(answer["answer"])
    return answer


def export(options: argparse.Namespace) -> Result:
    from jaxasa.hf import export as exporting

    out = exporting.export(options.checkpoint, options.out)
    print(out)
    return {"export": str(out)}


def demo(options: argparse.Namespace) -> Result:
    from jaxasa import demo as main_job

    run, text = _config(options)
    return main_job.demo(run, options.workdir, text)


def _print_scores(name: str, scores: dict) -> None:
    cells = [
        f"{level} {100 * a['accuracy']:5.1f} ({100 * a['low']:.0f}-{100 * a['high']:.0f})"
        for level in ("overall", "L1", "L2", "L3")
        if (a := scores.get(level)) and a["accuracy"] is not None
    ]
    print(f"{name:<18} {'  '.join(cells)}")


def parser() -> argparse.ArgumentParser:
    """The verbs and their arguments."""
    root = argparse.ArgumentParser(
        prog="jaxasa",
        description="Spatial audio scenes: simulate, train, benchmark, ask, export.",
        epilog="Begin with: jaxasa demo --workdir runs/demo",
    )
    verbs = root.add_subparsers(metavar="VERB", required=True)

    verb = _verb(
        verbs,
        "sounds",
        sounds,
        "Builds the sound bank: recordings with a class and a take, split by take.",
        "Reads Debian packages (fetched), or the folder or corpus that Sounds.bank names.",
        "DIR/sounds",
        "jaxasa sounds --workdir runs/mine \"--gin.Sounds.bank='folder:my_sounds'\"",
    )
    _add_work(verb)

    verb = _verb(
        verbs,
        "simulate",
        simulate,
        "Renders first-order ambisonics scenes; goes on with the shards that are missing.",
        "Reads DIR/sounds.",
        "DIR/scenes/{train,dev,benchmark}; DIR/responses for train, where Scenes.responses is set;\n"
        "with --format dcase: DIR/dcase/...",
        "jaxasa simulate --workdir runs/mine --split train --gin.Scenes.train=500\n"
        "  jaxasa simulate --workdir runs/mine --dry_run --gin.Scenes.train=3600000\n"
        "  jaxasa simulate --workdir runs/mine --runner DirectRunner -- --direct_num_workers=4",
    )
    verb.add_argument("--split", choices=("train", "dev", "benchmark"), help="default: all three")
    verb.add_argument(
        "--format",
        choices=("records", "dcase"),
        default="records",
        help="records: shards for training; dcase: foa/*.wav and metadata/*.csv",
    )
    verb.add_argument(
        "--dry_run",
        action="store_true",
        help="prints hours, shards, bytes and core-hours from a measured sample; writes nothing",
    )
    verb.add_argument(
        "--benchmark",
        action="store_true",
        help="only times scenes against pyroomacoustics (two minutes of a core)",
    )
    verb.add_argument("--runner", metavar="NAME", help="of Apache Beam; default: local processes")
    verb.add_argument("beam", nargs="*", metavar="-- BEAM_OPTION", help="passed on to the runner")
    _add_work(verb, required=False)

    verb = _verb(
        verbs,
        "import",
        import_,
        "Turns recordings of others, and questions about them, into a data set of ours.",
        "Reads a DCASE/STARSS23 folder, an SO-Dataset folder, or a JSONL file of questions.",
        "OUT: records and questions.jsonl, for SftStage.imported",
        "jaxasa import dcase STARSS23 runs/starss --split fold3 --seconds 5\n"
        "  jaxasa import so SO-Dataset runs/so --split train\n"
        "  jaxasa import jsonl mine/questions.jsonl runs/mine_qa --order fuma",
    )
    verb.add_argument("layout", choices=("dcase", "so", "jsonl"))
    verb.add_argument("source", type=Path, help="the set's folder, or the JSONL file")
    verb.add_argument("out", type=Path, help="a new folder")
    verb.add_argument("--split", help="so: a file in qa/ (train); dcase: a part of file names")
    _add_order(verb)
    verb.add_argument("--seconds", type=float, default=10.0, help="of a dcase window (10)")
    verb.add_argument(
        "--classes", type=Path, metavar="FILE", help="class names by number, a line each"
    )

    verb = _verb(
        verbs,
        "train",
        train,
        "Trains one stage, from its last checkpoint if there is one.",
        "Reads DIR/scenes and the checkpoints of the stage before.",
        "DIR/checkpoints/STAGE and DIR/logs/STAGE",
        "jaxasa train spatial --workdir runs/mine --gin.SpatialStage.steps=300",
    )
    verb.add_argument("stage", choices=STAGES, metavar="STAGE", help=", ".join(STAGES))
    _add_work(verb)

    _add_bench(verbs)

    verb = _verb(
        verbs,
        "ask",
        ask,
        "Answers a question about a recording; --json FILE adds the sources that were found.",
        "Reads a checkpoint or an export, and a 4-channel WAV or FLAC file (W, Y, Z, X; SN3D).",
        "nothing but FILE",
        'jaxasa ask runs/demo/export scene.wav "Where is the dog?" --options left right front back',
    )
    verb.add_argument("checkpoint", type=Path, help="WORKDIR/checkpoints/STAGE or an export folder")
    verb.add_argument("audio", type=Path, help="4-channel sound file")
    verb.add_argument("question")
    _add_order(verb)
    verb.add_argument("--options", nargs=4, metavar=tuple("ABCD"), help="four answers to choose of")

    verb = _verb(
        verbs,
        "export",
        export,
        "Writes a model as a Hugging Face folder; adapters are merged.",
        "Reads a checkpoint.",
        "OUT: safetensors, config, tokenizer, model card",
        "jaxasa export runs/demo/checkpoints/grpo runs/demo/export",
    )
    verb.add_argument("checkpoint", type=Path, help="WORKDIR/checkpoints/STAGE")
    verb.add_argument("out", type=Path, help="a new folder, or an export to replace")

    verb = _verb(
        verbs,
        "demo",
        demo,
        "The main job: every step from sounds to report. Finished steps are kept.",
        "Reads nothing; goes on with what is in DIR.",
        "DIR: sounds, scenes, checkpoints, logs, benchmark, results.json, report, export",
        "jaxasa demo --workdir runs/smoke --gin_file gin/run/smoke.gin",
    )
    _add_work(verb)
    return root


def _add_bench(verbs) -> None:
    bench = verbs.add_parser("bench", help="builds, runs, scores and reports the benchmark")
    parts = bench.add_subparsers(metavar="{build,run,score,seld,report}", required=True)

    verb = _verb(
        parts,
        "build",
        bench_build,
        "Chooses the items of a suite and writes them with their audio.",
        "Reads DIR/sounds and DIR/scenes/SPLIT.",
        "DIR/benchmark (or DIR/dev/benchmark): audio, metadata.jsonl, manifest, card",
        "jaxasa bench build --workdir runs/demo --split dev",
    )
    _add_split(verb)
    _add_work(verb)

    verb = _verb(
        parts,
        "run",
        bench_run,
        "Answers a suite with the trained model and its controls.",
        "Reads the suite and DIR/checkpoints/{sft,grpo}, or the model of --checkpoint.",
        "DIR/predictions/*.jsonl and DIR/results.json (--split dev: below DIR/dev)",
        "jaxasa bench run --workdir runs/demo --split dev",
    )
    verb.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="checkpoint or export")
    _add_split(verb)
    _add_work(verb)

    verb = _verb(
        parts,
        "score",
        bench_score,
        "Scores the answers of any system.",
        'Reads a suite, and a file with {"id", "answer"} a line; answers are letters or texts.',
        "nothing but the file of --json",
        "jaxasa bench score runs/demo/benchmark answers.jsonl --json scores.json",
    )
    verb.add_argument("benchmark", type=Path, help="folder with metadata.jsonl")
    verb.add_argument("predictions", type=Path, help="predictions.jsonl")

    verb = _verb(
        parts,
        "seld",
        bench_seld,
        "Scores detected and localised events as DCASE task 3 does (F20, ER20, LE_CD, LR_CD, RDE).",
        "Reads csv files without header: frame, class, source, azimuth, elevation[, distance].",
        "nothing but the file of --json",
        "jaxasa bench seld metadata_dev/dev-test-tau predictions --year 2023 --official",
    )
    verb.add_argument("references", type=Path, help="a csv file, or a folder with some below it")
    verb.add_argument("predictions", type=Path, help="the same, with the same file names")
    verb.add_argument("--year", type=int, choices=(2023, 2024), default=2024, help="definition")
    verb.add_argument("--classes", type=int, default=13, metavar="N", help="default: 13")
    verb.add_argument(
        "--official",
        action="store_true",
        help="with the public code's quirks (jaxasa/bench/seld.py)",
    )
    for side, unit in (("reference", "cm"), ("prediction", "m")):
        verb.add_argument(
            f"--{side}-unit",
            choices=("cm", "m"),
            default=unit,
            help=f"of distances; default: {unit}",
        )

    verb = _verb(
        parts,
        "report",
        bench_report,
        "Writes the HTML report.",
        "Reads DIR/results.json, DIR/predictions and DIR/benchmark.",
        "DIR/report/index.html",
        "jaxasa bench report --workdir runs/demo",
    )
    _add_split(verb)
    _add_folder(verb)


def _verb(
    verbs,
    name: str,
    work: Callable[[argparse.Namespace], Result],
    what: str,
    reads: str,
    writes: str,
    example: str,
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(
        name,
        help=what,
        description=f"{what}\n\n{reads}\nWrites {writes}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.set_defaults(verb=work)
    verb.add_argument("--json", type=Path, metavar="FILE", help="writes the result as JSON too")
    return verb


def _add_order(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--order",
        choices=("ambix", "n3d", "fuma"),
        default="ambix",
        help="of the four channels: W Y Z X in SN3D (ambix) or N3D, or W X Y Z (fuma)",
    )


def _add_folder(verb: argparse.ArgumentParser, required: bool = True) -> None:
    helped = {"metavar": "DIR", "help": "the run's folder"}
    verb.add_argument("--workdir", type=Path, required=required, **helped)


def _add_work(verb: argparse.ArgumentParser, required: bool = True) -> None:
    _add_folder(verb, required)
    gin_io.add_arguments(verb)


def _add_split(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--split",
        choices=("benchmark", "dev"),
        default="benchmark",
        help="dev: the suite for tuning, with takes of its own",
    )


if __name__ == "__main__":
    sys.exit(main())
