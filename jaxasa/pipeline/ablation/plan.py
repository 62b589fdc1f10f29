"""What an ablation does: the jobs of all variants and seeds, each of them once.

A variant is a run: that of the gin files with a few bindings of its own. Its stages become jobs,
each in a work folder DIR/ablation/KIND-KEY of its own, where KEY is a hash of all that the job's
result depends on: its kind, the settings in `DEPENDS`, the seed, and the key of the job from
whose checkpoint it starts. What has the same key is the same job, and is done once.

    text        once for all seeds: what it gives is its decoder, as a pretrained one would be
    spatial     stage 1. With Ablation.projector_steps once a seed for all variants that hear alike,
                with the base's projector: its heads teach the encoders, and are then dropped
    projector   stage 1 again, for Ablation.projector_steps, of the projector alone and from
                scratch, on these encoders, frozen. Every variant's, the base's too, so that
                projectors of all kinds meet the same encoders after the same scenes
    align, sft, grpo        as in any run, from the job before
    answers     of the last stage, to the suite of the base's sounds and scenes

Encoders are shared because they cost most, and because in the published system, too, they come
trained before the projectors are compared. What this cannot show is what an expert's auxiliary
loss does for the encoders: Ablation.projector_steps = 0 trains all of stage 1 for each variant.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxasa import config
from jaxasa.config import ConfigError, check
from jaxasa.core import workdir
from jaxasa.pipeline import steps

# (gin files' bindings on top) -> the run and its resolved gin text, as gin_io.load gives them.
Load = Callable[[Sequence[str]], tuple[config.Run, str]]

_NUMERICS = ("seed", "sounds", "scenes", "model.dtype", "model.frozen_dtype", "model.remat")
_TEXTS = ("model.decoder", "model.prompt_tokens", "model.reply_tokens")
_HEARD = (*_NUMERICS, "model.semantic", "model.spatial", "model.projector", "model.decoder")
_ASKED = (*_HEARD, *_TEXTS, "model.lora", "questions")
# Fields of config.Run that a kind of job depends on; one that is a dataclass stands for all it has.
DEPENDS = {
    "text": (*_NUMERICS, *_TEXTS, "model.projector.token_rate", "questions", "text"),
    "spatial": (*_HEARD, "spatial"),
    "projector": (*_HEARD, "spatial"),
    "align": (*_HEARD, *_TEXTS, "align"),
    "sft": (*_ASKED, "sft"),
    "grpo": (*_ASKED, "grpo"),
}
# The first job of a variant also decides on the tokenizer, and where weights come from.
_FIRST = (*_TEXTS, "questions", "pretrained", "init_from", "init_parts")
_ENCODERS = ("semantic", "spatial", "decoder")
_SUITE = ("seed", "sounds", "scenes", "questions", "bench.l1", "bench.l2", "bench.l3")
# What all variants have in common, so that their answers can be compared.
_COMMON = ("seed", "sounds", "scenes", "questions", "bench", "mesh", "ablation")


@dataclass(frozen=True, eq=False)
class Job:
    """Work that is done once: see the module's text.

    run, bindings: what it does, and how gin says so. facts: the settings that its key is made of.
    before: whose checkpoint it starts from or answers with. needs: data that must be there.
    units: steps, scenes or items; `rate` says what their time is measured as. seed: of training,
    None where there is none. hears: "foa", "mono" or "binaural".
    """

    kind: str
    key: str
    run: config.Run
    units: int
    rate: str
    bindings: tuple[str, ...] = ()
    facts: dict = field(default_factory=dict)
    before: "Job | None" = None
    needs: tuple["Job", ...] = ()
    seed: int | None = None
    hears: str = "foa"
    split: str = ""

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.key}"

    @property
    def stage(self) -> str:
        """Of config.STAGES, for a job that trains."""
        return "spatial" if self.kind == "projector" else self.kind

    def place(self, folder: Path) -> Path:
        """Its own work folder, in that of the ablation."""
        return folder / "ablation" / self.name

    def output(self, folder: Path) -> Path:
        """What is there once it is done."""
        if self.kind == "sounds":
            return folder / "sounds" / "bank.json"
        if self.split:
            return workdir.scenes_of(self.run, folder, self.split) / "manifest.json"
        if self.kind == "suite":
            return self.suite(folder) / "manifest.json"
        inside = "results.json" if self.kind == "answers" else f"checkpoints/{self.stage}/meta.json"
        return self.place(folder) / inside

    def suite(self, folder: Path) -> Path:
        """Where the items are that a job of kind "suite" chooses."""
        return steps.suite_of(self.place(folder), self.run.ablation.split)


class Plan:
    """The jobs of an ablation, in an order in which each comes after what it needs.

    jobs: name -> Job. users: name -> [(variant, seed)], for whom it is done. answers: (variant,
    seed) -> the job that gives their answers. runs: variant -> its run, before seeds.
    """

    def __init__(self, load: Load):
        self.base, self.text = load(())
        self.ablation = self.base.ablation
        self.jobs: dict[str, Job] = {}
        self.users: dict[str, list[tuple[str, int]]] = {}
        self.answers: dict[tuple[str, int], Job] = {}
        # The base first: what others share with it is done as it says.
        names = sorted(self.ablation.variants, key=lambda name: name != self.ablation.base)
        self.runs = {name: self._variant(name, load) for name in names}
        for name in names:
            self._data(name)
        for seed in self.ablation.seeds:
            for name in names:
                self.answers[name, seed] = self._chain(name, seed)

    def _variant(self, name: str, load: Load) -> config.Run:
        where = f"Ablation.variants[{name!r}]"
        try:
            run, _ = load(self.ablation.variants[name])
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        for part in _COMMON:
            changed = workdir.differences(getattr(self.base, part), getattr(run, part), part)
            if changed:
                raise ConfigError(f"{where}: {changed[0]}, expected the same for all variants")
        last = run.stages[-1]
        check(last in ("sft", "grpo"), f"{where}: last of Run.stages", last, "sft or grpo")
        if hears(run) == "mono":
            expected = "none that ends in grpo: that stage hears all channels"
            check("grpo" not in run.stages, f"{where}: Run.stages", run.stages, expected)
        if self.ablation.projector_steps and "spatial" in run.stages:
            expected = "some for the projector, or Ablation.projector_steps = 0"
            trainable = run.spatial.trainable
            check(_projectors(run) != (), f"{where}: SpatialStage.trainable", trainable, expected)
        return run

    def _add(self, job: Job, users: Iterable[tuple[str, int]]) -> Job:
        job = self.jobs.setdefault(job.name, job)
        known = self.users.setdefault(job.name, [])
        known += [user for user in users if user not in known]
        return job

    def _data(self, name: str) -> None:
        """Sounds, scenes and the suite as `name` hears them."""
        run = self.runs[name]
        users = [(name, seed) for seed in self.ablation.seeds]
        made = [self._add(Job("sounds", "bank", self.base, 1, "sounds"), users)]
        form = run.model.spatial.format
        asked = self.ablation.split
        for split in steps.SPLITS:
            if split == "benchmark" and asked == "dev":
                continue
            folder = workdir.scenes_of(run, Path(), split)
            kind = folder.parts[0]
            units, key = getattr(run.scenes, split), split
            if kind == "responses":
                units, key = run.scenes.rir_rooms, "bank"
            job = Job(kind, key, run, units, kind, needs=(made[0],), split=split, hears=form)
            made.append(self._add(job, users))
        facts = _facts(run, _SUITE) | {"format": form, "split": asked}
        units = run.bench.l1 + run.bench.l2 + run.bench.l3
        needs = (made[0], made[-1])  # the scenes that are asked about are the last
        self._add(
            Job("suite", _hash(facts), run, units, "suite", facts=facts, needs=needs, hears=form),
            users,
        )

    def _chain(self, name: str, seed: int) -> Job:
        """The jobs of a variant with one seed; returns that of its answers."""
        run, before = self.runs[name], None
        for stage in run.stages:
            if stage == "spatial" and self.ablation.projector_steps:
                shared = [("Projector", part, value) for part, value in _projector_of(self.runs)]
                before = self._stage(name, seed, before, "spatial", shared)
                alone = [
                    ("SpatialStage", "steps", self.ablation.projector_steps),
                    ("SpatialStage", "trainable", _projectors(run)),
                ]
                before = self._stage(name, seed, before, "projector", alone)
            else:
                before = self._stage(name, seed, before, stage)
        suite = self.suite(name)
        facts = {"suite": suite.key, "hears": hears(run), "choose": run.bench.option_fallback}
        facts |= {"of": before.key}
        job = Job(
            "answers",
            _hash(facts),
            dataclasses.replace(run, seed=seed),
            suite.units,
            "answers",
            facts=facts,
            before=before,
            needs=(suite,),
            seed=seed,
            hears=hears(run),
        )
        return self._add(job, [(name, seed)])

    def suite(self, name: str) -> Job:
        """The job of the suite that a variant answers."""
        return next(j for j in self._of(name) if j.kind == "suite")

    def _stage(
        self,
        name: str,
        seed: int,
        before: Job | None,
        kind: str,
        changes: Sequence[tuple[str, str, object]] = (),
    ) -> Job:
        run = self.runs[name]
        seed = run.seed if kind == "text" else seed
        stage = "spatial" if kind == "projector" else kind
        kept = () if before is None else _kept(before.kind, kind)
        changes = [*changes, ("Run", "stages", (stage,)), ("Run", "seed", seed)]
        if before is not None:
            changes += [("Run", "init_from", before.name), ("Run", "init_parts", kept)]
        run = _changed(run, changes)
        depends = DEPENDS[kind] + (() if before else _FIRST)
        facts = _facts(run, depends) | {"data.seed": self.base.seed}
        key = _hash([kind, facts, kept, before.key if before else None])
        said = (f"{owner}.{part}={value!r}" for owner, part, value in changes)
        heard = {"text": ()}.get(kind, ("train", "dev"))
        # The suite too: without one no answer is ever compared, and training would be for nothing.
        job = Job(
            kind,
            key,
            run,
            getattr(run, stage).steps,
            kind,
            bindings=(*self.ablation.variants[name], *said),
            facts=facts,
            before=before,
            needs=tuple(
                j for j in self._of(name) if j.kind in ("sounds", "suite") or j.split in heard
            ),
            seed=seed,
            hears=hears(run),
        )
        seeds = self.ablation.seeds if kind == "text" else (seed,)
        return self._add(job, [(name, user) for user in seeds])

    def _of(self, name: str) -> list[Job]:
        """The jobs so far of a variant with the first seed."""
        user = name, self.ablation.seeds[0]
        return [self.jobs[job] for job, users in self.users.items() if user in users]

    def alone(self) -> int:
        """How many jobs it would take if each variant with each seed did all of its own."""
        return sum(len(users) for users in self.users.values())

    def why(self, job: Job) -> list[str]:
        """Settings in which a job differs from the base's of its kind; [] where it is the base's.

        With the same settings it starts from another checkpoint: "after another KIND".
        """
        if any(name == self.ablation.base for name, _ in self.users[job.name]):
            return []
        base = next((j for j in self._of(self.ablation.base) if j.kind == job.kind), None)
        if base is None:
            return ["not in the base"]
        facts = {**base.facts, **job.facts}
        apart = [n for n in facts if base.facts.get(n) != job.facts.get(n) and n != "seed"]
        said = [n.removeprefix("model.") for n in apart if n not in ("of", "suite")]
        return said or [f"after another {job.before.kind}"] if job.before else said


def hears(run: config.Run) -> str:
    """ "binaural", "mono" (W alone, or the mean of both ears: all that SFT gave it) or "foa"."""
    return "mono" if run.sft.mono_prob == 1 else run.model.spatial.format


def bindings_of(job: Job, folder: Path) -> tuple[str, ...]:
    """The bindings with which gin makes job.run, in an ablation that lies in `folder`."""
    if job.before is None:
        return job.bindings
    start = job.before.place(folder.resolve()) / "checkpoints" / job.before.stage
    return (*job.bindings, f"Run.init_from={str(start)!r}")


def _kept(before: str, kind: str) -> tuple[str, ...]:
    """What a job takes of the checkpoint before it; all else begins from scratch, by its seed."""
    if before == "text":
        return ("decoder",)
    if kind == "projector":  # the encoders have learnt with another one
        return _ENCODERS
    return config.PARTS if before == "sft" else (*_ENCODERS, "projector")


def _projectors(run: config.Run) -> tuple[str, ...]:
    return tuple(p for p in run.spatial.trainable if p.startswith("projector/"))


def _projector_of(runs: dict[str, config.Run]) -> list[tuple[str, object]]:
    """The fields of the base's projector; the base comes first."""
    base = next(iter(runs.values())).model.projector
    return [(f.name, getattr(base, f.name)) for f in dataclasses.fields(base)]


def _changed(run: config.Run, changes: Sequence[tuple[str, str, object]]) -> config.Run:
    """`run` with (class, field, value) put into it."""
    put: dict[str, dict] = {}
    for owner, name, value in changes:
        put.setdefault(owner, {})[name] = value
    if "Projector" in put:
        projector = dataclasses.replace(run.model.projector, **put["Projector"])
        put["Run"]["model"] = dataclasses.replace(run.model, projector=projector)
    if "SpatialStage" in put:
        put["Run"]["spatial"] = dataclasses.replace(run.spatial, **put["SpatialStage"])
    return dataclasses.replace(run, **put["Run"])


def _facts(run: config.Run, names: Iterable[str]) -> dict:
    """{"sft.steps": 280, ...} of the fields `names` and all that they hold."""
    found = {}
    for name in names:
        value = run
        for part in name.split("."):
            value = getattr(value, part)
        found |= workdir.settings(value, name)
    return found


def _hash(value) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
