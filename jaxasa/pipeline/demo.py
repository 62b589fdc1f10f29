# SPDX-License-Identifier: Apache-2.0
"""`jaxasa demo`: sounds, scenes, training stages, benchmark, export, report.

Finished steps are skipped; a training stage resumes from its last checkpoint. What a step has
taken is added up over interruptions in `steps.json` of the work folder:
    {"sft": {"seconds": 183.2, "cpu_seconds": 351.0, "done": true}, ..., "peak_memory_gb": 2.1}
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core import files, workdir
from jaxasa.core.workdir import WorkFolder
from jaxasa.pipeline import steps
from jaxasa.stages.registry import STAGES


@dataclass(frozen=True)
class Step:
    """A step of the pipeline: `work` does it; `output` is the file or folder that it leaves."""

    name: str
    title: str
    work: Callable[[], object]
    output: Path


def list_steps(run: config.Run, work: WorkFolder, text: str) -> list[Step]:
    """The steps of `run` in `work`, in order; `text` is the resolved gin config."""
    before = [
        Step(
            "sounds",
            f"sound bank ({run.sounds.bank})",
            lambda: print(steps.build_sound_bank(run, work).table()),
            work.sounds / "bank.json",
        )
    ]
    for split in config.SPLITS:
        before.append(
            Step(
                f"scenes_{split}",
                _scenes_title(run, split),
                partial(steps.render_scenes, run, work, split),
                work.scenes_of(run, split) / "manifest.json",
            )
        )
    for stage in run.stages:
        training = partial(steps.train, run, work, stage, text)
        before.append(Step(stage, STAGES[stage].title, training, work.checkpoint(stage)))
    split = "benchmark"
    return before + [
        Step(
            "suite",
            "benchmark: items",
            partial(steps.build_suite, run, work, split),
            work.benchmark / "manifest.json",
        ),
        Step(
            "benchmark",
            "benchmark: answers of the model and its controls",
            partial(steps.run_benchmark, run, work, split),
            work.results,
        ),
        Step("export", "export", partial(steps.write_export, run, work), work.export),
        Step("report", "report", partial(steps.write_report, work, split), work.report),
    ]


def _scenes_title(run: config.Run, split: str) -> str:
    if split == "train" and run.scenes.rir_rooms:
        return f"room impulse responses of {run.scenes.rir_rooms} rooms ({split})"
    return f"{getattr(run.scenes, split)} scenes ({split})"


def run_demo(run: config.Run, folder: str | os.PathLike, text: str) -> dict:
    """Runs the unfinished steps in a work folder; returns what results.json holds.

    Raises ConfigError if `folder` belongs to another config, or if a stage's checkpoints are gone
    while a later stage still has those that were trained from them.
    """
    work = WorkFolder(folder)
    begun = [stage for stage in run.stages if work.checkpoint(stage).is_dir()]
    scored = ["bench"] if work.results.is_file() else []
    workdir.claim(folder, run, text, (*workdir.SHARED, *begun, *scored))
    with files.lock(work.path):
        return _run_steps(run, work, text)


def _run_steps(run: config.Run, work: WorkFolder, text: str) -> dict:
    console = Console()
    todo = list_steps(run, work, text)
    log = _Log(work.steps, run.scenes.workers)
    for number, step in enumerate(todo, 1):
        heading = f"{number}/{len(todo)} {step.title}"
        if log.is_done(step):
            console.print(f"{heading}: already done, {log.spent(step.name, 'seconds'):.0f} s")
            continue
        if step.name in STAGES:
            _invalidate(todo[number:], step, log)
        console.rule(f"[bold]{heading}", align="left")
        try:
            log.run(step)
        finally:
            if work.results.is_file():
                files.atomic_write_json(work.results, steps.read_results(work) | log.costs())
    results = steps.read_results(work)
    _print_summary(console, work, results, run.stages[-1])
    return results


class _Log:
    """steps.json: which steps are done and what they cost."""

    def __init__(self, path: Path, workers: int):
        self._path, self._workers = path, workers
        try:
            self._steps = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError as error:
            raise ConfigError(
                f"{path}: {error}, expected JSON; remove the file and run again"
            ) from None

    def is_done(self, step: Step) -> bool:
        return self._steps.get(step.name, {}).get("done", False) and step.output.exists()

    def spent(self, name: str, unit: str) -> float:
        """ "seconds" or "cpu_seconds" of a step, over all runs of it."""
        return self._steps.get(name, {}).get(unit, 0.0)

    def costs(self) -> dict:
        """The "seconds", "cpu_seconds" and "peak_memory_gb" of results.json."""
        costs: dict = {}
        names = [name for name in self._steps if name != "peak_memory_gb"]
        for unit in ("seconds", "cpu_seconds"):
            costs[unit] = {name: round(self.spent(name, unit), 1) for name in names}
            costs[unit]["total"] = round(sum(costs[unit].values()), 1)
        return costs | {"peak_memory_gb": round(self._steps["peak_memory_gb"], 2)}

    def run(self, step: Step) -> None:
        """Does a step. Its time counts even if it is interrupted."""
        self.invalidate(step.name)  # its output may be there from an earlier time
        start, cpu_start, is_done = time.monotonic(), _cpu_seconds(), False
        try:
            step.work()
            is_done = True
        finally:
            self._steps[step.name] = {
                "seconds": self.spent(step.name, "seconds") + time.monotonic() - start,
                "cpu_seconds": self.spent(step.name, "cpu_seconds") + _cpu_seconds() - cpu_start,
                "done": is_done,
            }
            before = self._steps.get("peak_memory_gb", 0.0)
            self._steps["peak_memory_gb"] = max(before, _peak_memory_gb(self._workers))
            self._save()

    def invalidate(self, name: str) -> None:
        """Marks a step as not done; the time that it has taken still counts."""
        if name in self._steps:
            self._steps[name]["done"] = False
            self._save()

    def _save(self) -> None:
        files.atomic_write_json(self._path, self._steps)


def _invalidate(later: Sequence[Step], step: Step, log: _Log) -> None:
    """Marks the steps after a stage that is trained (again) as not done.

    Raises ConfigError if a later stage has a checkpoint: it was trained from another state.
    """
    for after in later:
        if after.name in STAGES and log.is_done(after):
            raise ConfigError(
                f"{step.output} is unfinished or gone, but {after.output} was trained from it: "
                f"remove {after.output} or use another --workdir"
            )
        log.invalidate(after.name)


def _cpu_seconds() -> float:
    """CPU time, user and system, of this process and of its children that have ended."""
    return sum(os.times()[:4])


def _peak_memory_gb(workers: int) -> float:
    """Upper bound in GB (1e9 bytes): own peak, and `workers` times that of the largest child."""
    import resource  # not on Windows, where `--help` should work nevertheless

    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    return (own + workers * child) * unit / 1e9


def _print_summary(console: Console, work: WorkFolder, results: dict, stage: str) -> None:
    levels = ("overall", "L1", "L2", "L3")
    table = Table("system", *levels, title="accuracy in %, with 95 % intervals")
    for name, scores in results["systems"].items():
        cells = []
        for level in levels:
            a = scores[level]
            low, high = 100 * a["low"], 100 * a["high"]
            cells.append(f"{100 * a['accuracy']:.1f} [dim]({low:.0f}-{high:.0f})[/dim]")
        table.add_row(name, *cells)
    console.print(table)
    costs = Table("step", "seconds", "CPU seconds", title="time")
    for name, seconds in results["seconds"].items():
        costs.add_row(name, f"{seconds:.0f}", f"{results['cpu_seconds'][name]:.0f}")
    console.print(costs)
    console.print(
        f"sounds: {results['benchmark']['sounds']}; peak memory {results['peak_memory_gb']:.1f} GB"
    )
    audio = next(iter(sorted(work.benchmark.rglob("*.flac"))), "scene.wav")
    for line in (
        f"report    {work.report}",
        f"results   {work.results}",
        f"model     {work.export}",
        f"try       jaxasa ask {work.export} {audio} 'Which sound is on the left?'",
        f"          jaxasa ask {work.checkpoint(stage)} {audio} "
        "'How many sounds are there?' --json answer.json",
    ):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
