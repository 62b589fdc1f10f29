"""Steps lowered from shapes alone."""

import types

import jax
import numpy as np
import pytest

from jaxasa.config import ConfigError, gin_files
from jaxasa.core import trees
from jaxasa.parallel import mesh
from jaxasa.plan import aot
from jaxasa.stages import common, grpo

BINDINGS = ["Model.unroll=1", "Mesh.data=2", "Mesh.fsdp=2", "Mesh.tensor=2"]


def load(name, *bindings):
    return gin_files.load([f"gin/run/{name}.gin"], [*BINDINGS, *bindings])[0]


# Tracing is what takes the time; the other stages are lowered the same way.
@pytest.mark.parametrize("what", ["sft", "grpo", aot.ROLLOUT])
def test_each_step_is_lowered_with_its_state_and_batch_over_the_mesh(what):
    run = load("tiny")
    over = mesh.make_mesh(run.mesh)
    lowered, (start, batch, _) = aot.lower(run, what, over)
    params = start if what == aot.ROLLOUT else start.params
    q = params["decoder"]["layers"]["q"]["kernel"]
    assert q.sharding.shard_shape(q.shape) == (3, 128 // 2, 128 // 2)
    stage = getattr(run, "grpo" if what == aot.ROLLOUT else what)
    for shape in batch.values():
        assert shape.sharding.shard_shape(shape.shape)[0] == stage.batch_size // 4
    if what != aot.ROLLOUT:
        learns, _ = trees.split(params, stage.trainable)
        sizes = [leaf.size for leaf in jax.tree.leaves(start.opt_state)]
        assert sum(sizes) >= 2 * sum(leaf.size for leaf in learns.values())
    made = lowered.out_info
    if what == aot.ROLLOUT:
        reply = run.model.reply_tokens
        said, heard = made
        assert said.ids.shape == (stage.batch_size, stage.num_generations, reply)
        around = aot.context(run, "grpo", over)
        played = grpo.played_shapes(around, aot.batch_shapes(around, "grpo"))
        assert (heard.shape, heard.dtype) == (played["class_present"].shape, played["class_present"].dtype)
    else:
        after, metrics = made
        before = jax.tree.map(lambda x: (x.shape, x.dtype), start)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == before
        assert {"loss", "gradient_norm"} <= metrics.keys()


def test_a_batch_that_does_not_divide_is_named():
    run = load("tiny", "TextStage.batch_size=6")
    with pytest.raises(ConfigError, match="batch is 6, expected rows .* data x fsdp = 4"):
        aot.lower(run, "text", mesh.make_mesh(run.mesh))


def test_evaluations_divide_over_the_mesh():
    sizes = [types.SimpleNamespace(shape={"data": 1, "fsdp": n}) for n in (1, 8, 48, 256)]
    assert [common.num_eval_scenes(size) for size in sizes] == [64, 64, 96, 256]
    assert common.num_eval_scenes(sizes[3], 300) == 512


def test_a_task_that_few_scenes_support_is_planned_too():
    run = load("tiny", "Questions.tasks={'sector_of_nearest': 1}")
    around = aot.context(run, "sft", mesh.make_mesh(run.mesh))
    asked = [bool(around.question_sampler(scene, np.random.default_rng(0))) for _, scene in around.train]
    assert 0 < sum(asked) < len(asked) and not asked[0]
    assert aot.batch_shapes(around, "sft")["prompt"].shape[:2] == (16, 6)
