# SPDX-License-Identifier: Apache-2.0
"""Ahead-of-time (AOT) lowering of each stage's programs for a mesh, from shapes alone.

Nothing is allocated. The shapes of a batch are those of one example that the stage's own pipeline
makes of a silent scene, with a tokenizer that knows one word.
"""

import types
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxasa import config
from jaxasa.acoustics import scenes
from jaxasa.config import ConfigError
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.data import pipeline, questions
from jaxasa.data.tokens import TextTokenizer
from jaxasa.models.asa import ASA
from jaxasa.models.flops import Workload
from jaxasa.parallel import sharding
from jaxasa.stages.registry import STAGES
from jaxasa.stages.stage import Context, TrainingStage
from jaxasa.train import state, update

ROLLOUT = "rollout"
# Programs that can be lowered: the update of each stage, and the rollout of that which has one.
PROGRAMS = (*STAGES, ROLLOUT)
SCENES = 32  # of which one supports a question, even of a rare type
CLASSES = ("a", "b", "c", "d", "e", "f", "g", "h")


def stage_of(program: str) -> TrainingStage:
    """The stage whose program it is."""
    if program != ROLLOUT:
        return STAGES[program]
    return next(stage for stage in STAGES.values() if stage.rollout)


def options_of(run: config.Run, program: str) -> Any:
    """The options of that stage."""
    return getattr(run, stage_of(program).name)


def workload(run: config.Run, program: str) -> Workload:
    """The model's work in one call of a program."""
    stage, options = stage_of(program), options_of(run, program)
    if program == ROLLOUT:
        assert stage.rollout is not None
        return stage.rollout.workload(options)
    return stage.workload(options)


def context(run: config.Run, stage: str, mesh: Mesh) -> Context[Any]:
    """The context of a stage whose data are silent scenes."""
    clips = [scenes.Clip(f"{c}/{k}", c, f"{c}-{k}", 1.0) for c in CLASSES for k in "12"]
    specs = (scenes.sample_scene(run.scenes, clips, run.seed, "ahead", i) for i in range(SCENES))
    samples = round(run.scenes.seconds * SAMPLE_RATE)
    audio = np.zeros((samples, run.model.spatial.channels), np.int16)
    one_word: Any = types.SimpleNamespace(encode=lambda *_, **__: types.SimpleNamespace(ids=[7]))
    data: Any = [(audio, scenes.describe(spec)) for spec in specs]
    return Context(
        stage=getattr(run, stage),
        asa=ASA(run.model),
        mesh=mesh,
        scenes=run.scenes,
        seed=run.seed,
        tokenizer=TextTokenizer(one_word, 0, 1, 2, 3, 4, 5),
        classes=CLASSES,
        clips=clips,
        question_sampler=questions.QuestionSampler(CLASSES, run.questions),
        train=data,
        dev=None,
    )


def params_shapes(run: config.Run) -> dict:
    """Shapes of the model's parameters."""
    return jax.eval_shape(lambda: ASA(run.model).init(jax.random.key(0)))


def lower(run: config.Run, program: str, mesh: Mesh) -> tuple[jax.stages.Lowered, tuple]:
    """A program, as the training loop calls it, lowered; and the shapes of its arguments.

    Each shape has its sharding. Raises ConfigError if parameters or batch do not divide over the
    mesh.
    """
    stage = stage_of(program)
    of_stage = context(run, stage.name, mesh)
    options = of_stage.stage
    with jax.set_mesh(mesh):
        start = state.abstract_state(params_shapes(run), options, mesh, run.model.frozen_dtype)
        key = jax.eval_shape(lambda: jax.random.key(0))
        replicated = NamedSharding(mesh, PartitionSpec())
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated)
        batch = batch_shapes(of_stage, stage)
        if program == ROLLOUT:
            assert stage.rollout is not None
            inputs = start.params, _sharded(batch, mesh), key
            sampler = stage.rollout.sampler(of_stage)
            return sampler.lower(*inputs, options.num_generations, options.temperature), inputs
        batch = stage.update_batch(of_stage, batch)
        arguments = start, _sharded(batch, mesh), key
        jitted = update.make_update(options, mesh, stage.objective(of_stage))
        return jitted.lower(*arguments), arguments


def batch_shapes(
    of_stage: Context[Any], stage: TrainingStage
) -> Mapping[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch of examples that the pipeline of a stage makes."""
    data: Any = of_stage.train
    elements = data if stage.reads_scenes else [scene for _, scene in data]
    example = pipeline.eval_batch(elements, stage.examples(of_stage), of_stage.seed, "ahead", 1)
    rows = of_stage.stage.batch_size
    return {
        name: jax.ShapeDtypeStruct((rows, *value.shape[1:]), value.dtype)
        for name, value in example.items()
    }


def _sharded(batch: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh) -> dict:
    """Shapes of a batch with its sharding. Raises ConfigError for rows that do not divide."""
    shards = sharding.num_batch_shards(mesh)
    for shape in batch.values():
        if shape.shape[0] % shards:
            raise ConfigError(
                f"batch is {shape.shape[0]}, expected rows that divide by data x fsdp = {shards}"
            )
    rows = NamedSharding(mesh, sharding.BATCH)
    return {
        name: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=rows)
        for name, shape in batch.items()
    }
