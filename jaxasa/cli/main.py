"""The command line: a verb for each step, which works on what the one before it wrote.

Exit codes: 0 done; 2 something that the user must mend (one line says what); 3 a verdict of no
(a plan that does not fit, a variant that failed); 75 stopped, what was done is saved, start it
again; 130 interrupted; 1 a bug, with its traceback.

Heavy libraries are imported inside the verbs, so that --help answers at once.
"""

import argparse
import errno
import functools
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from jaxasa.cli import arguments
from jaxasa.config import ConfigError, Run, Sampling, gin_files
from jaxasa.core import cpu, files, workdir

DEFAULT_GIN = "gin/run/demo.gin"
BAD_INPUT, NO, UNFINISHED, INTERRUPTED = 2, 3, 75, 130
# A full disk or a folder without permission is no bug.
_FOR_THE_USER = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)

Result = dict | list


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns its exit code. A bug raises."""
    code = 1
    try:
        code = _main(sys.argv[1:] if argv is None else argv)
        return code
    finally:
        # Looked up, not imported: importing jax would make every --help wait.
        distributed = sys.modules.get("jaxasa.parallel.distributed")
        if distributed is not None:
            distributed.leave(code)


def _main(argv: Sequence[str]) -> int:
    before = signal.signal(signal.SIGTERM, _stop)
    cpu.tune()
    try:
        return _run(argv)
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
        loop = sys.modules.get("jaxasa.train.loop")
        if loop is None or not isinstance(error, loop.Preempted):
            raise
        return _say(str(error), UNFINISHED)
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(argv: Sequence[str]) -> int:
    words, bindings = gin_files.split_gin(argv)
    options = arguments.parser().parse_args(words)
    options.bindings = bindings
    if bindings and not hasattr(options, "gin_file"):
        raise ConfigError(f"--gin.{bindings[0]}: this verb reads no gin file")
    if options.json is not None and not options.json.parent.is_dir():
        raise ConfigError(f"--json {options.json}: {options.json.parent} is no folder")
    result = VERBS[options.verb](options)
    if options.json is not None:
        files.write_text(options.json, json.dumps(result, indent=1) + "\n")
    is_no = isinstance(result, dict) and (result.get("fits") is False or result.get("failed"))
    return NO if is_no else 0


def _say(line: str, code: int) -> int:
    print(f"jaxasa: {line}", file=sys.stderr)
    return code


def _stop(number: int, frame: FrameType | None) -> None:
    """SIGTERM outside the training loop (which saves first): every step can be gone on with."""
    print("jaxasa: stopped; run the same command again to go on", file=sys.stderr)
    raise SystemExit(UNFINISHED)


def _config(options: argparse.Namespace) -> tuple[Run, str]:
    return gin_files.load(options.gin_file or [DEFAULT_GIN], options.bindings)


def _begun(options: argparse.Namespace) -> tuple[Run, str]:
    """The config. Without --gin_file, a folder that a run was begun in keeps that run's."""
    made = options.workdir / "config.gin"
    if made.is_file() and not options.gin_file:
        options.gin_file = [str(made)]
    return _config(options)


def _workdir(options: argparse.Namespace) -> tuple[Run, str, Path]:
    """The config, and the work folder that belongs to it."""
    run, text = _begun(options)
    return run, text, workdir.claim(options.workdir, run, text)


def sounds(options: argparse.Namespace) -> Result:
    from jaxasa.pipeline import steps

    run, _, folder = _workdir(options)
    bank = steps.sound_bank(run, folder)
    print(bank.table())
    return {"bank": bank.name, "classes": list(bank.classes), "report": bank.report}


def simulate(options: argparse.Namespace) -> Result:
    if options.benchmark:
        others = (options.workdir, options.split, options.format, options.hrtf, options.gin_file)
        if any((*others, options.bindings, options.dry_run, options.runner, options.beam)):
            raise ConfigError("--benchmark times scenes of its own, expected no option but --json")
        from jaxasa.acoustics import benchmark

        return benchmark.run()
    if options.workdir is None:
        raise ConfigError("--workdir is missing, expected the run's folder")
    from jaxasa.data import records
    from jaxasa.pipeline import steps

    splits = [options.split] if options.split else list(steps.SPLITS)
    form = options.format
    if options.hrtf is not None:
        if form != "binaural":
            raise ConfigError(f"--hrtf {options.hrtf}: expected --format binaural with it")
        form += f":{options.hrtf}"
    if options.dry_run:
        if options.runner or options.beam:
            raise ConfigError("--dry_run measures in this process, expected no --runner with it")
        return _estimate(options, splits, form)
    if options.beam and options.runner is None:
        raise ConfigError(f"{' '.join(options.beam)}: expected --runner NAME before Beam's options")
    run, _, folder = _workdir(options)
    counts = {}
    for split in splits:
        form = form or steps.format_of(run)
        out = steps.scenes(run, folder, split, form, options.runner, options.beam)
        counts[split] = records.read_manifest(out)["count"]
        print(f"{counts[split]} {'responses' if out.name == 'responses' else 'scenes'} in {out}")
    return counts


