"""The training loop, the same for every stage.

A task is what a stage gives:
    name                     "sft"
    batches                  iterator with get_state() -> JSON-able dict, set_state(dict)
    step(state, batch, key)  -> (state with step + 1, {"loss": [], ...}); runs on the host
    evaluate(params)         -> {name: number} or None

Of what a step returns, "examples" and "tokens" are counts, recorded per second; "seconds/NAME" is
time, recorded as a share ("share/NAME"); "samples", if it is there, is a list of JSON-able dicts to
look at (logs/samples.jsonl); all else is recorded as the mean over the steps since the last record.

What goes wrong, and what is done:
    SIGTERM                  the step is finished and saved; exit code 75: start it again (SIGINT
                             too, where a process is alone)
    kill -9, power           goes on from the last whole checkpoint; half-written ones are removed
    a full disk              ends with the reason; the checkpoint before is kept
    loss or gradient is      ends with the step; what is not finite is not saved
        no number
    a damaged record         named, counted, replaced by the next; ends beyond stage.max_damaged_records
    a vanished shard         ends with its name
    another process is gone  ends within JAXASA_TIMEOUT seconds, with the reason (parallel/distributed.py)
"""

import contextlib
import functools
import math
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
from jax.experimental import multihost_utils

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.train import checkpoint, metrics
from jaxasa.train.state import State

COUNTS = ("examples", "tokens")
# Evaluations whose names end so; of others, such as losses and angles, less is better.
MORE_IS_BETTER = ("accuracy", "recall", "L1", "L2", "L3")


class Batches(Protocol):
    """Batches without end, and where among them the reader stands."""

    def __iter__(self) -> Iterator[Any]: ...
    def __next__(self) -> Any: ...
    def get_state(self) -> Mapping: ...
    def set_state(self, state: Mapping) -> None: ...


class Task(Protocol):
    """What the loop asks of a stage."""

    name: str
    batches: Batches

    def step(self, state: State, batch: Any, key: jax.Array) -> tuple[State, Mapping[str, Any]]: ...
    def evaluate(self, params: Mapping) -> Mapping[str, float] | None: ...


class Preempted(Exception):
    """Asked to stop: the state is saved, the stage unfinished (exit code 75)."""


def train(
    task: Task,
    state: State,
    stage: config.Stage,
    *,
    folder: str | Path,
    logs: str | Path,
    meta: Mapping,
    config_text: str,
    seed: int,
    profile: int = 0,
    full: float | None = None,
) -> State:
    """Trains from the latest checkpoint in `folder`, else from `state`; returns the last state.

    Saves, evaluates and records as `stage` says, and at the last step. Step i uses a key made
    of (seed, task.name, i), so a resumed run equals an uninterrupted one. `stage.best_metric` keeps the
    state of the best evaluation in folder/best. profile: steps to trace, from the third that this
    process does (TensorBoard shows what is in logs/profile). full: steps a second of devices that
    do the model's products at their peak; the share of it that is reached is recorded as "mfu".
    Raises ConfigError for a checkpoint of another config, for a loss that is not finite and for a
    `stage.best_metric` that is no evaluation, Preempted after SIGTERM or SIGINT, once saved.
    """
    with checkpoint.Store(folder) as store:
        saved = store.latest()
        if saved is not None:
            state, data_state = store.restore(state, meta)
            task.batches.set_state(data_state)
        step = int(state.step)
        if step >= stage.steps:
            return state

        keys = _keys(seed, task.name, state.step.sharding)
        window = _Window(task.name, step, full)
        with (
            metrics.Writer(task.name, logs, step, stage.steps) as writer,
            _Best(stage.best_metric, store.folder / "best") as best,
            _Trace(Path(logs) / "profile", step + 2, profile) as trace,
            _Stop() as stop,
        ):
            if stage.best_metric and step == 0:
                # Known at once whether there is such an evaluation, and how good the start was.
                about = task.batches.get_state(), meta, config_text
                best.offer(0, task.evaluate(state.params), state, *about)
                window.restart()
            before = values = None
            while step < stage.steps:
                trace.at(step)
                # One step may be under way meanwhile. A host that ran further ahead of its devices
                # would hold more batches, and wait for data that no device waits for.
                jax.block_until_ready(before)
                # Drawn after saving, so that a saved data state is that of the saved step.
                with window.waiting():
                    batch = next(task.batches)
                before = values
                state, values = task.step(state, batch, keys(step))
                step += 1
                window.add(values)
                writer.advance(step)

                is_last = step == stage.steps
                is_stopped = stop.asked(step)
                is_saving = is_last or is_stopped or step % stage.save_every == 0
                is_evaluating = is_last or (not is_stopped and step % stage.eval_every == 0)
                if step % stage.log_every == 0 or is_saving or is_evaluating:
                    values, samples = window.close()
                    writer.write(step, values)
                    writer.samples(step, samples)
                # Before saving: a step that has a checkpoint has all of its records too.
                if is_evaluating:
                    found = task.evaluate(state.params)
                    if found:
                        writer.write(step, {f"eval/{k}": v for k, v in found.items()})
                    about = task.batches.get_state(), meta, config_text
                    best.offer(step, found, state, *about)
                if is_saving:
                    store.save(step, state, task.batches.get_state(), meta, config_text)
                if is_evaluating or is_saving:
                    window.restart()
                # The last step's evaluation and save take a while: asked again, not to be missed.
                if is_stopped or (is_last and stop.asked(step)):
                    raise Preempted(f"{task.name}: stopped and saved at step {step}")
    return state


