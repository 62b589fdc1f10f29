# SPDX-License-Identifier: Apache-2.0
"""Parts that commands share: how one is declared, common options, and loading of its config."""

import argparse
import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jaxasa.config import SUITES, ConfigError, Run, check_local_path, gin_files
from jaxasa.core import workdir
from jaxasa.core.workdir import WorkFolder

DEFAULT_GIN = "gin/run/demo.gin"

Result = dict | list  # of a command; --json writes it


class RegistryNames:
    """The names in a registry as argparse choices, imported only if they are asked for.

    `--help` of other commands need not wait for the import, and no name is listed twice.
    """

    def __init__(self, module: str, registry: str):
        self._module, self._registry = module, registry

    def __iter__(self) -> Iterator:
        return iter(getattr(importlib.import_module(self._module), self._registry))

    def __contains__(self, name) -> bool:
        return name in tuple(self)


class LocalPath(argparse.Action):
    """Stores an option or argument as a Path; raises ConfigError, one line, for a URL."""

    def __call__(self, parser, namespace, values, option_string=None):
        name = self.option_strings[0] if self.option_strings else self.metavar or self.dest
        check_local_path(name, values)
        setattr(namespace, self.dest, Path(values))


def add_command(
    commands,
    name: str,
    run: Callable[[argparse.Namespace], Result],
    summary: str,
    reads: str,
    writes: str,
    examples: Sequence[str],
) -> argparse.ArgumentParser:
    """Adds a command to the subparsers `commands`; returns its parser, for its options.

    run: called with the parsed arguments. reads, writes: complete the sentences "Reads ..." and
    "Writes ..." of its help.
    """
    command = commands.add_parser(
        name,
        help=summary,
        description=f"{summary}\n\nReads {reads}.\nWrites {writes}.",
        epilog="\n".join(
            ["example:" if len(examples) == 1 else "examples:", *map("  {}".format, examples)]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run, command=command.prog.removeprefix("jaxasa "))
    command.add_argument(
        "--json", action=LocalPath, metavar="FILE", help="write the result as JSON too"
    )
    return command


def add_workdir(command: argparse.ArgumentParser, required: bool = True) -> None:
    command.add_argument(
        "--workdir", action=LocalPath, required=required, metavar="DIR", help="the run's folder"
    )


def add_gin(command: argparse.ArgumentParser) -> None:
    """Adds `--gin_file F` (repeatable); `--gin.NAME=VALUE` is taken out by `split_gin`."""
    group = command.add_argument_group(
        "configuration",
        "--gin.NAME=VALUE sets one option, over every file: --gin.Decoder.width=64; "
        "strings in quotes: \"--gin.Run.name='mine'\"",
    )
    group.add_argument(
        "--gin_file",
        action="append",
        default=[],
        metavar="F",
        help="gin file, in this folder or in jaxasa's gin folder; repeatable; default: the config "
        "that DIR was begun with, or else run/demo.gin (bench ablate: run/ablate.gin)",
    )


def add_suite(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--split",
        choices=SUITES,
        default="benchmark",
        help="dev: the suite for tuning, made of other recordings (default: benchmark)",
    )


def add_convention(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--convention",
        choices=RegistryNames("jaxasa.acoustics.foa", "CONVENTIONS"),
        metavar="NAME",
        help="channels of FOA files: ambix (W Y Z X in SN3D, the default), n3d (W Y Z X in N3D) "
        "or fuma (W X Y Z, the default for files whose header states B-format)",
    )


def add_hrtf(command: argparse.ArgumentParser) -> None:
    command.add_argument("--hrtf", help="sphere (default), or a SOFA file")


def add_scene(command: argparse.ArgumentParser) -> None:
    command.add_argument("--index", type=int, metavar="I", help="scene of the folder (default: 0)")
    command.add_argument(
        "--sounds",
        action=LocalPath,
        metavar="DIR",
        help="its sound bank (default: that of its run)",
    )


def split_gin(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(arguments that are not `--gin.NAME=VALUE`, the bindings "NAME=VALUE")."""
    rest, bindings = [], []
    for argument in argv:
        if argument.startswith("--gin."):
            if "=" not in argument:
                raise ConfigError(f"{argument}: expected --gin.NAME=VALUE, with no spaces")
            bindings.append(argument.removeprefix("--gin."))
        else:
            rest.append(argument)
    return rest, bindings


def load_config(args: argparse.Namespace, default: str = DEFAULT_GIN) -> tuple[Run, str]:
    """The run of a command and its resolved gin text.

    Without --gin_file it is the run that the work folder was begun with, or else that of the
    file `default`.
    """
    from jaxasa.bench import controls

    files = args.gin_file
    if not files:
        own = WorkFolder(args.workdir).config if getattr(args, "workdir", None) else None
        files = [str(own) if own and own.is_file() else default]
    run, text = gin_files.load(files, args.bindings)
    controls.select(run.bench.controls)  # config does not know their names
    return run, text


def open_workdir(args: argparse.Namespace) -> tuple[Run, str, WorkFolder]:
    """The run, its resolved gin text, and the work folder, which is made if it is not there."""
    run, text = load_config(args)
    return run, text, workdir.claim(args.workdir, run, text)
