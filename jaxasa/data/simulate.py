"""Draws, renders and stores the scenes of a split: in local processes, or on Apache Beam.

Shard k is a pure function of (scenes, bank, seed, split, count, format, k), and scenes are
rendered one by one: any number of workers, any runner and any number of interruptions give the
same files and the same manifest on one machine. manifest.json is written last; a folder
without it is unfinished, and the same call goes on with the shards that are missing.

    from jaxasa import config, cpu
    from jaxasa.data import simulate, sounds

    bank = sounds.build(config.Sounds("procedural"), "runs/mine/sounds", seed=0)
    ranges = config.Scenes(train=1000, dev=100, benchmark=100, workers=4)
    print(simulate.estimate(ranges, bank.folder, "train", seed=0, count=1000))
    scenes = simulate.simulate(ranges, bank.folder, "train", "runs/mine/scenes", 0, 1000)
    audio, description = scenes[0]  # int16 [T, 4]; see acoustics/scenes.py
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from jaxasa import config
from jaxasa.acoustics import scenes
from jaxasa.config import ConfigError
from jaxasa.core import cpu
from jaxasa.core.progress import progress
from jaxasa.data import formats, records
from jaxasa.data.formats import Format, Rendered
from jaxasa.data.sounds import Bank

VERSION = 2
CLIPS = {"train": "train", "dev": "dev", "benchmark": "test"}  # split of scenes -> of sounds
BATCH = 1  # scenes rendered at once: fixed, so that no neighbour can change a scene's bytes
SAMPLE, SAMPLE_SECONDS = 40, 4.0  # an estimate renders so many scenes, or for so long


@dataclasses.dataclass(frozen=True)
class Plan:
    """A data set to be: what its shards are made of, and where they go.

    key: a hash of all that decides a scene. A worker needs nothing beside the plan, and the
    folders of the bank and of the data set under the same paths.
    """

    scenes: config.Scenes
    bank: Path
    split: str
    folder: Path
    seed: int
    count: int
    format: str
    meta: dict

    @property
    def form(self) -> Format:
        return formats.find(self.format, self.scenes.engine)

    def shards(self) -> int:
        return -(-self.count // self.scenes.scenes_per_shard)

    def indices(self, k: int) -> range:
        return range(
            k * self.scenes.scenes_per_shard,
            min((k + 1) * self.scenes.scenes_per_shard, self.count),
        )

    def path(self, k: int) -> Path:
        # Shards of other settings, or half a data set of another machine, have other names.
        made = hashlib.sha256(json.dumps([self.meta["key"], self.meta["backend"]]).encode())
        name = f"{self.split}-{made.hexdigest()[:8]}-{k:05d}-of-{self.shards():05d}"
        return self.folder / f"{name}{self.form.suffix}"

    def make(self, k: int) -> dict:
        """The manifest entry of shard `k`: kept where it is whole, else rendered and written."""
        indices, path = self.indices(k), self.path(k)
        entry = self.form.read(path, len(indices))
        if entry is None:
            bank = _bank(self.bank)
            entry = self.form.write(path, self.rendered(indices, bank), bank.classes)
        return entry

    def rendered(self, indices: Iterable[int], bank: Bank) -> Iterator[Rendered]:
        clips = bank.clips(CLIPS[self.split])
        for index in indices:
            spec = scenes.draw(self.scenes, clips, self.seed, self.split, index)
            audio, scene = self.form.render(spec, bank.audio)
            yield records.to_int16(audio), scene

    def close(self, entries: Iterable[dict]) -> None:
        """Writes the manifest over all shards, which completes the data set."""
        ordered = sorted(entries, key=lambda entry: entry["file"])
        records.write_manifest(self.folder, self.meta, ordered)


def simulate(
    scenes: config.Scenes,
    bank_folder: Path | str,
    split: str,
    folder: Path | str,
    seed: int,
    count: int,
    format: str = "records",
    runner: str | None = None,
    options: Sequence[str] = (),
):
    """Renders `count` scenes of "train", "dev" or "benchmark" into `folder`.

    format: as formats.find has it; returned is what that format opens (`records.Records`).
    runner: of Apache Beam, with its pipeline `options` as on a command line; None: a pool of
    `scenes.workers` local processes. What an earlier run left is kept: a complete data set is
    opened, missing shards are made. Raises `ConfigError` when `folder` holds scenes of other
    settings, a worker dies, or Beam is not installed.
    """
    config.check(count >= 1, "count", count, "at least 1")
    plan = _plan(scenes, bank_folder, split, folder, seed, count, format)
    if (plan.folder / records.MANIFEST).exists():
        _check_same(plan)
        return plan.form.open(plan.folder)
    plan.folder.mkdir(parents=True, exist_ok=True)
    _tidy(plan)
    if runner is None:
        plan.close(_in_pool(plan))
    else:
        _beam().run(plan, runner, options)
    return plan.form.open(plan.folder)


def estimate(
    scenes: config.Scenes,
    bank_folder: Path | str,
    split: str,
    seed: int,
    count: int,
    format: str = "records",
) -> dict:
    """What `simulate` of the same arguments would cost, from up to 40 scenes made and thrown away.

    Returns scenes, hours (of audio), shards, bytes, core_hours, core_hours_95 (half the width of
    its 95 % interval over scenes) and sample (scenes measured, spread evenly over the data set).
    CPU time is counted, not the clock's, so a busy machine does not change the plan.
    """
    config.check(count >= 1, "count", count, "at least 1")
    with tempfile.TemporaryDirectory() as work:
        plan = _plan(scenes, bank_folder, split, work, seed, count, format)
        bank = _bank(plan.bank)
        chosen = np.unique(np.linspace(0, count - 1, min(count, SAMPLE)).astype(int)).tolist()
        next(plan.rendered(chosen[-1:], bank))  # compiles, and opens the bank
        spent, made = [], []
        begun = before = time.process_time()
        for index in np.random.default_rng(0).permutation(chosen).tolist():
            made += plan.rendered([index], bank)
            now = time.process_time()
            spent.append(now - before)
            before = now
            if now - begun > SAMPLE_SECONDS:
                break
        # A shard like those to be: some formats fill up each with zeros.
        shard = made[: scenes.scenes_per_shard]
        entry = plan.form.write(plan.path(0), shard, bank.classes)
        storing = (time.process_time() - before) / len(shard)
    each = float(np.mean(spent)) + storing
    spread = 1.96 * float(np.std(spent)) / len(spent) ** 0.5
    return {
        "scenes": count,
        "hours": count * scenes.seconds / 3600,
        "shards": plan.shards(),
        "bytes": round(entry["bytes"] / len(shard) * count),
        "core_hours": each * count / 3600,
        "core_hours_95": spread * count / 3600,
        "sample": len(made),
    }


def _plan(scenes, bank_folder, split: str, folder, seed: int, count: int, format: str) -> Plan:
    config.check(split in CLIPS, "split", split, "one of " + ", ".join(CLIPS))
    bank = Bank.load(bank_folder)
    meta = _meta(scenes, bank, split, seed, count, format)
    # Workers may run in another folder.
    places = Path(bank.folder).resolve(), Path(folder).resolve()
    return Plan(scenes, places[0], split, places[1], seed, count, format, meta)


def _meta(scenes: config.Scenes, bank: Bank, split: str, seed: int, count: int, format: str):
    meta = {
        "version": VERSION,
        "format": format,
        "split": split,
        "seed": seed,
        "count": count,
        "scenes": config.settings(scenes, "data"),
        "bank": bank.name,
        "bank_digest": bank.digest,
        "classes": list(bank.classes),
        **formats.find(format, scenes.engine).facts,
    }
    key = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
    return meta | {"key": key, "engine": scenes.engine, "backend": _backend(scenes.engine)}


def _backend(engine: str) -> dict:
    """What turns a spec into bytes: sounds are equal to the last bit only where this is."""
    others = () if engine == "jaxasa" else (engine,)
    libraries = ("numba", "numpy", "scipy", "soxr", *others)
    return {
        "renderer": " and ".join((*others, "numba")) + " on cpu",
        "batch": BATCH,
        "machine": platform.machine(),
        **{name: importlib.metadata.version(name) for name in libraries},
    }


def _check_same(plan: Plan) -> None:
    found = records.read_manifest(plan.folder)
    if found.get("key") == plan.meta["key"]:
        return
    # Through JSON, as the manifest was: tuples become lists.
    wanted = json.loads(json.dumps(plan.meta))
    apart = ("key", "engine", "backend")
    names = [n for n in wanted if n not in apart and found.get(n) != wanted[n]]
    raise ConfigError(
        f"{plan.folder} holds scenes of other settings ({', '.join(names)}), expected a new folder"
    )


def _tidy(plan: Plan) -> None:
    expected = {plan.path(k).name for k in range(plan.shards())}
    for path in plan.folder.glob(f"[!.]*{plan.form.suffix}"):
        if path.name not in expected:
            raise ConfigError(f"{path} is a shard of other settings, expected a new folder")
    for path in plan.folder.rglob(".*.tmp"):  # a killed run's
        path.unlink()


def _in_pool(plan: Plan) -> list[dict]:
    """Makes the missing shards in local processes; returns the manifest entries of all."""
    entries = []
    workers = min(plan.scenes.workers, plan.shards())
    title = f"scenes, {plan.split}"
    with (
        progress(title, plan.count, "scenes") as advance,
        cpu.one_thread_each(JAX_PLATFORMS="cpu"),
        _pool(workers) as pool,
    ):
        futures = [pool.submit(plan.make, k) for k in range(plan.shards())]
        try:
            for future in as_completed(futures):
                entries.append(future.result())
                advance(entries[-1]["count"])
        except BrokenProcessPool as error:
            raise ConfigError(
                f"Scenes.workers is {plan.scenes.workers}: a worker died, perhaps of too "
                "little memory; whole shards are kept, run again with fewer"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return entries


def _pool(workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent)


def _die_with_parent() -> None:
    # A parent that was killed cannot stop its workers, and they would wait for work for ever.
    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@functools.lru_cache(maxsize=1)
def _bank(folder: Path) -> Bank:
    return Bank.load(folder)


def _beam():
    try:
        from jaxasa.data import beam
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("apache_beam"):
            raise
        raise ConfigError(
            "--runner: Apache Beam is not installed, expected pip install 'jaxasa[beam]'"
        ) from None
    return beam
