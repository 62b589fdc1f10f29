# SPDX-License-Identifier: Apache-2.0
"""Two processes of four emulated devices each; run as a script, this file is one of them.

The script is `jaxasa train` with a linear model in place of a stage.
"""

import functools
import json
import os
import signal
import socket
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
from jaxasa.cli import main as cli
from jaxasa.core import trees
from jaxasa.data import pipeline
from jaxasa.parallel import distributed, mesh, sharding
from jaxasa.train import loop, optim, state

ROOT = Path(__file__).resolve().parents[2]
STAGE = config.Stage(
    steps=12, batch_size=16, learning_rate=0.1, trainable=(".*",), save_every=3, log_every=1
)
RULES = ((r"dense/kernel", ("width", "hidden")), (r"dense/bias", None))


def example(element, rng, done):
    x = rng.normal(size=8).astype(np.float32)
    return {"x": x, "y": np.float32(x.sum() + element), "id": np.int32(element)}


class LoggedBatches(pipeline.Batches):
    """Writes the ids of each batch, with its number, to `path`."""

    def __init__(self, path):
        super().__init__(list(range(40)), example, 3, "test", STAGE.batch_size, total_examples=192)
        self.path, self.number = path, 0

    def __next__(self):
        batch = super().__next__()
        self.number += 1
        with open(self.path, "a") as file:
            file.write(json.dumps([self.number, batch["id"].tolist()]) + "\n")
        return batch

    def set_state(self, saved):
        self.number = saved["number"]
        super().set_state(saved["inner"])

    def get_state(self):
        return {"number": self.number, "inner": super().get_state()}


class LinearTask:
    name = "linear"

    def __init__(self, folder, devices, before_step=None):
        self.mesh, self.before_step = devices, before_step or (lambda step: None)
        self.batches = LoggedBatches(folder / f"order.{jax.process_count()}.{jax.process_index()}")

    def step(self, old, batch, key):
        self.before_step(self.batches.number)
        return update(old, sharding.shard_batch(batch, self.mesh), key)

    def evaluate(self, params):
        return None


@functools.partial(jax.jit, donate_argnums=0)
def update(old, batch, key):
    def loss(flat):
        dense = trees.merge(flat, {})["dense"]
        out = jnp.tanh(batch["x"] @ dense["kernel"] + dense["bias"]).sum(-1)
        return jnp.mean((out - batch["y"]) ** 2)

    flat = trees.flatten(old.params)
    value, gradient = jax.value_and_grad(loss)(flat)
    updates, opt_state = optim.make_optimizer(STAGE).update(gradient, old.opt_state, flat)
    moved = trees.merge(optax.apply_updates(flat, updates), {})
    return state.TrainState(old.step + 1, moved, opt_state), {"loss": value}


def train(folder, sizes, before_step=None):
    devices = mesh.make_mesh(config.Mesh(*sizes))
    kernel = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    params = {"dense": {"kernel": kernel, "bias": np.zeros(4, np.float32)}}
    start = state.create(params, STAGE, devices, RULES)
    where = {"folder": folder / "checkpoint", "logs": folder / "logs"}
    task, meta = LinearTask(folder, devices, before_step), {"model": {}}
    with jax.set_mesh(devices):
        return loop.train(task, start, STAGE, **where, meta=meta, config_text="", seed=0)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def begin(folder, index, port, *more, seconds=10):
    """Process `index` of two. more: "KILL 5", "TERM 5": a signal to itself at that step."""
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_NUM_CPU_DEVICES": "4",
        "JAXASA_COORDINATOR": port if port == "auto" else f"127.0.0.1:{port}",
        "JAXASA_PROCESSES": "2",
        "JAXASA_PROCESS": str(index),
        "JAXASA_TIMEOUT": str(seconds),
    }
    command = [sys.executable, "-u", __file__, str(folder), *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=env, **pipes)


