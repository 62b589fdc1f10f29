"""`jaxasa bench ablate`: variants of a run, trained over seeds and compared on its benchmark.

DIR/config.gin, sounds/, scenes/, binaural/    as of any run, for all variants
DIR/ablation/KIND-KEY/    a work folder for each job (pipeline/ablation/plan.py), with its time in job.json
DIR/ablation/compiled/    what XLA has compiled, which variants and seeds have in common
DIR/ablation.json         the result (bench/ablation.py); `jaxasa bench report` shows it

The command may be started several times on one folder: each process takes jobs that no other is
at, waits where there is none, and goes on with those of one that died. Small models leave most of
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
from jaxasa.inference import qa
from jaxasa.models.asa import ASA
from jaxasa.pipeline import steps
from jaxasa.pipeline.ablation.log import Log
from jaxasa.pipeline.ablation.plan import DEPENDS, Job, Load, Plan, bindings_of, hears
from jaxasa.train import loop

PAUSE = 2.0  # seconds between looks at what other processes have done
_DATA = ("sounds", "scenes", "binaural", "responses")


def ablate(load: Load, folder: str | Path, dry_run: bool = False) -> dict:
    """Does what is not done of the ablation of a run in `folder`; returns what ablation.json holds.

    load: bindings -> the run with these on top, and its gin text. dry_run: prints what would be
    done, for which variants, and how long it may take, and returns that; writes nothing.
    A variant that fails is named in "failed" of the result, and does not stop the others.
    Raises ConfigError for a variant that cannot be, and for a folder of another run.
    """
    folder = Path(folder)
    plan = Plan(load)
    log = Log(folder, plan.ablation.seconds)
    if dry_run:
        return _foretell(plan, log)
    for part in (".", "ablation"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        with files.try_lock(folder / "ablation", wait=True):
            with files.try_lock(folder) as first:
                if first:
                    workdir.claim(folder, plan.base, plan.text, (*workdir.SHARED, "name"))
            held.enter_context(files.lock(folder, shared=True))
            if (folder / "config.gin").read_text("utf-8") != plan.text:
                raise ConfigError(
                    f"{folder}: another `jaxasa bench ablate` is at work in it with other "
                    "settings, expected the same, or start when it has ended"
                )
        held.enter_context(_compiled(folder / "ablation" / "compiled"))
        return _Work(plan, log, load, folder).all()


@dataclass
class _Work:
    """What one process does of an ablation. failed: why jobs could not be done."""

    plan: Plan
    log: Log
    load: Load
    folder: Path
    failed: dict[str, str] = field(default_factory=dict)
    console: Console = field(default_factory=Console)

    def all(self) -> dict:
        """Does jobs until none is left, here or elsewhere; returns what ablation.json holds."""
        seed, waits = None, False
        try:
            while left := self._left():
                job = next((job for job in left if self._settle(job)), None)
                if job is None:
                    if not waits:
                        self.console.print("waiting for what other processes are at")
                    time.sleep(PAUSE)
                elif job.seed != seed:
                    # With each seed, so that what is there can be looked at before all is done.
                    seed = job.seed
                    self._write()
                waits = job is None
        finally:
            result = self._write()
        if result:
            ablation.print_table(result, self.console)
        for name, why in result.get("failed", {}).items():
            print(f"failed: {name}: {why}", file=sys.stderr)
        return result

    def _left(self) -> list[Job]:
        jobs = self.plan.jobs.values()
        return [job for job in jobs if job.name not in self.failed and not self.log.is_done(job)]

    def _settle(self, job: Job) -> bool:
        """Does a job, or finds that it cannot be done; False where another process is at it or
        at what it needs."""
        needs = [j for j in (job.before, *job.needs) if j]
        missing = [j.name for j in needs if not self.log.is_done(j)]
        lost = [name for name in missing if name in self.failed]
        if lost:
            self.failed[job.name] = self.failed[lost[0]]
            return True
        if missing:
            return False
        place = job.place(self.folder)
        place.mkdir(exist_ok=True)
        with files.try_lock(place) as free:
            if free and not self.log.is_done(job):
                self._attempt(job)
                gc.collect()
            return free

    def _attempt(self, job: Job) -> None:
        """Does a job, or says in `failed` why it failed."""
        number = list(self.plan.jobs).index(job.name) + 1
        title = f"[{number}/{len(self.plan.jobs)}] {_title(self.plan, job)}"
        ahead = title + _ahead(self.plan, self.log, job)
        self.console.print(ahead, markup=False, highlight=False, soft_wrap=True)
        try:
            with self.log.timed(job):
                _do(job, self.load, self.folder)
        except loop.Preempted:
            raise
        except Exception as error:
            # No variant is to be lost for another's fault; what it was is told at the end, too.
            if not isinstance(error, ConfigError):
                traceback.print_exc()
            said = " ".join(str(error).split())
            if not isinstance(error, ConfigError):
                said = f"{type(error).__name__}: {said}"
            self.failed[job.name] = said = f"{job.name}: {said}"
            print(f"jaxasa: {said}; going on with the others", file=sys.stderr)

    def _write(self) -> dict:
        """Compares what is answered so far; writes ablation.json and returns it, {} for nothing."""
        place = self.plan.suite(self.plan.ablation.base).suite(self.folder)
        right: dict[str, dict[int, np.ndarray]] = {}
        items = None
        reasons = {}
        for (name, seed), job in self.plan.answers.items():
            if self.log.is_done(job):  # if not here, then by another process
                own = suite.load(self.plan.suite(name).suite(self.folder))
                items = suite.load(place) if items is None else items
                ablation.check_same_items(own, items, name)
                said = score.read_predictions(job.place(self.folder) / "predictions" / "answers.jsonl", own)
                right.setdefault(name, {})[seed] = score.correctness(own, said)
            elif job.name in self.failed:
                reasons.setdefault(name, f"seed {seed}: {self.failed[job.name]}")
        if not right and not reasons:
            return {}
        result: dict = {"base": self.plan.ablation.base, "seeds": list(self.plan.ablation.seeds)}
        if items is not None:
            facts = suite.manifest(place)
            names = ("split", "items", "levels", "scenes", "sounds", "seed", "sha256")
            result["suite"] = {name: facts[name] for name in names}
            samples = self.plan.base.bench.bootstrap_samples
            compared = ablation.compare(items, right, self.plan.ablation.base, samples)
            result["variants"] = {
                n: a | about(self.plan.runs[n], self.plan) for n, a in compared.items()
            }
            result["matched"] = ablation.compare_projectors(result["variants"])
        spent: dict[str, float] = {}
        for job in self.plan.jobs.values():
            spent[job.kind] = round(spent.get(job.kind, 0.0) + self.log.seconds(job), 1)
        result |= {"seconds": spent | {"total": round(sum(spent.values()), 1)}, "failed": reasons}
        files.atomic_write_json(self.folder / ablation.FILE, result)
        return result


def _do(job: Job, load: Load, folder: Path) -> None:
    place = job.place(folder)
    if job.kind == "sounds":
        steps.sound_bank(job.run, folder)
    elif job.split:
        steps.scenes(job.run, folder, job.split)
    elif job.kind == "suite":
        _link_data(place, folder)
        steps.build_suite(job.run, place, job.run.ablation.split)
    elif job.kind == "answers":
        _answer(job, folder)
    else:
        run, text = load(bindings_of(job, folder))
        _link_data(place, folder)
        _forget_another(place, run)
        if job.before is not None:
            shutil.copyfile(job.before.place(folder) / "tokenizer.json", place / "tokenizer.json")
        files.atomic_write_text(place / "config.gin", text)
        steps.train(run, place, job.stage, text)


def _link_data(place: Path, folder: Path) -> None:
    """Makes sounds and scenes of the ablation those of a job's work folder, too."""
    place.mkdir(parents=True, exist_ok=True)
    for name in _DATA:
        if (folder / name).is_dir() and not (place / name).is_symlink():
            # Relative, so that the ablation may be moved.
            os.symlink(os.path.relpath(folder / name, place), place / name)


