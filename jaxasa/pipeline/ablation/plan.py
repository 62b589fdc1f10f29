# SPDX-License-Identifier: Apache-2.0
"""The jobs of an ablation: the stages of all variants and seeds, each distinct one once.

A variant is a run: that of the gin files with a few bindings of its own. Its stages become jobs,
each in a work folder DIR/ablation/KIND-KEY of its own. KEY is a hash of everything that the job's
result depends on: its kind, the settings that its stage depends on, the seed, and the key of the
job whose checkpoint it starts from. Jobs with equal keys are the same job, which is done once.

    text        once for all seeds: its decoder stands for a pretrained one
    spatial     stage 1. With Ablation.projector_steps once a seed for all variants with the same
                encoders, with the base's projector: its heads train the encoders, and are dropped
    projector   stage 1 again, for Ablation.projector_steps, of the projector alone and from
                scratch, on these encoders, frozen. Every variant's, the base's too, so that
                projectors of all kinds meet the same encoders after the same scenes
    align, sft, grpo        as in any run, from the job before
    answers     of the last stage, to the suite of the base's sounds and scenes

Encoders are shared because they cost most, and because in the published system, too, they are
trained before the projectors are compared. This cannot show what an expert's auxiliary loss does
for the encoders: Ablation.projector_steps = 0 trains all of stage 1 for each variant.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxasa import config
from jaxasa.config import ConfigError, check
from jaxasa.core.workdir import WorkFolder
from jaxasa.stages.registry import ANSWERING, STAGES
from jaxasa.train.checkpoint import META

# bindings over the gin files -> the run and its resolved gin text, as gin_files.load gives them
Load = Callable[[Sequence[str]], tuple[config.Run, str]]

# The first job of a variant also decides on the tokenizer, and on initial weights.
_FIRST_JOB = (
    *("model.decoder", "model.prompt_tokens", "model.reply_tokens", "questions"),
    *("pretrained", "init_from", "init_parts"),
)
# What all variants have in common, so that their answers can be compared.
_COMMON = ("seed", "sounds", "scenes", "questions", "bench", "mesh", "ablation")


@dataclass(frozen=True, eq=False)
class Job:
    """A unit of work of an ablation; the module's docstring says which there are.

    run, bindings: its config, and the gin bindings that make it. settings: what its key is a hash
    of. parent: the job whose checkpoint it starts from or answers with. needs: jobs that make its
    data. units: steps, scenes or items, by which its time is estimated. seed: of training, None
    for data. audio: "foa", "mono" or "binaural".
    """

    kind: str
    key: str
    run: config.Run
    units: int
    bindings: tuple[str, ...] = ()
    settings: dict = field(default_factory=dict)
    parent: "Job | None" = None
    needs: tuple["Job", ...] = ()
    seed: int | None = None
    audio: str = "foa"
    split: str = ""

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.key}"

    @property
    def stage(self) -> str:
        """Of stages/registry.py, for a job that trains."""
        return _stage_of(self.kind)

    @property
    def is_training(self) -> bool:
        return self.stage in STAGES

    def work(self, whole: WorkFolder) -> WorkFolder:
        """Its own work folder, in that of the ablation."""
        return WorkFolder(whole.ablation / self.name)

    def output(self, whole: WorkFolder) -> Path:
        """A file that is there once it is done."""
        if self.kind == "sounds":
            return whole.sounds / "bank.json"
        if self.split:
            return whole.scenes_of(self.run, self.split) / "manifest.json"
        if self.kind == "suite":
            return self.suite(whole) / "manifest.json"
        own = self.work(whole)
        return own.results if self.kind == "answers" else own.checkpoint(self.stage) / META

    def suite(self, whole: WorkFolder) -> Path:
        """The items that a job of kind "suite" chooses."""
        return self.work(whole).evaluation(self.run.ablation.split).benchmark


class Plan:
    """The jobs of an ablation, in an order in which each comes after what it needs.

    jobs: name -> Job. users: name -> [(variant, seed)] that it is done for. answers: (variant,
    seed) -> the job of their answers. runs: variant -> its run, before seeds.
    """

    def __init__(self, load: Load):
        self.base, self.text = load(())
        self.ablation = self.base.ablation
        self.jobs: dict[str, Job] = {}
        self.users: dict[str, list[tuple[str, int]]] = {}
        self.answers: dict[tuple[str, int], Job] = {}
        # The base first: jobs that others share with it have its bindings.
        names = sorted(self.ablation.variants, key=lambda name: name != self.ablation.base)
        self.runs = {name: self._load_variant(name, load) for name in names}
        for name in names:
            self._add_data(name)
        for seed in self.ablation.seeds:
            for name in names:
                self.answers[name, seed] = self._add_training(name, seed)

    def _load_variant(self, name: str, load: Load) -> config.Run:
        option = f"Ablation.variants[{name!r}]"
        try:
            run, _ = load(self.ablation.variants[name])
        except ConfigError as error:
            raise ConfigError(f"{option}: {error}") from None
        for part in _COMMON:
            differences = config.differences(getattr(self.base, part), getattr(run, part), part)
            if differences:
                raise ConfigError(f"{option}: {differences[0]}, expected the same for all variants")
        last = run.stages[-1]
        expected = " or ".join(ANSWERING)
        check(last in ANSWERING, f"{option}: last of Run.stages", last, expected)
        if audio_of(run) == "mono":
            expected = "none that ends in grpo: that stage is trained on all channels"
            check("grpo" not in run.stages, f"{option}: Run.stages", run.stages, expected)
        if self.ablation.projector_steps and "spatial" in run.stages:
            expected = "some for the projector, or Ablation.projector_steps = 0"
            trainable = run.spatial.trainable
            ok = _projector_patterns(run) != ()
            check(ok, f"{option}: SpatialStage.trainable", trainable, expected)
        return run

    def _add(self, job: Job, users: Iterable[tuple[str, int]]) -> Job:
        job = self.jobs.setdefault(job.name, job)
        before = self.users.setdefault(job.name, [])
        before += [user for user in users if user not in before]
        return job

    def _add_data(self, name: str) -> None:
        """Sounds, scenes and the suite of a variant."""
        run = self.runs[name]
        users = [(name, seed) for seed in self.ablation.seeds]
        jobs = [self._add(Job("sounds", "bank", self.base, 1), users)]
        audio, evaluated = run.model.spatial.format, self.ablation.split
        here = WorkFolder(Path())
        for split in config.SPLITS:
            if split == "benchmark" and evaluated == "dev":
                continue
            folder = here.scenes_of(run, split)
            kind, units, key = folder.parts[0], getattr(run.scenes, split), split
            if folder == here.rirs:
                units, key = run.scenes.rir_rooms, "bank"
            job = Job(kind, key, run, units, needs=(jobs[0],), split=split, audio=audio)
            jobs.append(self._add(job, users))
        settings = config.settings(run, "data") | {"split": evaluated}
        units = run.bench.l1 + run.bench.l2 + run.bench.l3
        needs = (jobs[0], jobs[-1])  # the scenes of the evaluated split are the last
        key = _hash(settings)
        suite = Job("suite", key, run, units, settings=settings, needs=needs, audio=audio)
        self._add(suite, users)

    def _add_training(self, name: str, seed: int) -> Job:
        """The jobs of a variant with one seed; returns that of its answers."""
        run, parent = self.runs[name], None
        for stage in run.stages:
            if stage == "spatial" and self.ablation.projector_steps:
                # The base's projector, which comes first.
                shared = next(iter(self.runs.values())).model.projector
                changes = [
                    ("Projector", f.name, getattr(shared, f.name))
                    for f in dataclasses.fields(shared)
                ]
                parent = self._add_stage(name, seed, parent, "spatial", changes)
                own = [
                    ("SpatialStage", "steps", self.ablation.projector_steps),
                    ("SpatialStage", "trainable", _projector_patterns(run)),
                ]
                parent = self._add_stage(name, seed, parent, "projector", own)
            else:
                parent = self._add_stage(name, seed, parent, stage)
        suite = self.suite(name)
        settings = {
            "suite": suite.key,
            "audio": audio_of(run),
            "option_fallback": run.bench.option_fallback,
            "checkpoint": parent.key,
        }
        job = Job(
            "answers",
            _hash(settings),
            dataclasses.replace(run, seed=seed),
            suite.units,
            settings=settings,
            parent=parent,
            needs=(suite,),
            seed=seed,
            audio=audio_of(run),
        )
        return self._add(job, [(name, seed)])

    def suite(self, name: str) -> Job:
        """The job of the suite that a variant answers."""
        return next(job for job in self._jobs_of(name) if job.kind == "suite")

    def _add_stage(
        self,
        name: str,
        seed: int,
        parent: Job | None,
        kind: str,
        changes: Sequence[tuple[str, str, object]] = (),
    ) -> Job:
        run = self.runs[name]
        seed = run.seed if kind == "text" else seed
        stage = _stage_of(kind)
        parts = () if parent is None else _initial_parts(parent, kind)
        changes = [*changes, ("Run", "stages", (stage,)), ("Run", "seed", seed)]
        if parent is not None:
            changes += [("Run", "init_from", parent.name), ("Run", "init_parts", parts)]
        run = _replace(run, changes)
        names = (*STAGES[stage].depends_on, stage, *(() if parent else _FIRST_JOB))
        settings = _settings(run, names) | {"data.seed": self.base.seed}
        key = _hash([kind, settings, parts, parent.key if parent else None])
        bindings = (f"{owner}.{part}={value!r}" for owner, part, value in changes)
        splits = ("train", "dev") if STAGES[stage].reads_scenes else ()
        job = Job(
            kind,
            key,
            run,
            getattr(run, stage).steps,
            bindings=(*self.ablation.variants[name], *bindings),
            settings=settings,
            parent=parent,
            # The suite too: without one the training would be for nothing.
            needs=tuple(
                job
                for job in self._jobs_of(name)
                if job.kind in ("sounds", "suite") or job.split in splits
            ),
            seed=seed,
            audio=audio_of(run),
        )
        seeds = self.ablation.seeds if kind == "text" else (seed,)
        return self._add(job, [(name, user) for user in seeds])

    def _jobs_of(self, name: str) -> list[Job]:
        """The jobs so far of a variant with the first seed."""
        user = name, self.ablation.seeds[0]
        return [self.jobs[job] for job, users in self.users.items() if user in users]

    def unshared_jobs(self) -> int:
        """Number of jobs if each variant and seed did all of its own."""
        return sum(len(users) for users in self.users.values())

    def differences_from_base(self, job: Job) -> list[str]:
        """Settings in which a job differs from the base's of its kind; [] for the base's own.

        With the same settings it starts from another checkpoint: "after another KIND".
        """
        if any(name == self.ablation.base for name, _ in self.users[job.name]):
            return []
        base = next((j for j in self._jobs_of(self.ablation.base) if j.kind == job.kind), None)
        if base is None:
            return ["not in the base"]
        differing = [
            name.removeprefix("model.")
            for name in {**base.settings, **job.settings}
            if base.settings.get(name) != job.settings.get(name) and name != "seed"
        ]
        if not differing and job.parent:
            return [f"after another {job.parent.kind}"]
        return differing


def audio_of(run: config.Run) -> str:
    """ "binaural", "foa", or "mono" (W alone, or the mean of both ears) if SFT had nothing else."""
    return "mono" if run.sft.mono_prob == 1 else run.model.spatial.format


def bindings_of(job: Job, whole: WorkFolder) -> tuple[str, ...]:
    """The bindings with which gin makes job.run, in an ablation that lies in `whole`."""
    if job.parent is None:
        return job.bindings
    start = job.parent.work(WorkFolder(whole.path.resolve())).checkpoint(job.parent.stage)
    return (*job.bindings, f"Run.init_from={str(start)!r}")


def _stage_of(kind: str) -> str:
    return "spatial" if kind == "projector" else kind


def _initial_parts(parent: Job, kind: str) -> tuple[str, ...]:
    """Parts taken from the checkpoint of the parent job; the others start from scratch."""
    parts = STAGES[parent.stage].parts
    # The encoders were trained with another projector.
    return tuple(p for p in parts if p != "projector") if kind == "projector" else parts


def _projector_patterns(run: config.Run) -> tuple[str, ...]:
    return tuple(p for p in run.spatial.trainable if p.startswith("projector/"))


def _replace(run: config.Run, changes: Sequence[tuple[str, str, object]]) -> config.Run:
    """`run` with (class, field, value) put into it."""
    fields: dict[str, dict] = {}
    for owner, name, value in changes:
        fields.setdefault(owner, {})[name] = value
    if "Projector" in fields:
        projector = dataclasses.replace(run.model.projector, **fields["Projector"])
        fields["Run"]["model"] = dataclasses.replace(run.model, projector=projector)
    if "SpatialStage" in fields:
        fields["Run"]["spatial"] = dataclasses.replace(run.spatial, **fields["SpatialStage"])
    return dataclasses.replace(run, **fields["Run"])


def _settings(run: config.Run, names: Iterable[str]) -> dict:
    """{"sft.steps": 280, ...} of the fields `names` and of what they hold."""
    settings = {}
    for name in names:
        value = run
        for part in name.split("."):
            value = getattr(value, part)
        settings |= config.settings(value, name=name)
    return settings


def _hash(value) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
