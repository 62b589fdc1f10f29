import json
import resource
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.parallel import mesh
from jaxasa.train import checkpoint, state

STAGE = config.Stage(
    steps=10, batch_size=8, learning_rate=0.1, trainable=("lora/.*",), warmup_steps=1
)
META = {"stage": "sft", "classes": ("dog", "bell"), "model": {"decoder": {"width": 8}}}
ONE = config.Mesh(1, 1, 1)
RULES = (
    (r"decoder/embed", ("vocab", "width")),
    (r"lora/.*", None),
)


def params(width=8):
    rng = np.random.default_rng(0)
    return {
        "decoder": {"embed": rng.normal(size=(16, width)).astype(ml_dtypes.bfloat16)},
        # From jax, since device arrays placed whole on every device once could not be saved.
        "lora": {"a": jnp.asarray(rng.normal(size=(width, 2)), jnp.float32)},
    }


def make(fill=None, sizes=(2, 2, 2), devices=None, width=8):
    devices = mesh.make(config.Mesh(*sizes), devices)
    made = state.create(params(width), STAGE, devices, RULES)
    return made if fill is None else jax.tree.map(lambda x: x + jnp.asarray(fill, x.dtype), made)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "sft"
    with checkpoint.Store(folder, keep=2) as store:
        assert store.latest() is None
        for step in (1, 2, 3):
            store.save(step, make(step), {"at": step}, META, "text\n")
        assert store.latest() == 3
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "sft")


def equal(one, two):
    return all(
        a.dtype == b.dtype and np.array_equal(np.asarray(a), np.asarray(b))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    )


def test_the_last_two_stay(folder):
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["2", "3"]
    assert (folder / "config.gin").read_text() == "text\n"
    assert json.loads((folder / "meta.json").read_text())["model"] == META["model"]


@pytest.mark.parametrize("sizes, count", [((2, 2, 2), 8), ((1, 4, 1), 4), ((1, 1, 1), 1)])
def test_restores_exactly_on_any_mesh(folder, sizes, count):
    template = make(sizes=sizes, devices=jax.devices()[:count])
    with checkpoint.Store(folder) as store:
        restored, data = store.restore(template, META)
        assert store.meta()["classes"] == ["dog", "bell"]
    assert equal(restored, make(3)) and data == {"at": 3}
    assert jax.tree.structure(restored) == jax.tree.structure(template)
    assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(
        lambda x: x.sharding, template
    )


def test_what_learns_is_kept_as_it_was_where_the_stage_says_so(folder, tmp_path):
    """In memory of its own, on any mesh; a checkpoint without it is refused by name."""
    stage = config.GrpoStage(
        steps=10, batch_size=8, learning_rate=0.1, trainable=("lora/.*",), kl_weight=0.1
    )
    start = state.create(params(), stage, mesh.make(config.Mesh(2, 2, 2)), RULES)
    before = np.asarray(params()["lora"]["a"])
    add = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    moved = add(start.params)
    now = state.State(start.step, moved, start.opt_state, start.reference)
    with checkpoint.Store(tmp_path / "grpo") as store:
        store.save(1, now, {}, META, "")
        there = state.create(
            params() | {"lora": moved["lora"]}, stage, mesh.make(ONE, jax.devices()[:1]), RULES
        )
        restored, _ = store.restore(there, META)
    assert list(restored.reference) == ["lora/a"]
    np.testing.assert_array_equal(restored.reference["lora/a"], before)
    assert equal(restored.params, moved)
    assert checkpoint.load(tmp_path / "grpo")[0].keys() == {"decoder", "lora"}
    with (
        checkpoint.Store(folder) as store,
        pytest.raises(ConfigError, match="reference.lora/a has shape none there"),
    ):
        store.restore(there, META)


def test_load_gives_numpy_without_a_mesh(folder):
    found, meta = checkpoint.load(folder)
    assert {type(x) for x in jax.tree.leaves(found)} == {np.ndarray}
    assert equal(found, make(3).params) and meta == json.loads(json.dumps(META))
    with pytest.raises(ConfigError, match="whole checkpoint"):
        checkpoint.load(folder / "nowhere")


