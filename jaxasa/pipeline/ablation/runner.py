# SPDX-License-Identifier: Apache-2.0
"""`jaxasa bench ablate`: variants of a run, trained over seeds and compared on its benchmark.

DIR/config.gin, sounds/, scenes/, binaural/    as of any run, for all variants
DIR/ablation/KIND-KEY/    a work folder for each job (pipeline/ablation/plan.py), and its job.json
DIR/ablation/compiled/    XLA's compilation cache, which variants and seeds share
DIR/ablation.json         the result (bench/ablation.py); `jaxasa bench report` shows it

The command may be started several times on one folder: each process takes jobs that no other is
doing, waits if there is none, and resumes those of a process that died. Small models leave most of
a second core idle, so two processes of a core each are faster than one of two.
"""

import contextlib
import functools
import gc
import json
import os
import platform
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxasa import config
from jaxasa.bench import ablation, controls, score, suite
from jaxasa.bench import run as bench_run
from jaxasa.config import ConfigError
from jaxasa.core import files, workdir
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.core.provenance import made_by
from jaxasa.core.workdir import WorkFolder
from jaxasa.inference import qa
from jaxasa.models.asa import ASA
from jaxasa.pipeline import steps
from jaxasa.pipeline.ablation.log import Log
from jaxasa.pipeline.ablation.plan import Job, Load, Plan, audio_of, bindings_of
from jaxasa.stages.registry import STAGES
from jaxasa.train import checkpoint, loop

PAUSE = 2.0  # seconds between looks at the work of other processes
_ANSWERS = "answers"  # the one system of a job's predictions


def ablate(load: Load, folder: str | os.PathLike, dry_run: bool = False) -> dict:
    """Does the unfinished jobs of a run's ablation in `folder`; returns what ablation.json holds.

    load: bindings -> the run with these on top, and its gin text. dry_run: prints and returns
    the jobs, for which variants they are, and how long they may take; writes nothing.
    A variant that fails is named in "failed" of the result, and does not stop the others.
    Raises ConfigError for an invalid variant, and for a folder of another run.
    """
    whole = WorkFolder(folder)
    plan = Plan(load)
    log = Log(whole, plan.ablation.seconds)
    if dry_run:
        return _estimate(plan, log)
    whole.ablation.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with files.try_lock(whole.ablation, wait=True):
            with files.try_lock(whole.path) as is_first:
                if is_first:
                    workdir.claim(folder, plan.base, plan.text, (*workdir.SHARED, "name"))
            stack.enter_context(files.lock(whole.path, shared=True))
            if whole.config.read_text("utf-8") != plan.text:
                raise ConfigError(
                    f"{whole}: another `jaxasa bench ablate` is at work in it with other "
                    "settings, expected the same, or start when it has ended"
                )
        stack.enter_context(_compilation_cache(whole.ablation / "compiled"))
        return _Worker(plan, log, load, whole).run()


