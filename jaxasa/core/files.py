"""Files and folders that appear whole or not at all, and locks on a folder."""

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxasa.config import ConfigError


@contextlib.contextmanager
def locked(folder: Path, shared: bool = False, wait: bool = False) -> Iterator[bool]:
    """Holds a folder's lock, alone or with others that share it; yields whether it was free.

    wait: until it is free. The system frees it when the process ends, however that ends.
    """
    with open(folder / ".lock", "w", encoding="utf-8") as file:
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        yield free


@contextlib.contextmanager
def alone(folder: Path, shared: bool = False) -> Iterator[None]:
    """Around work in a folder: two commands would write the same files at once.

    shared: others may be at work there that share it, too.
    Raises ConfigError where another command holds it.
    """
    with locked(folder, shared) as free:
        if not free:
            raise ConfigError(f"{folder}: another jaxasa command is at work in it")
        yield


def write_text(path: Path, text: str) -> None:
    """Writes through a temporary name, so that a file is whole or not there."""
    # Unique among the hosts of one run too: each of them may write the same file at once.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


@contextlib.contextmanager
def replacing(out: str | Path, ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Gives a folder to fill, which becomes `out` at the end; an error leaves `out` as it was.

    A folder at `out` that is not empty is replaced only if `ours(out)`; otherwise, and where
    `out` is a file, ConfigError.
    """
    out = Path(out)
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or ours(out))):
        raise ConfigError(f"{out}: holds something else than an export, expected a new folder")
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    before = out.with_name(f".{out.name}.{os.getpid()}.before")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        yield draft
        if out.exists():
            os.replace(out, before)
        try:
            os.replace(draft, out)
        except OSError:
            if before.exists():
                os.replace(before, out)
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)
