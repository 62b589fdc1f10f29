"""Real recordings with annotated events as a source of stage 1, beside simulated scenes.

A folder of `jaxasa import dcase` becomes a sequence of (audio, description) as records.Records
is. What a recording does not tell is left unknown: the room, a distance that is not annotated,
and classes that the model has no name for; those teach nothing, while what is known does.

    SpatialStage.real_recordings = ("runs/starss",)     # in a gin file; its last fifth adapts to them
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxasa.config import ConfigError
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.data.records import Damaged, Records


class Recordings:
    """`recordings[i]` is (int16 `[N, 4]`, description), N being `seconds` at 16 kHz.

    Shorter sounds end in silence. Raises ConfigError for a folder of another layout, and for
    sounds longer than `seconds`.
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
        named: Counter[str] = Counter()
        for i in range(len(self._records)):
            try:
                audio, scene = self._records[i]
            except Damaged:
                continue  # named and counted when it is drawn (pipeline.Readable)
            if len(audio) > self._samples:
                raise ConfigError(
                    f"SpatialStage.real_recordings {folder}: a window of "
                    f"{len(audio) / SAMPLE_RATE:g} s, "
                    f"expected at most {seconds:g} s (`jaxasa import dcase --seconds {seconds:g}`)"
                )
            named.update(source["class"] for source in scene["sources"])
        known = sum(count for name, count in named.items() if name in classes)
        others = ", ".join(sorted(name for name in named if name not in classes))
        print(
            f"{folder}: {len(self)} windows, {sum(named.values())} events, {known} of a class "
            f"that the sound bank has{f'; without a name: {others}' if others else ''}",
            file=sys.stderr,
        )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[np.ndarray, dict]:
        audio, scene = self._records[index]
        return np.pad(audio, ((0, self._samples - len(audio)), (0, 0))), scene
