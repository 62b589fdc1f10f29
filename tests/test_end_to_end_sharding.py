"""One gradient step of real stages on one device and on eight emulated ones."""

import types

import jax
import numpy as np
import optax
import pytest

from jaxasa import config, mesh, optim, sharding, state
from jaxasa.stages import common, sft, spatial

LENGTH = dict(steps=4, batch=8, learning_rate=0.01, warmup=0, clip=0.0)
STAGES = {
    "spatial": (
        spatial,
        config.SpatialStage(trainable=("spatial/.*", "projector/.*_(in|out|head)/.*"), **LENGTH),
    ),
    "sft": (
        sft,
        config.SftStage(trainable=("projector/.*", "lora/.*", "decoder/.*"), questions=2, **LENGTH),
    ),
}
MESHES = {
    "data": config.Mesh(data=8),
    "fsdp": config.Mesh(data=2, fsdp=4),
    "tensor": config.Mesh(data=2, fsdp=2, tensor=2),
}


@pytest.fixture(scope="module", autouse=True)
def compile_in_haste():
    """Compiling takes nearly all of the time here."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def step(tiny, text, described):
    """`step(stage, mesh)`: metrics and gradients (as Adam's first moments tell) of one step."""
    rng = np.random.default_rng(0)
    audio = rng.integers(-3000, 3000, (8, 8000, 4)).astype(np.int16)
    scenes = list(zip(audio, described(8), strict=True))

    seconds = types.SimpleNamespace(seconds=0.5)
    settings = types.SimpleNamespace(model=tiny.model, scenes=seconds, seed=0)

    def run(name, over):
        module, stage = STAGES[name]
        context = common.Context(
            run=settings,
            stage=stage,
            asa=tiny.asa,
            mesh=over,
            text=text,
            classes=tiny.classes,
            clips=(),
            train=scenes,
            dev=scenes,
        )
        with jax.set_mesh(over):
            task = module.task(context)
            start = state.create(tiny.params, stage, over)
            key = jax.device_put(jax.random.key(0), start.step.sharding)
            after, metrics = task.step(start, next(task.batches), key)
        moments = optax.tree_utils.tree_get_all_with_path(after.opt_state, "mu")[0][1]
        gradients = {path: np.asarray(leaf) / 0.1 for path, leaf in moments.items()}
        return {k: float(v) for k, v in metrics.items()}, gradients, after

    return run


@pytest.fixture(scope="module")
def alone(step):
    one = mesh.make(config.Mesh(), jax.devices()[:1])
    return {name: step(name, one) for name in STAGES}


@pytest.mark.parametrize("name, over", [("spatial", "data"), ("sft", "fsdp"), ("sft", "tensor")])
def test_eight_devices_take_the_step_of_one(step, alone, name, over):
    metrics, gradients, _ = alone[name]
    found, slopes, after = step(name, mesh.make(MESHES[over]))
    assert found["loss"] > 0.1 and metrics["gradient_norm"] > 0.1
    for key, value in metrics.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-5, err_msg=key)
    learning = {path for path, leaf in gradients.items() if np.abs(leaf).max() > 1e-4}
    assert {"spatial": "spatial/stem0/kernel", "sft": "lora/layers/q/a"}[name] in learning
    assert len(learning) > 0.6 * len(gradients)
    for path, expected in gradients.items():
        assert np.isfinite(expected).all(), path
        # The slope of trust is a small sum of large terms that cancel.
        share = 3e-4 if path.endswith("trust") else 1e-5
        atol = 1e-6 + share * np.abs(expected).max()
        np.testing.assert_allclose(slopes[path], expected, atol=atol, err_msg=path)
    spread = [x.sharding.is_fully_replicated for x in jax.tree.leaves(after.params["decoder"])]
    assert all(spread) == (over == "data")


def test_what_is_frozen_stays(tiny, alone):
    _, gradients, after = alone["spatial"]
    for path, leaf in optim.flatten(tiny.params).items():
        moved = np.abs(np.asarray(optim.flatten(after.params)[path]) - leaf).max() > 0
        assert moved <= (path in gradients), path
    assert int(after.step) == 1


def test_the_table_fits_the_model_on_every_mesh(tiny):
    shapes = jax.eval_shape(tiny.asa.init, jax.random.key(0))
    for over in MESHES.values():
        sharding.params_sharding(shapes, mesh.make(over))
    q = sharding.params_sharding(shapes, mesh.make(MESHES["tensor"]))["decoder"]["layers"]["q"]
    assert q["kernel"].spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    assert q["bias"].spec == jax.sharding.PartitionSpec(None, "tensor")
