# SPDX-License-Identifier: Apache-2.0
"""Real recordings with annotated events, as a component of the mixture of stage 1.

A folder of `jaxasa import dcase` becomes a data set of (audio, description), as records.Records is.
Unknown labels are left out of the loss: the room, distances that are not annotated, and classes
that the sound bank does not have.

    # In a gin file; by default it is used in the last fifth of training.
    SpatialStage.real_recordings = ("runs/starss",)
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxasa.config import ConfigError
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.data.records import DamagedRecord, Records


class RealRecordings:
    """data[i] is (int16 audio [N, 4], description), N being `seconds` at 16 kHz.

    Shorter windows are padded with silence. Prints how many events are of `classes`. Raises
    ConfigError for a folder of another layout, and for windows longer than `seconds`.
    """

    def __init__(self, folder: Path | str, seconds: float, classes: Sequence[str]):
        self._records = Records(folder)
        self._samples = round(seconds * SAMPLE_RATE)
        layout = self._records.manifest.get("layout")
        if layout != "dcase":
            raise ConfigError(
                f"SpatialStage.real_recordings {folder}: layout {layout!r}, expected a folder of "
                "`jaxasa import dcase`"
            )
        events: Counter[str] = Counter()
        for i in range(len(self._records)):
            try:
                audio, scene = self._records[i]
            except DamagedRecord:
                continue  # pipeline.SkipDamaged reports it
            if len(audio) > self._samples:
                raise ConfigError(
                    f"SpatialStage.real_recordings {folder}: a window of "
                    f"{len(audio) / SAMPLE_RATE:g} s, expected at most {seconds:g} s "
                    f"(`jaxasa import dcase --seconds {seconds:g}`)"
                )
            events.update(source["class"] for source in scene["sources"])
        labelled = sum(count for name, count in events.items() if name in classes)
        others = ", ".join(sorted(name for name in events if name not in classes))
        print(
            f"{folder}: {len(self)} windows, {sum(events.values())} events, {labelled} of classes "
            f"of the sound bank{f'; of other classes: {others}' if others else ''}",
            file=sys.stderr,
        )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[np.ndarray, dict]:
        audio, scene = self._records[index]
        return np.pad(audio, ((0, self._samples - len(audio)), (0, 0))), scene
