"""How simulated scenes are stored: `jaxasa simulate --format NAME`.

A format is four functions, and `FORMATS` names them; a further format is a further entry. All
formats hold the same scenes under the same labels, in shards closed by one manifest:

    records   ArrayRecord shards of FOA, what training reads (data/records.py)
    dcase     foa/*.wav and metadata/*.csv, what other people's code reads (data/dcase.py)

>>> "dcase" in FORMATS
True
>>> FORMATS["records"].suffix
'.array_record'
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxasa.acoustics import render
from jaxasa.acoustics.scenes import SceneSpec
from jaxasa.data import dcase, records

Rendered = tuple[np.ndarray, dict]


@dataclass(frozen=True)
class Format:
    """What `simulate` asks of a format.

    channels, rate: for the manifest. suffix: of a shard's file.
    render(spec, clip audio) -> (float32 `[T, C]` in [-1, 1] at 16 kHz, scene description).
    write(path, [(int16 `[T, C]`, description)], classes) -> the shard's manifest entry: "file",
        "count", "bytes" and "sha256"; `path` appears last and only when the shard is whole.
    read(path, count) -> the entry of a shard written earlier; None if it is not whole.
    open(folder) -> the data set as a sequence; raises `ConfigError` where it is not complete.
    """

    channels: str
    rate: int
    suffix: str
    render: Callable[[SceneSpec, Callable[[str], np.ndarray]], Rendered]
    write: Callable[[Path, Iterable[Rendered], Sequence[str]], dict]
    read: Callable[[Path, int], dict | None]
    open: Callable[[Path], Sequence]


def _write_records(path: Path, scenes: Iterable[Rendered], classes: Sequence[str]) -> dict:
    return records.write_shard(path, scenes)


FORMATS: dict[str, Format] = {
    "records": Format(
        "W Y Z X, ACN, SN3D",
        render.RATE,
        ".array_record",
        render.render,
        _write_records,
        records.read_entry,
        records.Records,
    ),
    "dcase": Format(
        "W Y Z X, ACN, SN3D",
        dcase.RATE,
        ".shard.json",
        render.render,
        dcase.write_shard,
        dcase.read_entry,
        dcase.open_complete,
    ),
}
