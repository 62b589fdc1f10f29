"""How simulated scenes are rendered and stored: `jaxasa simulate --format NAME`.

A format is four functions and what the manifest says of them. `find` makes one from its name;
to add a further one, write such a function and name it in `FORMATS`. All formats hold the
same scenes under the same labels, in shards closed by one manifest:

    records   ArrayRecord shards of FOA, what training reads (data/records.py)
    dcase     foa/*.wav and metadata/*.csv, what other people's code reads (data/dcase.py)
    binaural  ArrayRecord shards of two ears; the option is an HRTF: "sphere" or a SOFA file

>>> find("records").suffix, find("dcase").facts["rate"]
('.array_record', 24000)
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxasa.acoustics import binaural, hrtf, pyroom_engine, render
from jaxasa.acoustics.scenes import SceneSpec
from jaxasa.config import check
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.data import dcase, records

FOA = "W Y Z X, ACN, SN3D"
Rendered = tuple[np.ndarray, dict]


@dataclass(frozen=True)
class Format:
    """What `simulate` asks of a format.

    facts: for the manifest, "channels" and "rate" at least. suffix: of a shard's file.
    render(spec, clip audio) -> (float32 `[T, C]` in [-1, 1] at 16 kHz, scene description).
    write(path, [(int16 `[T, C]`, description)], classes) -> the shard's manifest entry: "file",
        "count", "bytes" and "sha256"; `path` appears last and only when the shard is whole.
    read(path, count) -> the entry of a shard written earlier; None if it is not whole.
    open(folder) -> the data set as a sequence; raises `ConfigError` where it is not complete.
    """

    facts: dict
    suffix: str
    render: Callable[[SceneSpec, Callable[[str], np.ndarray]], Rendered]
    write: Callable[[Path, Iterable[Rendered], Sequence[str]], dict]
    read: Callable[[Path, int], dict | None]
    open: Callable[[Path], Sequence]


def _shards(facts: dict, rendering: Callable) -> Format:
    return Format(
        facts | {"rate": SAMPLE_RATE},
        ".array_record",
        rendering,
        lambda path, scenes, classes: records.write_shard(path, scenes),
        records.read_entry,
        records.Records,
    )


def _renderer(engine: str) -> Callable[[SceneSpec, Callable[[str], np.ndarray]], Rendered]:
    if engine == "jaxasa":
        return render.render
    pyroom_engine.library()  # raises where it is not installed, before anything is rendered
    return pyroom_engine.scene


def _records(option: str, engine: str) -> Format:
    check(not option, "format", f"records:{option}", "no option behind records")
    return _shards({"channels": FOA}, _renderer(engine))


def _dcase(option: str, engine: str) -> Format:
    check(not option, "format", f"dcase:{option}", "no option behind dcase")
    return Format(
        {"channels": FOA, "rate": dcase.RATE},
        ".shard.json",
        _renderer(engine),
        dcase.write_shard,
        dcase.read_entry,
        dcase.open_complete,
    )


def _binaural(option: str, engine: str) -> Format:
    check(engine == "jaxasa", "Scenes.engine", engine, "'jaxasa' with format binaural")
    head = hrtf.load(option or "sphere")
    facts = {"channels": "left, right ear", "hrtf": head.name}
    return _shards(facts, lambda spec, audio: binaural.render(spec, audio, head))


FORMATS: dict[str, Callable[[str, str], Format]] = {
    "records": _records,
    "dcase": _dcase,
    "binaural": _binaural,
}


def find(name: str, engine: str = "jaxasa") -> Format:
    """The format "NAME" or "NAME:OPTION"; raises `ConfigError` for one that is not there.

    engine: of config.Scenes; raises for one that is not installed, or cannot give the format.
    """
    kind, _, option = name.partition(":")
    check(kind in FORMATS, "format", name, "one of " + ", ".join(FORMATS))
    return FORMATS[kind](option, engine)