@functools.cache
def _keys(seed: int, name: str, sharding: jax.sharding.Sharding) -> Callable[[int], jax.Array]:
    """Step -> random key, on every device of the state, so that no step has to move it."""

    def key(step) -> jax.Array:
        purpose = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
        return jax.random.fold_in(purpose, step)

    return jax.jit(key, out_shardings=sharding)


class _Window:
    """Steps since the last record: their metrics, the time they took, the wait for data."""

    def __init__(self, name: str, step: int, full: float | None):
        self._name, self._step, self._full = name, step, full
        self._values: list[Mapping[str, Any]] = []
        self.restart()

    def restart(self) -> None:
        self._began, self._waited = time.monotonic(), 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    def add(self, values: Mapping[str, Any]) -> None:
        # Kept on the device, so that the host runs ahead of it until the window closes.
        self._values.append(values)

    def close(self) -> tuple[dict[str, float], list[dict]]:
        """What is recorded of the window, and the last step's samples.

        Raises ConfigError naming the step of a loss that is not finite.
        """
        samples = [row.get("samples", []) for row in self._values]
        rows = [{k: v for k, v in row.items() if k != "samples"} for row in self._values]
        rows = jax.device_get(rows)
        for row in rows:
            self._step += 1
            # A gradient that is not finite shows in the next loss, which may come after a save.
            for name in ("loss", "gradient_norm"):
                value = float(row.get(name, 0.0))
                if not math.isfinite(value):
                    raise ConfigError(
                        f"{self._name}: {name} is {value} at step {self._step}, expected a finite "
                        "number: lower learning_rate or clip; the last checkpoint is kept"
                    )
        spent = max(time.monotonic() - self._began, 1e-9)
        means = {}
        for name in {name: None for row in rows for name in row}:
            found = [float(row[name]) for row in rows if name in row]
            if name in COUNTS:
                means[f"{name}_per_s"] = math.fsum(found) / spent
            elif name.startswith("seconds/"):
                means[f"share/{name.removeprefix('seconds/')}"] = math.fsum(found) / spent
            else:
                means[name] = math.fsum(found) / len(found)
        means["steps_per_s"] = len(rows) / spent
        if self._full:
            means["mfu"] = means["steps_per_s"] / self._full
        means["data_wait"] = self._waited / spent
        self._values.clear()
        self.restart()
        return means, samples[-1] if samples else []


class _Best:
    """Keeps the state of the best evaluation of `name` in `folder`; does nothing for ""."""

    def __init__(self, name: str, folder: Path):
        self._name, self._folder = name, folder
        self._store: checkpoint.Store | None = None
        self._value = -math.inf

    def __enter__(self) -> "_Best":
        if self._name:
            self._store = checkpoint.Store(self._folder, keep=1)
            if self._store.latest() is not None:
                about = self._store.meta()["best"]
                config.check(
                    about["name"] == self._name,
                    "Stage.best_metric",
                    self._name,
                    f"{about['name']!r}, as {self._folder} was kept by; or remove that folder",
                )
                self._value = self._goodness(about["value"])
        return self

    def __exit__(self, *_) -> None:
        if self._store is not None:
            self._store.__exit__(None, None, None)

    def _goodness(self, value: float) -> float:
        return value if self._name.endswith(MORE_IS_BETTER) else -value

    def offer(
        self,
        step: int,
        found: Mapping[str, float] | None,
        state: State,
        data_state: Mapping,
        meta: Mapping,
        config_text: str,
    ) -> None:
        """Saves `state` if `found` says that it is the best so far.

        Raises ConfigError where there is no evaluation of that name.
        """
        if self._store is None:
            return
        if found is None or self._name not in found:
            raise ConfigError(
                f"Stage.best_metric is {self._name!r}, expected one of the evaluations "
                f"{', '.join(found or ['(none)'])}"
            )
        value = float(found[self._name])
        if self._goodness(value) > self._value:
            self._value = self._goodness(value)
            about = {"name": self._name, "value": value, "step": step}
            self._store.save(step, state, data_state, {**meta, "best": about}, config_text)
            # Whole before the loop's own checkpoint of this step: from that on it would be lost.
            self._store.wait()


class _Trace:
    """A trace of the profiler over `count` steps from step `first` on."""

    def __init__(self, folder: Path, first: int, count: int):
        self._folder, self._first, self._last = folder, first, first + count
        self._is_on = False

    def __enter__(self) -> "_Trace":
        return self

    def __exit__(self, *_) -> None:
        if self._is_on:
            jax.profiler.stop_trace()
            self._is_on = False

    def at(self, step: int) -> None:
        """Begins or ends the trace before `step`, if it is time."""
        if self._first <= step < self._last and not self._is_on:
            jax.profiler.start_trace(str(self._folder))
            self._is_on = True
        elif step >= self._last:
            self.__exit__()


class _Stop:
    """Turns the first SIGTERM or SIGINT into a request; a second one acts at once."""

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self._is_asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Stop":
        # With several processes, jax's own SIGTERM handler agrees on one step among them.
        in_main = threading.current_thread() is threading.main_thread()
        if jax.process_count() == 1 and in_main:
            self._before = {s: signal.signal(s, self._ask) for s in self._SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _ask(self, *_) -> None:
        self._is_asked = True
        self.__exit__()

    def asked(self, step: int) -> bool:
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._is_asked
