# SPDX-License-Identifier: Apache-2.0
"""The run file of each size: patterns of trainable parameters match, and the model shards."""

import functools
import math
import re

import jax
import pytest

from jaxasa import config
from jaxasa.config import gin_files
from jaxasa.core import trees
from jaxasa.parallel import mesh, sharding
from jaxasa.plan import aot
from jaxasa.train import state

STAGES = ("spatial", "align", "sft", "grpo")
SIZES = {"tiny": ("text", *STAGES), "small": STAGES, "base": STAGES, "large": STAGES}
MESHES = [(2, 4, 1), (1, 8, 1), (8, 1, 1), (2, 2, 2)]


def load(*files: str) -> config.Run:
    return gin_files.load([f"gin/{name}.gin" for name in files])[0]


@functools.cache
def shapes(size: str) -> dict:
    files = ["run/base", f"model/{size}"] if size.startswith("qwen3") else [f"run/{size}"]
    return aot.params_shapes(load(*files))


@pytest.mark.parametrize(
    "size, stage", [(size, stage) for size, stages in SIZES.items() for stage in stages]
)
def test_trainable_parameters_of_each_stage_and_size(size, stage):
    run = load(f"run/{size}")
    assert run.stages == SIZES[size]
    options = getattr(run, stage)
    trainable, frozen = trees.split(shapes(size), options.trainable)
    tops = {path.partition("/")[0] for path in trainable}
    expected = {
        "text": {"decoder"},
        "spatial": {"spatial", "projector"} | ({"semantic"} if size == "tiny" else set()),
        "align": {"projector"},
        "sft": {"projector", "lora"},
        "grpo": {"lora"},
    }
    assert tops == expected[stage] and frozen
    if size != "tiny":
        assert options.batch_size % 256 == 0
        stored = jax.eval_shape(
            lambda params: state.cast_params(params, options, run.model.frozen_dtype), shapes(size)
        )
        dtypes = {path: leaf.dtype.name for path, leaf in trees.flatten(stored).items()}
        assert {dtypes[path] for path in trainable} == {"float32"}
        assert {dtypes[path] for path in frozen} == {"bfloat16"}


@pytest.mark.parametrize("size", [*SIZES, "qwen3_0_6b", "qwen3_8b"])
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_every_model_shards_on_every_mesh(size, sizes):
    shardings = trees.flatten(
        sharding.params_sharding(shapes(size), mesh.make_mesh(config.Mesh(*sizes)))
    )
    flat = trees.flatten(shapes(size))
    per_device, total = 0, 0
    for path, shape in flat.items():
        if re.match(r"decoder/(layers/.*/kernel|embedding|head)", path):
            per_device += math.prod(shardings[path].shard_shape(shape.shape))
            total += math.prod(shape.shape)
    assert per_device == pytest.approx(total / (sizes[1] * sizes[2]))
