# SPDX-License-Identifier: Apache-2.0
"""The entry point: parses a command, runs it, and turns errors into exit codes.

    0    done
    2    wrong input or config; one line says what to change
    3    negative result: a plan does not fit, a variant of an ablation failed
    75   stopped and saved, but unfinished: start the same command again
    130  interrupted
    1    a bug, with its traceback

Commands import heavy libraries when they run, so that --help answers at once.
"""

import argparse
import errno
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from jaxasa.cli import bench, data, options, train, use
from jaxasa.config import ConfigError
from jaxasa.core import cpu, files, provenance

BAD_INPUT, NEGATIVE, UNFINISHED, INTERRUPTED = 2, 3, 75, 130
# A full disk or a folder without permission is no bug.
_USER_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; arguments it parses have `command` and `run`."""
    parser = argparse.ArgumentParser(
        prog="jaxasa",
        description="Spatial audio scenes: simulate, train, benchmark, ask, export.",
        epilog="Begin with: jaxasa demo --workdir runs/demo",
    )
    made_by = provenance.made_by()
    version = f"jaxasa {made_by['version']} (commit {made_by['commit'][:12]})"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for group in (train, use, bench, data):
        group.add_commands(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code. A bug raises."""
    code = 1
    try:
        code = _main(sys.argv[1:] if argv is None else argv)
        return code
    finally:
        # Looked up, not imported: importing jax would make every --help wait.
        distributed = sys.modules.get("jaxasa.parallel.distributed")
        if distributed is not None:
            distributed.abort_on_error(code)


def _main(argv: Sequence[str]) -> int:
    before = signal.signal(signal.SIGTERM, _stop)
    cpu.tune()
    try:
        return _run(argv)
    except ConfigError as error:
        return _fail(" ".join(str(error).split()), BAD_INPUT)
    except OSError as error:
        if error.errno not in _USER_ERRORS:
            raise
        return _fail(f"{error.filename or 'writing'}: {error.strerror}", BAD_INPUT)
    except KeyboardInterrupt:
        return _fail("interrupted; run the same command again to resume", INTERRUPTED)
    except Exception as error:
        # Looked up, not imported: importing the loop would import jax for every --help.
        loop = sys.modules.get("jaxasa.train.loop")
        if loop is None or not isinstance(error, loop.Preempted):
            raise
        return _fail(str(error), UNFINISHED)
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(argv: Sequence[str]) -> int:
    rest, bindings = options.split_gin(argv)
    args = build_parser().parse_args(rest)
    args.bindings = bindings
    if bindings and not hasattr(args, "gin_file"):
        raise ConfigError(f"--gin.{bindings[0]}: `jaxasa {args.command}` reads no gin file")
    if args.json is not None and not args.json.parent.is_dir():
        raise ConfigError(f"--json {args.json}: {args.json.parent} is no folder")
    result = args.run(args)
    if args.json is not None:
        files.atomic_write_json(args.json, result)
    is_negative = isinstance(result, dict) and (
        result.get("fits") is False or bool(result.get("failed"))
    )
    return NEGATIVE if is_negative else 0


def _fail(line: str, code: int) -> int:
    print(f"jaxasa: {line}", file=sys.stderr)
    return code


def _stop(number: int, frame: FrameType | None) -> None:
    """SIGTERM outside the training loop (which saves first): every step can be resumed."""
    print("jaxasa: stopped; run the same command again to resume", file=sys.stderr)
    raise SystemExit(UNFINISHED)