def both(folder, zero=(), one=(), **options):
    """[(exit code, output)] of both processes, and the seconds from the first end to the last."""
    port = free_port()
    processes = [begin(folder, i, port, *more, **options) for i, more in enumerate((zero, one))]
    ended: dict = {}
    deadline = time.monotonic() + 400
    while len(ended) < 2 and time.monotonic() < deadline:
        for i, process in enumerate(processes):
            if process.poll() is not None:
                ended.setdefault(i, time.monotonic())
        time.sleep(0.1)
    for process in processes:
        process.kill()
    outputs = [process.communicate()[0] for process in processes]
    assert len(ended) == 2, outputs
    gap = abs(ended[0] - ended[1])
    return [(p.returncode, text) for p, text in zip(processes, outputs, strict=True)], gap


def order(folder, processes):
    """{number: ids of the whole batch}, the rows of the processes one after another."""
    batches: dict = {}
    for index in range(processes):
        rows: dict = {}
        for line in (folder / f"order.{processes}.{index}").read_text().splitlines():
            number, ids = json.loads(line)
            assert rows.setdefault(number, ids) == ids  # drawn again after a restart, the same
        for number, ids in rows.items():
            batches[number] = batches.get(number, []) + ids
    return batches


def complete_steps(folder):
    """Steps of the complete checkpoints."""
    return sorted(int(p.name) for p in (folder / "checkpoint").iterdir() if p.name.isdecimal())


