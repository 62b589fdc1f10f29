# SPDX-License-Identifier: Apache-2.0
"""Reads a list of class names by number: one name a line, the first being number 0."""

import re
from pathlib import Path

from jaxasa.config import ConfigError
from jaxasa.core import text_files

_HEADERS = frozenset(("class", "classes", "class_name", "label", "labels", "name", "names"))
_NUMBERED = re.compile(r"(\d+)[\s:.)=-]+\S")


def read_class_names(path: str | Path) -> list[str]:
    """The names in a file; "-" stands for a class without a name.

    Quotes around a name, and empty lines at the end, do not count. Raises ConfigError as
    `text_files.read_text` does, and for what would shift the numbers or be taken as a name: a row
    of a table, a header, a comment, names with their numbers, an empty line, and no name at all.
    """
    expected = "a class name in each line"
    lines = [line.strip() for line in text_files.read_lines(path, expected)]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise ConfigError(f"{path}: is empty, expected {expected}")
    numbers = [match[1] for match in map(_NUMBERED.match, lines) if match]
    if len(lines) > 1 and [int(n) for n in numbers] in (
        list(range(len(lines))),
        list(range(1, len(lines) + 1)),
    ):
        raise ConfigError(f"{path}:1: {lines[0][:60]!r} has a number, expected {expected} alone")
    names = []
    for number, line in enumerate(lines, 1):
        is_quoted = len(line) > 2 and line[0] == line[-1] == '"' and line.count('"') == 2
        name = line[1:-1].strip() if is_quoted else line
        problem = ""
        if not name:
            problem = "is empty, and counts as a class (write - for one without a name)"
        elif "\t" in name or (not is_quoted and re.search(r"[,;]\S|[,;]$", name)):
            problem = "is a row of a table"
        elif number == 1 and name.lower() in _HEADERS:
            problem = "is a header"
        elif name.startswith("#"):
            problem = "is a comment"
        if problem:
            raise ConfigError(f"{path}:{number}: {name[:60]!r} {problem}, expected {expected}")
        names.append(name)
    return names
