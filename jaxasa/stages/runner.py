# SPDX-License-Identifier: Apache-2.0
"""Runs a stage of the curriculum in a work folder."""

import dataclasses
import shutil
from typing import Any

import jax

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core import keys
from jaxasa.core.provenance import made_by
from jaxasa.core.workdir import WorkFolder
from jaxasa.data import pipeline, questions, text_only_scenes
from jaxasa.data.dynamic_mixing import DynamicMixing
from jaxasa.data.records import Records
from jaxasa.data.sounds import Bank
from jaxasa.models import flops
from jaxasa.models.asa import ASA
from jaxasa.parallel import chips, mesh
from jaxasa.stages.initial_state import WeightSource, initial_state, tokenizer_for
from jaxasa.stages.registry import STAGES
from jaxasa.stages.stage import Context, TrainingStage
from jaxasa.train import loop, state


def train(
    run: config.Run, stage: str, work: WorkFolder, config_text: str, profile: int = 0
) -> state.TrainState:
    """Trains a stage, from its last checkpoint or from the weights that initial_state.py names.

    config_text: the resolved gin config. profile: number of steps to trace (train/loop.py).
    Raises ConfigError if sounds, scenes or checkpoints that it builds on are missing.
    """
    context = prepare(run, stage, work)
    with jax.set_mesh(context.mesh):
        return fit(run, context, STAGES[stage].task(context), work, config_text, profile)


def prepare(run: config.Run, name: str, work: WorkFolder) -> Context[Any]:
    """The context of a stage, from the data in a work folder. Raises ConfigError as `train`."""
    stage, options = STAGES[name], getattr(run, name)
    bank = Bank.load(work.sounds)
    limit = run.model.spatial.num_classes
    if len(bank.classes) > limit:
        raise ConfigError(f"Spatial.num_classes is {limit}, expected at least {len(bank.classes)}")
    clips = bank.clips("train")
    about_scenes = run.scenes, clips, bank.classes, run.seed, run.questions
    sampler = questions.QuestionSampler(bank.classes, run.questions)
    if stage.balances_questions:
        sampler = text_only_scenes.balanced_question_sampler(*about_scenes)
    train_scenes, dev = None, None
    if stage.reads_scenes:
        train_scenes = training_scenes(run, name, work)
        dev = pipeline.SkipDamaged(Records(work.scenes_of(run, "dev")), options.max_damaged_records)
    source = WeightSource.of_run(run)
    corpus = text_only_scenes.tokenizer_corpus(*about_scenes)
    return Context(
        stage=options,
        asa=ASA(run.model),
        mesh=mesh.make_mesh(run.mesh),
        scenes=run.scenes,
        seed=run.seed,
        tokenizer=tokenizer_for(work.tokenizer, source, corpus, run.model),
        classes=bank.classes,
        clips=clips,
        question_sampler=sampler,
        train=train_scenes,
        dev=dev,
    )


def training_scenes(run: config.Run, stage: str, work: WorkFolder) -> Records | DynamicMixing:
    """The training scenes: stored ones, or mixed on the fly if Scenes.rir_rooms is set.

    Stored ones are the same in all stages. Each stage mixes its own, so that questions are on
    scenes that the encoders were not trained on.
    """
    if run.scenes.rir_rooms:
        seed = int(keys.rng(run.seed, "mixed scenes", stage).integers(2**31))
        return DynamicMixing(run.scenes, work.sounds, work.rirs, seed)
    return Records(work.scenes_of(run, "train"))


def fit(
    run: config.Run,
    context: Context[Any],
    task: loop.Task,
    work: WorkFolder,
    config_text: str,
    profile: int = 0,
) -> state.TrainState:
    """Trains `task` by the options of `context`, in a mesh that is set; see `train`."""
    name, options, folder = task.name, context.stage, work.checkpoint(task.name)
    for place in [folder, folder / "best"] if options.best_metric else [folder]:
        place.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            shutil.copyfile(work.tokenizer, place / work.tokenizer.name)
    meta = {
        "stage": name,
        "classes": list(context.classes),
        "seconds": context.scenes.seconds,
        "sounds": Bank.load(work.sounds).name,
        "model": dataclasses.asdict(context.model),
        "tokenizer": work.tokenizer.name,
        "made_by": made_by(),
        "pretrained": {k: v for k, v in dataclasses.asdict(run.pretrained).items() if v},
    }
    source = WeightSource.of_stage(run, name, work)
    return loop.train(
        task,
        initial_state(context, folder, source, work.tokenizer),
        options,
        folder=folder,
        logs=work.logs(name),
        meta=meta,
        config_text=config_text,
        seed=context.seed,
        profile=profile,
        peak_steps_per_s=_peak_steps_per_s(context, STAGES[name]),
    )


def _peak_steps_per_s(context: Context[Any], stage: TrainingStage) -> float | None:
    """Steps per second at the devices' peak FLOP/s; None for an unknown device."""
    peak = chips.peak_flops(jax.devices()[0].device_kind)
    if peak is None:
        return None
    options, seconds = context.stage, context.scenes.seconds
    shapes = jax.eval_shape(lambda key: context.asa.init(key), jax.random.key(0))
    workloads = [stage.workload(options)] * options.updates_per_step
    if stage.rollout is not None:
        workloads.append(stage.rollout.workload(options))
    work = sum(flops.model_flops(x, context.model, seconds, shapes) for x in workloads)
    return peak * context.mesh.size / work