def halve(path, how):
    if how == "empty":
        path.mkdir()
        return
    name = path.name if how != "temporary" else f"{path.name}.orbax-checkpoint-tmp-1"
    shutil.copytree(path.parent / "3", path.parent / name)
    if how == "no commit":
        (path / "_CHECKPOINT_METADATA").unlink()
    if how == "no state":
        shutil.rmtree(path / "state")


@pytest.mark.parametrize("how", ["empty", "temporary", "no commit", "no state"])
def test_half_written_steps_are_ignored(folder, how):
    halve(folder / "9", how)
    found, _ = checkpoint.load(folder)
    assert equal(found, make(3).params)
    with checkpoint.Store(folder) as store:
        assert store.latest() == 3
        restored, _ = store.restore(make(), META)
        assert int(restored.step) == 3
        store.save(9, make(9), {"at": 9}, META, "text\n")
    assert equal(checkpoint.load(folder)[0], make(9).params)
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["3", "9"]


def test_a_step_takes_the_place_of_itself_and_of_later_ones(folder):
    with checkpoint.Store(folder) as store:
        store.save(2, make(9), {"at": 2}, META, "text\n")
        store.wait()
        assert store.latest() == 2
    assert equal(checkpoint.load(folder)[0], make(9).params)


def test_another_config_is_refused_with_the_differing_values(folder):
    other = META | {"model": {"decoder": {"width": 16}, "new": 1}, "classes": ("dog",)}
    with checkpoint.Store(folder) as store, pytest.raises(ConfigError) as error:
        store.restore(make(), other)
    for words in (
        "another model config",
        "decoder.width was 8, is 16",
        "new was None, is 1",
        "classes was ['dog', 'bell'], is ['dog']",
    ):
        assert words in str(error.value)
    assert "stage" not in str(error.value).split(":", 1)[1]


def test_what_changes_only_speed_or_memory_may_be_another(folder):
    other = META | {"model": {**META["model"], "remat": "full", "unroll": 4, "buckets": [10.0]}}
    with checkpoint.Store(folder) as store:
        assert int(store.restore(make(), other)[0].step) == 3


@pytest.fixture
def full_disk():
    """`full_disk(bytes)`: no file may grow beyond so many, until the test ends."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("when", ["at the next save", "at the end"])
def test_a_full_disk_ends_with_the_reason_and_keeps_the_last_step(folder, full_disk, when):
    rng = np.random.default_rng(1)
    big = make(3)
    big.params["lora"]["a"] = jnp.asarray(rng.normal(size=(8, 2000)), jnp.float32)  # 64 kB
    with pytest.raises(ConfigError) as error, checkpoint.Store(folder) as store:
        full_disk(20_000)
        store.save(4, big, {"at": 4}, META, "text\n")
        if when == "at the next save":
            store.save(5, big, {"at": 5}, META, "text\n")
            raise AssertionError("saved on a full disk")
    assert f"{folder}: a checkpoint cannot be written (" in str(error.value)
    assert "File too large" in str(error.value) and "\n" not in str(error.value)
    full_disk(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    with checkpoint.Store(folder) as store:
        assert store.latest() == 3
        assert equal(store.restore(make(), META)[0], make(3))
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["2", "3"]


def test_other_shapes_and_corrupt_files_are_named(folder):
    with checkpoint.Store(folder) as store:
        with pytest.raises(ConfigError, match=r"params.lora.a has shape \(8, 2\) there, \(4, 2\)"):
            store.restore(make(width=4), META)
        for path in (folder / "3" / "state").rglob("d/*"):
            path.write_bytes(b"x" * 10)
        with pytest.raises(ConfigError, match="3: checkpoint cannot be read") as error:
            store.restore(make(), META)
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="3: checkpoint cannot be read"):
        checkpoint.load(folder)
