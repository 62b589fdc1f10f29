# SPDX-License-Identifier: Apache-2.0
"""Run as a script, this file trains the same task in a process that a test can kill."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core import trees
from jaxasa.parallel import mesh, sharding
from jaxasa.train import checkpoint, loop, metrics, optim, state

STAGE = config.Stage(
    steps=12,
    batch_size=8,
    learning_rate=0.1,
    trainable=("projector/.*",),
    warmup_steps=2,
    save_every=3,
    eval_every=6,
    log_every=2,
)
META = {"stage": "linear", "model": {"width": 4}}


class Batches:
    """Batch i is a function of i alone; the state is the number of batches drawn."""

    def __init__(self):
        self.index = 0

    def __iter__(self):
        return self

    def __next__(self):
        rng = np.random.default_rng([7, self.index])
        self.index += 1
        x = rng.normal(size=(8, 4)).astype(np.float32)
        return {"x": x, "y": x @ (np.arange(12, dtype="f4").reshape(4, 3) / 12)}

    def get_state(self):
        return {"index": self.index}

    def set_state(self, state):
        self.index = state["index"]


# Donates its state as stages do: an asynchronous save must not see later steps in its buffers.
@functools.partial(jax.jit, donate_argnums=0)
def update(old, batch, key):
    trainable, frozen = trees.split(old.params, STAGE.trainable)

    def loss(flat):
        out = trees.merge(flat, frozen)["projector"]["out"]
        noise = 0.1 * jax.random.normal(key, batch["x"].shape)
        return jnp.mean(((batch["x"] + noise) @ out["kernel"] + out["bias"] - batch["y"]) ** 2)

    value, gradient = jax.value_and_grad(loss)(trainable)
    updates, opt_state = optim.make_optimizer(STAGE).update(gradient, old.opt_state, trainable)
    moved = trees.merge(optax.apply_updates(trainable, updates), frozen)
    return state.TrainState(old.step + 1, moved, opt_state), {"loss": value}


class LinearTask:
    """A linear model with noise from the loop's key, so that a wrong key shows."""

    name = "linear"

    def __init__(self, before_step=None, mesh_=None):
        self.batches = Batches()
        self.mesh = mesh_ or mesh.make_mesh(config.Mesh())
        self.before_step, self.steps = before_step or (lambda step: None), 0

    def step(self, old, batch, key):
        self.steps += 1
        self.before_step(self.batches.index)
        sharded = sharding.shard_batch(batch, self.mesh)
        with jax.transfer_guard("disallow"):
            return update(old, sharded, key)

    def evaluate(self, params):
        return {"norm": float(jnp.sum(params["projector"]["out"]["kernel"] ** 2))}


@functools.cache
def initial_state(mesh_=None):
    params = {
        "projector": {"out": {"kernel": np.zeros((4, 3), np.float32), "bias": np.zeros(3, "f4")}},
        "semantic": {"conv1": {"bias": np.ones(2, np.float32)}},
    }
    return state.create(params, STAGE, mesh_ or mesh.make_mesh(config.Mesh()))


def train(
    folder, task=None, meta=META, seed=0, mesh_=None, profile=0, peak_steps_per_s=None, **options
):
    return loop.train(
        task or LinearTask(),
        jax.tree.map(jnp.copy, initial_state(mesh_)),
        dataclasses.replace(STAGE, **options),
        folder=folder / "checkpoint",
        logs=folder / "logs",
        meta=meta,
        config_text="text\n",
        seed=seed,
        profile=profile,
        peak_steps_per_s=peak_steps_per_s,
    )


def records(folder, drop=("steps_per_s", "data_wait")):
    lines = (folder / "logs" / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in drop} for line in lines]


def equal(one, two):
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in leaves)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return train(folder), folder


