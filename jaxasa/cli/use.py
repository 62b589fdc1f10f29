# SPDX-License-Identifier: Apache-2.0
"""Commands that use a model or a scene: ask, export, listen, plot."""

import argparse

from jaxasa.cli import options
from jaxasa.cli.options import Result
from jaxasa.config import ConfigError, Sampling


def add_commands(commands) -> None:
    _add_ask(commands)
    _add_export(commands)
    _add_listen(commands)
    _add_plot(commands)


def _add_ask(commands) -> None:
    command = options.add_command(
        commands,
        "ask",
        ask,
        "Answer a question about a recording; --json FILE adds the detected sources.",
        reads="a checkpoint or an export, and a 4-channel WAV or FLAC file (W, Y, Z, X; SN3D)",
        writes="nothing but FILE and FILE.png",
        examples=[
            'jaxasa ask runs/demo/export scene.wav "Where is the dog?" '
            "--options left right front back",
            'jaxasa ask runs/demo/export scene.wav "Where is the dog?" --plot sources.png',
        ],
    )
    command.add_argument(
        "checkpoint", action=options.LocalPath, help="DIR/checkpoints/STAGE or an export folder"
    )
    command.add_argument(
        "audio",
        action=options.LocalPath,
        help="audio file (4-channel FOA, or stereo for a binaural model)",
    )
    command.add_argument("question")
    options.add_convention(command)
    command.add_argument("--options", nargs=4, metavar=tuple("ABCD"), help="four answer options")
    command.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="X",
        help="sampling temperature (default: 0, greedy)",
    )
    command.add_argument(
        "--top_k",
        type=int,
        default=0,
        metavar="K",
        help="sample from the K likeliest tokens (default: 0, all)",
    )
    command.add_argument(
        "--top_p",
        type=float,
        default=1.0,
        metavar="X",
        help="sample from the likeliest tokens that together have probability X (default: 1, all)",
    )
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of sampling (default: 0)"
    )
    command.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end the reply before TEXT; repeatable",
    )
    command.add_argument(
        "--plot",
        action=options.LocalPath,
        metavar="FILE.png",
        help="plot the detected sources over time",
    )


def ask(args: argparse.Namespace) -> Result:
    from jaxasa.inference import qa

    answer = qa.ask(
        args.checkpoint,
        args.audio,
        args.question,
        args.options,
        args.convention,
        Sampling(args.temperature, args.top_k, args.top_p, tuple(args.stop)),
        args.seed,
        args.plot,
    )
    print(answer["answer"])
    return answer


def _add_export(commands) -> None:
    command = options.add_command(
        commands,
        "export",
        export,
        "Write a model as a Hugging Face folder, with its adapters merged.",
        reads="a checkpoint, and facts for the model card from the run's folder around it",
        writes="OUT: safetensors, configs, tokenizer, the model in PyTorch, model card",
        examples=[
            "jaxasa export runs/demo/checkpoints/grpo runs/demo/export",
            "jaxasa export runs/demo/checkpoints/grpo runs/demo/adapter --adapter",
        ],
    )
    command.add_argument("checkpoint", action=options.LocalPath, help="DIR/checkpoints/STAGE")
    command.add_argument(
        "out", action=options.LocalPath, help="a new folder, or an export to replace"
    )
    form = command.add_mutually_exclusive_group()
    form.add_argument(
        "--adapter",
        action="store_true",
        help="write the adapters for peft instead, and the decoder that they belong to",
    )
    form.add_argument(
        "--stablehlo",
        action="store_true",
        help="add OUT/stablehlo: functions that run with jax alone",
    )


def export(args: argparse.Namespace) -> Result:
    from jaxasa.hf import adapter
    from jaxasa.hf import export as folder

    if args.adapter:
        out = adapter.write_adapter(args.checkpoint, args.out)
    else:
        out = folder.export_checkpoint(args.checkpoint, args.out, with_stablehlo=args.stablehlo)
    print(out)
    return {"export": str(out)}


def _add_listen(commands) -> None:
    command = options.add_command(
        commands,
        "listen",
        listen,
        "Render a scene or an FOA recording for headphones.",
        reads="a 4-channel audio file, a folder of records, or a scene in JSON",
        writes="OUT: stereo, 16 kHz, 16 bits",
        examples=["jaxasa listen runs/demo/scenes/dev scene.wav --index 3"],
    )
    command.add_argument(
        "source", action=options.LocalPath, help="FOA file, DIR/scenes/SPLIT, or SceneSpec in JSON"
    )
    command.add_argument(
        "out", action=options.LocalPath, metavar="OUT", help="file to write, NAME.wav"
    )
    options.add_convention(command)
    options.add_hrtf(command)
    options.add_scene(command)


def listen(args: argparse.Namespace) -> Result:
    from jaxasa.viz.binauralize import binauralize

    result = binauralize(args.source, args.out, args.index, args.hrtf, args.convention, args.sounds)
    print(f"{result['file']}: {result['seconds']:.1f} s, from {result['method']}, {result['hrtf']}")
    return result


def _add_plot(commands) -> None:
    command = options.add_command(
        commands,
        "plot",
        plot,
        "Plot a room: floor plan, RIR, decay per octave band, energy by direction over time.",
        reads="nothing, or the scene of --scene: a folder of records, or a scene in JSON",
        writes="OUT: a PNG picture",
        examples=[
            "jaxasa plot room.png --room 6 5 3 --rt60 0.5 --listener 4 2 1.5 --source 1.5 3.5 1.2",
            "jaxasa plot scene.png --scene runs/demo/scenes/dev --index 3",
        ],
    )
    command.add_argument(
        "out", action=options.LocalPath, metavar="OUT", help="file to write, NAME.png"
    )
    command.add_argument(
        "--scene", action=options.LocalPath, help="DIR/scenes/SPLIT, or SceneSpec in JSON"
    )
    options.add_scene(command)
    command.add_argument(
        "--source_index",
        type=int,
        default=0,
        metavar="K",
        help="the source whose RIR is plotted (default: 0)",
    )
    point: dict = {"type": float, "nargs": 3, "metavar": ("X", "Y", "Z")}
    command.add_argument("--room", **point, help="metres (default: 6 5 3)")
    command.add_argument("--rt60", type=float, help="seconds (default: 0.5)")
    command.add_argument("--listener", **point, help="metres (default: 4 2 1.5)")
    command.add_argument("--yaw", type=float, help="of the listener, degrees (default: 0)")
    command.add_argument(
        "--source",
        **point,
        action="append",
        dest="sources",
        help="metres, repeatable (default: 1.5 3.5 1.2)",
    )


def plot(args: argparse.Namespace) -> Result:
    from jaxasa.data import specs
    from jaxasa.viz import plot_room

    names = {name: name for name in plot_room.DEFAULT_ROOM} | {"sources": "source"}
    room = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.scene is not None:
        if room:
            drop = ", ".join(f"--{names[name]}" for name in room)
            raise ConfigError(f"--scene already defines the room, expected no {drop} with it")
        view = plot_room.view_of_scene(specs.load_scene(args.scene, args.index, args.sounds))
    else:
        for name in ("index", "sounds"):
            if (value := getattr(args, name)) is not None:
                raise ConfigError(f"--{name} {value}: is for a scene, expected --scene with it")
        view = plot_room.view_of_shoebox(**plot_room.DEFAULT_ROOM | room)
    result = plot_room.plot_room(view, args.source_index, args.out)
    print(f"{args.out}: RT60 {result['rt60']:.2f} s, DRR {result['drr']:.1f} dB")
    return result
