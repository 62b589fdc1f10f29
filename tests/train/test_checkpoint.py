# SPDX-License-Identifier: Apache-2.0
import errno
import json
import os
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
        # From jax: replicated device arrays could not be saved once.
        "lora": {"a": jnp.asarray(rng.normal(size=(width, 2)), jnp.float32)},
    }


def make(offset=0, sizes=(2, 2, 2), devices=None, width=8):
    """A state to whose arrays `offset` is added."""
    devices = mesh.make_mesh(config.Mesh(*sizes), devices)
    now = state.create(params(width), STAGE, devices, RULES)
    return jax.tree.map(lambda x: x + jnp.asarray(offset, x.dtype), now) if offset else now


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "sft"
    with checkpoint.CheckpointManager(folder, keep=2) as manager:
        assert manager.latest_step() is None
        for step in (1, 2, 3):
            manager.save(step, make(step), {"at": step}, META, "text\n")
        assert manager.latest_step() == 3
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "sft")


def equal(one, two):
    return all(
        a.dtype == b.dtype and np.array_equal(np.asarray(a), np.asarray(b))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    )


def test_last_two_steps_are_kept(folder):
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["2", "3"]
    assert (folder / "config.gin").read_text() == "text\n"
    assert json.loads((folder / "meta.json").read_text())["model"] == META["model"]


@pytest.mark.parametrize("sizes, count", [((2, 2, 2), 8), ((1, 4, 1), 4), ((1, 1, 1), 1)])
def test_restore_is_exact_on_any_mesh(folder, sizes, count):
    template = make(sizes=sizes, devices=jax.devices()[:count])
    with checkpoint.CheckpointManager(folder) as manager:
        restored, data = manager.restore(template, META)
        assert manager.meta()["classes"] == ["dog", "bell"]
    assert equal(restored, make(3)) and data == {"at": 3}
    assert jax.tree.structure(restored) == jax.tree.structure(template)
    assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(
        lambda x: x.sharding, template
    )


def test_ref_params_are_saved_and_restored_on_any_mesh(folder, tmp_path):
    """They are copies; a checkpoint without them is refused by name."""
    stage = config.GrpoStage(
        steps=10, batch_size=8, learning_rate=0.1, trainable=("lora/.*",), kl_weight=0.1
    )
    start = state.create(params(), stage, mesh.make_mesh(config.Mesh(2, 2, 2)), RULES)
    before = np.asarray(params()["lora"]["a"])
    add = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    changed = add(start.params)
    now = state.TrainState(start.step, changed, start.opt_state, start.ref_params)
    with checkpoint.CheckpointManager(tmp_path / "grpo") as manager:
        manager.save(1, now, {}, META, "")
        template = state.create(
            params() | {"lora": changed["lora"]},
            stage,
            mesh.make_mesh(ONE, jax.devices()[:1]),
            RULES,
        )
        restored, _ = manager.restore(template, META)
    assert list(restored.ref_params) == ["lora/a"]
    np.testing.assert_array_equal(restored.ref_params["lora/a"], before)
    assert equal(restored.params, changed)
    assert checkpoint.load(tmp_path / "grpo")[0].keys() == {"decoder", "lora"}
    with (
        checkpoint.CheckpointManager(folder) as manager,
        pytest.raises(ConfigError, match="ref_params.lora/a has shape none there"),
    ):
        manager.restore(template, META)


def test_load_returns_numpy_arrays(folder):
    loaded, meta = checkpoint.load(folder)
    assert {type(x) for x in jax.tree.leaves(loaded)} == {np.ndarray}
    assert equal(loaded, make(3).params) and meta == json.loads(json.dumps(META))
    with pytest.raises(ConfigError, match="complete checkpoint"):
        checkpoint.load(folder / "nowhere")


