"""Recordings of others as the scenes of a suite: `jaxasa import dcase SOURCE DIR/scenes/benchmark`.

Labels say what sounds, where and when, and perhaps how far; a question for which more must be
known (RT60, levels, a DRR) is not asked. Windows that are silent, have two sounds of one class,
more than three, or less than the full length, are left out.
Where the set has fewer than four classes (STARSS23 has three that the demo knows), nothing asks
for a name: options that are never right would give it away.

A class, an azimuth, an elevation and a distance mean in DCASE's labels what they mean in ours.
Onsets and offsets are rounded to 100 ms there; what is compared in time is 0.3 s apart at least. A
sound that began before its window counts as beginning with it.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxasa import config
from jaxasa.acoustics.scenes import Clip
from jaxasa.data import import_scenes
from jaxasa.data.records import MANIFEST, Records

LAYOUTS = ("dcase",)  # whose labels are all that sounds; questions of others are about parts


def layout(source: Records) -> str | None:
    """The layout that records were imported from; None for simulated scenes.

    Raises ConfigError for one whose labels do not say all that sounds.
    """
    found = source.manifest.get("layout")
    expected = "one of " + ", ".join(LAYOUTS)
    config.check(found is None or found in LAYOUTS, f"layout of {source.folder}", found, expected)
    return found


def is_imported(folder: Path) -> bool:
    """Whether a folder holds such recordings; one that is not there, or unfinished, does not."""
    return (folder / MANIFEST).is_file() and layout(Records(folder)) is not None


@dataclass(frozen=True)
class Bank:
    """What building a suite asks of a sound bank, where recordings bring their own sounds."""

    name: str
    classes: tuple[str, ...]

    def clips(self, split: str) -> list[Clip]:
        """None: nothing can be drawn anew."""
        return []


def bank(source: Records) -> Bank:
    """The classes of an imported set."""
    return Bank(f"{layout(source)} recordings", tuple(source.manifest["classes"]))


def usable(source: Records) -> list[int]:
    """Places of the recordings that can be asked about; raises ConfigError for none."""
    scenes = [source[i][1] for i in range(len(source))]
    whole = max(scene["seconds"] for scene in scenes)
    found = [
        i
        for i, scene in enumerate(scenes)
        if np.isclose(scene["seconds"], whole) and import_scenes.askable(scene["sources"])
    ]
    expected = f"one to three sounds of different classes in some window of {whole:g} s"
    config.check(len(found) > 0, str(source.folder), "none", expected)
    return found


def recordings_by_split(
    scenes: Sequence[dict], classes: Sequence[str]
) -> dict[str, dict[str, set[str]]]:
    """Split -> class -> recordings, as build.bank_recordings has it: all are for the test."""
    heard: dict[str, set[str]] = defaultdict(set)
    for scene in scenes:
        for source in scene["sources"]:
            heard[source["class"]].add(source["recording_id"])
    test = {name: heard[name] for name in classes}
    return {"train": {c: set() for c in classes}, "dev": {c: set() for c in classes}, "test": test}