def _estimate(options: argparse.Namespace, splits: Sequence[str], form: str | None) -> Result:
    from jaxasa.data import simulate as simulating
    from jaxasa.pipeline import steps

    made = options.workdir / "config.gin"
    options.gin_file = options.gin_file or ([str(made)] if made.is_file() else [])
    run, _ = _config(options)
    table = {}
    for split in splits:
        count = getattr(run.scenes, split)
        bank = options.workdir / "sounds"
        form = form or steps.format_of(run)
        row = simulating.estimate(run.scenes, bank, split, run.seed, count, form)
        table[split] = row
        print(
            f"{split}: {count} scenes, {row['hours']:.2f} hours, {row['shards']} shards, "
            f"{row['bytes'] / 1e6:,.1f} MB, {row['core_hours']:.3g} core-hours "
            f"(+-{row['core_hours_95']:.1g}, from {row['sample']} scenes)"
        )
    return table


def import_(options: argparse.Namespace) -> Result:
    from jaxasa.data import import_scenes

    classes = None
    if options.classes is not None:
        if not options.classes.is_file():
            raise ConfigError(f"--classes {options.classes}: no such file, expected names in lines")
        classes = options.classes.read_text("utf-8").split("\n")
        classes = [name.strip() for name in classes if name.strip()]
    made = import_scenes.convert(
        options.layout,
        options.source,
        options.out,
        options.split,
        options.order or "ambix",
        options.seconds,
        classes,
    )
    facts = made.manifest
    print(f"{len(made)} recordings, {facts['questions']} questions in {options.out}")
    for reason, count in facts["reasons"].items():
        print(f"refused: {count} x {reason}")
    return {name: facts[name] for name in ("count", "questions", "reasons", "refused")}


def train(options: argparse.Namespace) -> Result:
    from jaxasa.parallel import distributed

    if options.rehearse:
        return _rehearse(options)
    for name in ("stage", "workdir"):
        if getattr(options, name) is None:
            raise ConfigError(f"{name} is missing, expected STAGE and --workdir (or --rehearse)")
    distributed.join()
    run, text, folder = _workdir(options)
    if options.stage not in run.stages:
        raise ConfigError(f"stage {options.stage!r}: expected one of {', '.join(run.stages)}")
    from jaxasa.pipeline import steps

    steps.train(run, folder, options.stage, text, options.profile)
    out = folder / "checkpoints" / options.stage
    print(f"stage {options.stage} is trained: {out}")
    return {"stage": options.stage, "checkpoint": str(out)}


def _rehearse(options: argparse.Namespace) -> Result:
    from jaxasa.pipeline import preflight

    if options.stage is not None:
        raise ConfigError(f"{options.stage}: --rehearse does every stage of the run")
    if options.profile:
        raise ConfigError(f"--profile is {options.profile}, expected none with --rehearse")
    made = options.workdir / "config.gin" if options.workdir else None
    if made is not None and made.is_file() and not options.gin_file:
        options.gin_file = [str(made)]
    run, text = _config(options)
    return preflight.rehearse(run, options.workdir, text)


def bench_build(options: argparse.Namespace) -> Result:
    from jaxasa.pipeline import steps

    run, _, folder = _workdir(options)
    items = steps.build_suite(run, folder, options.split)
    print(f"{len(items)} items in {steps.suite_of(folder, options.split)}")
    return {"items": len(items), "folder": str(steps.suite_of(folder, options.split))}


def bench_run(options: argparse.Namespace) -> Result:
    from jaxasa.pipeline import steps

    run, _, folder = _workdir(options)
    results = steps.benchmark(run, folder, options.split, options.checkpoint)
    for name, scores in results["systems"].items():
        _print_scores(name, scores)
    return results


def bench_external(options: argparse.Namespace) -> Result:
    from jaxasa.pipeline import steps

    own = options.checkpoint / "config.gin"
    begun = (options.workdir / "config.gin").is_file()
    if own.is_file() and (options.gin_file or not begun):
        options.gin_file = [str(own), *options.gin_file]
    run, _, folder = _workdir(options)
    results = steps.external(run, folder, options.checkpoint)
    for name, scores in results["systems"].items():
        _print_scores(name, scores)
    print(folder / "report" / "index.html")
    return results


def bench_score(options: argparse.Namespace) -> Result:
    from jaxasa.bench import open_ended, score

    file = open_ended.score_file if options.open else score.score_file
    scores = file(options.predictions, options.benchmark)
    _print_scores(options.predictions.stem, scores)
    return scores


def bench_doa(options: argparse.Namespace) -> Result:
    from jaxasa.bench import doa
    from jaxasa.pipeline import steps

    run, _, folder = _workdir(options)
    rows = steps.directions(run, folder, options.scenes)
    print(doa.table(rows))
    return rows


def bench_audit(options: argparse.Namespace) -> Result:
    from jaxasa.pipeline import steps

    _, _, folder = _workdir(options)
    found = steps.audit_suite(folder, options.split)
    for level, scores in found["levels"].items():
        shares = (f"{name} {s:.3f}" for name, s in scores.items() if isinstance(s, float))
        print(f"{level}: {scores['items']} items, {', '.join(shares)}")
    return found


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


