"""Scenes mixed while they are read: clips through the responses of a bank, and nothing is stored.

Scene i is a function of (ranges, seed, split, i) alone: classes and clips, a room of the bank and
places in it, levels, onsets, the listener's yaw (a rotation, so that one room gives every
bearing) and noise are drawn from a key of their own, and what is mixed is what
`acoustics.render` would render, labels included. A source that moves has no one response, so
scenes mixed here stand still; the listener may turn.

    from jaxasa.data.mixing import Mixed
    mixed = Mixed(run.scenes, "run/sounds", "run/responses", seed=0)
    audio, scene = mixed[123]        # int16 [N, 4] and its description, as of records.Records
"""

from pathlib import Path

import numpy as np

from jaxasa import config
from jaxasa.acoustics import render, scenes
from jaxasa.acoustics.scenes import SceneSpec
from jaxasa.config import check
from jaxasa.core import keys
from jaxasa.data import records
from jaxasa.data.rir_bank import Responses
from jaxasa.data.sounds import Bank

ENDLESS = 2**31 - 1  # scenes: what grain's shuffle can count, 270 years of 4 s


class Mixed:
    """A random-access sequence of scenes for grain, like records.Records.

    sounds, responses: folders of a sound bank and of a response bank. split: of source recordings, "train",
    "dev" or "test". Files are opened when first read, threads may share it, and it pickles as
    its arguments. Raises ConfigError for banks that are not there, for sources that move, and
    for more sources than a room of the bank has places.
    """

    def __init__(
        self,
        ranges: config.Scenes,
        sounds: Path | str,
        responses: Path | str,
        seed: int,
        split: str = "train",
        count: int = ENDLESS,
    ):
        expected = "0.0: a moving source cannot be mixed from stored responses"
        check(
            ranges.moving_source_prob == 0,
            "Scenes.moving_source_prob",
            ranges.moving_source_prob,
            expected,
        )
        self._arguments = (ranges, sounds, responses, seed, split, count)
        self._ranges, self._seed, self._split, self._count = ranges, seed, split, count
        self._bank = Bank.load(sounds)
        self._clips = self._bank.clips(split)
        self._responses = Responses(responses)
        expected = f"at most the {self._responses.places} places of {responses}"
        ok = ranges.sources[1] <= self._responses.places
        check(ok, "Scenes.sources", ranges.sources, expected)

    def __reduce__(self):
        return (Mixed, self._arguments)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[np.ndarray, dict]:
        spec, heard = self.draw(index)
        audio, scene = render.mix(spec, self._bank.audio, heard)
        return records.to_int16(audio), scene

    def draw(self, index: int) -> tuple[SceneSpec, list[render.Response]]:
        """Returns the spec of scene `index` and the response of each of its sources."""
        index = index.__index__()
        if not 0 <= index < self._count:
            raise IndexError(f"scene {index} of {self._count}")
        rng = keys.rng(self._seed, "mixed scene", self._split, index)
        heard: list[render.Response] = []

        def layout(count: int) -> scenes.Layout:
            room = int(rng.integers(self._responses.rooms))
            places = rng.permutation(self._responses.places)[:count]
            found, responses = self._responses.read(room, places.tolist())
            heard.extend(responses)
            return found

        where = (self._ranges, self._clips, self._seed, self._split, index)
        return scenes.compose(*where, rng, layout), heard