def write_incomplete(path, how):
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
def test_incomplete_steps_are_ignored(folder, how):
    write_incomplete(folder / "9", how)
    loaded, _ = checkpoint.load(folder)
    assert equal(loaded, make(3).params)
    with checkpoint.CheckpointManager(folder) as manager:
        assert manager.latest_step() == 3
        restored, _ = manager.restore(make(), META)
        assert int(restored.step) == 3
        manager.save(9, make(9), {"at": 9}, META, "text\n")
    assert equal(checkpoint.load(folder)[0], make(9).params)
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["3", "9"]


def test_save_replaces_the_same_and_later_steps(folder):
    with checkpoint.CheckpointManager(folder) as manager:
        manager.save(2, make(9), {"at": 2}, META, "text\n")
        manager.wait()
        assert manager.latest_step() == 2
    assert equal(checkpoint.load(folder)[0], make(9).params)


def test_restore_refuses_another_config_and_names_the_values(folder):
    other = META | {"model": {"decoder": {"width": 16}, "new": 1}, "classes": ("dog",)}
    with checkpoint.CheckpointManager(folder) as manager, pytest.raises(ConfigError) as error:
        manager.restore(make(), other)
    for words in (
        "another model config",
        "decoder.width was 8, is 16",
        "new was None, is 1",
        "classes was ['dog', 'bell'], is ['dog']",
    ):
        assert words in str(error.value)
    assert "stage" not in str(error.value).split(":", 1)[1]


def test_restore_accepts_other_options_of_speed(folder):
    other = META | {"model": {**META["model"], "remat": "full", "unroll": 4}}
    with checkpoint.CheckpointManager(folder) as manager:
        assert int(manager.restore(make(), other)[0].step) == 3


def test_file_system_that_renames_no_folders_is_named(folder, monkeypatch):
    """orbax renames the folder of a step when it is complete."""
    rename = os.rename

    def rename_files(source, target, **options):
        if os.path.isdir(source):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), source)
        rename(source, target, **options)

    monkeypatch.setattr(os, "rename", rename_files)
    monkeypatch.setattr(os, "replace", rename_files)
    with pytest.raises(ConfigError) as error, checkpoint.CheckpointManager(folder) as manager:
        manager.save(4, make(4), {"at": 4}, META, "text\n")
    assert f"{folder}: its file system cannot rename folders" in str(error.value)
    monkeypatch.undo()
    assert checkpoint.load(folder)[1]["stage"] == META["stage"]


@pytest.fixture
def full_disk():
    """`full_disk(bytes)`: limits the size of files until the test ends."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("when", ["at the next save", "at the end"])
def test_full_disk_names_the_reason_and_keeps_the_last_step(folder, full_disk, when):
    rng = np.random.default_rng(1)
    big = make(3)
    big.params["lora"]["a"] = jnp.asarray(rng.normal(size=(8, 2000)), jnp.float32)  # 64 kB
    with pytest.raises(ConfigError) as error, checkpoint.CheckpointManager(folder) as manager:
        full_disk(20_000)
        manager.save(4, big, {"at": 4}, META, "text\n")
        if when == "at the next save":
            manager.save(5, big, {"at": 5}, META, "text\n")
            raise AssertionError("saved on a full disk")
    assert f"{folder}: a checkpoint cannot be written (" in str(error.value)
    assert "File too large" in str(error.value) and "\n" not in str(error.value)
    full_disk(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    with checkpoint.CheckpointManager(folder) as manager:
        assert manager.latest_step() == 3
        assert equal(manager.restore(make(), META)[0], make(3))
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["2", "3"]


def test_restore_names_other_shapes_and_corrupt_files(folder):
    with checkpoint.CheckpointManager(folder) as manager:
        with pytest.raises(ConfigError, match=r"params.lora.a has shape \(8, 2\) there, \(4, 2\)"):
            manager.restore(make(width=4), META)
        for path in (folder / "3" / "state").rglob("d/*"):
            path.write_bytes(b"x" * 10)
        with pytest.raises(ConfigError, match="3: checkpoint cannot be read") as error:
            manager.restore(make(), META)
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="3: checkpoint cannot be read"):
        checkpoint.load(folder)
