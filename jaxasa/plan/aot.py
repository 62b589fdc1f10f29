"""The jitted step of each stage, lowered for a mesh from shapes alone: nothing is allocated.

Shapes of a batch are those of one example that the stage's own pipeline makes of a silent scene,
with a tokenizer that knows one word.
"""

import types
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxasa import config
from jaxasa.acoustics import scenes
from jaxasa.config import ConfigError
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.data import pipeline, questions
from jaxasa.data.tokens import Text
from jaxasa.models.asa import ASA
from jaxasa.parallel import sharding
from jaxasa.stages import align, common, grpo, sft, spatial, text
from jaxasa.train import state

STAGES = {"text": text, "spatial": spatial, "align": align, "sft": sft, "grpo": grpo}
ROLLOUT = "rollout"
SCENES = 32  # of which one supports a question, where tasks are few
CLASSES = ("a", "b", "c", "d", "e", "f", "g", "h")


def context(run: config.Run, name: str, mesh: Mesh) -> common.Context:
    """What stage `name` is built from, its data silent scenes."""
    clips = [scenes.Clip(f"{c}/{k}", c, f"{c}-{k}", 1.0) for c in CLASSES for k in "12"]
    drawn = (scenes.draw(run.scenes, clips, run.seed, "ahead", i) for i in range(SCENES))
    samples = round(run.scenes.seconds * SAMPLE_RATE)
    audio = np.zeros((samples, run.model.spatial.channels), np.int16)
    word = types.SimpleNamespace(encode=lambda *_, **__: types.SimpleNamespace(ids=[7]))
    return common.Context(
        run=run,
        stage=getattr(run, name),
        asa=ASA(run.model),
        mesh=mesh,
        text=Text(word, pad=0, eos=1, audio=2, think=3, end_think=4, answer=5),
        classes=CLASSES,
        clips=clips,
        train=[(audio, scenes.describe(spec)) for spec in drawn],
        dev=None,
        asking=questions.QuestionSampler(CLASSES, run.questions),
    )


def params_shapes(run: config.Run) -> dict:
    """The model's parameters as shapes."""
    return jax.eval_shape(lambda: ASA(run.model).init(jax.random.key(0)))


def lower(run: config.Run, what: str, mesh: Mesh) -> tuple[jax.stages.Lowered, tuple]:
    """The update of a stage, or the `rollout` of stage grpo, as the training loop calls it.

    Returns it lowered and the shapes of its arguments, each with its sharding. Raises ConfigError
    where the parameters or the batch do not divide over the mesh.
    """
    name = "grpo" if what == ROLLOUT else what
    around = context(run, name, mesh)
    stage = around.stage
    with jax.set_mesh(mesh):
        start = state.shapes(params_shapes(run), stage, mesh, run.model.frozen_dtype)
        key = jax.eval_shape(lambda: jax.random.key(0))
        whole = NamedSharding(mesh, PartitionSpec())
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole)
        batch = batch_shapes(around, name)
        if what == ROLLOUT:
            asked = (start.params, _placed(batch, mesh), key)
            sampled = grpo.sampler(around)
            return sampled.lower(*asked, stage.num_generations, stage.temperature), asked
        if name == "grpo":
            batch = grpo.played_shapes(around, batch)
            around = grpo.paced(around)
        given = (start, _placed(batch, mesh), key)
        update = common.gradient_update(around, STAGES[name].objective(around))
        return update.lower(*given), given


def batch_shapes(around: common.Context, name: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch that the pipeline of stage `name` makes."""
    make = STAGES[name].examples(around)
    heard = around.train or ()
    elements = [scene for _, scene in heard] if name == "text" else heard
    example = pipeline.fixed(elements, make, around.run.seed, "ahead", 1)
    rows = around.stage.batch_size
    return {
        name: jax.ShapeDtypeStruct((rows, *value.shape[1:]), value.dtype)
        for name, value in example.items()
    }


def _placed(batch: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh) -> dict:
    shares = sharding.shares(mesh)
    lies = NamedSharding(mesh, sharding.BATCH)
    for shape in batch.values():
        if shape.shape[0] % shares:
            raise ConfigError(
                f"batch is {shape.shape[0]}, expected rows that divide by data x fsdp = {shares}"
            )
    return {
        name: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=lies)
        for name, shape in batch.items()
    }
