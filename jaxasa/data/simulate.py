# SPDX-License-Identifier: Apache-2.0
"""Simulates data sets of scenes: in local processes, or on Apache Beam.

Both render the shards of a `ShardPlan` (data/shard_plan.py). manifest.json is written last: a
folder without it is incomplete, and the same call renders the missing shards.

    from jaxasa import config
    from jaxasa.data import simulate, sounds

    bank = sounds.build(config.Sounds("procedural"), "runs/mine/sounds", seed=0)
    scenes = config.Scenes(train=1000, dev=100, benchmark=100, workers=4)
    print(simulate.estimate(scenes, bank.folder, "train", seed=0, count=1000))
    data = simulate.simulate(scenes, bank.folder, "train", "runs/mine/scenes", 0, 1000)
    audio, description = data[0]  # int16 [N, 4]; see acoustics/scenes.py
"""

import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core import cpu
from jaxasa.core.progress import progress
from jaxasa.data import records, shard_plan
from jaxasa.data.shard_plan import ShardPlan

# An estimate renders this many scenes, or for this long.
ESTIMATE_SCENES = 40
ESTIMATE_SECONDS = 4.0


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
) -> Any:
    """Renders `count` scenes of "train", "dev" or "benchmark" into `folder`; opens the data set.

    format: a name for `formats.get_format`, whose `open` gives the result (`records.Records`).
    runner: of Apache Beam, with pipeline `options` as on its command line; None: a pool of
    `scenes.workers` local processes. Shards that are there are kept, and a complete data set is
    only opened. Raises ConfigError if `folder` holds scenes of other settings, a worker dies, or
    Beam is not installed.
    """
    plan = ShardPlan.make(scenes, bank_folder, split, folder, seed, count, format)
    if (plan.folder / records.MANIFEST).exists():
        plan.check_same_settings()
        return plan.format.open(plan.folder)
    plan.folder.mkdir(parents=True, exist_ok=True)
    plan.check_shards()
    if runner is None:
        plan.write_manifest(_render_in_pool(plan))
    else:
        _import_beam().render_shards(plan, runner, options)
    return plan.format.open(plan.folder)


def estimate(
    scenes: config.Scenes,
    bank_folder: Path | str,
    split: str,
    seed: int,
    count: int,
    format: str = "records",
) -> dict:
    """Estimates the cost of `simulate` with these arguments from up to 40 scenes, then discarded.

    Returns scenes, hours (of audio), shards, bytes, core_hours, core_hours_95 (half the width of
    its 95 % interval over scenes) and sample (scenes measured, spread evenly over the data set).
    Times are of the CPU, so that a busy machine gives the same result.
    """
    with tempfile.TemporaryDirectory() as work:
        plan = ShardPlan.make(scenes, bank_folder, split, work, seed, count, format)
        bank = shard_plan.load_bank(plan.bank)
        sample = np.linspace(0, count - 1, min(count, ESTIMATE_SCENES)).astype(int)
        sample = np.unique(sample).tolist()
        next(plan.render(sample[-1:], bank))  # compiles, and opens the bank
        times, rendered = [], []
        start = before = time.process_time()
        for index in np.random.default_rng(0).permutation(sample).tolist():
            rendered += plan.render([index], bank)
            now = time.process_time()
            times.append(now - before)
            before = now
            if now - start > ESTIMATE_SECONDS:
                break
        # At most a shard: some formats pad each with zeros.
        shard = rendered[: scenes.scenes_per_shard]
        entry = plan.format.write_shard(plan.path(0), shard, bank.classes)
        write_time = (time.process_time() - before) / len(shard)
    per_scene = float(np.mean(times)) + write_time
    half_width = 1.96 * float(np.std(times)) / len(times) ** 0.5
    return {
        "scenes": count,
        "hours": count * scenes.seconds / 3600,
        "shards": plan.num_shards(),
        "bytes": round(entry["bytes"] / len(shard) * count),
        "core_hours": per_scene * count / 3600,
        "core_hours_95": half_width * count / 3600,
        "sample": len(rendered),
    }


def _render_in_pool(plan: ShardPlan) -> list[dict]:
    """Renders the missing shards in local processes; returns the manifest entries of all."""
    entries = []
    workers = min(plan.scenes.workers, plan.num_shards())
    title = f"scenes, {plan.split}"
    with (
        progress(title, plan.count, "scenes") as advance,
        cpu.one_thread_each(JAX_PLATFORMS="cpu"),
        _pool(workers) as pool,
    ):
        futures = [pool.submit(plan.render_shard, k) for k in range(plan.num_shards())]
        try:
            for future in as_completed(futures):
                entries.append(future.result())
                advance(entries[-1]["count"])
        except BrokenProcessPool as error:
            raise ConfigError(
                f"Scenes.workers is {plan.scenes.workers}: a worker died, perhaps for lack of "
                "memory; complete shards are kept, expected fewer workers in the next run"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return entries


def _pool(workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_exit_with_parent)


def _exit_with_parent() -> None:
    # A parent that was killed cannot stop its workers, which would wait for work for ever.
    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _import_beam():
    try:
        from jaxasa.data import beam
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("apache_beam"):
            raise
        raise ConfigError(
            "--runner: Apache Beam is not installed, expected pip install 'jaxasa[beam]'"
        ) from None
    return beam
