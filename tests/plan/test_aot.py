# SPDX-License-Identifier: Apache-2.0
"""Programs of stages lowered from shapes alone."""

import jax
import numpy as np
import pytest

from jaxasa.config import ConfigError, gin_files
from jaxasa.core import trees
from jaxasa.parallel import mesh
from jaxasa.plan import aot
from jaxasa.stages import grpo
from jaxasa.stages.registry import STAGES

BINDINGS = ["Model.unroll=1", "Mesh.data=2", "Mesh.fsdp=2", "Mesh.tensor=2"]


def load(name, *bindings):
    return gin_files.load([f"gin/run/{name}.gin"], [*BINDINGS, *bindings])[0]


def shapes_and_types(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


# Tracing takes the time; the other stages are lowered in the same way.
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_update_is_lowered_with_state_and_batch_sharded_over_the_mesh(stage):
    run = load("tiny")
    lowered, (start, batch, _) = aot.lower(run, stage, mesh.make_mesh(run.mesh))
    q = start.params["decoder"]["layers"]["q"]["kernel"]
    assert q.sharding.shard_shape(q.shape) == (3, 128 // 2, 128 // 2)
    options = aot.options_of(run, stage)
    for shape in batch.values():
        assert shape.sharding.shard_shape(shape.shape)[0] == options.batch_size // 4
    trainable, _ = trees.split(start.params, options.trainable)
    sizes = [leaf.size for leaf in jax.tree.leaves(start.opt_state)]
    assert sum(sizes) >= 2 * sum(leaf.size for leaf in trainable.values())
    after, metrics = lowered.out_info
    assert shapes_and_types(after) == shapes_and_types(start)
    assert {"loss", "gradient_norm"} <= metrics.keys()


def test_rollout_is_lowered_with_parameters_and_batch_sharded_over_the_mesh():
    run = load("tiny")
    devices = mesh.make_mesh(run.mesh)
    lowered, (params, batch, _) = aot.lower(run, aot.ROLLOUT, devices)
    q = params["decoder"]["layers"]["q"]["kernel"]
    assert q.sharding.shard_shape(q.shape) == (3, 128 // 2, 128 // 2)
    options = aot.options_of(run, aot.ROLLOUT)
    assert options is run.grpo
    for shape in batch.values():
        assert shape.sharding.shard_shape(shape.shape)[0] == options.batch_size // 4
    completions, audio_embeds = lowered.out_info
    shape = options.batch_size, options.num_generations, run.model.reply_tokens
    assert completions.ids.shape == shape
    context = aot.context(run, "grpo", devices)
    update_batch = grpo.update_batch_shapes(context, aot.batch_shapes(context, STAGES["grpo"]))
    assert shapes_and_types(audio_embeds) == shapes_and_types(update_batch["audio_embeds"])


def test_batch_that_the_mesh_does_not_divide_is_named():
    run = load("tiny", "TextStage.batch_size=6")
    with pytest.raises(ConfigError, match=r"batch is 6, expected rows .* data x fsdp = 4"):
        aot.lower(run, "text", mesh.make_mesh(run.mesh))


def test_batch_shapes_of_a_question_type_that_few_scenes_support():
    run = load("tiny", "Questions.tasks={'sector_of_nearest': 1}")
    context = aot.context(run, "sft", mesh.make_mesh(run.mesh))
    sampler, rng = context.question_sampler, np.random.default_rng(0)
    is_supported = [bool(sampler(scene, rng)) for _, scene in context.train]
    assert 0 < sum(is_supported) < len(is_supported) and not is_supported[0]
    assert aot.batch_shapes(context, STAGES["sft"])["prompt"].shape[:2] == (16, 6)
