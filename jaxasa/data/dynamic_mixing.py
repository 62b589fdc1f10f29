# SPDX-License-Identifier: Apache-2.0
"""Dynamic mixing: scenes mixed as they are read, from clips and a bank of RIRs; nothing is stored.

Scene i is a function of (scenes, seed, split, i) alone: classes and clips, a room of the bank and
source positions in it, levels, onsets, the listener's yaw (a rotation, so that a room gives every
azimuth) and noise are sampled with their own key. Audio and description are those that
acoustics/render.py would give. A moving source has no single RIR, so sources do not move here; the
listener may rotate.

    from jaxasa.data.dynamic_mixing import DynamicMixing
    data = DynamicMixing(run.scenes, "run/sounds", "run/rirs", seed=0)
    audio, scene = data[123]        # int16 [N, 4] and its description, as in records.Records
"""

from pathlib import Path

import numpy as np

from jaxasa import config
from jaxasa.acoustics import render
from jaxasa.acoustics.scenes import Layout, SceneSpec, sample_scene_in
from jaxasa.config import check
from jaxasa.core import keys
from jaxasa.data import records
from jaxasa.data.rir_bank import RirBank
from jaxasa.data.sounds import Bank

MAX_SCENES = 2**31 - 1  # the most that grain can shuffle: 270 years of 4 s


class DynamicMixing:
    """A random-access data set of scenes for grain, like records.Records.

    sounds, rirs: folders of a sound bank and of an RIR bank. split: of the sound bank, "train",
    "dev" or "test". Files are opened at first use, threads may share it, and it pickles as its
    arguments. Raises ConfigError for banks that are not there, for moving sources, and for more
    sources than a room of the bank has positions.
    """

    def __init__(
        self,
        scenes: config.Scenes,
        sounds: Path | str,
        rirs: Path | str,
        seed: int,
        split: str = "train",
        count: int = MAX_SCENES,
    ):
        prob = scenes.moving_source_prob
        expected = "0.0: a moving source cannot be mixed from stored RIRs"
        check(prob == 0, "Scenes.moving_source_prob", prob, expected)
        self._arguments = (scenes, sounds, rirs, seed, split, count)
        self._scenes, self._seed, self._split, self._count = scenes, seed, split, count
        self._sounds = Bank.load(sounds)
        self._clips = self._sounds.clips(split)
        self._rirs = RirBank(rirs)
        limit = self._rirs.positions_per_room
        expected = f"at most the {limit} positions in a room of {rirs}"
        check(scenes.sources[1] <= limit, "Scenes.sources", scenes.sources, expected)

    def __reduce__(self):
        return (DynamicMixing, self._arguments)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[np.ndarray, dict]:
        spec, rirs = self.sample_scene(index)
        audio, scene = render.render_with_rirs(spec, self._sounds.audio, rirs)
        return records.to_int16(audio), scene

    def sample_scene(self, index: int) -> tuple[SceneSpec, list[render.MeasuredRir]]:
        """Returns the spec of scene `index`, and the RIR of each of its sources."""
        index = index.__index__()
        if not 0 <= index < self._count:
            raise IndexError(f"scene {index} of {self._count}")
        rng = keys.rng(self._seed, "mixed scene", self._split, index)
        rirs: list[render.MeasuredRir] = []

        def sample_layout(count: int) -> Layout:
            room = int(rng.integers(self._rirs.num_rooms))
            positions = rng.permutation(self._rirs.positions_per_room)[:count]
            layout, room_rirs = self._rirs.read(room, positions.tolist())
            rirs.extend(room_rirs)
            return layout

        key = (self._seed, self._split, index)
        return sample_scene_in(self._scenes, self._clips, *key, rng, sample_layout), rirs
