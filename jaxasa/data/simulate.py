"""Draws, renders and stores the scenes of a split with a pool of local processes.

Shard k is a pure function of (scenes, bank, seed, split, count, k): any number of workers, and
any number of interruptions, give the same files and the same manifest.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from jaxasa import config
from jaxasa.acoustics import binaural, hrtf, render, scenes
from jaxasa.config import ConfigError
from jaxasa.data import records
from jaxasa.data.progress import progress
from jaxasa.data.sounds import Bank

FORMAT = 1
CLIPS = {"train": "train", "dev": "dev", "benchmark": "test"}  # split of scenes -> of takes
_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
}


@dataclasses.dataclass(frozen=True)
class _Job:
    scenes: config.Scenes
    bank: Path
    split: str
    folder: Path
    seed: int
    count: int
    key: str
    head: str | None

    def shards(self) -> int:
        return -(-self.count // self.scenes.shard)

    def indices(self, k: int) -> range:
        return range(k * self.scenes.shard, min((k + 1) * self.scenes.shard, self.count))

    def path(self, k: int) -> Path:
        # The key in the name keeps shards of other settings from being taken for this data set's.
        name = f"{self.split}-{self.key[:8]}-{k:05d}-of-{self.shards():05d}.array_record"
        return self.folder / name


def simulate(
    scenes: config.Scenes,
    bank_folder: Path | str,
    split: str,
    folder: Path | str,
    seed: int,
    count: int,
    head: str | None = None,
) -> records.Records:
    """Renders `count` scenes of "train", "dev" or "benchmark" into `folder`.

    head: an HRTF ("sphere" or a SOFA file) through which the scenes are rendered for two ears.
    What an earlier run left is kept: a complete data set is opened, missing shards are made.
    Raises `ConfigError` when `folder` holds scenes of other settings or a worker dies.
    """
    config.check(split in CLIPS, "split", split, "one of " + ", ".join(CLIPS))
    config.check(count >= 1, "count", count, "at least 1")
    bank = Bank.load(bank_folder)
    folder = Path(folder)
    meta = _meta(scenes, bank, split, seed, count, head)
    job = _Job(scenes, bank.folder, split, folder, seed, count, meta["key"], head)
    if (folder / records.MANIFEST).exists():
        done = records.Records(folder)
        if done.manifest.get("key") != job.key:
            raise ConfigError(f"{folder} holds scenes of other settings, expected a new folder")
        return done
    folder.mkdir(parents=True, exist_ok=True)
    _tidy(job)
    entries = _make(job)
    records.write_manifest(folder, meta, entries)
    return records.Records(folder)


def _meta(
    scenes: config.Scenes, bank: Bank, split: str, seed: int, count: int, head: str | None
) -> dict:
    settings = dataclasses.asdict(scenes)
    for name in ("train", "dev", "benchmark", "workers"):  # these do not touch a scene
        del settings[name]
    meta = {
        "format": FORMAT,
        "split": split,
        "seed": seed,
        "scenes": settings,
        "rate": render.RATE,
        "channels": "W Y Z X, ACN, SN3D",
        "bank": bank.name,
        "bank_digest": bank.digest,
        "classes": list(bank.classes),
    }
    if head is not None:
        meta |= {"channels": "left, right ear", "hrtf": hrtf.load(head).name}
    text = json.dumps([meta, count], sort_keys=True)
    return meta | {"key": hashlib.sha256(text.encode()).hexdigest()}


def _tidy(job: _Job) -> None:
    expected = {job.path(k).name for k in range(job.shards())}
    for path in job.folder.glob("*.array_record"):
        if path.name not in expected:
            raise ConfigError(f"{path} is a shard of other settings, expected a new folder")
    for path in job.folder.glob(".*.array_record.*.tmp"):  # a killed run's
        path.unlink()


def _make(job: _Job) -> list[dict]:
    """Makes the missing shards; returns the manifest entries of all."""
    entries: dict[int, dict] = {}
    with progress(f"scenes, {job.split}", job.count, "scenes") as advance:
        for k in range(job.shards()):
            entry = records.read_entry(job.path(k), len(job.indices(k)))
            if entry is not None:
                entries[k] = entry
                advance(entry["count"])
        missing = [k for k in range(job.shards()) if k not in entries]
        if not missing:
            return [entries[k] for k in sorted(entries)]
        with _one_thread_each(), _pool(min(job.scenes.workers, len(missing))) as pool:
            futures = {pool.submit(_make_shard, job, k): k for k in missing}
            try:
                for future in as_completed(futures):
                    entry = entries[futures[future]] = future.result()
                    advance(entry["count"])
            except BrokenProcessPool as error:
                raise ConfigError(
                    f"Scenes.workers is {job.scenes.workers}: a worker died, perhaps of too "
                    "little memory; whole shards are kept, run again with fewer"
                ) from error
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
    return [entries[k] for k in sorted(entries)]


def _pool(workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent)


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    # Spawned children read these when they import numpy, before any code of ours could set them.
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(_ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _die_with_parent() -> None:
    # A parent that was killed cannot stop its workers, and they would wait for work for ever.
    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@functools.lru_cache(maxsize=1)
def _bank(folder: Path) -> Bank:
    return Bank.load(folder)


def _make_shard(job: _Job, k: int) -> dict:
    bank = _bank(job.bank)
    clips = bank.clips(CLIPS[job.split])

    def rendered():
        for index in job.indices(k):
            spec = scenes.draw(job.scenes, clips, job.seed, job.split, index)
            if job.head is None:
                audio, scene = render.render(spec, bank.audio)
            else:
                audio, scene = binaural.render(spec, bank.audio, hrtf.load(job.head))
            yield records.to_int16(audio), scene

    return records.write_shard(job.path(k), rendered())
