# SPDX-License-Identifier: Apache-2.0
"""Commands that make data: sounds, simulate, import."""

import argparse
from collections.abc import Sequence

from jaxasa.cli import options
from jaxasa.cli.options import RegistryNames, Result
from jaxasa.config import SPLITS, ConfigError
from jaxasa.core.workdir import WorkFolder


def add_commands(commands) -> None:
    _add_sounds(commands)
    _add_simulate(commands)
    _add_import(commands)


def _add_sounds(commands) -> None:
    command = options.add_command(
        commands,
        "sounds",
        build_sounds,
        "Build the sound bank: mono clips with a class, split by source recording.",
        reads="Debian packages (downloaded), or the folder or corpus that Sounds.bank names",
        writes="DIR/sounds",
        examples=[
            "jaxasa sounds --workdir runs/mine \"--gin.Sounds.bank='folder:my_sounds'\" "
            '"--gin.Sounds.classes={}"'
        ],
    )
    options.add_workdir(command)
    options.add_gin(command)


def build_sounds(args: argparse.Namespace) -> Result:
    from jaxasa.pipeline import steps

    run, _, work = options.open_workdir(args)
    bank = steps.build_sound_bank(run, work)
    print(bank.table())
    return {"bank": bank.name, "classes": list(bank.classes), "report": bank.report}


def _add_simulate(commands) -> None:
    command = options.add_command(
        commands,
        "simulate",
        simulate,
        "Render first-order ambisonics scenes; shards that are there already are kept.",
        reads="DIR/sounds",
        writes="DIR/scenes/{train,dev,benchmark}; DIR/rirs for train if Scenes.rir_rooms is set;\n"
        "with --format dcase or binaural: DIR/dcase/SPLIT or DIR/binaural/SPLIT",
        examples=[
            "jaxasa simulate --workdir runs/mine",
            "jaxasa simulate --workdir runs/mine --dry_run --gin.Scenes.train=3600000",
            "jaxasa simulate --workdir runs/mine --runner DirectRunner -- --direct_num_workers=4",
        ],
    )
    command.add_argument("--split", choices=SPLITS, help="default: all three")
    command.add_argument(
        "--format",
        choices=RegistryNames("jaxasa.data.formats", "FORMATS"),
        metavar="NAME",
        help="records: shards of FOA; dcase: foa/*.wav and metadata/*.csv; binaural: shards of "
        "both ears' signals; default: the one that Spatial.format is trained on",
    )
    options.add_hrtf(command)
    command.add_argument(
        "--dry_run",
        action="store_true",
        help="print hours, shards, bytes and core-hours, from a measured sample; write nothing",
    )
    command.add_argument(
        "--benchmark",
        action="store_true",
        help="only time rendering against pyroomacoustics (two minutes on one core)",
    )
    command.add_argument(
        "--runner", metavar="NAME", help="Apache Beam runner (default: local processes)"
    )
    command.add_argument(
        "beam", nargs="*", metavar="-- BEAM_OPTION", help="options of the Beam runner"
    )
    options.add_workdir(command, required=False)
    options.add_gin(command)


def simulate(args: argparse.Namespace) -> Result:
    if args.benchmark:
        others = (args.workdir, args.split, args.format, args.hrtf, args.gin_file, args.bindings)
        if any((*others, args.dry_run, args.runner, args.beam)):
            raise ConfigError("--benchmark times scenes of its own, expected no option but --json")
        from jaxasa.acoustics import benchmark

        return benchmark.run_benchmark()
    if args.workdir is None:
        raise ConfigError("--workdir is missing, expected the run's folder")
    from jaxasa.data import records
    from jaxasa.pipeline import steps

    splits = [args.split] if args.split else list(SPLITS)
    format = args.format
    if args.hrtf is not None:
        if format != "binaural":
            raise ConfigError(f"--hrtf {args.hrtf}: expected --format binaural with it")
        format += f":{args.hrtf}"
    if args.dry_run:
        if args.runner or args.beam:
            raise ConfigError("--dry_run measures in this process, expected no --runner with it")
        return _estimate(args, splits, format)
    if args.beam and args.runner is None:
        raise ConfigError(f"{' '.join(args.beam)}: expected --runner NAME before Beam's options")
    run, _, work = options.open_workdir(args)
    counts = {}
    for split in splits:
        out = steps.render_scenes(run, work, split, format, args.runner, args.beam)
        counts[split] = records.read_manifest(out)["count"]
        print(f"{counts[split]} {'RIRs' if out == work.rirs else 'scenes'} in {out}")
    return counts


