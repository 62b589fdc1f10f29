# SPDX-License-Identifier: Apache-2.0
"""A bank of room impulse responses: rooms simulated once, in which many scenes are mixed.

Each room has a listener and `Scenes.rir_positions_per_room` source positions, sampled like those
of a scene, with an RIR (acoustics/rir.py) for each. A bank is a data set of data/records.py: record
room * positions_per_room + position holds one RIR as int16 [N, 4] (W, Y, Z, X in the frame of the
room) with

    {"room", "absorption", "rt60", "listener", "position",       as in SceneSpec
     "scattering" if walls scatter,
     "drr": dB, "decay": RT60 in s or null, both measured before rounding to int16,
     "scale": amplitude of full scale}

Rounding errors are at -98 dB relative to the RIR's peak. RIR k is a function of (scenes, seed, k).
Shards are written under temporary names and renamed, and the manifest with their checksums comes
last: building an interrupted bank again adds the missing shards.

    >>> import tempfile
    >>> from jaxasa import config
    >>> from jaxasa.data import rir_bank
    >>> scenes = config.Scenes(train=1, dev=1, benchmark=1, rir_rooms=2, rir_positions_per_room=3)
    >>> bank = rir_bank.build(scenes, tempfile.mkdtemp(), seed=0)
    >>> layout, rirs = bank.read(room=1, positions=[0, 2])
    >>> len(bank), len(layout.positions), rirs[0].rir.shape[0]
    (6, 2, 4)
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxasa import config
from jaxasa.acoustics import render
from jaxasa.acoustics.rir import shoebox_rir
from jaxasa.acoustics.scenes import Layout, sample_layout
from jaxasa.config import ConfigError, check
from jaxasa.core import keys
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.core.progress import progress
from jaxasa.data import records

FORMAT = 2
ROOMS_PER_SHARD = 50
# Fields of config.Scenes from which a room and its positions are sampled.
_FIELDS = (
    "length",
    "width",
    "height",
    "rt60",
    "distance",
    "min_separation",
    "rir_positions_per_room",
    *config.WALL_OPTIONS,
)


class RirBank:
    """A complete bank, opened by its folder; RIRs are read from disk when needed.

    num_rooms, positions_per_room: its size. Threads may share it, and it pickles as its folder.
    Raises ConfigError for a folder without a complete bank.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self._records = records.Records(folder)
        kind = self._records.manifest.get("kind")
        check(kind == "rirs", f"{folder}: kind", kind, "'rirs'")
        self.positions_per_room: int = self._records.manifest["scenes"]["rir_positions_per_room"]
        self.num_rooms = len(self._records) // self.positions_per_room

    def __reduce__(self):
        return (RirBank, (self.folder,))

    def __len__(self) -> int:
        return len(self._records)

    @property
    def key(self) -> str:
        """A digest of the settings that the bank was built with."""
        return self._records.manifest["key"]

    def read(self, room: int, positions: Sequence[int]) -> tuple[Layout, list[render.MeasuredRir]]:
        """Returns a room with some of its source positions (indices), and the RIR of each."""
        first = room * self.positions_per_room
        rows = [self._records[first + int(position)] for position in positions]
        meta = rows[0][1]
        layout = Layout(
            room=tuple(meta["room"]),
            absorption=config.tuples(meta["absorption"]),
            rt60=meta["rt60"],
            listener=tuple(meta["listener"]),
            positions=tuple(tuple(m["position"]) for _, m in rows),
            scattering=meta.get("scattering", 0.0),
        )
        return layout, [_measured_rir(audio, m) for audio, m in rows]

    def verify(self) -> None:
        """Reads every shard; raises ConfigError naming the first whose checksum is wrong."""
        self._records.verify()


def _measured_rir(audio: np.ndarray, meta: dict) -> render.MeasuredRir:
    signal = records.to_float(audio).T * np.float32(meta["scale"])
    rt60 = math.nan if meta["decay"] is None else meta["decay"]
    return render.MeasuredRir(signal, meta["drr"], rt60)


def build(scenes: config.Scenes, folder: Path | str, seed: int) -> RirBank:
    """Simulates `scenes.rir_rooms` rooms into `folder`; opens the bank if it is complete.

    Raises ConfigError if `folder` holds a bank of other settings.
    """
    check(scenes.rir_rooms >= 1, "Scenes.rir_rooms", scenes.rir_rooms, "at least 1 room")
    folder = Path(folder)
    meta = _meta(scenes, seed)
    if (folder / records.MANIFEST).exists():
        bank = RirBank(folder)
        if bank.key != meta["key"]:
            raise ConfigError(f"{folder} holds RIRs of other settings, expected a new folder")
        return bank
    folder.mkdir(parents=True, exist_ok=True)
    num_shards = -(-scenes.rir_rooms // ROOMS_PER_SHARD)
    # The key keeps shards of other settings from being taken for this bank's.
    stem = f"rirs-{meta['key'][:8]}"
    paths = [folder / f"{stem}-{k:05d}-of-{num_shards:05d}.array_record" for k in range(num_shards)]
    for path in folder.glob("*.array_record"):
        if path not in paths:
            raise ConfigError(f"{path} is a shard of other settings, expected a new folder")
    for path in folder.glob(".*.array_record.*.tmp"):  # of a killed run
        path.unlink()
    entries = []
    total = scenes.rir_rooms * scenes.rir_positions_per_room
    with progress("room impulse responses", total, "RIRs") as advance:
        for k, path in enumerate(paths):
            rooms = range(k * ROOMS_PER_SHARD, min((k + 1) * ROOMS_PER_SHARD, scenes.rir_rooms))
            entry = records.read_entry(path, len(rooms) * scenes.rir_positions_per_room)
            if entry is None:
                entry = records.write_shard(path, _simulate(scenes, seed, rooms, advance))
            else:
                advance(entry["count"])
            entries.append(entry)
    records.write_manifest(folder, meta, entries)
    return RirBank(folder)


def _meta(scenes: config.Scenes, seed: int) -> dict:
    meta = {
        "format": FORMAT,
        "kind": "rirs",
        "seed": seed,
        "rooms": scenes.rir_rooms,
        "scenes": {name: getattr(scenes, name) for name in _FIELDS},
        "rate": SAMPLE_RATE,
        "channels": "W Y Z X, ACN, SN3D",
    }
    text = json.dumps(meta, sort_keys=True)
    return meta | {"key": hashlib.sha256(text.encode()).hexdigest()}


def _simulate(
    scenes: config.Scenes, seed: int, rooms: range, advance: Callable[[int], None]
) -> Iterator[tuple[np.ndarray, dict]]:
    for room in rooms:
        rng, wall_rng = keys.rng(seed, "bank room", room), keys.rng(seed, "bank walls", room)
        layout = sample_layout(scenes, scenes.rir_positions_per_room, rng, wall_rng)
        room_meta = dataclasses.asdict(layout)
        del room_meta["positions"]
        if not scenes.scattering:
            del room_meta["scattering"]
        for k, position in enumerate(layout.positions):
            rng = keys.rng(seed, "bank response", room, k)
            signal = shoebox_rir(layout.shoebox(), position, layout.listener, rng)
            measured = render.measure_rir(signal, math.dist(position, layout.listener))
            scale = float(np.abs(signal).max())
            meta = room_meta | {
                "position": position,
                "drr": measured.drr,
                "decay": measured.rt60 if math.isfinite(measured.rt60) else None,
                "scale": scale,
            }
            yield records.to_int16(signal.T / np.float32(scale)), meta
            advance(1)
