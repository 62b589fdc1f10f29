# SPDX-License-Identifier: Apache-2.0
"""CSV files of sound events, as in DCASE task 3: a line for each event in each frame of 100 ms.

    frame, class, source, azimuth, elevation             older sets
    frame, class, source, azimuth, elevation, distance   references in cm, predictions in m
    frame, class, source, x, y, z, distance              predictions of the public baselines

Angles are in degrees: azimuth counter-clockwise, front 0, left +90; elevation up. A first line of
column names is skipped. References lie in folders of splits (`metadata_dev/**/x.csv`), predictions
in one folder, under the same file names.

>>> format_events(parse("10,0,0,30,0,150\\n", "x.csv", "cm"))
'10,0,0,30,0,150\\n'
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxasa.config import ConfigError

FRAME_S = 0.1
UNITS = {"m": 1.0, "cm": 100.0}  # per metre


class Event(NamedTuple):
    """One event in one frame. Azimuth and elevation in degrees, distance in metres or None."""

    frame: int
    label: int
    source: int
    azimuth: float
    elevation: float
    distance: float | None = None


def read(path: str | Path, unit: str = "m") -> list[Event]:
    """The events of a file, in its order. unit: of its distances, "m" or "cm".

    Raises ConfigError naming the file, and the line if one is not an event. A file may be empty.
    """
    try:
        content = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file, expected a csv file of events") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}), expected a csv file") from None
    return parse(content, str(path), unit)


def parse(content: str, name: str, unit: str = "m") -> list[Event]:
    """The events in the text of a file called `name`; see `read`."""
    events: list[Event] = []
    columns = None
    for n, line in enumerate(content.splitlines(), 1):
        cells = [cell.strip() for cell in line.split(",")]
        if not any(cells) or (n == 1 and cells[0].lower() == "frame"):
            continue
        columns = columns or len(cells)
        try:
            if len(cells) != columns:
                raise ValueError(f"{len(cells)} columns, expected {columns} as above")
            events.append(_event(cells, UNITS[unit]))
        except ValueError as error:
            raise ConfigError(f"{name}:{n}: {error}") from None
    return events


def _event(cells: Sequence[str], per_metre: float) -> Event:
    if len(cells) not in (5, 6, 7):
        raise ValueError(f"{len(cells)} columns, expected 5 to 7: frame, class, source, ...")
    frame, label = (_whole(c, name) for c, name in zip(cells, ("frame", "class"), strict=False))
    source = _whole(cells[2], "source", least=None)
    numbers = [_number(c) for c in cells[3:]]
    distance = numbers[-1] / per_metre if len(cells) > 5 else None
    if len(cells) == 7:
        x, y, z, _ = numbers
        if x == y == z == 0:
            raise ValueError("direction 0, 0, 0, expected a vector with a length")
        azimuth = math.atan2(y, x) * 180 / math.pi
        elevation = math.atan2(z, math.sqrt(x * x + y * y)) * 180 / math.pi
    else:
        azimuth, elevation = numbers[:2]
    if not abs(azimuth) <= 360:
        raise ValueError(f"azimuth {azimuth:g}, expected degrees from -360 to 360")
    if not abs(elevation) <= 90:
        raise ValueError(f"elevation {elevation:g}, expected degrees from -90 to 90")
    return Event(frame, label, source, azimuth, elevation, distance)


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
    if not math.isfinite(value):
        raise ValueError(f"{cell[:40]!r}, expected a finite number")
    return value


def format_events(events: Iterable[Event]) -> str:
    """The text of a file of references: whole degrees and centimetres, as DCASE publishes them."""
    lines = []
    for e in events:
        cells = [e.frame, e.label, e.source, round(e.azimuth), round(e.elevation)]
        cells += [] if e.distance is None else [round(e.distance * UNITS["cm"])]
        lines.append(",".join(map(str, cells)) + "\n")
    return "".join(lines)


def read_all(path: str | Path, unit: str = "m") -> dict[str, list[Event]]:
    """Events by file name, of one file or of all csv files below a folder.

    Raises ConfigError as `read` does, and if a file name occurs twice or there is no file.
    """
    root = Path(path)
    if not root.is_dir():
        return {root.name: read(root, unit)}
    paths: dict[str, Path] = {}
    for file in sorted(root.rglob("*.csv")):
        if file.name in paths:
            raise ConfigError(f"{file}: same name as {paths[file.name]}, expected different names")
        paths[file.name] = file
    if not paths:
        raise ConfigError(f"{root}: no csv file below it, expected files of events")
    return {name: read(file, unit) for name, file in paths.items()}


def read_pairs(
    references: str | Path, predictions: str | Path, units: tuple[str, str], official: bool = False
) -> tuple[dict[str, list[Event]], dict[str, list[Event]]]:
    """Events of references and predictions by file name; two single files need not share a name.

    units: of the distances of each. Raises ConfigError as `read_all` does, and naming a file that
    has no references, or no predictions (unless `official`: the public code leaves it out).
    """
    true, predicted = (
        read_all(path, unit) for path, unit in zip((references, predictions), units, strict=True)
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
    return true, predicted