@dataclass
class _Worker:
    """One process of an ablation. failed: name of a job -> why it could not be done."""

    plan: Plan
    log: Log
    load: Load
    whole: WorkFolder
    failed: dict[str, str] = field(default_factory=dict)
    console: Console = field(default_factory=Console)

    def run(self) -> dict:
        """Does jobs until none is left, here or elsewhere; returns what ablation.json holds."""
        seed, is_waiting = None, False
        try:
            while jobs := self._unfinished():
                job = next((job for job in jobs if self._try(job)), None)
                if job is None:
                    if not is_waiting:
                        self.console.print("waiting for the jobs of other processes")
                    time.sleep(PAUSE)
                elif job.seed != seed:
                    # With each seed, so that first results can be looked at before all is done.
                    seed = job.seed
                    self._write_result()
                is_waiting = job is None
        finally:
            result = self._write_result()
        if result:
            ablation.print_table(result, self.console)
        for name, reason in result.get("failed", {}).items():
            print(f"failed: {name}: {reason}", file=sys.stderr)
        return result

    def _unfinished(self) -> list[Job]:
        jobs = self.plan.jobs.values()
        return [job for job in jobs if job.name not in self.failed and not self.log.is_done(job)]

    def _try(self, job: Job) -> bool:
        """Does a job, or marks it as failed; False if another process is doing it or a job that
        it needs."""
        needs = [j for j in (job.parent, *job.needs) if j]
        missing = [j.name for j in needs if not self.log.is_done(j)]
        lost = [name for name in missing if name in self.failed]
        if lost:
            self.failed[job.name] = self.failed[lost[0]]
            return True
        if missing:
            return False
        folder = job.work(self.whole).path
        folder.mkdir(exist_ok=True)
        with files.try_lock(folder) as is_free:
            if is_free and not self.log.is_done(job):
                self._do(job)
                gc.collect()
            return is_free

    def _do(self, job: Job) -> None:
        """Does a job; if it raises, notes why in `failed`."""
        number = list(self.plan.jobs).index(job.name) + 1
        title = f"[{number}/{len(self.plan.jobs)}] {_title(self.plan, job)}"
        title += _time_left(self.plan, self.log, job)
        self.console.print(title, markup=False, highlight=False, soft_wrap=True)
        try:
            with self.log.record(job):
                _do(job, self.load, self.whole)
        except loop.Preempted:
            raise
        except Exception as error:
            # One variant's error must not end the others; it is named again at the end.
            reason = " ".join(str(error).split())
            if not isinstance(error, ConfigError):
                traceback.print_exc()
                reason = f"{type(error).__name__}: {reason}"
            self.failed[job.name] = reason = f"{job.name}: {reason}"
            print(f"jaxasa: {reason}; going on with the others", file=sys.stderr)

    def _write_result(self) -> dict:
        """Compares the answers so far; writes ablation.json and returns it, {} without any."""
        folder = self.plan.suite(self.plan.ablation.base).suite(self.whole)
        correct: dict[str, dict[int, np.ndarray]] = {}
        items = None
        reasons = {}
        for (name, seed), job in self.plan.answers.items():
            if self.log.is_done(job):  # if not here, then by another process
                own = suite.load(self.plan.suite(name).suite(self.whole))
                items = suite.load(folder) if items is None else items
                ablation.check_same_items(own, items, name)
                path = job.work(self.whole).predictions / f"{_ANSWERS}.jsonl"
                answers = score.read_predictions(path, own)
                correct.setdefault(name, {})[seed] = score.correctness(own, answers)
            elif job.name in self.failed:
                reasons.setdefault(name, f"seed {seed}: {self.failed[job.name]}")
        if not correct and not reasons:
            return {}
        result: dict = {"base": self.plan.ablation.base, "seeds": list(self.plan.ablation.seeds)}
        if items is not None:
            facts = suite.manifest(folder)
            names = ("split", "items", "levels", "scenes", "sounds", "seed", "sha256")
            result["suite"] = {name: facts[name] for name in names}
            samples = self.plan.base.bench.bootstrap_samples
            compared = ablation.compare(items, correct, self.plan.ablation.base, samples)
            result["variants"] = {
                name: scores | describe_variant(self.plan.runs[name], self.plan)
                for name, scores in compared.items()
            }
            result["matched"] = ablation.compare_projectors(result["variants"])
        spent: dict[str, float] = {}
        for job in self.plan.jobs.values():
            spent[job.kind] = round(spent.get(job.kind, 0.0) + self.log.seconds(job), 1)
        result |= {"seconds": spent | {"total": round(sum(spent.values()), 1)}, "failed": reasons}
        result["made_by"] = made_by()
        files.atomic_write_json(self.whole.ablation_result, result)
        return result


def _do(job: Job, load: Load, whole: WorkFolder) -> None:
    work = job.work(whole)
    if job.kind == "sounds":
        steps.build_sound_bank(job.run, whole)
    elif job.split:
        steps.render_scenes(job.run, whole, job.split)
    elif job.kind == "suite":
        _link_data(work, whole)
        steps.build_suite(job.run, work, job.run.ablation.split)
    elif job.kind == "answers":
        _answer(job, whole)
    else:
        run, text = load(bindings_of(job, whole))
        _link_data(work, whole)
        _remove_other_model(work, run)
        if job.parent is not None:
            shutil.copyfile(job.parent.work(whole).tokenizer, work.tokenizer)
        files.atomic_write_text(work.config, text)
        steps.train(run, work, job.stage, text)


