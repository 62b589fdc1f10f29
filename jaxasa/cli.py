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
        if options.workdir or options.split or options.gin_file or options.bindings:
            raise ConfigError("--benchmark times scenes of its own, expected no option but --json")
        from jaxasa.acoustics import benchmark

        return benchmark.run()
    if options.workdir is None:
        raise ConfigError("--workdir is missing, expected the run's folder")
    from jaxasa import steps
    from jaxasa.data.records import Records

    run, _, folder = _workdir(options)
    counts = {}
    for split in [options.split] if options.split else steps.SPLITS:
        steps.scenes(run, folder, split)
        out = steps.scenes_of(run, folder, split)
        counts[split] = len(Records(out))
        print(f"{counts[split]} {'responses' if out.name == 'responses' else 'scenes'} in {out}")
    return counts


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

    answer = asking.ask(options.checkpoint, options.audio, options.question, options.options)
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
        "DIR/scenes/{train,dev,benchmark}; DIR/responses for train, where Scenes.responses is set",
        "jaxasa simulate --workdir runs/mine --split train --gin.Scenes.train=500",
    )
    verb.add_argument("--split", choices=("train", "dev", "benchmark"), help="default: all three")
    verb.add_argument(
        "--benchmark",
        action="store_true",
        help="only times scenes against pyroomacoustics (two minutes of a core)",
    )
    _add_work(verb, required=False)

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
