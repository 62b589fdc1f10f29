# SPDX-License-Identifier: Apache-2.0
"""CSV files of sound events, as in DCASE task 3: a line for each event in each frame of 100 ms.

    frame, class, source, azimuth, elevation             older sets
    frame, class, source, azimuth, elevation, distance   references in cm, predictions in m
    frame, class, source, x, y, z                        predictions of the 2022 baseline
    frame, class, source, x, y, z, distance              predictions of later baselines

Angles are in degrees: azimuth counter-clockwise, front 0, left +90; elevation up. A first line of
column names must name these columns, in this order. A distance that is empty or nan is unknown.
References lie in folders of splits (`metadata_dev/**/x.csv`), predictions in one folder, under the
same file names.

>>> format_events(parse("10,0,0,30,0,150\\n", "x.csv", "cm"))
'10,0,0,30,0,150\\n'
"""

import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxasa.config import ConfigError
from jaxasa.core import text_files
from jaxasa.core.walk import list_files

FRAME_S = 0.1
UNITS = {"m": 1.0, "cm": 100.0}  # per metre
MAX_FRAMES = 864_000  # a day
# Distances of which the median is below are metres, or too few to tell; nobody records a whole set
# within 20 cm or beyond 20 m.
METRES_BELOW = 20.0

_POLAR = ("frame", "class", "source", "azimuth", "elevation", "distance")
_VECTORS = ("frame", "class", "source", "x", "y", "z", "distance")
_COLUMN_NAMES = {
    "frame": re.compile(r"frame"),
    "class": re.compile(r"class|label|event"),
    "source": re.compile(r"source|track"),
    "azimuth": re.compile(r"azi|phi"),
    "elevation": re.compile(r"ele|theta"),
    "distance": re.compile(r"dist"),
    **{axis: re.compile(rf"(?:doa_?)?{axis}$") for axis in "xyz"},
}
_UNKNOWN = frozenset(("", "nan", "none", "null", "unknown"))
_MAX_LENGTH = 1.5  # of the vectors that a network predicts


class Event(NamedTuple):
    """One event in one frame. Azimuth and elevation in degrees, distance in metres or None."""

    frame: int
    label: int
    source: int
    azimuth: float
    elevation: float
    distance: float | None = None


class Row(NamedTuple):
    """The cells of a line, of which only the direction's meaning is open.

    numbers: the cells after the source; the last is nan if unknown. has_point: whether any of
    them is written with a decimal point.
    """

    line: int
    frame: int
    label: int
    source: int
    numbers: tuple[float, ...]
    has_point: bool


def read(path: str | Path, unit: str = "m") -> list[Event]:
    """The events of a file, in its order. unit: of its distances, "m" or "cm".

    Raises ConfigError naming the file, and the line if one is not an event. A file may be empty.
    """
    return parse(text_files.read_text(path, "a csv file of events"), str(path), unit)


def parse(content: str, name: str, unit: str = "m") -> list[Event]:
    """The events in the text of a file called `name`; see `read`."""
    rows = parse_rows(content, name)
    return events_of_rows(rows, name, unit, are_vectors({name: rows}))


def parse_rows(content: str, name: str) -> list[Row]:
    """The rows in the text of a file; raises ConfigError if a line is none, see `read`."""
    rows: list[Row] = []
    columns, is_first = None, True
    for n, line in enumerate(text_files.split_lines(content), 1):
        cells = tuple(cell.strip().strip('"').strip() for cell in line.split(","))
        if not any(cells):
            continue
        try:
            if is_first and _is_header(cells):
                continue
            columns = columns or len(cells)
            if len(cells) != columns:
                raise ValueError(f"{len(cells)} columns, expected {columns} as above")
            rows.append(_row(n, cells))
        except ValueError as error:
            raise ConfigError(f"{name}:{n}: {error}") from None
        finally:
            is_first = False
    return rows


def _is_header(cells: Sequence[str]) -> bool:
    """Whether a line names the columns. Raises ValueError if it names others, or another order."""
    names = [cell.lower().strip("#[]() ") for cell in cells]
    if not names[0].startswith("frame"):
        return False
    for columns in (_POLAR, _VECTORS):
        matches = (_COLUMN_NAMES[c].search(n) for c, n in zip(columns, names, strict=False))
        if 5 <= len(names) <= len(columns) and all(matches):
            return True
    raise ValueError(f"columns {', '.join(names)[:80]}, expected {', '.join(_POLAR)}")