def _link_data(work: WorkFolder, whole: WorkFolder) -> None:
    """Links sounds and scenes of the ablation into a job's work folder."""
    work.path.mkdir(parents=True, exist_ok=True)
    for source in whole.data_folders:
        link = work.path / source.name
        if source.is_dir() and not link.is_symlink():
            # Relative, so that the ablation may be moved.
            os.symlink(os.path.relpath(source, work.path), link)


def _remove_other_model(work: WorkFolder, run: config.Run) -> None:
    """Removes a job's checkpoints if a variant began it with settings outside the job's key.

    Their result would be the same, but a checkpoint is resumed only under its whole config.
    """
    for meta in work.checkpoints.glob(f"*/{checkpoint.META}"):
        model = config.model_from_dict(json.loads(meta.read_text("utf-8"))["model"])
        if model != run.model:
            shutil.rmtree(work.checkpoints)
            shutil.rmtree(work.logs(meta.parent.name), ignore_errors=True)


def _answer(job: Job, whole: WorkFolder) -> None:
    """Answers the suite with a variant's last stage; writes the job's predictions."""
    items = job.needs[0].suite(whole)
    trained = job.parent.work(whole).checkpoint(job.parent.stage)
    model = qa.QaModel.load(trained, job.run.bench.option_fallback)
    system = controls.System(job.parent.stage, "mono" if job.audio == "mono" else "full")
    systems, digests = {_ANSWERS: system}, {system.stage: model.digest}
    models = {system.stage: model}
    bench_run.evaluate(systems, models, items, job.work(whole).path, job.run.bench, digests)


def describe_variant(run: config.Run, plan: Plan) -> dict:
    """A variant's parameters, audio tokens of a scene, and number of scenes it is trained on."""
    sizes = _part_sizes(run.model)
    stages = {s: getattr(run, s) for s in run.stages if STAGES[s].reads_scenes}
    scenes = {name: stage.steps * stage.batch_size for name, stage in stages.items()}
    if plan.ablation.projector_steps and "spatial" in run.stages:
        scenes["projector"] = plan.ablation.projector_steps * run.spatial.batch_size
    return {
        "audio": audio_of(run),
        "kind": run.model.projector.kind,
        "drop_experts": list(run.model.projector.drop_experts),
        "stages": list(run.stages),
        "parameters": {"projector": sizes["projector"], "all": sum(sizes.values())},
        "tokens": ASA(run.model).num_audio_tokens(round(run.scenes.seconds * SAMPLE_RATE)),
        "scenes": scenes,
    }


@functools.cache  # tracing takes a second
def _part_sizes(model: config.Model) -> dict[str, int]:
    """Number of parameters of each part of a model."""
    shapes = jax.eval_shape(ASA(model).init, jax.random.key(0))
    return {part: sum(x.size for x in jax.tree.leaves(tree)) for part, tree in shapes.items()}


def _title(plan: Plan, job: Job) -> str:
    variants = list(dict.fromkeys(name for name, _ in plan.users[job.name]))
    whose = variants[0] if len(variants) == 1 else f"{len(variants)} variants"
    title = f"{job.kind} {job.split}".strip()
    title += {"foa": "", "mono": " (mono)", "binaural": " (binaural)"}[job.audio]
    return title + ("" if job.seed is None else f" for {whose}, seed {job.seed}")


