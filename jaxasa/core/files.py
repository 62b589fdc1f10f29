# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear whole or not at all, and locks on a folder."""

import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from jaxasa.config import ConfigError

# Cloud Storage FUSE without a hierarchical namespace, and some network file systems.
_NO_RENAME = (errno.ENOSYS, errno.ENOTSUP, errno.EPERM)


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; the file or folder written there becomes `path`.

    An error leaves `path` as it was. A folder at `path` is replaced by a new folder. Raises
    ConfigError if the file system cannot rename folders.
    """
    path = Path(path)
    # Unique among hosts too: those of one run may write the same file at once.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        if not temporary.is_dir():
            os.replace(temporary, path)
            return
        with folder_rename_errors(path):
            if path.is_dir():
                _replace_folder(path, temporary)
            else:
                os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_rename_errors(path: Path) -> Iterator[None]:
    """Raises ConfigError, naming `path`, if a folder's rename in the block is not supported."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_RENAME:
            raise
        raise ConfigError(
            f"{path}: its file system cannot rename folders ({os.strerror(error.errno)}), expected "
            "a local disk or NFS, or a Cloud Storage bucket with hierarchical namespace or mounted "
            "with rename-dir-limit"
        ) from error


def _replace_folder(path: Path, new: Path) -> None:
    """Renames folder `new` to `path`, whose contents are deleted; if that fails, they stay."""
    old = new.with_suffix(".old")
    os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Writes a file through `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def atomic_write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file through `atomic_path`."""
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: Path, value: Mapping | Sequence) -> None:
    """Writes a JSON file, indented, through `atomic_path`."""
    atomic_write_text(path, json.dumps(value, indent=1) + "\n")


@contextlib.contextmanager
def atomic_folder(path: str | Path, is_replaceable: Callable[[Path], bool]) -> Iterator[Path]:
    """Gives a new, empty folder to fill, which becomes `path` at the end (`atomic_path`).

    Raises ConfigError if `path` is a file, or a folder that is neither empty nor
    `is_replaceable(path)`.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or is_replaceable(path))):
        raise ConfigError(f"{path}: holds something else than an export, expected a new folder")
    with atomic_path(path) as temporary:
        temporary.mkdir(parents=True)
        yield temporary


@contextlib.contextmanager
def try_lock(folder: Path, shared: bool = False, wait: bool = False) -> Iterator[bool]:
    """Holds the lock file of a folder; yields False, without it, if another process holds it.

    shared: together with others that share it. wait: blocks until the lock is free. The system
    releases it when the process ends, however that happens. POSIX only.
    """
    import fcntl  # not on Windows, where `--help` should work nevertheless

    with open(folder / ".lock", "w", encoding="utf-8") as file:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
            is_locked = True
        except BlockingIOError:
            is_locked = False
        yield is_locked


@contextlib.contextmanager
def lock(folder: Path, shared: bool = False) -> Iterator[None]:
    """Holds the lock of a folder (`try_lock`), since two commands would write the same files.

    Raises ConfigError if another command holds it.
    """
    with try_lock(folder, shared) as is_locked:
        if not is_locked:
            raise ConfigError(f"{folder}: another jaxasa command is at work in it")
        yield