def _row(line: int, cells: tuple[str, ...]) -> Row:
    if len(cells) not in (5, 6, 7):
        other = next((f" (separated by {s!r})" for s in (";", "\t") if s in cells[0]), "")
        raise ValueError(f"{len(cells)} columns{other}, expected 5 to 7: frame, class, source, ...")
    frame, label = (_whole(c, name) for c, name in zip(cells, ("frame", "class"), strict=False))
    if frame >= MAX_FRAMES:
        raise ValueError(f"frame {frame}, expected less than {MAX_FRAMES} (a day of 100 ms)")
    source = _whole(cells[2], "source", least=None)
    numbers = [_number(c) for c in cells[3:5]]
    for place, cell in enumerate(cells[5:], 5):
        is_distance = place == len(cells) - 1
        numbers.append(math.nan if is_distance and cell.lower() in _UNKNOWN else _number(cell))
    return Row(line, frame, label, source, tuple(numbers), any("." in c for c in cells[3:]))


def are_vectors(files: Mapping[str, Sequence[Row]]) -> bool:
    """Whether the six columns of a set of files end with x, y, z instead of polar coordinates.

    They do if all numbers are as small as those of vectors, and written with a decimal point, and
    either cannot be polar (a distance is not positive), or are no whole degrees and all have the
    length one. Raises ConfigError if both are possible.
    """
    rows = [(name, row) for name, rows in files.items() for row in rows if len(row.numbers) == 3]
    vectors = [row.numbers for _, row in rows]
    if not rows or any(not abs(v) <= _MAX_LENGTH for xyz in vectors for v in xyz):
        return False
    if not any(row.has_point for _, row in rows):
        return False
    if any(xyz[2] <= 0 for xyz in vectors):
        return True
    if all(x.is_integer() and y.is_integer() for x, y, _ in vectors):  # whole degrees
        return False
    if all(abs(math.hypot(*xyz) - 1) < 0.01 for xyz in vectors):
        return True
    name, row = rows[0]
    shown = ", ".join(f"{v:g}" for v in row.numbers)
    raise ConfigError(
        f"{name}:{row.line}: {shown} may be x, y, z or azimuth, elevation, distance, as in all "
        "other lines; expected degrees, or seven columns with x, y, z, distance"
    )


def events_of_rows(rows: Sequence[Row], name: str, unit: str, vectors: bool) -> list[Event]:
    """The events of rows. unit: of distances. vectors: whether six columns end with x, y, z.

    Raises ConfigError naming the file and the line if a direction is none.
    """
    events = []
    for row in rows:
        try:
            events.append(_event(row, UNITS[unit], vectors))
        except ValueError as error:
            raise ConfigError(f"{name}:{row.line}: {error}") from None
    return events


def _event(row: Row, per_metre: float, vectors: bool) -> Event:
    count = len(row.numbers)
    is_vector = count == 4 or (count == 3 and vectors)
    distance = row.numbers[-1] if count > 2 and not (count == 3 and vectors) else math.nan
    if is_vector:
        x, y, z = row.numbers[:3]
        if x == y == z == 0:
            raise ValueError("direction 0, 0, 0, expected a vector with a length")
        azimuth = math.atan2(y, x) * 180 / math.pi
        elevation = math.atan2(z, math.sqrt(x * x + y * y)) * 180 / math.pi
    else:
        azimuth, elevation = row.numbers[:2]
    if not abs(azimuth) <= 360:
        raise ValueError(f"azimuth {azimuth:g}, expected degrees from -360 to 360")
    if not abs(elevation) <= 90:
        raise ValueError(f"elevation {elevation:g}, expected degrees from -90 to 90")
    metres = None if math.isnan(distance) else distance / per_metre
    return Event(row.frame, row.label, row.source, azimuth, elevation, metres)


def _whole(cell: str, name: str, least: int | None = 0) -> int:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not value.is_integer() or abs(value) >= 1e9:
        raise ValueError(f"{name} {cell[:40]!r}, expected a whole number")
    if least is not None and value < least:
        raise ValueError(f"{name} {value:g}, expected at least {least}")
    return int(value)