def _estimate(args: argparse.Namespace, splits: Sequence[str], format: str | None) -> Result:
    from jaxasa.data import simulate as simulation
    from jaxasa.pipeline import steps

    run, _ = options.load_config(args)
    format = format or steps.default_format(run)
    sounds = WorkFolder(args.workdir).sounds
    table = {}
    for split in splits:
        count = getattr(run.scenes, split)
        row = simulation.estimate(run.scenes, sounds, split, run.seed, count, format)
        table[split] = row
        print(
            f"{split}: {count} scenes, {row['hours']:.2f} hours, {row['shards']} shards, "
            f"{row['bytes'] / 1e6:,.1f} MB, {row['core_hours']:.3g} core-hours "
            f"(+-{row['core_hours_95']:.1g}, from {row['sample']} scenes)"
        )
    return table


def _add_import(commands) -> None:
    command = options.add_command(
        commands,
        "import",
        import_dataset,
        "Convert other data sets, and questions about recordings, to jaxasa's records.",
        reads="a DCASE/STARSS23 folder, an SO-Dataset folder, or a JSONL file of questions",
        writes="OUT: records and questions.jsonl, for SftStage.qa_datasets, which uses\n"
        "recordings of up to Scenes.seconds",
        examples=[
            "jaxasa import dcase STARSS23 runs/starss --split fold3 --seconds 4",
            "jaxasa import so SO-Dataset runs/so --split train",
            "jaxasa import jsonl mine/questions.jsonl runs/mine_qa --convention fuma",
        ],
    )
    command.add_argument(
        "layout",
        choices=RegistryNames("jaxasa.data.import_scenes", "LAYOUTS"),
        metavar="LAYOUT",
        help="one of: %(choices)s",
    )
    command.add_argument(
        "source", action=options.LocalPath, help="the data set's folder, or the JSONL file"
    )
    command.add_argument("out", action=options.LocalPath, help="a new folder")
    command.add_argument(
        "--split", help="so: a file in qa/ (default: train); dcase: part of the file names"
    )
    options.add_convention(command)
    command.add_argument("--seconds", type=float, help="dcase: length of a window (default: 10)")
    command.add_argument(
        "--classes",
        action=options.LocalPath,
        metavar="FILE",
        help='dcase, so: class names by number, one a line; windows with a class "-" are left out',
    )
    command.add_argument(
        "--unit",
        choices=RegistryNames("jaxasa.data.dcase_csv", "UNITS"),
        metavar="UNIT",
        help="dcase, so: of distances, m or cm (default: cm, as published, or m if they have "
        "decimals and are small, which is said)",
    )


def import_dataset(args: argparse.Namespace) -> Result:
    from jaxasa.data import class_list, import_scenes

    classes = None if args.classes is None else class_list.read_class_names(args.classes)
    dataset = import_scenes.convert(
        args.layout,
        args.source,
        args.out,
        args.split,
        args.convention,
        args.seconds,
        classes,
        args.unit,
    )
    manifest = dataset.manifest
    print(f"{len(dataset)} recordings, {manifest['questions']} questions in {args.out}")
    for reason, count in manifest["reasons"].items():
        print(f"refused: {count} x {reason}")
    result = {name: manifest[name] for name in ("count", "questions", "reasons", "refused")}
    return result | {"notes": manifest.get("notes", [])}
