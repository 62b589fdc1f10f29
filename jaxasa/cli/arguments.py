"""The arguments of each verb of the command line, and what --help says of them.

`parser().parse_args(...)` gives `verb`, the name of the verb ("bench build"), beside its options.
"""

import argparse
from pathlib import Path

from jaxasa.config import STAGES, SUITES, gin_files


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
        "Builds the sound bank: clips with a class, split by source recording.",
        "Reads Debian packages (fetched), or the folder or corpus that Sounds.bank names.",
        "DIR/sounds",
        "jaxasa sounds --workdir runs/mine \"--gin.Sounds.bank='folder:my_sounds'\" "
        '"--gin.Sounds.classes={}"',
    )
    _add_work(verb)

    verb = _verb(
        verbs,
        "simulate",
        "Renders first-order ambisonics scenes; goes on with the shards that are missing.",
        "Reads DIR/sounds.",
        "DIR/scenes/{train,dev,benchmark}; DIR/responses for train, where Scenes.rir_rooms is\n"
        "set; with --format dcase or binaural: DIR/dcase/... or DIR/binaural/...",
        "jaxasa simulate --workdir runs/mine\n"
        "  jaxasa simulate --workdir runs/mine --dry_run --gin.Scenes.train=3600000\n"
        "  jaxasa simulate --workdir runs/mine --runner DirectRunner -- --direct_num_workers=4",
    )
    verb.add_argument("--split", choices=("train", "dev", "benchmark"), help="default: all three")
    verb.add_argument(
        "--format",
        choices=("records", "dcase", "binaural"),
        help="shards of FOA; foa/*.wav and metadata/*.csv; shards for two ears; "
        "default: what Spatial.format trains on, records or binaural",
    )
    _add_hrtf(verb)
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
        "Turns recordings of others, and questions about them, into a data set of ours.",
        "Reads a DCASE/STARSS23 folder, an SO-Dataset folder, or a JSONL file of questions.",
        "OUT: records and questions.jsonl, for SftStage.qa_datasets: of these, sounds of up to\n"
        "Scenes.seconds are heard",
        "jaxasa import dcase STARSS23 runs/starss --split fold3 --seconds 4\n"
        "  jaxasa import so SO-Dataset runs/so --split train\n"
        "  jaxasa import jsonl mine/questions.jsonl runs/mine_qa --order fuma",
    )
    verb.add_argument("layout", choices=("dcase", "so", "jsonl"))
    verb.add_argument("source", type=Path, help="the set's folder, or the JSONL file")
    verb.add_argument("out", type=Path, help="a new folder")
    verb.add_argument("--split", help="so: a file in qa/ (train); dcase: a part of file names")
    _add_order(verb)
    verb.add_argument("--seconds", type=float, help="of a dcase window (10)")
    verb.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help='dcase, so: class names by number, a line each; "-": windows with it are left out',
    )

    verb = _verb(
        verbs,
        "train",
        "Trains one stage, from its last checkpoint if there is one.",
        "Reads DIR/sounds, DIR/scenes (not for text) and the checkpoints of the stage before.",
        "DIR/checkpoints/STAGE and DIR/logs/STAGE",
        "jaxasa train text --workdir runs/mine\n"
        "  jaxasa train spatial --workdir runs/mine --gin.SpatialStage.steps=300\n"
        "  jaxasa train --rehearse --gin_file gin/run/demo.gin",
    )
    stages = ", ".join(STAGES)
    verb.add_argument("stage", nargs="?", choices=STAGES, metavar="STAGE", help=stages)
    verb.add_argument(
        "--rehearse",
        action="store_true",
        help="instead: two steps of every stage, with evaluation, save and restore between them; "
        "keeps nothing, and makes sounds and scenes up where there are none",
    )
    verb.add_argument(
        "--profile",
        type=int,
        default=0,
        metavar="N",
        help="traces N steps to DIR/logs/STAGE/profile, for TensorBoard",
    )
    _add_work(verb, required=False)

    _add_bench(verbs)

    verb = _verb(
        verbs,
        "ask",
        "Answers a question about a recording; --json FILE adds the sources that were found.",
        "Reads a checkpoint or an export, and a 4-channel WAV or FLAC file (W, Y, Z, X; SN3D).",
        "nothing but FILE and FILE.png",
        'jaxasa ask runs/demo/export scene.wav "Where is the dog?" --options left right front back'
        '\n  jaxasa ask runs/demo/export scene.wav "Where is the dog?" --plot heard.png',
    )
    verb.add_argument("checkpoint", type=Path, help="WORKDIR/checkpoints/STAGE or an export folder")
    verb.add_argument("audio", type=Path, help="sound file: FOA, or 2 ears if so trained")
    verb.add_argument("question")
    _add_order(verb)
    verb.add_argument("--options", nargs=4, metavar=tuple("ABCD"), help="four answers to choose of")
    number: dict = {"type": float, "metavar": "X"}
    verb.add_argument("--temperature", **number, default=0.0, help="of sampling (0: likeliest)")
    verb.add_argument("--top_k", type=int, default=0, metavar="K", help="of the K likeliest (all)")
    verb.add_argument("--top_p", **number, default=1.0, help="of the likeliest up to X (1: all)")
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="of sampling (0)")
    stop = {"metavar": "TEXT", "help": "the reply ends before it; repeatable"}
    verb.add_argument("--stop", action="append", default=[], **stop)
    picture = "draws what was heard where and when"
    verb.add_argument("--plot", type=Path, metavar="FILE.png", help=picture)

    _add_listen(verbs)
    _add_draw(verbs)

    verb = _verb(
        verbs,
        "export",
        "Writes a model as a Hugging Face folder; adapters are merged.",
        "Reads a checkpoint, and what the model card tells of from the run's folder around it.",
        "OUT: safetensors, configs, tokenizer, the model in torch, model card",
        "jaxasa export runs/demo/checkpoints/grpo runs/demo/export\n"
        "  jaxasa export runs/demo/checkpoints/grpo runs/demo/adapter --adapter",
    )
    verb.add_argument("checkpoint", type=Path, help="WORKDIR/checkpoints/STAGE")
    verb.add_argument("out", type=Path, help="a new folder, or an export to replace")
    form = verb.add_mutually_exclusive_group()
    form.add_argument(
        "--adapter",
        action="store_true",
        help="instead: the adapters for peft, and the decoder that they belong to",
    )
    form.add_argument(
        "--stablehlo",
        action="store_true",
        help="adds OUT/stablehlo: functions that run with jax alone",
    )

    verb = _verb(
        verbs,
        "plan",
        "Compiles a stage's step for a TPU slice that need not be there: does it fit, how fast?",
        "Reads gin files alone; whether it fits is known with libtpu (pip install 'jaxasa[plan]').",
        "nothing but the file of --json; exit code 3 where the step does not fit",
        "jaxasa plan --gin_file gin/run/base_sft.gin --topology v5p:4x4x8\n"
        "  jaxasa plan --gin_file gin/run/base_grpo.gin --topology v5e:16x16 --stage rollout",
    )
    verb.add_argument("--topology", required=True, metavar="CHIP:AxBxC", help="as v5e:16x16")
    verb.add_argument(
        "--stage", choices=(*STAGES, "rollout"), help="default: the last of Run.stages"
    )
    gin_files.add_arguments(verb)

    verb = _verb(
        verbs,
        "demo",
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
        help="channels of a sound file: W Y Z X in SN3D (default) or N3D, or FuMa's W X Y Z",
    )
    _add_hrtf(verb)
    _add_scene_options(verb)