@pytest.mark.soak
def test_two_processes_train_as_one_through_kill_preemption_and_another_mesh(tmp_path):
    # One is killed at step 5, and the other ends with the reason, which comes from gloo (exit code
    # 75) or from the coordinator that missed a heartbeat (aborted: -6).
    (survivor, killed), gap = both(tmp_path, one=("KILL", "5"))
    assert killed[0] == -signal.SIGKILL, killed
    assert survivor[0] in (75, -signal.SIGABRT), survivor
    assert "another process is gone" in survivor[1] or "stopped sending heartbeats" in survivor[1]
    assert gap < 20
    assert survivor[1].startswith("process 0 of 2\n4 of 8 devices (cpu) are here\n")
    print(f"a killed process ended the other after {gap:.1f} s")
    assert complete_steps(tmp_path) == [3]
    # They resume; one gets SIGTERM, and both save the same step.
    results, _ = both(tmp_path, zero=("TERM", "7"))
    assert [code for code, _ in results] == [75, 75], results
    assert all("linear: stopped and saved at step" in text for _, text in results)
    assert 7 <= complete_steps(tmp_path)[-1] < 12
    # One process with eight devices, on another mesh, finishes.
    after = train(tmp_path, (2, 2, 2))
    single = tmp_path / "single"
    single.mkdir()
    expected = train(single, (1, 8, 1))
    assert int(after.step) == int(expected.step) == 12
    for a, b in zip(*map(jax.tree.leaves, (after.params, expected.params)), strict=True):
        assert np.abs(b).max() > 0.1
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    # The data were those of one process, in its order.
    one, two = order(single, 1), order(tmp_path, 2)
    assert sorted(one) == list(range(1, 13)) and set(two) >= set(range(1, 8))
    assert all(two[number] == one[number] for number in two)
    assert set(order(tmp_path, 1)) | set(two) == set(one)
    losses = [json.loads(x) for x in (tmp_path / "logs/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in losses] == list(range(1, 13))


@pytest.mark.parametrize(
    "one, message, other",
    [
        (("--gin.Run.sed=1",), "Run has no field sed", "stopped sending heartbeats"),
        (("MESH", "LATE"), "expected sizes that multiply to the 8 devices here", None),
    ],
    ids=["gin", "devices"],
)
def test_error_ends_both_processes_with_the_reason(tmp_path, one, message, other):
    """A binding that is wrong in one process, and a mesh that fits neither.

    Process 1 meets the latter two seconds later, while process 0 has reported it and waits.
    """
    zero = () if other else one[:1]
    results, gap = both(tmp_path, zero=zero, one=one, seconds=12)
    assert results[1][0] == 2 and message in results[1][1], results
    assert results[0][0] == (2 if other is None else -signal.SIGABRT), results
    assert (other or message) in results[0][1] and gap < 20
    print(f"the other process ended {gap:.1f} s later")


def test_unreachable_coordinator_and_missing_processes_are_named(tmp_path):
    began = time.monotonic()
    port = free_port()
    one = begin(tmp_path, 1, port, seconds=5)
    zero = begin(tmp_path, 0, free_port(), seconds=5)
    outputs = [process.communicate(timeout=240)[0] for process in (one, zero)]
    assert [one.returncode, zero.returncode] == [2, 2]
    assert outputs[0].splitlines()[0] == "process 1 of 2"
    assert f"127.0.0.1:{port}: it cannot be reached (Connection refused) within 5 s" in outputs[0]
    assert "not all processes came within 5 s" in outputs[1]
    print(f"both ended after {time.monotonic() - began:.1f} s, start-up of Python included")


def test_slurm_process_prints_its_index_before_it_waits(tmp_path, monkeypatch):
    """The other one never starts; the message names SLURM's list of nodes."""
    environment = {"PROCID": "1", "NTASKS": "2", "LOCALID": "1", "STEP_NODELIST": "localhost"}
    for name, value in (environment | {"JOB_ID": str(free_port() % 4096)}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    process = begin(tmp_path, 0, "auto", seconds=5)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 2
    assert output.splitlines()[0] == "process 1 of 2"
    assert "jaxasa: SLURM_STEP_NODELIST=localhost: not all processes came within 5 s" in output


def test_gke_process_knows_its_index_among_all_slices(monkeypatch):
    assert distributed._process_from_launcher("auto") == (None, "auto")
    monkeypatch.setenv("TPU_WORKER_ID", "1")
    assert distributed._process_from_launcher("auto") == (None, "auto")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    assert distributed._process_from_launcher("auto") == ((1, 2), "TPU_WORKER_HOSTNAMES=a,b")
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "3")
    monkeypatch.setenv("MEGASCALE_SLICE_ID", "2")
    assert distributed._process_from_launcher("auto")[0] == (5, 6)


@pytest.mark.parametrize(
    "env, message",
    [
        ({"JAXASA_COORDINATOR": "here"}, "JAXASA_COORDINATOR is 'here', expected HOST:PORT"),
        ({"JAXASA_COORDINATOR": "h:1"}, "JAXASA_PROCESSES is None, expected a whole number"),
        ({"JAXASA_COORDINATOR": "h:1", "JAXASA_PROCESSES": "2", "JAXASA_PROCESS": "2"}, "from 0"),
        ({"JAXASA_COORDINATOR": "h:1", "JAXASA_TIMEOUT": "90"}, "from 5 to 40"),
        ({"JAXASA_PROCESSES": "2"}, "expected JAXASA_COORDINATOR with it"),
    ],
)
def test_invalid_environment_is_named(tmp_path, monkeypatch, capsys, env, message):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["train", "sft", "--workdir", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def main(folder: Path, *more: str) -> int:
    from jaxasa.pipeline import steps

    sizes = (3, 2, 1) if more[:1] == ("MESH",) else (2, 4, 1)
    by_name = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM}

    def before_step(number):
        if more[:1] and more[0] in by_name and number == int(more[1]):
            # The save of step 3 is asynchronous: waits until it is complete.
            deadline = time.monotonic() + 20
            while not (folder / "checkpoint" / "3").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            os.kill(os.getpid(), by_name[more[0]])
        if number > 7:
            time.sleep(1)  # for the processes to agree, while steps are left, on one to stop at

    def fake_train(*_):
        time.sleep(2 if "LATE" in more else 0)
        train(folder, sizes, before_step)

    steps.train = fake_train
    bindings = [word for word in more if word.startswith("--gin")]
    words = ["train", "text", "--workdir", str(folder), "--gin_file", "gin/run/smoke.gin"]
    return cli.main([*words, *bindings])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