def _number(cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not abs(value) < 1e100:
        raise ValueError(f"{cell[:40]!r}, expected a finite number")
    return value


def distance_unit(files: Mapping[str, Sequence[Row]]) -> tuple[str, str]:
    """(unit of the distances of reference files, a note or "" if it is the usual cm).

    DCASE publishes centimetres; generators of scenes write metres with decimals. Raises
    ConfigError if whole numbers are too small to tell, and if files disagree.
    """
    by_unit: dict[str, str] = {}
    unclear = None
    for name, rows in files.items():
        distances = [row.numbers[-1] for row in rows if len(row.numbers) > 2]
        known = [d for d in distances if d > 0]  # false for nan
        if not known:
            continue
        if statistics.median(known) >= METRES_BELOW:
            by_unit.setdefault("cm", name)
        elif any(d % 1 for d in known):
            by_unit.setdefault("m", name)
        else:
            unclear = unclear or (name, statistics.median(known))
    if len(by_unit) == 2:
        raise ConfigError(
            f"{by_unit['m']} has distances as in m, {by_unit['cm']} as in cm, "
            "expected one unit (--unit, or convert the files separately)"
        )
    if "m" in by_unit:
        return "m", f"distances have decimals and are small, so they count as m ({by_unit['m']})"
    if unclear and not by_unit:
        raise ConfigError(
            f"{unclear[0]}: distances of {unclear[1]:g} may be m or cm, expected --unit m or cm"
        )
    return "cm", ""


def read_references(
    paths: Mapping[str, Path],
    unit: str | None,
    refuse: Callable[[str, ConfigError], None],
    note: Callable[[str], None],
) -> dict[str, list[Event]]:
    """The events of the metadata files of a data set by the names of its recordings, by frame.

    unit: of the distances; None: as `distance_unit` tells. refuse: called with the name of a file
    that cannot be used, which is left out. note: called with what was assumed. Raises ConfigError
    if the unit or the columns could be two.
    """
    rows: dict[str, list[Row]] = {}
    for name, path in paths.items():
        try:
            content = text_files.read_text(path, "a csv file of events")
            rows[name] = parse_rows(content, str(path))
        except ConfigError as error:
            refuse(name, error)
    vectors = are_vectors(rows)
    if vectors:
        note("columns 4 to 6 are read as x, y, z")
    elif unit is None:
        unit, assumed = distance_unit(rows)
        if assumed:
            note(assumed)
    events: dict[str, list[Event]] = {}
    for name, path in paths.items():
        try:
            file_events = events_of_rows(rows.get(name, ()), str(path), unit or "cm", vectors)
        except ConfigError as error:
            refuse(name, error)
            continue
        if name in rows:
            events[name] = sorted(file_events, key=lambda e: e[:5])
    return events


def format_events(events: Iterable[Event]) -> str:
    """The text of a file of references: whole degrees and centimetres, as DCASE publishes them."""
    lines = []
    for e in events:
        cells = [e.frame, e.label, e.source, round(e.azimuth), round(e.elevation)]
        cells += [] if e.distance is None else [round(e.distance * UNITS["cm"])]
        lines.append(",".join(map(str, cells)) + "\n")
    return "".join(lines)


def read_all(
    path: str | Path, unit: str = "m", note: Callable[[str], None] = lambda text: None
) -> dict[str, list[Event]]:
    """Events by file name, of one file or of all csv files below a folder.

    note: called with what was assumed about the files. Raises ConfigError as `read` does, and if a
    file name occurs twice or there is no file.
    """
    root = Path(path)
    paths: dict[str, Path] = {}
    files = [f for f in list_files(root) if f.suffix == ".csv"] if root.is_dir() else [root]
    for file in files:
        if file.name in paths:
            raise ConfigError(f"{file}: same name as {paths[file.name]}, expected different names")
        paths[file.name] = file
    if not paths:
        raise ConfigError(f"{root}: no csv file below it, expected files of events")
    rows = {
        str(file): parse_rows(text_files.read_text(file, "a csv file of events"), str(file))
        for file in paths.values()
    }
    vectors = are_vectors(rows)
    if vectors:
        note(f"{root}: columns 4 to 6 are read as x, y, z (the output of the 2022 baseline)")
    return {
        name: events_of_rows(rows[str(file)], str(file), unit, vectors)
        for name, file in paths.items()
    }


def read_pairs(
    references: str | Path,
    predictions: str | Path,
    units: tuple[str, str],
    official: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> tuple[dict[str, list[Event]], dict[str, list[Event]]]:
    """Events of references and predictions by file name; two single files need not share a name.

    units: of the distances of each. note: called with what was assumed, and if the units seem to
    differ. Raises ConfigError as `read_all` does, and naming a file that has no references, or no
    predictions (unless `official`: the public code leaves it out).
    """
    true, predicted = (
        read_all(path, unit, note)
        for path, unit in zip((references, predictions), units, strict=True)
    )
    if not Path(references).is_dir() and not Path(predictions).is_dir():
        predicted = dict(zip(true, predicted.values(), strict=True))
    for name in sorted(predicted.keys() - true.keys()):
        raise ConfigError(f"{predictions}: {name} has no references of that name in {references}")
    missing = sorted(true.keys() - predicted.keys())
    if missing and not official:
        raise ConfigError(
            f"{predictions}: {len(missing)} of {len(true)} files are missing, the first "
            f"{missing[0]}; expected a file, which may be empty, for each file of references"
        )
    ratio = _median_distance(predicted) / _median_distance(true)
    if ratio <= 1 / 30 or ratio >= 30:  # false for nan
        note(
            f"{predictions}: the median distance is {ratio:.3g} times that of the references; are "
            f"predictions in {units[1]} (--prediction_unit), references in {units[0]} "
            "(--reference_unit)?"
        )
    return true, predicted


def _median_distance(files: Mapping[str, Sequence[Event]]) -> float:
    """The median of the positive distances; nan if there is none."""
    distances = [e.distance for events in files.values() for e in events if e.distance]
    positive = [d for d in distances if d > 0]
    return statistics.median(positive) if positive else math.nan
