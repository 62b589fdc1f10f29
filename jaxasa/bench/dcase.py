"""DCASE's csv files of sound events: a line for each frame of 100 ms and each event in it.

    frame, class, source, azimuth, elevation             degrees
    frame, class, source, azimuth, elevation, distance   references in cm, predictions in m
    frame, class, source, x, y, z, distance              what the public baselines write

There is no header. References lie in folders of splits (`metadata_dev/**/x.csv`), predictions
in one folder, with the same file names.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxasa.config import ConfigError

UNITS = {"m": 1.0, "cm": 0.01}


class Event(NamedTuple):
    """One event in one frame. Azimuth and elevation in degrees, distance in metres or None."""

    frame: int
    label: int
    source: int
    azimuth: float
    elevation: float
    distance: float | None = None


def read(path: str | Path, unit: str = "m") -> list[Event]:
    """The events of one file, in its order; `unit` of its distances is "m" or "cm".

    Raises ConfigError naming file and line for what is no event. A file may be empty.
    """
    events: list[Event] = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file, expected a csv file of events") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: no text, expected a csv file of events") from None
    columns = None
    for n, line in enumerate(lines, 1):
        if not line.strip():
            continue
        cells = line.split(",")
        columns = columns or len(cells)
        try:
            if len(cells) != columns:
                raise ValueError(f"{len(cells)} columns, expected {columns} as above")
            events.append(_event(cells, UNITS[unit]))
        except ValueError as error:
            raise ConfigError(f"{path}:{n}: {error}") from None
    return events


def _event(cells: Sequence[str], metre: float) -> Event:
    if len(cells) not in (5, 6, 7):
        raise ValueError(f"{len(cells)} columns, expected 5 to 7: frame, class, source, ...")
    frame, label = (_whole(c, name) for c, name in zip(cells, ("frame", "class"), strict=False))
    source = _whole(cells[2], "source", least=None)
    numbers = [_number(c) for c in cells[3:]]
    distance = numbers[-1] * metre if len(cells) > 5 else None
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
        value = int(cell)
    except ValueError:
        raise ValueError(f"{name} {cell.strip()[:40]!r}, expected a whole number") from None
    if least is not None and value < least:
        raise ValueError(f"{name} {value}, expected at least {least}")
    return value


def _number(cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{cell.strip()[:40]!r}, expected a finite number")
    return value


def read_all(path: str | Path, unit: str = "m") -> dict[str, list[Event]]:
    """Events by file name, of one file or of all csv files below a folder.

    Raises ConfigError as `read` does, and for a name that is there twice, or no file at all.
    """
    root = Path(path)
    if not root.is_dir():
        return {root.name: read(root, unit)}
    found: dict[str, Path] = {}
    for file in sorted(root.rglob("*.csv")):
        if file.name in found:
            raise ConfigError(f"{file}: same name as {found[file.name]}, expected one of each name")
        found[file.name] = file
    if not found:
        raise ConfigError(f"{root}: no csv file below it, expected files of events")
    return {name: read(file, unit) for name, file in found.items()}


def read_both(
    references: str | Path, predictions: str | Path, units: tuple[str, str], official: bool = False
) -> tuple[dict[str, list[Event]], dict[str, list[Event]]]:
    """Events of references and predictions by file name; two files need not share a name.

    units: of the distances of either. Raises ConfigError as `read_all` does, and naming the file
    that has no predictions (not where `official`: the public code leaves it out) or no references.
    """
    truth, said = (
        read_all(path, unit) for path, unit in zip((references, predictions), units, strict=True)
    )
    if not Path(references).is_dir() and not Path(predictions).is_dir():
        said = dict(zip(truth, said.values(), strict=True))
    for name in sorted(said.keys() - truth.keys()):
        raise ConfigError(f"{predictions}: {name} has no references of that name in {references}")
    missing = sorted(truth.keys() - said.keys())
    if missing and not official:
        raise ConfigError(
            f"{predictions}: {len(missing)} of {len(truth)} files are missing, the first "
            f"{missing[0]}; expected one, if empty, for each file of references"
        )
    return truth, said
