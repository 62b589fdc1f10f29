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

from jaxasa import allocator, gin_io, workdir
from jaxasa.config import STAGES, ConfigError, Run

DEFAULT_GIN = "gin/run/demo.gin"
BAD_INPUT, UNFINISHED, INTERRUPTED = 2, 75, 130
# A full disk or a folder without permission is no bug.
_FOR_THE_USER = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)

Result = dict | list


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns its exit code. A bug raises."""
    before = signal.signal(signal.SIGTERM, _stop)
    allocator.keep_memory()
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
    from jaxasa import steps
    from jaxasa.data.records import Records

    run, _, folder = _workdir(options)
    counts = {}
    head = options.hrtf if options.format == "binaural" else None
    for split in [options.split] if options.split else steps.SPLITS:
        out = steps.scenes(run, folder, split, head)
        counts[split] = len(Records(out))
        print(f"{counts[split]} scenes in {out}")
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


def listen(options: argparse.Namespace) -> Result:
    from jaxasa import listen as listening

    heard = listening.listen(
        options.source, options.out, options.index, options.hrtf, options.order, options.sounds
    )
    print(f"{heard['file']}: {heard['seconds']:.1f} s, from {heard['from']}, {heard['hrtf']}")
    return heard


def draw(options: argparse.Namespace) -> Result:
    from jaxasa import draw as drawing
    from jaxasa.data import specs

    if options.scene is not None:
        view = drawing.of_scene(specs.find(options.scene, options.index, options.sounds))
    else:
        sources = options.source or [(1.5, 3.5, 1.2)]
        view = drawing.of_room(options.room, options.rt60, options.listener, sources, options.yaw)
    found = drawing.draw(view, options.which, options.out)
    print(f"{options.out}: RT60 {found['rt60']:.2f} s, DRR {found['drr']:.1f} dB")
    return found


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
        "DIR/scenes/{train,dev,benchmark}, or for --format binaural DIR/binaural/...",
        "jaxasa simulate --workdir runs/mine --split train --gin.Scenes.train=500",
    )
    verb.add_argument(
        "--format",
        choices=("records", "binaural"),
        default="records",
        help="binaural: the same scenes and labels for two ears",
    )
    _add_hrtf(verb)
    verb.add_argument("--split", choices=("train", "dev", "benchmark"), help="default: all three")
    _add_work(verb)

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

    _add_listen(verbs)
    _add_draw(verbs)

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


def _add_listen(verbs) -> None:
    verb = _verb(
        verbs,
        "listen",
        listen,
        "Renders a scene or an FOA recording for headphones.",
        "Reads a 4-channel sound file, a folder of records, or a scene in JSON.",
        "OUT: stereo, 16 kHz, 16 bits",
        "jaxasa listen runs/demo/scenes/dev scene.wav --index 3",
    )
    verb.add_argument("source", type=Path, help="FOA file, DIR/scenes/SPLIT, or SceneSpec in JSON")
    verb.add_argument("out", type=Path, metavar="OUT", help="file to write, NAME.wav")
    verb.add_argument(
        "--order",
        choices=("ambix", "n3d", "fuma"),
        default="ambix",
        help="channels of a sound file: W Y Z X in SN3D (default) or N3D, or FuMa's W X Y Z",
    )
    _add_hrtf(verb)
    _add_scene_options(verb)


def _add_draw(verbs) -> None:
    verb = _verb(
        verbs,
        "draw",
        draw,
        "Draws a room: plan, response, decay per octave band, energy by direction over time.",
        "Reads nothing, or the scene of --scene: a folder of records, or a scene in JSON.",
        "OUT: a PNG picture",
        "jaxasa draw room.png --room 6 5 3 --rt60 0.5 --listener 4 2 1.5 --source 1.5 3.5 1.2",
    )
    verb.add_argument("out", type=Path, metavar="OUT", help="file to write, NAME.png")
    verb.add_argument("--scene", type=Path, help="DIR/scenes/SPLIT, or SceneSpec in JSON")
    _add_scene_options(verb)
    place: dict = {"type": float, "nargs": 3, "metavar": ("X", "Y", "Z")}
    verb.add_argument("--which", type=int, default=0, metavar="K", help="source to draw (0)")
    verb.add_argument("--room", **place, default=(6, 5, 3), help="metres (6 5 3)")
    verb.add_argument("--rt60", type=float, default=0.5, help="seconds (0.5)")
    verb.add_argument("--listener", **place, default=(4, 2, 1.5), help="metres (4 2 1.5)")
    verb.add_argument("--yaw", type=float, default=0.0, help="of the listener, degrees (0)")
    verb.add_argument("--source", **place, action="append", help="metres, repeatable")


def _add_scene_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--index", type=int, default=0, metavar="I", help="scene of a folder (0)")
    verb.add_argument(
        "--sounds", type=Path, metavar="DIR", help="its sound bank (default: DIR/sounds beside it)"
    )


def _add_hrtf(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--hrtf", default="sphere", help="sphere (default), or a SOFA file")


def _add_bench(verbs) -> None:
    bench = verbs.add_parser("bench", help="builds, runs, scores and reports the benchmark")
    parts = bench.add_subparsers(metavar="{build,run,score,report}", required=True)

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


def _add_folder(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--workdir", type=Path, required=True, metavar="DIR", help="the run's folder")


def _add_work(verb: argparse.ArgumentParser) -> None:
    _add_folder(verb)
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
