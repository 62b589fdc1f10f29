# SPDX-License-Identifier: Apache-2.0
"""The files below a folder, also those behind symbolic links, and names that are valid text."""

import os
from collections.abc import Iterator
from pathlib import Path


def list_files(root: Path) -> list[Path]:
    """All files below `root`, sorted, also those in linked folders; [] if there is no such folder.

    A folder that is linked from within itself is listed once on each way down, so that links in a
    circle end.
    """
    return sorted(path for path in _walk(root, frozenset()) if path.is_file())


def _walk(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above or not folder.is_dir():
        return
    try:
        names = os.listdir(folder)
    except PermissionError:
        return
    for name in names:
        path = folder / name
        if path.is_dir():
            yield from _walk(path, above | {real})
        else:
            yield path


def text_of_name(name: str) -> str:
    """A file name as valid text: bytes that are not UTF-8 become backslash escapes.

    >>> text_of_name("dog/caf\\udce9.wav")
    'dog/caf\\\\xe9.wav'
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")