def test_next_batch_is_drawn_while_one_step_runs(tmp_path, monkeypatch):
    task, metrics_of_steps, waits = LinearTask(), [], []
    step, block = task.step, jax.block_until_ready

    def stepping(*args):
        new, values = step(*args)
        metrics_of_steps.append(values)
        return new, values

    def blocking(tree):
        number = next((i for i, values in enumerate(metrics_of_steps) if values is tree), None)
        if number is not None:
            waits.append((number, task.batches.index))
        return block(tree)

    task.step = stepping
    monkeypatch.setattr(jax, "block_until_ready", blocking)
    train(tmp_path, task, save_every=12, eval_every=12, log_every=12)
    # Before batch n is drawn, step n - 2 has ended.
    assert waits == [(n - 2, n) for n in range(2, 12)]


def test_train_reduces_the_loss_writes_records_and_leaves_frozen_parameters(whole):
    final, folder = whole
    assert int(final.step) == STAGE.steps
    rows = records(folder)
    losses = {r["step"]: r["loss"] for r in rows if "loss" in r}
    assert sorted(losses) == [2, 3, 4, 6, 8, 9, 10, 12] and losses[12] < losses[2]
    assert [r["step"] for r in rows if "eval/norm" in r] == [6, 12]
    norm = float(np.sum(np.asarray(final.params["projector"]["out"]["kernel"]) ** 2))
    assert rows[-1] == {"step": 12, "eval/norm": pytest.approx(norm)} and norm > 0.5
    assert np.array_equal(final.params["semantic"]["conv1"]["bias"], np.ones(2))
    record = records(folder, drop=())[0]
    assert record["steps_per_s"] > 0 and 0 <= record["data_wait"] <= 1
    assert list((folder / "logs").glob("events.out.tfevents.*"))


def test_seed_changes_the_keys(whole, tmp_path):
    assert not equal(whole[0].params, train(tmp_path, seed=1).params)


class Crash(Exception):
    pass


def test_resume_after_a_crash_is_bitwise_equal(whole, tmp_path):
    def crash(step):
        if step == 8:
            raise Crash

    with pytest.raises(Crash):
        train(tmp_path, LinearTask(before_step=crash))
    task = LinearTask()
    assert equal(train(tmp_path, task), whole[0])
    assert task.steps == 6 and records(tmp_path) == records(whole[1])