def _forget_another(place: Path, run: config.Run) -> None:
    """Removes what was begun of a job by another variant's settings that its key does not hold.

    Its result would be the same, but a checkpoint goes on only under its whole config.
    """
    for checkpoint in place.glob("checkpoints/*/meta.json"):
        begun = config.model_from_dict(json.loads(checkpoint.read_text("utf-8"))["model"])
        if begun != run.model:
            shutil.rmtree(place / "checkpoints")
            shutil.rmtree(place / "logs", ignore_errors=True)


def _answer(job: Job, folder: Path) -> None:
    """Answers of a variant's last stage to the suite, in the job's predictions/."""
    where = job.needs[0].suite(folder)
    trained = job.before.place(folder) / "checkpoints" / job.before.stage
    model = qa.Model.load(trained, job.run.bench.option_fallback)
    system = controls.System(job.before.stage, "mono" if job.hears == "mono" else "full")
    systems, marks = {"answers": system}, {system.stage: model.digest}
    responders = {system.stage: model}
    bench_run.evaluate(systems, responders, where, job.place(folder), job.run.bench, marks)


def about(run: config.Run, plan: Plan) -> dict:
    """What a variant is: its parameters, audio tokens of a scene, and scenes it is trained on."""
    sizes = _sizes(run.model)
    heard = {s: getattr(run, s).steps * getattr(run, s).batch for s in run.stages if s != "text"}
    if plan.ablation.projector_steps and "spatial" in run.stages:
        heard["projector"] = plan.ablation.projector_steps * run.spatial.batch_size
    return {
        "hears": hears(run),
        "kind": run.model.projector.kind,
        "without": list(run.model.projector.drop_experts),
        "stages": list(run.stages),
        "parameters": {"projector": sizes["projector"], "all": sum(sizes.values())},
        "tokens": ASA(run.model).audio_tokens(round(run.scenes.seconds * SAMPLE_RATE)),
        "scenes": heard,
    }


