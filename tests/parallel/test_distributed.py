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


class Noted(pipeline.Batches):
    """Writes the ids of each batch, with the number of the draw, to `path`."""

    def __init__(self, path):
        super().__init__(list(range(40)), example, 3, "test", STAGE.batch_size, total=192)
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


class Linear:
    name = "linear"

    def __init__(self, folder, over, act=None):
        self.mesh, self.act = over, act or (lambda step: None)
        self.batches = Noted(folder / f"order.{jax.process_count()}.{jax.process_index()}")

    def step(self, old, batch, key):
        self.act(self.batches.number)
        return update(old, sharding.place_batch(batch, self.mesh), key)

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
    updates, opt_state = optim.make(STAGE).update(gradient, old.opt_state, flat)
    moved = trees.merge(optax.apply_updates(flat, updates), {})
    return state.State(old.step + 1, moved, opt_state), {"loss": value}


def train(folder, sizes, act=None):
    over = mesh.make(config.Mesh(*sizes))
    kernel = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    params = {"dense": {"kernel": kernel, "bias": np.zeros(4, np.float32)}}
    start = state.create(params, STAGE, over, RULES)
    where = {"folder": folder / "checkpoint", "logs": folder / "logs"}
    task, meta = Linear(folder, over, act), {"model": {}}
    with jax.set_mesh(over):
        return loop.train(task, start, STAGE, **where, meta=meta, config_text="", seed=0)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


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
    said = [process.communicate()[0] for process in processes]
    assert len(ended) == 2, said
    gap = abs(ended[0] - ended[1])
    return [(p.returncode, text) for p, text in zip(processes, said, strict=True)], gap


def order(folder, processes):
    """{draw: ids of the whole batch}, the rows of the processes one after another."""
    found: dict = {}
    for index in range(processes):
        rows: dict = {}
        for line in (folder / f"order.{processes}.{index}").read_text().splitlines():
            number, ids = json.loads(line)
            assert rows.setdefault(number, ids) == ids  # drawn again after a restart, the same
        for number, ids in rows.items():
            found[number] = found.get(number, []) + ids
    return found


def whole_steps(folder):
    """Numbers of the checkpoints that are not half-written."""
    return sorted(int(p.name) for p in (folder / "checkpoint").iterdir() if p.name.isdecimal())


