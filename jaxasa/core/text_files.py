# SPDX-License-Identifier: Apache-2.0
"""Text files that people or other programs wrote: UTF-8 text, lines, CSV and JSON.

A byte order mark is dropped. Lines end with \\n or \\r\\n and nowhere else: U+2028, U+0085 and
other separators are ordinary characters, which JSON need not escape. Whatever cannot be read is a
ConfigError of one line that names the file, the line and what is there.

>>> split_lines("woman\\r\\nman\\u2028\\n")
['woman', 'man\\u2028']
"""

import codecs
import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxasa.config import ConfigError

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_MAX_SHOWN = 60  # characters of a line in a message


def read_text(path: str | Path, expected: str = "a text file") -> str:
    """The text of a file in UTF-8, without a byte order mark.

    Raises ConfigError if there is no such file, and for other encodings, zero bytes (UTF-16, or no
    text at all) and lines that end with \\r alone.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file, expected {expected}") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        problem = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read ({problem}), expected {expected}") from None
    return decode(content, str(path), expected)


def decode(content: bytes, name: str, expected: str = "a text file") -> str:
    """The text in the bytes of a file called `name`; see `read_text`."""
    if content.startswith(_UTF16):
        raise ConfigError(f"{name}:1: is UTF-16, expected {expected} in UTF-8")
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        text = content.decode("utf-8")
        bad = content.find(b"\0")
    except UnicodeDecodeError as error:
        text, bad = "", error.start
    if bad >= 0:
        line = content[content.rfind(b"\n", 0, bad) + 1 :].split(b"\n", 1)[0].strip()
        line = line[max(0, line.find(content[bad : bad + 1]) - 20) :]
        number = content.count(b"\n", 0, bad) + 1
        problem = "is not text" if content[bad] == 0 else "is not UTF-8"
        raise ConfigError(
            f"{name}:{number}: {line[:_MAX_SHOWN]!r} {problem}, expected {expected} in UTF-8"
        )
    if "\r" in text and "\n" not in text and text.rstrip("\r").count("\r"):
        raise ConfigError(
            f"{name}: its lines end with \\r alone, expected {expected} with \\n or \\r\\n"
        )
    return text


def split_lines(text: str) -> list[str]:
    """The lines of a text, without their ends (\\n or \\r\\n)."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines if lines[-1] else lines[:-1]


def read_lines(path: str | Path, expected: str = "a text file") -> list[str]:
    """The lines of a file, without their ends; raises ConfigError as `read_text` does."""
    return split_lines(read_text(path, expected))


def read_csv(
    path: str | Path, columns: Sequence[str], expected: str = ""
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields (line number, {column: cell}) for each row of a CSV file with a header.

    columns: that the header must have. expected: how a message describes them. Blanks around
    cells, and empty lines, do not count. Raises ConfigError as `read_text` does, and for a column
    that is missing or there twice, a row with more or fewer cells than the header, and a quote
    that is not closed.
    """
    expected = expected or f"the columns {', '.join(columns)}"
    text = read_text(path, f"a CSV file with {expected}")
    names: list[str] | None = None
    for number, row in _csv_rows(text, str(path)):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if names is None:
            names = cells
            missing = [c for c in columns if names.count(c) != 1]
            if missing:
                only = cells[0] if len(cells) == 1 else ""
                other = next((f" (separated by {s!r})" for s in (";", "\t") if s in only), "")
                shown = ",".join(cells)[:_MAX_SHOWN]
                raise ConfigError(f"{path}:{number}: {shown!r}{other}, expected {expected}, once")
            continue
        if len(cells) != len(names):
            raise ConfigError(
                f"{path}:{number}: {','.join(cells)[:_MAX_SHOWN]!r} has {len(cells)} cells, "
                f"expected {len(names)} as in the header"
            )
        yield number, dict(zip(names, cells, strict=True))
    if names is None:
        raise ConfigError(f"{path}: is empty, expected {expected}")


def _csv_rows(text: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (number of the first line, cells) for each row."""
    # No universal line ends: a cell may hold U+2028, and strict reports a lone \r.
    reader = csv.reader((line + "\n" for line in split_lines(text)), strict=True)
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            is_open = "end of data" in str(error) or "field limit" in str(error)
            reason = str(error).partition(" - ")[0]
            problem = "a quote is not closed" if is_open else f"is malformed ({reason})"
            raise ConfigError(f"{name}:{number}: {problem}, expected a row of cells") from None
        yield number, row


def read_json(path: str | Path, expected: str = "a JSON object") -> dict:
    """The object in a JSON file; raises ConfigError as `read_text` does, and for other content."""
    try:
        value = json.loads(read_text(path, expected))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        value = None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: is not a JSON object, expected {expected}")
    return value


def read_json_lines(
    path: str | Path, expected: str = "one JSON object a line"
) -> Iterator[tuple[int, str, dict | None]]:
    """Yields (line number, line, object) of a JSONL file; None if a line is not a JSON object.

    Empty lines are passed over. Raises ConfigError as `read_text` does, and if the file is one
    JSON document instead: a list, an object with a list of objects, or one with line breaks.
    """
    text = read_text(path, expected)
    rows = [(n, line) for n, line in enumerate(split_lines(text), 1) if line.strip()]
    first = _load_json(rows[0][1]) if rows else {}
    if not isinstance(first, dict) or len(rows) == 1:
        document = _load_json(text) if not isinstance(first, dict) else first
        kind = _kind_of_document(document, len(rows))
        if kind:
            raise ConfigError(f"{path}: is one JSON document ({kind}), expected {expected}")
    for number, line in rows:
        value = _load_json(line)
        yield number, line, value if isinstance(value, dict) else None


def _kind_of_document(document: Any, lines: int) -> str:
    """What a JSON document is if it is no row of a JSONL file, else ""."""
    if isinstance(document, list) and all(isinstance(value, dict) for value in document):
        return f"a list of {len(document)}"
    if not isinstance(document, dict):
        return ""
    lists = [k for k, v in document.items() if isinstance(v, list) and v]
    if len(document) == 1 and lists and all(isinstance(v, dict) for v in document[lists[0]]):
        return f"a list of {len(document[lists[0]])} in {lists[0][:20]!r}"
    return f"an object on {lines} lines" if lines > 1 else ""


def _load_json(text: str) -> Any:
    """The value of a JSON text; None if it is not JSON, and for NaN and infinity, which are not."""
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