@functools.cache  # tracing takes a second
def _sizes(model: config.Model) -> dict[str, int]:
    """Parameters of each part of a model."""
    shapes = jax.eval_shape(ASA(model).init, jax.random.key(0))
    return {part: sum(x.size for x in jax.tree.leaves(tree)) for part, tree in shapes.items()}


def _title(plan: Plan, job: Job) -> str:
    users = list(dict.fromkeys(name for name, _ in plan.users[job.name]))
    whose = users[0] if len(users) == 1 else f"{len(users)} variants"
    of = {"foa": "", "mono": " in W alone", "binaural": " of two ears"}[job.hears]
    what = f"{job.kind} {job.split}{of}".replace("  ", " ") if job.split else f"{job.kind}{of}"
    return what + ("" if job.seed is None else f" for {whose}, seed {job.seed}")


def _ahead(plan: Plan, log: Log, job: Job) -> str:
    """What the job, and all that is left, will take, where that can be told."""
    rates = log.rates(plan.jobs.values())
    own = log.expected(job, rates)
    left = [log.expected(j, rates) for j in plan.jobs.values()]
    known = sum(seconds for seconds in left if seconds is not None)
    text = "" if own is None else f": about {own:.0f} s"
    more = " or more" if None in left else ""
    return f"{text}; {duration(known)}{more} of work left" if known else text


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def _foretell(plan: Plan, log: Log) -> dict:
    """Prints and returns what jobs there are, for whom, and what they will take.

    Jobs of a kind that variants share are a row for each set of them; those that each variant has
    for itself are a row together.
    """
    rates = log.rates(plan.jobs.values())
    rows: dict[tuple, dict] = {}
    for job in plan.jobs.values():
        users = tuple(dict.fromkeys(name for name, _ in plan.users[job.name]))
        kind, is_own = f"{job.kind} {job.split}".strip(), len(users) == 1
        row = rows.setdefault((kind, job.hears, is_own or users), _row(job, kind, is_own, rates))
        row["for"] = list(dict.fromkeys([*row["for"], *users]))
        if job.kind in DEPENDS:
            row["why"] = list(dict.fromkeys([*row["why"], *plan.why(job)]))
        row["jobs"] += 1
        row["done"] += log.is_done(job)
        expected = log.expected(job, rates)
        sums = None in (row["seconds"], expected)
        row["seconds"] = None if sums else round(row["seconds"] + expected, 1)
    found = list(rows.values())
    result = {
        "rows": found,
        "jobs": len(plan.jobs),
        "jobs_unshared": plan.alone(),
        "seconds": round(sum(row["seconds"] or 0.0 for row in found), 1),
        "unknown": [row["kind"] for row in found if row["seconds"] is None],
        "variants": {name: about(run, plan) for name, run in plan.runs.items()},
    }
    result["matched"] = ablation.compare_projectors(result["variants"])
    _show_plan(result, list(plan.runs), Console())
    return result


def _row(job: Job, kind: str, is_own: bool, rates: Mapping[str, float]) -> dict:
    row: dict = {"kind": kind, "hears": job.hears, "for": [], "each_its_own": is_own, "why": []}
    return row | {"jobs": 0, "done": 0, "seconds": 0.0, "measured": job.rate in rates}


def _show_plan(result: dict, names: list[str], console: Console) -> None:
    table = Table("job", "hears", "for", "apart by", "jobs", "done", "s left")
    for column in table.columns:
        column.overflow = "fold"
    for row in result["rows"]:
        others = [name for name in names if name not in row["for"]]
        whose = ", ".join(row["for"])
        if len(others) < len(row["for"]) and not row["each_its_own"]:
            whose = f"all but {', '.join(others)}" if others else "all variants"
        elif row["each_its_own"] and len(row["for"]) > 1:
            whose = f"each of {whose}"
        seconds = "?" if row["seconds"] is None else f"{row['seconds']:.0f}"
        marked = seconds + ("" if row["measured"] or row["seconds"] is None else "*")
        counts = str(row["jobs"]), str(row["done"])
        table.add_row(row["kind"], row["hears"], whose, ", ".join(row["why"]), *counts, marked)
    console.print(table)
    more = f", and what {', '.join(result['unknown'])} take" if result["unknown"] else ""
    said = f"{result['jobs']} jobs, {result['jobs_unshared']} if nothing were shared; "
    said += f"{duration(result['seconds'])}{more} left; *: by Ablation.seconds, not measured yet"
    for line in filter(None, (said, ablation.describe_matching(result["matched"]))):
        console.print(line, soft_wrap=True, highlight=False)


@contextlib.contextmanager
def _compiled(folder: Path) -> Iterator[None]:
    """Keeps what is compiled, unless the user keeps it elsewhere: seeds compile alike.

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
