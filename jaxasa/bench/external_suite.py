# SPDX-License-Identifier: Apache-2.0
"""Suites of imported recordings: `jaxasa import dcase SOURCE DIR/scenes/benchmark`.

The labels of a DCASE set give the class, direction and time of all sounds, and perhaps their
distance; questions that need more (RT60, level, DRR) are not asked. Windows are left out if they
are silent, shorter than the others, or hold two sounds of one class or more than three sounds.
If a set has fewer than four classes (STARSS23 has three that the demo knows), no question asks
for a class: options that are never right would give it away.

Class, azimuth, elevation and distance mean the same in DCASE's labels as here. Onsets and offsets
are rounded to 100 ms there; sounds that are compared in time are 0.3 s apart at least. A sound
that began before its window counts as beginning with it.
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

LAYOUTS = ("dcase",)  # layouts whose labels cover all sounds of a recording


def layout(source: Records) -> str | None:
    """The layout that records were imported from; None for simulated scenes.

    Raises ConfigError if its labels do not cover all sounds.
    """
    name = source.manifest.get("layout")
    expected = "one of " + ", ".join(LAYOUTS)
    config.check(name is None or name in LAYOUTS, f"layout of {source.folder}", name, expected)
    return name


def is_imported(folder: Path) -> bool:
    """Whether a folder holds imported recordings; False if it is missing or unfinished."""
    return (folder / MANIFEST).is_file() and layout(Records(folder)) is not None


@dataclass(frozen=True)
class Bank:
    """Stands in for a sound bank: imported recordings have classes, and no clips."""

    name: str
    classes: tuple[str, ...]

    def clips(self, split: str) -> list[Clip]:
        """No clips: no scenes can be composed of them."""
        return []


def bank(source: Records) -> Bank:
    """The classes of an imported set."""
    return Bank(f"{layout(source)} recordings", tuple(source.manifest["classes"]))


def usable_records(source: Records) -> list[int]:
    """Indices of the windows that questions can be about; raises ConfigError if there are none."""
    scenes = [source[i][1] for i in range(len(source))]
    longest = max(scene["seconds"] for scene in scenes)
    indices = [
        i
        for i, scene in enumerate(scenes)
        if np.isclose(scene["seconds"], longest) and import_scenes.is_askable(scene["sources"])
    ]
    expected = f"one to three sounds of different classes in some window of {longest:g} s"
    config.check(len(indices) > 0, str(source.folder), "none", expected)
    return indices


def recordings_by_split(
    scenes: Sequence[dict], classes: Sequence[str]
) -> dict[str, dict[str, set[str]]]:
    """Split -> class -> recording ids, as build.bank_recordings; all are in the test split."""
    by_class: dict[str, set[str]] = defaultdict(set)
    for scene in scenes:
        for source in scene["sources"]:
            by_class[source["class"]].add(source["recording_id"])
    test = {name: by_class[name] for name in classes}
    return {"train": {c: set() for c in classes}, "dev": {c: set() for c in classes}, "test": test}