@pytest.mark.soak
def test_two_processes_train_as_one_through_a_death_a_preemption_and_another_mesh(tmp_path):
    # One dies at step 5, and the other ends, with the reason. It may hear of it from gloo (and
    # say 75) or from the coordinator that missed its heartbeat (and be aborted: -6).
    (survivor, killed), gap = both(tmp_path, one=("KILL", "5"))
    assert killed[0] == -signal.SIGKILL, killed
    assert survivor[0] in (75, -signal.SIGABRT), survivor
    assert "another process is gone" in survivor[1] or "stopped sending heartbeats" in survivor[1]
    assert gap < 20
    assert survivor[1].startswith("process 0 of 2\n4 of 8 devices (cpu) are here\n")
    print(f"the death of one process ended the other after {gap:.1f} s")
    assert whole_steps(tmp_path) == [3]
    # They go on; one is told to stop, and both save the same step.
    results, _ = both(tmp_path, zero=("TERM", "7"))
    assert [code for code, _ in results] == [75, 75], results
    assert all("linear: stopped and saved at step" in text for _, text in results)
    assert 7 <= whole_steps(tmp_path)[-1] < 12
    # One process with eight devices, on another mesh, ends it.
    after = train(tmp_path, (2, 2, 2))
    alone = tmp_path / "alone"
    alone.mkdir()
    expected = train(alone, (1, 8, 1))
    assert int(after.step) == int(expected.step) == 12
    for found, wanted in zip(*map(jax.tree.leaves, (after.params, expected.params)), strict=True):
        assert np.abs(wanted).max() > 0.1
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    # The data were those of one process, in its order.
    one, two = order(alone, 1), order(tmp_path, 2)
    assert sorted(one) == list(range(1, 13)) and set(two) >= set(range(1, 8))
    assert all(two[number] == one[number] for number in two)
    assert set(order(tmp_path, 1)) | set(two) == set(one)
    losses = [json.loads(x) for x in (tmp_path / "logs/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in losses] == list(range(1, 13))


@pytest.mark.parametrize(
    "one, said, other",
    [
        (("--gin.Run.sed=1",), "Run has no field sed", "stopped sending heartbeats"),
        (("MESH", "LATE"), "expected sizes that multiply to the 8 devices here", None),
    ],
    ids=["gin", "devices"],
)
def test_an_error_ends_both_processes_with_the_reason(tmp_path, one, said, other):
    """A binding that one process alone has wrong, and a mesh that fits neither.

    The latter process 1 finds two seconds later, when process 0 has said it and waits.
    """
    zero = () if other else one[:1]
    results, gap = both(tmp_path, zero=zero, one=one, seconds=12)
    assert results[1][0] == 2 and said in results[1][1], results
    assert results[0][0] == (2 if other is None else -signal.SIGABRT), results
    assert (other or said) in results[0][1] and gap < 20
    print(f"the other process ended {gap:.1f} s later")


def test_a_coordinator_out_of_reach_and_processes_that_never_come_are_named(tmp_path):
    began = time.monotonic()
    port = free_port()
    lost = begin(tmp_path, 1, port, seconds=5)
    alone = begin(tmp_path, 0, free_port(), seconds=5)
    said = [process.communicate(timeout=240)[0] for process in (lost, alone)]
    assert [lost.returncode, alone.returncode] == [2, 2]
    assert said[0].splitlines()[0] == "process 1 of 2"
    assert f"127.0.0.1:{port}: it cannot be reached (Connection refused) within 5 s" in said[0]
    assert "not all processes came within 5 s" in said[1]
    print(f"both ended after {time.monotonic() - began:.1f} s, start-up of Python included")


def test_a_process_of_slurm_says_which_it_is_before_it_waits(tmp_path, monkeypatch):
    """The other one never comes; what is named is where SLURM said they are."""
    told = {"PROCID": "1", "NTASKS": "2", "LOCALID": "1", "STEP_NODELIST": "localhost"}
    for name, value in (told | {"JOB_ID": str(free_port() % 4096)}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    process = begin(tmp_path, 0, "auto", seconds=5)
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 2
    assert said.splitlines()[0] == "process 1 of 2"
    assert "jaxasa: SLURM_STEP_NODELIST=localhost: not all processes came within 5 s" in said


def test_a_process_on_gke_knows_which_it_is_of_all_slices(monkeypatch):
    assert distributed._launched("auto") == (None, "auto")
    monkeypatch.setenv("TPU_WORKER_ID", "1")
    assert distributed._launched("auto") == (None, "auto")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    assert distributed._launched("auto") == ((1, 2), "TPU_WORKER_HOSTNAMES=a,b")
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "3")
    monkeypatch.setenv("MEGASCALE_SLICE_ID", "2")
    assert distributed._launched("auto")[0] == (5, 6)


@pytest.mark.parametrize(
    "env, said",
    [
        ({"JAXASA_COORDINATOR": "here"}, "JAXASA_COORDINATOR is 'here', expected HOST:PORT"),
        ({"JAXASA_COORDINATOR": "h:1"}, "JAXASA_PROCESSES is None, expected a whole number"),
        ({"JAXASA_COORDINATOR": "h:1", "JAXASA_PROCESSES": "2", "JAXASA_PROCESS": "2"}, "from 0"),
        ({"JAXASA_COORDINATOR": "h:1", "JAXASA_TIMEOUT": "90"}, "from 5 to 40"),
        ({"JAXASA_PROCESSES": "2"}, "expected JAXASA_COORDINATOR with it"),
    ],
)
def test_an_environment_that_does_not_fit_is_named(tmp_path, monkeypatch, capsys, env, said):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["train", "sft", "--workdir", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def main(folder: Path, *more: str) -> int:
    from jaxasa.pipeline import steps

    sizes = (3, 2, 1) if more[:1] == ("MESH",) else (2, 4, 1)
    by_name = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM}

    def act(number):
        if more[:1] and more[0] in by_name and number == int(more[1]):
            # The save of step 3 goes on beside training; give it time, so that it can be whole.
            deadline = time.monotonic() + 20
            while not (folder / "checkpoint" / "3").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            os.kill(os.getpid(), by_name[more[0]])
        if number > 7:
            time.sleep(1)  # for the processes to agree, while steps are left, where they stop

    def begun(*_):
        time.sleep(2 if "LATE" in more else 0)
        train(folder, sizes, act)

    steps.train = begun
    bindings = [word for word in more if word.startswith("--gin")]
    words = ["train", "text", "--workdir", str(folder), "--gin_file", "gin/run/smoke.gin"]
    return cli.main([*words, *bindings])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
