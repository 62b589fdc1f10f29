"""A bank of room responses: rooms rendered once, in which any number of scenes can be mixed.

Each room has a listener and `rir_positions_per_room` source positions, drawn from config.Scenes like those of a
scene, and a response (acoustics/rir.py) for each. A bank is a data set of records.py: record
room * places + place holds one response as int16 [n, 4] (W, Y, Z, X in the room's frame), with

    {"room", "absorption", "rt60", "listener", "position",       as SceneSpec has them
     "scattering" where walls scatter,
     "drr": dB, "decay": s or null (RT60), both measured before rounding to int16,
     "scale": what full scale stands for}

Rounding errs by -98 dB of the response's peak. Response k is a function of (ranges, seed, k),
shards are written under temporary names and renamed, and the manifest, with their checksums,
comes last: an interrupted bank goes on with the shards that are missing.

    >>> import tempfile
    >>> from jaxasa import config
    >>> from jaxasa.data import responses
    >>> ranges = config.Scenes(train=1, dev=1, benchmark=1, rir_rooms=2, rir_positions_per_room=3)
    >>> bank = responses.build(ranges, tempfile.mkdtemp(), seed=0)
    >>> layout, heard = bank.read(room=1, places=[0, 2])
    >>> len(bank), len(layout.positions), heard[0].signal.shape[0]
    (6, 2, 4)
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxasa import config
from jaxasa.acoustics import render, rir, scenes
from jaxasa.acoustics.scenes import Layout
from jaxasa.config import ConfigError, check
from jaxasa.core import keys
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.core.progress import progress
from jaxasa.data import records

FORMAT = 1
ROOMS = 50  # rooms in a shard
# The ranges that a room and its places are drawn from.
_RANGES = (
    "length",
    "width",
    "height",
    "rt60",
    "distance",
    "min_separation",
    "rir_positions_per_room",
)


class Responses:
    """A complete bank, opened by its folder; responses are read when asked for.

    Threads may share it, and it pickles as its folder. rooms: how many; places: in each.
    Raises ConfigError for a folder that holds no complete bank.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self._records = records.Records(folder)
        kind = self._records.manifest.get("kind")
        check(kind == "responses", f"{folder}: kind", kind, "'responses'")
        self.places: int = self._records.manifest["scenes"]["rir_positions_per_room"]
        self.rooms = len(self._records) // self.places

    def __reduce__(self):
        return (Responses, (self.folder,))

    def __len__(self) -> int:
        return len(self._records)

    @property
    def key(self) -> str:
        """What the bank was made from, as a digest."""
        return self._records.manifest["key"]

    def read(self, room: int, places: Sequence[int]) -> tuple[Layout, list[render.Response]]:
        """Returns a room with the places asked for, and the response of each."""
        read = [self._records[room * self.places + int(place)] for place in places]
        meta = read[0][1]
        layout = Layout(
            room=tuple(meta["room"]),
            absorption=config.tuples(meta["absorption"]),
            rt60=meta["rt60"],
            listener=tuple(meta["listener"]),
            positions=tuple(tuple(m["position"]) for _, m in read),
            scattering=meta.get("scattering", 0.0),
        )
        return layout, [_response(audio, m) for audio, m in read]

    def verify(self) -> None:
        """Reads every shard; raises ConfigError naming the first whose checksum is wrong."""
        self._records.verify()


def _response(audio: np.ndarray, meta: dict) -> render.Response:
    signal = records.to_float(audio).T * np.float32(meta["scale"])
    decay = math.nan if meta["decay"] is None else meta["decay"]
    return render.Response(signal, meta["drr"], decay)


def build(ranges: config.Scenes, folder: Path | str, seed: int) -> Responses:
    """Renders `ranges.rir_rooms` rooms into `folder`; opens the bank if it is complete.

    Raises ConfigError where `folder` holds a bank of other settings.
    """
    check(ranges.rir_rooms >= 1, "Scenes.rir_rooms", ranges.rir_rooms, "at least 1 room")
    folder = Path(folder)
    meta = _meta(ranges, seed)
    if (folder / records.MANIFEST).exists():
        bank = Responses(folder)
        if bank.key != meta["key"]:
            raise ConfigError(f"{folder} holds responses of other settings, expected a new folder")
        return bank
    folder.mkdir(parents=True, exist_ok=True)
    shards = -(-ranges.rir_rooms // ROOMS)
    # The key in the name keeps shards of other settings from being taken for this bank's.
    stem = f"responses-{meta['key'][:8]}"
    paths = [folder / f"{stem}-{k:05d}-of-{shards:05d}.array_record" for k in range(shards)]
    for path in folder.glob("*.array_record"):
        if path not in paths:
            raise ConfigError(f"{path} is a shard of other settings, expected a new folder")
    for path in folder.glob(".*.array_record.*.tmp"):  # a killed run's
        path.unlink()
    entries = []
    with progress(
        "responses", ranges.rir_rooms * ranges.rir_positions_per_room, "responses"
    ) as advance:
        for k, path in enumerate(paths):
            inside = range(k * ROOMS, min((k + 1) * ROOMS, ranges.rir_rooms))
            entry = records.read_entry(path, len(inside) * ranges.rir_positions_per_room)
            if entry is None:
                entry = records.write_shard(path, _rendered(ranges, seed, inside, advance))
            else:
                advance(entry["count"])
            entries.append(entry)
    records.write_manifest(folder, meta, entries)
    return Responses(folder)


def _meta(ranges: config.Scenes, seed: int) -> dict:
    meta = {
        "format": FORMAT,
        "kind": "responses",
        "seed": seed,
        "rooms": ranges.rir_rooms,
        "scenes": {name: getattr(ranges, name) for name in _RANGES} | ranges.walls(),
        "rate": SAMPLE_RATE,
        "channels": "W Y Z X, ACN, SN3D",
    }
    text = json.dumps(meta, sort_keys=True)
    return meta | {"key": hashlib.sha256(text.encode()).hexdigest()}


def _rendered(ranges: config.Scenes, seed: int, inside: range, advance) -> Iterator:
    for room in inside:
        rng, own = keys.rng(seed, "bank room", room), keys.rng(seed, "bank walls", room)
        layout = scenes.draw_layout(ranges, ranges.rir_positions_per_room, rng, own)
        where = dataclasses.asdict(layout)
        del where["positions"]
        if not ranges.scattering:
            del where["scattering"]
        for place, position in enumerate(layout.positions):
            rng = keys.rng(seed, "bank response", room, place)
            here = (layout.room, layout.absorption, position, layout.listener)
            signal = rir.shoebox_rir(*here, rng, scattering=layout.scattering)
            heard = render.measure(signal, math.dist(position, layout.listener))
            scale = float(np.abs(signal).max())
            meta = where | {
                "position": position,
                "drr": heard.drr,
                "decay": heard.rt60 if math.isfinite(heard.rt60) else None,
                "scale": scale,
            }
            yield records.to_int16(signal.T / np.float32(scale)), meta
            advance(1)
