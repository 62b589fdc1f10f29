"""The main job: sounds, scenes, training stages, benchmark, export, report.

Each step skips what is finished; a training stage goes on from its last checkpoint. What a
step took is added up over interruptions in `steps.json` of the work folder:
    {"sft": {"seconds": 183.2, "done": true}, ..., "peak_memory_gb": 2.1}
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core import files, workdir
from jaxasa.pipeline import steps

TITLES = {
    "text": "stage 0: the decoder learns text",
    "spatial": "stage 1: the spatial encoder learns sources and rooms",
    "align": "stage 2: the projector learns captions",
    "sft": "stage 3: questions",
    "grpo": "stage 4: policy optimisation",
}


@dataclass(frozen=True)
class Step:
    """A step of the main job: what it does, and the file or folder that it leaves."""

    name: str
    title: str
    work: Callable[[], object]
    output: Path


def plan(run: config.Run, folder: Path, text: str) -> list[Step]:
    """The steps of `run` in `folder`, in order; `text` is the resolved gin config."""
    found = [
        Step(
            "sounds",
            f"sound bank ({run.sounds.bank})",
            lambda: print(steps.sound_bank(run, folder).table()),
            folder / "sounds" / "bank.json",
        )
    ]
    for split in steps.SPLITS:
        found.append(
            Step(
                f"scenes_{split}",
                _scenes_title(run, split),
                partial(steps.scenes, run, folder, split),
                workdir.scenes_of(run, folder, split) / "manifest.json",
            )
        )
    for stage in run.stages:
        found.append(
            Step(
                stage,
                TITLES[stage],
                partial(steps.train, run, folder, stage, text),
                folder / "checkpoints" / stage,
            )
        )
    return found + [
        Step(
            "suite",
            "benchmark: items",
            lambda: steps.build_suite(run, folder, "benchmark"),
            folder / "benchmark" / "manifest.json",
        ),
        Step(
            "benchmark",
            "benchmark: answers of the model and its controls",
            lambda: steps.benchmark(run, folder, "benchmark"),
            folder / "results.json",
        ),
        Step("export", "export", lambda: steps.write_export(run, folder), folder / "export"),
        Step(
            "report",
            "report",
            lambda: steps.write_report(folder, "benchmark"),
            folder / "report" / "index.html",
        ),
    ]


def _scenes_title(run: config.Run, split: str) -> str:
    if split == "train" and run.scenes.rir_rooms:
        return f"{run.scenes.rir_rooms} rooms, to mix scenes from (train)"
    return f"{getattr(run.scenes, split)} scenes ({split})"


def demo(run: config.Run, folder: str | Path, text: str) -> dict:
    """Runs what is not finished of the main job in `folder`; returns what results.json holds.

    Raises ConfigError where `folder` belongs to another config, or where a stage's checkpoints
    are gone while a later stage still has those that were trained from them.
    """
    folder = Path(folder)
    begun = [name for name in run.stages if (folder / "checkpoints" / name).is_dir()]
    scored = ["bench"] if (folder / "results.json").is_file() else []
    workdir.claim(folder, run, text, (*workdir.SHARED, *begun, *scored))
    with files.alone(folder):
        return _work(run, folder, text)


def _work(run: config.Run, folder: Path, text: str) -> dict:
    console = Console()
    todo = plan(run, folder, text)
    log = _Log(folder / "steps.json", run.scenes.workers)
    for number, step in enumerate(todo, 1):
        heading = f"{number}/{len(todo)} {step.title}"
        if log.is_done(step):
            console.print(f"{heading}: done before, {log.seconds(step.name):.0f} s")
            continue
        if step.name in config.STAGES:
            _forget_later(todo[number:], step, log)
        console.rule(f"[bold]{heading}", align="left")
        try:
            log.work(step)
        finally:
            _add_costs(folder, log)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    _summary(console, folder, results, run.stages[-1])
    return results


class _Log:
    """steps.json: which steps are done and what they cost."""

    def __init__(self, path: Path, workers: int):
        self._path, self._workers = path, workers
        try:
            self._steps = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError as error:
            raise ConfigError(f"{path}: {error}, expected JSON; remove it to go on") from None

    def is_done(self, step: Step) -> bool:
        return self._steps.get(step.name, {}).get("done", False) and step.output.exists()

    def seconds(self, name: str) -> float:
        return self._steps.get(name, {}).get("seconds", 0.0)

    def costs(self) -> dict:
        """The "seconds" and "peak_memory_gb" of results.json."""
        seconds = {n: round(self.seconds(n), 1) for n in self._steps if n != "peak_memory_gb"}
        seconds["total"] = round(sum(seconds.values()), 1)
        return {"seconds": seconds, "peak_memory_gb": round(self._steps["peak_memory_gb"], 2)}

    def work(self, step: Step) -> None:
        """Does the step. Its time counts even when it is interrupted."""
        self.forget(step.name)  # what is there may be of an earlier time
        start, finished = time.monotonic(), False
        try:
            step.work()
            finished = True
        finally:
            spent = self.seconds(step.name) + time.monotonic() - start
            self._steps[step.name] = {"seconds": spent, "done": finished}
            before = self._steps.get("peak_memory_gb", 0.0)
            self._steps["peak_memory_gb"] = max(before, _peak_memory(self._workers))
            self._save()

    def forget(self, name: str) -> None:
        """The step counts as not done; what it took before counts on."""
        if name in self._steps:
            self._steps[name]["done"] = False
            self._save()

    def _save(self) -> None:
        files.write_text(self._path, json.dumps(self._steps, indent=1) + "\n")


def _forget_later(later: list[Step], step: Step, log: _Log) -> None:
    """What was made from an earlier state of this stage must not be taken for finished."""
    for after in later:
        if after.name in config.STAGES and log.is_done(after):
            raise ConfigError(
                f"{step.output} is unfinished or gone, but {after.output} was trained from it: "
                f"remove {after.output} or use another --workdir"
            )
        log.forget(after.name)


def _peak_memory(workers: int) -> float:
    """GB (1e9 bytes), at most: peaks of this process and of `workers` times the largest child."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    return (own + workers * child) * unit / 1e9


def _add_costs(folder: Path, log: _Log) -> None:
    path = folder / "results.json"
    if path.is_file():
        results = json.loads(path.read_text(encoding="utf-8")) | log.costs()
        files.write_text(path, json.dumps(results, indent=1) + "\n")


def _summary(console: Console, folder: Path, results: dict, stage: str) -> None:
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
    costs = Table("step", "seconds", title="time")
    for name, seconds in results["seconds"].items():
        costs.add_row(name, f"{seconds:.0f}")
    console.print(costs)
    console.print(
        f"sounds: {results['benchmark']['sounds']}; peak memory {results['peak_memory_gb']:.1f} GB"
    )
    audio = next(iter(sorted((folder / "benchmark").rglob("*.flac"))), "scene.wav")
    for line in (
        f"report    {folder / 'report' / 'index.html'}",
        f"results   {folder / 'results.json'}",
        f"model     {folder / 'export'}",
        f"try       jaxasa ask {folder / 'export'} {audio} 'Which sound is on the left?'",
        f"          jaxasa ask {folder / 'checkpoints' / stage} {audio} "
        "'How many sounds are there?' --json answer.json",
    ):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