def _time_left(plan: Plan, log: Log, job: Job) -> str:
    """Estimates for the job and for all that are left, as far as they are known."""
    measured = log.seconds_per_unit(plan.jobs.values())
    own = log.remaining(job, measured)
    left = [log.remaining(j, measured) for j in plan.jobs.values()]
    total = sum(seconds for seconds in left if seconds is not None)
    text = "" if own is None else f": about {own:.0f} s"
    more = " or more" if None in left else ""
    return f"{text}; {duration(total)}{more} of work left" if total else text


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def _estimate(plan: Plan, log: Log) -> dict:
    """Prints and returns the jobs, the variants that they are for, and estimates of their time.

    Jobs of a kind that variants share are a row for each set of variants; those that each variant
    has for itself are one row together.
    """
    measured = log.seconds_per_unit(plan.jobs.values())
    groups: dict[tuple, dict] = {}
    for job in plan.jobs.values():
        variants = tuple(dict.fromkeys(name for name, _ in plan.users[job.name]))
        kind, is_own = f"{job.kind} {job.split}".strip(), len(variants) == 1
        group = (kind, job.audio, is_own or variants)
        row = groups.setdefault(group, _row(job, kind, is_own, measured))
        row["for"] = list(dict.fromkeys([*row["for"], *variants]))
        if job.is_training:
            differs = [*row["differs_in"], *plan.differences_from_base(job)]
            row["differs_in"] = list(dict.fromkeys(differs))
        row["jobs"] += 1
        row["done"] += log.is_done(job)
        left = log.remaining(job, measured)
        is_unknown = None in (row["seconds"], left)
        row["seconds"] = None if is_unknown else round(row["seconds"] + left, 1)
    rows = list(groups.values())
    result = {
        "rows": rows,
        "jobs": len(plan.jobs),
        "jobs_unshared": plan.unshared_jobs(),
        "seconds": round(sum(row["seconds"] or 0.0 for row in rows), 1),
        "unknown": [row["kind"] for row in rows if row["seconds"] is None],
        "variants": {name: describe_variant(run, plan) for name, run in plan.runs.items()},
    }
    result["matched"] = ablation.compare_projectors(result["variants"])
    _print_estimate(result, list(plan.runs), Console())
    return result


def _row(job: Job, kind: str, is_own: bool, measured: Mapping[str, float]) -> dict:
    row: dict = {"kind": kind, "audio": job.audio, "for": [], "per_variant": is_own}
    row |= {"differs_in": [], "jobs": 0, "done": 0, "seconds": 0.0}
    return row | {"measured": job.kind in measured}


def _print_estimate(result: dict, names: list[str], console: Console) -> None:
    table = Table("job", "audio", "for", "differs in", "jobs", "done", "s left")
    for column in table.columns:
        column.overflow = "fold"
    for row in result["rows"]:
        others = [name for name in names if name not in row["for"]]
        whose = ", ".join(row["for"])
        if len(others) < len(row["for"]) and not row["per_variant"]:
            whose = f"all but {', '.join(others)}" if others else "all variants"
        elif row["per_variant"] and len(row["for"]) > 1:
            whose = f"each of {whose}"
        seconds = "?" if row["seconds"] is None else f"{row['seconds']:.0f}"
        seconds += "" if row["measured"] or row["seconds"] is None else "*"
        counts = str(row["jobs"]), str(row["done"])
        differs = ", ".join(row["differs_in"])
        table.add_row(row["kind"], row["audio"], whose, differs, *counts, seconds)
    console.print(table)
    more = f", and the time of {', '.join(result['unknown'])}" if result["unknown"] else ""
    total = f"{result['jobs']} jobs, {result['jobs_unshared']} without sharing; "
    total += f"{duration(result['seconds'])}{more} left; *: by Ablation.seconds, not measured yet"
    for line in filter(None, (total, ablation.describe_matching(result["matched"]))):
        console.print(line, soft_wrap=True, highlight=False)


@contextlib.contextmanager
def _compilation_cache(folder: Path) -> Iterator[None]:
    """Keeps compiled programs, which seeds share, unless the user keeps them elsewhere.

    By the machine's name, since another one may lack instructions of this one.
    """
    name = "jax_compilation_cache_dir"
    before = getattr(jax.config, name)
    if before is None:
        jax.config.update(name, str(folder.resolve() / (platform.node() or "here")))
    try:
        yield
    finally:
        jax.config.update(name, before)