def bench_ablate(options: argparse.Namespace) -> Result:
    from jaxasa.pipeline.ablation import runner

    made = options.workdir / "config.gin"
    own = [str(made)] if made.is_file() else ["gin/run/ablate.gin"]
    files = options.gin_file or own
    _, text = gin_files.load(files, options.bindings)
    with tempfile.TemporaryDirectory() as folder:
        # The files as they are now: jobs that begin hours later are not to find others.
        frozen = Path(folder) / "config.gin"
        frozen.write_text(text, encoding="utf-8")
        load = functools.partial(gin_files.load, [str(frozen)])
        return runner.ablate(load, options.workdir, options.dry_run)


def bench_report(options: argparse.Namespace) -> Result:
    from jaxasa.pipeline import steps

    path = steps.write_report(options.workdir, options.split, options.ablation)
    print(path)
    return {"report": str(path)}


def bench_speed(options: argparse.Namespace) -> Result:
    import importlib

    if options.rounds is not None and options.rounds < 1:
        raise ConfigError(f"--rounds is {options.rounds}, expected a number of at least 1")
    # The three need different libraries of torch's side, and only theirs are imported.
    comparison = importlib.import_module(f"jaxasa.speed.{options.what}")
    result = comparison.run(**({"rounds": options.rounds} if options.rounds else {}))
    comparison.turns.show(result["rows"])
    return result


def ask(options: argparse.Namespace) -> Result:
    from jaxasa.inference import qa as asking

    answer = asking.ask(
        options.checkpoint,
        options.audio,
        options.question,
        options.options,
        options.order,
        Sampling(options.temperature, options.top_k, options.top_p, tuple(options.stop)),
        options.seed,
        options.plot,
    )
    print(answer["answer"])
    return answer


def listen(options: argparse.Namespace) -> Result:
    from jaxasa.viz import binauralize as listening

    heard = listening.listen(
        options.source,
        options.out,
        options.index,
        options.hrtf,
        options.order,
        options.sounds,
    )
    print(f"{heard['file']}: {heard['seconds']:.1f} s, from {heard['from']}, {heard['hrtf']}")
    return heard


def draw(options: argparse.Namespace) -> Result:
    from jaxasa.data import specs
    from jaxasa.viz import plot_room as drawing

    said = {name: getattr(options, name) for name in drawing.ROOM}
    given = {name: value for name, value in said.items() if value is not None}
    if options.scene is not None:
        if given:
            raise ConfigError(f"--scene says where all is, expected no {', '.join(given)} with it")
        view = drawing.of_scene(specs.find(options.scene, options.index, options.sounds))
    else:
        for name in ("index", "sounds"):
            if (value := getattr(options, name)) is not None:
                raise ConfigError(f"--{name} {value}: no scene is drawn, expected --scene with it")
        view = drawing.of_room(**drawing.ROOM | given)
    found = drawing.draw(view, options.which, options.out)
    print(f"{options.out}: RT60 {found['rt60']:.2f} s, DRR {found['drr']:.1f} dB")
    return found


def export(options: argparse.Namespace) -> Result:
    from jaxasa.hf import adapter
    from jaxasa.hf import export as exporting

    if options.adapter:
        out = adapter.write(options.checkpoint, options.out)
    else:
        out = exporting.export(options.checkpoint, options.out, with_stablehlo=options.stablehlo)
    print(out)
    return {"export": str(out)}


def plan(options: argparse.Namespace) -> Result:
    from jaxasa.plan import planner as planning

    run, _ = _config(options)
    found = planning.plan(run, options.topology, options.stage)
    print(planning.table(found))
    return found


def demo(options: argparse.Namespace) -> Result:
    from jaxasa.pipeline import demo as main_job

    run, text = _begun(options)
    return main_job.demo(run, options.workdir, text)


def _print_scores(name: str, scores: dict) -> None:
    cells = [
        f"{level} {100 * a['accuracy']:5.1f} ({100 * a['low']:.0f}-{100 * a['high']:.0f})"
        for level in ("overall", "L1", "L2", "L3")
        if (a := scores.get(level)) and a["accuracy"] is not None
    ]
    print(f"{name:<18} {'  '.join(cells)}")


VERBS: dict[str, Callable[[argparse.Namespace], Result]] = {
    "sounds": sounds,
    "simulate": simulate,
    "import": import_,
    "train": train,
    "bench build": bench_build,
    "bench run": bench_run,
    "bench external": bench_external,
    "bench score": bench_score,
    "bench audit": bench_audit,
    "bench doa": bench_doa,
    "bench seld": bench_seld,
    "bench ablate": bench_ablate,
    "bench report": bench_report,
    "bench speed": bench_speed,
    "ask": ask,
    "listen": listen,
    "draw": draw,
    "export": export,
    "plan": plan,
    "demo": demo,
}


if __name__ == "__main__":
    sys.exit(main())