def _add_draw(verbs) -> None:
    verb = _verb(
        verbs,
        "draw",
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
    verb.add_argument("--room", **place, help="metres (6 5 3)")
    verb.add_argument("--rt60", type=float, help="seconds (0.5)")
    verb.add_argument("--listener", **place, help="metres (4 2 1.5)")
    verb.add_argument("--yaw", type=float, help="of the listener, degrees (0)")
    where = "metres, repeatable (1.5 3.5 1.2)"
    verb.add_argument("--source", **place, action="append", dest="sources", help=where)


def _add_scene_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--index", type=int, metavar="I", help="scene of a folder (0)")
    verb.add_argument(
        "--sounds", type=Path, metavar="DIR", help="its sound bank (default: DIR/sounds beside it)"
    )


def _add_hrtf(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--hrtf", help="sphere (default), or a SOFA file")


def _add_bench(verbs) -> None:
    bench = verbs.add_parser("bench", help="builds, runs, scores and reports the benchmark")
    parts = bench.add_subparsers(
        metavar="{build,run,external,score,audit,doa,seld,ablate,report,speed}", required=True
    )

    verb = _verb(
        parts,
        "build",
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
        "external",
        "Tries a model on scenes unlike its training's: suite, answers with controls, report.",
        "Reads a checkpoint with its config, over which gin files say what is different (an\n"
        "export has none: a whole run file comes first); or the recordings that\n"
        "`jaxasa import dcase` put into DIR/scenes/benchmark.",
        "DIR: sounds, scenes/benchmark, benchmark, predictions, results.json, report",
        "jaxasa bench external runs/demo/checkpoints/grpo --workdir runs/outside "
        "--gin_file gin/data/outside_large.gin\n"
        "  jaxasa import dcase STARSS23 runs/starss/scenes/benchmark --split dev-test --seconds 4 "
        "--classes gin/data/starss23_classes.txt\n"
        "  jaxasa bench external runs/demo/checkpoints/grpo --workdir runs/starss "
        "--gin_file gin/data/external.gin",
    )
    verb.add_argument("checkpoint", type=Path, help="WORKDIR/checkpoints/STAGE or an export folder")
    _add_work(verb)

    verb = _verb(
        parts,
        "score",
        "Scores the answers of any system.",
        'Reads a suite, and a file with {"id", "answer"} a line, one of each item; answers are\n'
        "letters or texts. With --open, of each item whose `open` in metadata.jsonl is not null,\n"
        "answered without options (azimuth within 20 degrees, ...).",
        "nothing but the file of --json",
        "jaxasa bench score runs/demo/benchmark answers.jsonl --json scores.json",
    )
    verb.add_argument("benchmark", type=Path, help="folder with metadata.jsonl")
    verb.add_argument("predictions", type=Path, help="predictions.jsonl")
    verb.add_argument("--open", action="store_true", help="score answers without options")

    verb = _verb(
        parts,
        "audit",
        "Shows what texts alone and metadata score on a suite, beside what systems score.",
        "Reads the suite and DIR/results.json, where that is there.",
        "audit.json of the suite, with the scores of question_only and mono",
        "jaxasa bench audit --workdir runs/demo",
    )
    _add_split(verb)
    _add_work(verb)

    verb = _verb(
        parts,
        "doa",
        "Compares the slots' directions with an intensity histogram and MUSIC, by RT60.",
        "Reads DIR/sounds and the checkpoint of the last stage; renders scenes of its own.",
        "the rows to DIR/results.json",
        "jaxasa bench doa --workdir runs/demo --scenes 200",
    )
    verb.add_argument("--scenes", type=int, default=200, metavar="N", help="a cell (200)")
    _add_work(verb)

    verb = _verb(
        parts,
        "seld",
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
        "ablate",
        "Trains variants of a run over several seeds, and compares them on its benchmark.",
        "Reads nothing; goes on with what is in DIR. "
        "Started more than once, its processes part the work.",
        "DIR: sounds, scenes, ablation/, ablation.json; exit code 3 where a variant failed",
        "jaxasa bench ablate --workdir runs/ablate --dry_run",
    )
    helped = "prints what is trained for whom, and how long it may take; writes nothing"
    verb.add_argument("--dry_run", action="store_true", help=helped)
    _add_work(verb)

    verb = _verb(
        parts,
        "report",
        "Writes the HTML report.",
        "Reads DIR/results.json, DIR/predictions, DIR/benchmark and DIR/ablation.json.",
        "DIR/report/index.html (--split dev: below DIR/dev)",
        "jaxasa bench report --workdir runs/demo --ablation runs/ablate/ablation.json",
    )
    helped = "of `bench ablate`; default: DIR/ablation.json"
    verb.add_argument("--ablation", type=Path, metavar="FILE", help=helped)
    _add_split(verb)
    _add_folder(verb)

    verb = _verb(
        parts,
        "speed",
        "Times generation or a training step against torch: medians of rounds taken in turn.",
        "Reads nothing; needs the extra `speed`. Let nothing else run on the machine.",
        "nothing but the file of --json",
        "jaxasa bench speed decode --json decode.json",
    )
    verb.add_argument("what", choices=("decode", "sft", "grpo"))
    verb.add_argument("--rounds", type=int, metavar="N", help="default: 5, 15 and 8")


def _verb(
    verbs,
    name: str,
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
    verb.set_defaults(verb=verb.prog.removeprefix("jaxasa "))
    verb.add_argument("--json", type=Path, metavar="FILE", help="writes the result as JSON too")
    return verb


def _add_order(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--order",
        choices=("ambix", "n3d", "fuma"),
        help="of the four channels: W Y Z X in SN3D (ambix, default) or N3D, or W X Y Z (fuma)",
    )


def _add_folder(verb: argparse.ArgumentParser, required: bool = True) -> None:
    helped = {"metavar": "DIR", "help": "the run's folder"}
    verb.add_argument("--workdir", type=Path, required=required, **helped)


def _add_work(verb: argparse.ArgumentParser, required: bool = True) -> None:
    _add_folder(verb, required)
    gin_files.add_arguments(verb)


def _add_split(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--split",
        choices=SUITES,
        default="benchmark",
        help="dev: the suite for tuning, with recordings of its own",
    )
