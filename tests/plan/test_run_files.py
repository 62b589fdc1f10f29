"""Run files of every size and stage: they load, their patterns match, their models shard."""

import functools
import math
import re
from pathlib import Path

import jax
import pytest

from jaxasa import config
from jaxasa.config import gin_files
from jaxasa.core import trees, workdir
from jaxasa.parallel import mesh, sharding
from jaxasa.plan import aot
from jaxasa.train import state

RUNS = Path(__file__).resolve().parents[2] / "gin" / "run"
STAGES = ("spatial", "align", "sft", "grpo")
FILES = [
    ("tiny", "text"),
    *((size, stage) for size in ("tiny", "small", "base", "large") for stage in STAGES),
]
MESHES = [(2, 4, 1), (1, 8, 1), (8, 1, 1), (2, 2, 2)]


def load(size: str, stage: str) -> config.Run:
    return gin_files.load([str(RUNS / f"{size}_{stage}.gin")])[0]


@functools.cache
def shapes(size: str) -> dict:
    if size.startswith("qwen3"):
        files = [str(RUNS / "base_spatial.gin"), str(RUNS.parent / "model" / f"{size}.gin")]
        return aot.params_shapes(gin_files.load(files)[0])
    return aot.params_shapes(load(size, "spatial"))


@pytest.mark.parametrize("size, stage", FILES)
def test_trainable_parameters_of_each_stage_and_size(size, stage):
    run = load(size, stage)
    assert run.stages[-1] == stage
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
            lambda params: state.stored(params, options, run.model.frozen_dtype), shapes(size)
        )
        dtypes = {path: leaf.dtype.name for path, leaf in trees.flatten(stored).items()}
        assert {dtypes[path] for path in trainable} == {"float32"}
        assert {dtypes[path] for path in frozen} == {"bfloat16"}


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_stages_of_a_size_share_a_work_folder(size, tmp_path):
    for stage in STAGES:
        run, text = gin_files.load([str(RUNS / f"{size}_{stage}.gin")])
        workdir.claim(tmp_path, run, text)


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large", "qwen3_0_6b", "qwen3_8b"])
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_every_model_shards_on_every_mesh(size, sizes):
    shardings = trees.flatten(
        sharding.params_sharding(shapes(size), mesh.make(config.Mesh(*sizes)))
    )
    flat = trees.flatten(shapes(size))
    per_device, total = 0, 0
    for path, shape in flat.items():
        if re.match(r"decoder/(layers/.*/kernel|embedding|head)", path):
            per_device += math.prod(shardings[path].shard_shape(shape.shape))
            total += math.prod(shape.shape)
    assert per_device == pytest.approx(total / (sizes[1] * sizes[2]))
