# SPDX-License-Identifier: Apache-2.0
"""Plans a simulated data set: what its shards contain, where they are, how one is rendered.

Shard k is a function of (scenes, bank, seed, split, count, format, k) alone, and scenes are
rendered one by one: any number of workers, any runner and any number of interruptions give the same
files and the same manifest on one machine.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxasa import config
from jaxasa.acoustics.scenes import sample_scene
from jaxasa.config import ConfigError, check
from jaxasa.data import formats, records
from jaxasa.data.formats import Format, Scene
from jaxasa.data.sounds import Bank

VERSION = 3
CLIP_SPLITS = {"train": "train", "dev": "dev", "benchmark": "test"}  # of scenes -> of the bank


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """A data set to simulate. Workers need only this, and both folders under the same paths.

    meta: the manifest without its shards; its "key" is a hash of everything that decides a scene.
    """

    scenes: config.Scenes
    bank: Path
    split: str
    folder: Path
    seed: int
    count: int
    format_name: str
    meta: dict

    @classmethod
    def make(
        cls,
        scenes: config.Scenes,
        bank_folder: Path | str,
        split: str,
        folder: Path | str,
        seed: int,
        count: int,
        format_name: str,
    ) -> "ShardPlan":
        """Plans `count` scenes; raises ConfigError for an unknown split or format, or no bank."""
        check(count >= 1, "count", count, "at least 1")
        check(split in CLIP_SPLITS, "split", split, "one of " + ", ".join(CLIP_SPLITS))
        bank = Bank.load(bank_folder)
        meta = _meta(scenes, bank, split, seed, count, format_name)
        # Absolute paths: workers may run in another folder.
        paths = Path(bank.folder).resolve(), Path(folder).resolve()
        return cls(scenes, paths[0], split, paths[1], seed, count, format_name, meta)

    @property
    def format(self) -> Format:
        return formats.get_format(self.format_name, self.scenes.engine)

    def num_shards(self) -> int:
        return -(-self.count // self.scenes.scenes_per_shard)

    def scene_indices(self, k: int) -> range:
        """The scenes of shard `k`."""
        size = self.scenes.scenes_per_shard
        return range(k * size, min((k + 1) * size, self.count))

    def path(self, k: int) -> Path:
        """The file of shard `k`; shards of other settings or another machine have other names."""
        key = json.dumps([self.meta["key"], self.meta["backend"]])
        digest = hashlib.sha256(key.encode()).hexdigest()[:8]
        name = f"{self.split}-{digest}-{k:05d}-of-{self.num_shards():05d}"
        return self.folder / f"{name}{self.format.suffix}"

    def render_shard(self, k: int) -> dict:
        """Renders and writes shard `k` unless it is complete; returns its manifest entry."""
        indices, path = self.scene_indices(k), self.path(k)
        entry = self.format.read_entry(path, len(indices))
        if entry is None:
            bank = load_bank(self.bank)
            entry = self.format.write_shard(path, self.render(indices, bank), bank.classes)
        return entry

    def render(self, indices: Iterable[int], bank: Bank) -> Iterator[Scene]:
        """Yields int16 audio [N, C] and the description of each of these scenes."""
        clips = bank.clips(CLIP_SPLITS[self.split])
        for index in indices:
            spec = sample_scene(self.scenes, clips, self.seed, self.split, index)
            audio, scene = self.format.render(spec, bank.audio)
            yield records.to_int16(audio), scene

    def write_manifest(self, entries: Iterable[dict]) -> None:
        """Writes the manifest with the entries of all shards, which completes the data set."""
        ordered = sorted(entries, key=lambda entry: entry["file"])
        records.write_manifest(self.folder, self.meta, ordered)

    def check_same_settings(self) -> None:
        """Raises ConfigError if the folder holds a complete data set of other settings."""
        manifest = records.read_manifest(self.folder)
        if manifest.get("key") == self.meta["key"]:
            return
        # Through JSON like the manifest: tuples become lists.
        meta = json.loads(json.dumps(self.meta))
        ignored = ("key", "engine", "backend")
        names = [n for n in meta if n not in ignored and manifest.get(n) != meta[n]]
        raise ConfigError(
            f"{self.folder} holds scenes of other settings ({', '.join(names)}), expected a new "
            "folder"
        )

    def check_shards(self) -> None:
        """Deletes temporary files; raises ConfigError for shards of other settings."""
        expected = {self.path(k).name for k in range(self.num_shards())}
        for path in self.folder.glob(f"[!.]*{self.format.suffix}"):
            if path.name not in expected:
                raise ConfigError(f"{path} is a shard of other settings, expected a new folder")
        for path in self.folder.rglob(".*.tmp"):
            path.unlink()


@functools.lru_cache(maxsize=1)
def load_bank(folder: Path) -> Bank:
    return Bank.load(folder)


def _meta(
    scenes: config.Scenes, bank: Bank, split: str, seed: int, count: int, format_name: str
) -> dict:
    meta = {
        "version": VERSION,
        "format": format_name,
        "split": split,
        "seed": seed,
        "count": count,
        "scenes": config.settings(scenes, "data"),
        "bank": bank.name,
        "bank_digest": bank.digest,
        "classes": list(bank.classes),
        **formats.get_format(format_name, scenes.engine).facts,
    }
    key = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
    return meta | {"key": key, "engine": scenes.engine, "backend": _backend(scenes.engine)}


def _backend(engine: str) -> dict:
    """Software and machine: audio is equal to the last bit only if these are equal."""
    others = () if engine == "jaxasa" else (engine,)
    libraries = ("numba", "numpy", "scipy", "soxr", *others)
    return {
        "renderer": " and ".join((*others, "numba")) + " on cpu",
        "machine": platform.machine(),
        **{name: importlib.metadata.version(name) for name in libraries},
    }