def test_resume_after_sigkill_is_bitwise_equal(whole, tmp_path):
    script = [sys.executable, __file__, str(tmp_path), "9"]
    path = os.pathsep.join(
        [str(Path(config.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    )
    killed = subprocess.run(script, env={**os.environ, "PYTHONPATH": path}, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    task = LinearTask()
    assert equal(train(tmp_path, task), whole[0])
    assert 4 <= task.steps < STAGE.steps and records(tmp_path) == records(whole[1])


def test_train_on_a_finished_folder_returns_without_a_step(whole):
    task = LinearTask()
    assert equal(train(whole[1], task), whole[0]) and task.steps == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_raises_preempted(whole, tmp_path, number):
    before = signal.getsignal(number)

    def send(step):
        if step == 5:
            os.kill(os.getpid(), number)

    with pytest.raises(loop.Preempted, match="step 5"):
        train(tmp_path, LinearTask(before_step=send))
    assert signal.getsignal(number) is before
    task = LinearTask()
    assert equal(train(tmp_path, task), whole[0]) and task.steps == STAGE.steps - 5


def test_nan_loss_names_the_step_and_is_not_saved(tmp_path):
    class Broken(LinearTask):
        def step(self, old, batch, key):
            new, values = super().step(old, batch, key)
            return new, {"loss": values["loss"] * (jnp.nan if self.steps == 8 else 1.0)}

    with pytest.raises(ConfigError, match="linear: loss is nan at step 8") as error:
        train(tmp_path, Broken())
    assert "\n" not in str(error.value)
    task = LinearTask()
    train(tmp_path, task)
    assert task.steps == STAGE.steps - 6


def test_infinite_gradient_names_the_step_and_is_not_saved(tmp_path):
    """The loss of its step is finite; the parameters after it are not."""

    class Broken(LinearTask):
        def step(self, old, batch, key):
            new, values = super().step(old, batch, key)
            return new, values | {"gradient_norm": jnp.where(self.steps == 9, jnp.inf, 1.0)}

    with pytest.raises(ConfigError, match="linear: gradient_norm is inf at step 9"):
        train(tmp_path, Broken())
    assert {p.name for p in (tmp_path / "checkpoint").iterdir() if p.is_dir()} == {"3", "6"}


def test_checkpoint_of_another_model_config_is_refused(whole):
    with pytest.raises(ConfigError, match="another model config: width was 4, is 8"):
        train(whole[1], meta=META | {"model": {"width": 8}})


def test_one_device_equals_eight(whole, tmp_path):
    single = mesh.make_mesh(config.Mesh(), jax.devices()[:1])
    final = train(tmp_path, LinearTask(mesh_=single), mesh_=single)
    kernel = final.params["projector"]["out"]["kernel"]
    np.testing.assert_allclose(kernel, whole[0].params["projector"]["out"]["kernel"], rtol=1e-4)


class EvaluatedTask(LinearTask):
    """Evaluations, of which that at step 8 is the best."""

    scores = {0: 0.1, 4: 0.2, 8: 0.5}

    def evaluate(self, params):
        score = self.scores[self.batches.index]
        return {"tag_recall": score, "loss": -score, "doa_median": -score}


@pytest.mark.parametrize("name", ["tag_recall", "loss", "doa_median"])
def test_best_checkpoint_is_kept_besides_the_last(tmp_path, name):
    def crash(step):
        if step == 9:
            raise Crash

    settings = {"best_metric": name, "eval_every": 4, "save_every": 6}
    with pytest.raises(Crash):
        train(
            tmp_path, EvaluatedTask(before_step=crash), best_metric=name, eval_every=4, save_every=6
        )
    best, meta = checkpoint.load(tmp_path / "checkpoint" / "best")
    value = 0.5 if name == "tag_recall" else -0.5
    assert meta["best"] == {"name": name, "value": value, "step": 8} and np.any(
        best["projector"]["out"]["kernel"]
    )
    # A worse evaluation of the resumed run does not replace it.
    worse = EvaluatedTask()
    worse.scores = {12: 0.3}
    final = train(tmp_path, worse, **settings | {"eval_every": 12})
    again, meta = checkpoint.load(tmp_path / "checkpoint" / "best")
    assert meta["best"]["step"] == 8 and equal(again, best) and not equal(best, final.params)
    last, _ = checkpoint.load(tmp_path / "checkpoint")
    assert equal(last, final.params)


def test_best_checkpoint_is_replaced_after_rollback(tmp_path):
    """Best at step 8; resumed from step 6 with another seed, better at step 8."""

    def crash(step):
        if step == 9:
            raise Crash

    settings = dict(best_metric="tag_recall", eval_every=4, save_every=6)
    with pytest.raises(Crash):
        train(tmp_path, EvaluatedTask(before_step=crash), **settings)
    old, _ = checkpoint.load(tmp_path / "checkpoint" / "best")
    better = EvaluatedTask()
    better.scores = {8: 0.7, 12: 0.6}
    train(tmp_path, better, seed=1, **settings)
    new, meta = checkpoint.load(tmp_path / "checkpoint" / "best")
    assert meta["best"] == {"name": "tag_recall", "value": 0.7, "step": 8}
    assert not equal(new, old)


def train_until_9(folder, scores):
    """Crashes in step 9 with a checkpoint of step 6; returns the folder of the best."""

    def crash(step):
        if step == 9:
            raise Crash

    task = EvaluatedTask(before_step=crash)
    task.scores = scores
    with pytest.raises(Crash):
        train(folder, task, best_metric="tag_recall", eval_every=4, save_every=6)
    return folder / "checkpoint" / "best"


def test_incomplete_best_checkpoint_is_written_again(tmp_path):
    """As after a kill during its save: meta.json is of a step that does not exist."""
    scores = {0: 0.1, 4: 0.2, 8: 0.5, 12: 0.3}
    expected = train_until_9(tmp_path / "one", scores)
    best = train_until_9(tmp_path / "two", scores | {8: 0.0})
    (best / "meta.json").write_text((expected / "meta.json").read_text())
    assert checkpoint.load(best)[1]["best"]["step"] == 4
    task = EvaluatedTask()
    task.scores = scores
    train(tmp_path / "two", task, best_metric="tag_recall", eval_every=4, save_every=6)
    params, meta = checkpoint.load(best)
    assert meta["best"]["step"] == 8 and equal(params, checkpoint.load(expected)[0])


def test_best_checkpoint_is_complete_before_the_save_of_its_step(tmp_path, monkeypatch):
    """After a kill in between, a run resumed from the later would not evaluate that step again."""
    order = []

    def record(name):
        real = getattr(checkpoint.CheckpointManager, name)

        def call(manager, *args):
            order.append((name, manager.folder.name, *args[:1]))
            return real(manager, *args)

        monkeypatch.setattr(checkpoint.CheckpointManager, name, call)

    record("save")
    record("wait")
    task = EvaluatedTask()
    task.scores = {0: 0.1, 4: 0.2, 8: 0.5, 12: 0.3}
    train(tmp_path, task, best_metric="tag_recall", eval_every=4, save_every=4)
    for step in (4, 8):
        first = order.index(("save", "best", step))
        assert order[first : first + 3] == [
            ("save", "best", step),
            ("wait", "best"),
            ("save", "checkpoint", step),
        ]


def test_best_checkpoint_of_another_metric_is_refused(tmp_path):
    train_until_9(tmp_path, {0: 0.1, 4: 0.2, 8: 0.5})
    with pytest.raises(
        ConfigError,
        match="Stage.best_metric is 'loss', expected 'tag_recall', the metric of .*best",
    ):
        train(tmp_path, EvaluatedTask(), best_metric="loss", eval_every=4, save_every=6)


def test_unknown_best_metric_fails_before_the_first_step(tmp_path):
    task = LinearTask()
    with pytest.raises(
        ConfigError, match="Stage.best_metric is 'accuracy', expected one of .* norm"
    ):
        train(tmp_path, task, best_metric="accuracy")
    assert task.steps == 0


def test_records_have_rates_time_shares_samples_mfu_and_a_profile(tmp_path):
    class CountingTask(LinearTask):
        def step(self, old, batch, key):
            new, values = super().step(old, batch, key)
            sample = {"completion": f"step {self.steps}"}
            return new, {**values, "examples": 8, "seconds/rollout": 1e-3, "samples": [sample]}

    train(tmp_path, CountingTask(), profile=2, peak_steps_per_s=1e4)
    row = records(tmp_path)[0]
    rate = records(tmp_path, drop=())[0]["steps_per_s"]
    assert row["mfu"] == pytest.approx(rate / 1e4)
    assert row["examples_per_s"] == pytest.approx(8 * rate)
    assert row["share/rollout"] == pytest.approx(1e-3 * rate)
    lines = (tmp_path / "logs" / "samples.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    assert [r["step"] for r in samples] == [2, 3, 4, 6, 8, 9, 10, 12]
    assert samples[3] == {"step": 6, "completion": "step 6"}
    assert list((tmp_path / "logs" / "profile").rglob("*.xplane.pb"))


def test_lines_up_to_keeps_lines_with_other_line_separators():
    line = json.dumps({"step": 1, "completion": "a\u2028b\x85c"}, ensure_ascii=False) + "\n"
    assert metrics.lines_up_to(line + line, 1) == [line, line]


def test_lines_up_to_drops_later_and_incomplete_lines():
    text = '{"step": 1}\n{"step": 3}\n{"step": 2}\n{"ste'
    assert metrics.lines_up_to(text, 2) == ['{"step": 1}\n', '{"step": 2}\n']


def test_metric_writer_writes_nan_as_null(tmp_path):
    with metrics.MetricWriter("x", tmp_path, 0, 5) as writer:
        writer.write(1, {"a": float("nan"), "b": np.float32(2)})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "a": None, "b": 2.0}


def main(folder: Path, at: int) -> None:
    def kill(step):
        if step == at:
            # The save of step 6 goes on beside training; give it time, so that it can be whole.
            deadline = time.monotonic() + 20
            while not (folder / "checkpoint" / "6").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGKILL)

    train(folder, LinearTask(before_step=kill))


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main(Path(sys.argv[1]), int(sys.argv[2]))
