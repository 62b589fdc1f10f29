# SPDX-License-Identifier: Apache-2.0
"""Rendered scenes on disk: ArrayRecord shards and a manifest.

A record, little-endian:

    bytes 0-3    b"JXA1"
    bytes 4-7    uint32: bytes of JSON, a multiple of 4 (padded with spaces)
    bytes 8-11   uint32: samples N
    bytes 12-15  uint32: channels (4: W, Y, Z, X, SN3D)
    then         JSON in UTF-8: the scene description
    then         int16 [N, C], 32767 being full scale

Shards are written `group_size:1,uncompressed` (the fastest to read at random) to a temporary
name and renamed, so a file with its final name is complete. manifest.json is written last: a
data set without it is not complete.

Shapes: N samples · C channels

>>> import tempfile
>>> folder = Path(tempfile.mkdtemp())
>>> scenes = [(to_int16(np.zeros((16000, 4))), {"id": "silence", "sources": []})]
>>> write_manifest(folder, {"rate": 16000}, [write_shard(folder / "a.array_record", scenes)])
>>> data = Records(folder)
>>> data.verify()
>>> data[0][0].shape, data[0][1]["id"], data.manifest["count"]
((16000, 4), 'silence', 1)
"""

import bisect
import hashlib
import itertools
import json
import struct
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from jaxasa.config import ConfigError
from jaxasa.core.audio import FULL_SCALE
from jaxasa.core.files import atomic_path, atomic_write_text
from jaxasa.core.provenance import made_by
from jaxasa.core.workdir import output_of

MAGIC = b"JXA1"
MANIFEST = "manifest.json"
_HEADER = struct.Struct("<4sIII")
_READ = "readahead_buffer_size:0,max_parallelism:0"


class DamagedRecord(ConfigError):
    """A record that cannot be read, in a shard that is there."""


def to_int16(audio: np.ndarray) -> np.ndarray:
    """Float audio in [-1, 1] as int16, rounded; raises ValueError if it is outside or NaN."""
    if not np.abs(audio).max(initial=0.0) <= 1:
        raise ValueError("audio is not finite or passes full scale")
    return np.rint(audio * FULL_SCALE).astype("<i2")


def to_float(audio: np.ndarray) -> np.ndarray:
    """int16 audio of a record as float32 in [-1, 1]."""
    return audio.astype(np.float32) / FULL_SCALE


def encode_record(audio: np.ndarray, meta: dict) -> bytes:
    """Packs int16 audio [N, C] and a dict, which is written as JSON, into a record."""
    if audio.dtype != np.int16 or audio.ndim != 2:
        raise ValueError(f"audio is {audio.dtype} {audio.shape}, expected int16 [N, C]")
    text = json.dumps(meta, ensure_ascii=False, allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    return _HEADER.pack(MAGIC, len(text), *audio.shape) + text + audio.astype("<i2").tobytes()


def decode_record(record: bytes) -> tuple[np.ndarray, dict]:
    """Returns int16 [N, C] (read-only) and the dict; raises ValueError if damaged."""
    if len(record) < _HEADER.size or record[:4] != MAGIC:
        raise ValueError("not a record of jaxasa")
    _, length, samples, channels = _HEADER.unpack_from(record)
    start = _HEADER.size + length
    if len(record) != start + 2 * samples * channels:
        raise ValueError("a record of the wrong length")
    audio = np.frombuffer(record, "<i2", offset=start).reshape(samples, channels)
    return audio, json.loads(record[_HEADER.size : start])


def write_shard(path: Path, records: Iterable[tuple[np.ndarray, dict]]) -> dict:
    """Writes (int16 [N, C], dict) pairs to `path`; returns its entry in the manifest."""
    with atomic_path(path) as temporary:
        writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
        count = 0
        for audio, meta in records:
            writer.write(encode_record(audio, meta))
            count += 1
        writer.close()
        return _entry(temporary, path.name, count)


def read_entry(path: Path, count: int) -> dict | None:
    """The manifest entry of a shard written earlier; None if absent, damaged or not of `count`."""
    if not path.is_file():
        return None
    try:
        reader = ArrayRecordReader(str(path), _READ)
        whole = reader.num_records() == count
        for i in range(count if whole else 0):
            decode_record(reader.read([i])[0])
        reader.close()
    except Exception:  # array_record raises what its C++ side sends: RuntimeError, IndexError
        return None
    return _entry(path, path.name, count) if whole else None


def _entry(path: Path, name: str, count: int) -> dict:
    with open(path, "rb") as data:
        digest = hashlib.file_digest(data, "sha256").hexdigest()
    return {"file": name, "count": count, "bytes": path.stat().st_size, "sha256": digest}


def write_manifest(folder: Path, meta: dict, shards: list[dict]) -> None:
    """Completes a data set: `meta`, the number of records, the shards, the version of jaxasa."""
    count = sum(s["count"] for s in shards)
    manifest = meta | {"count": count, "shards": shards, "made_by": made_by()}
    atomic_write_text(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))


def read_manifest(folder: Path | str) -> dict:
    """The manifest of a complete data set; raises ConfigError if there is none."""
    path = Path(folder) / MANIFEST
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        expected = output_of(folder, "the output of `jaxasa simulate` or `jaxasa import`")
        raise ConfigError(
            f"{folder}: no complete data set (no {MANIFEST}), expected {expected}"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path}: damaged ({error})") from error


class Records:
    """A complete data set as a random-access sequence for grain.

    data[i] is (int16 audio [N, C], scene description). Opening reads the manifest and checks the
    size of each shard; shards are opened at the first read. Threads may share it, and it pickles
    as its folder. Raises ConfigError for a data set that is not complete or is damaged.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self._shards = self.manifest["shards"]
        for shard in self._shards:
            path = self.folder / shard["file"]
            size = path.stat().st_size if path.is_file() else None
            if size != shard["bytes"]:
                raise ConfigError(f"{path} has {size} bytes, expected {shard['bytes']}")
        self._ends = list(itertools.accumulate(s["count"] for s in self._shards))
        self._readers: list[ArrayRecordReader | None] = [None] * len(self._shards)
        self._lock = threading.Lock()

    def __reduce__(self):
        return (Records, (self.folder,))

    def __repr__(self) -> str:
        return f"Records({str(self.folder)!r})"

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> tuple[np.ndarray, dict]:
        index = index.__index__()
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = bisect.bisect_right(self._ends, index)
        position = index - (self._ends[shard] - self._shards[shard]["count"])
        try:
            return decode_record(self._reader(shard).read([position])[0])
        except (ValueError, RuntimeError, IndexError) as error:
            path = self.folder / self._shards[shard]["file"]
            if not path.is_file():
                raise ConfigError(f"{path}: no such file, expected a shard of the set") from error
            reason = str(error).strip().partition("\n")[0]
            raise DamagedRecord(f"{path}: record {position} is damaged ({reason})") from error

    def _reader(self, shard: int) -> ArrayRecordReader:
        with self._lock:
            if self._readers[shard] is None:
                path = str(self.folder / self._shards[shard]["file"])
                # The default buffer of 1 MiB a shard is read in full for a record of 0.6 MB.
                self._readers[shard] = ArrayRecordReader(path, _READ, file_reader_buffer_size=32768)
            return self._readers[shard]

    def verify(self) -> None:
        """Reads every shard; raises ConfigError naming the first whose checksum is wrong."""
        for shard in self._shards:
            if _entry(self.folder / shard["file"], shard["file"], shard["count"]) != shard:
                raise ConfigError(f"{self.folder / shard['file']}: the checksum is wrong")
