# SPDX-License-Identifier: Apache-2.0
"""Formats of simulated scenes: `jaxasa simulate --format NAME`.

Every format holds the same scenes with the same labels, in shards that one manifest closes:

    records   ArrayRecord shards of FOA, which training reads (data/records.py)
    dcase     foa/*.wav and metadata/*.csv, the layout of DCASE task 3 (data/dcase.py)
    binaural  ArrayRecord shards of two ear signals; the option is an HRTF: "sphere" or a SOFA file

To add a format, write a subclass of `Format` and list it in `FORMATS`, from which the command
line and `get_format` take the names.

>>> get_format("records").suffix, get_format("dcase").facts["rate"]
('.array_record', 24000)
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxasa.acoustics import binaural, pyroom_engine, render
from jaxasa.acoustics.load_hrtf import load_hrtf
from jaxasa.acoustics.scenes import SceneSpec
from jaxasa.config import check
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.data import dcase, records

FOA_CHANNELS = "W Y Z X, ACN, SN3D"
Clips = Callable[[str], np.ndarray]  # clip id -> mono audio float32 [N]
Scene = tuple[np.ndarray, dict]  # audio [N, C] and the scene's description


class Format:
    """A way to render scenes and to store them in shards.

    option: the text after ":" in the format's name. engine: `Scenes.engine`. Raises ConfigError
    for an option or an engine that the format does not support, or that is not installed.

    facts: entries of the manifest, among them "channels" and "rate" (Hz). suffix: of shard files.
    """

    name: str
    suffix: str
    facts: dict

    def __init__(self, option: str, engine: str):
        check(not option, "format", f"{self.name}:{option}", f"{self.name} without an option")
        self._render: Callable[[SceneSpec, Clips], Scene] = render.render
        if engine != "jaxasa":
            pyroom_engine.import_pyroomacoustics()  # raises before anything is rendered
            self._render = pyroom_engine.render_scene

    def render(self, spec: SceneSpec, clips: Clips) -> Scene:
        """Returns float32 audio [N, C] in [-1, 1] at 16 kHz and the description of a scene."""
        return self._render(spec, clips)

    def write_shard(self, path: Path, scenes: Iterable[Scene], classes: Sequence[str]) -> dict:
        """Writes scenes with int16 audio [N, C]; returns the shard's entry in the manifest.

        The entry has "file", "count", "bytes" and "sha256". `path` appears last, and only when
        the shard is complete.
        """
        raise NotImplementedError

    def read_entry(self, path: Path, count: int) -> dict | None:
        """The entry of a shard written earlier; None if it is incomplete or not of `count`."""
        raise NotImplementedError

    def open(self, folder: Path) -> Any:
        """The data set as a sequence; raises ConfigError if it is not complete."""
        raise NotImplementedError


class RecordsFormat(Format):
    """ArrayRecord shards of FOA."""

    name = "records"
    suffix = ".array_record"
    facts = {"channels": FOA_CHANNELS, "rate": SAMPLE_RATE}

    def write_shard(self, path: Path, scenes: Iterable[Scene], classes: Sequence[str]) -> dict:
        return records.write_shard(path, scenes)

    def read_entry(self, path: Path, count: int) -> dict | None:
        return records.read_entry(path, count)

    def open(self, folder: Path) -> records.Records:
        return records.Records(folder)


class BinauralFormat(RecordsFormat):
    """ArrayRecord shards of the signals of the left and the right ear."""

    name = "binaural"

    def __init__(self, option: str, engine: str):
        check(engine == "jaxasa", "Scenes.engine", engine, "'jaxasa' with format binaural")
        self._hrtf = load_hrtf(option or "sphere")
        self.facts = {
            "channels": "left, right ear",
            "hrtf": self._hrtf.name,
            "rate": SAMPLE_RATE,
        }

    def render(self, spec: SceneSpec, clips: Clips) -> Scene:
        return binaural.render(spec, clips, self._hrtf)


class DcaseFormat(Format):
    """WAV and CSV files in the layout of DCASE task 3; a shard is a list of them."""

    name = "dcase"
    suffix = ".shard.json"
    facts = {"channels": FOA_CHANNELS, "rate": dcase.DCASE_SAMPLE_RATE}

    def write_shard(self, path: Path, scenes: Iterable[Scene], classes: Sequence[str]) -> dict:
        return dcase.write_shard(path, scenes, classes)

    def read_entry(self, path: Path, count: int) -> dict | None:
        return dcase.read_entry(path, count)

    def open(self, folder: Path) -> list[dcase.DcaseRecording]:
        return dcase.open_complete(folder)


FORMATS: dict[str, type[Format]] = {
    format.name: format for format in (RecordsFormat, DcaseFormat, BinauralFormat)
}


def get_format(name: str, engine: str = "jaxasa") -> Format:
    """Returns the format "NAME" or "NAME:OPTION" with the renderer of `Scenes.engine`.

    Raises ConfigError for an unknown name, and as `Format` does.
    """
    kind, _, option = name.partition(":")
    check(kind in FORMATS, "format", name, "one of " + ", ".join(FORMATS))
    return FORMATS[kind](option, engine)
