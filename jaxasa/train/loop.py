# SPDX-License-Identifier: Apache-2.0
"""The training loop, the same for every stage.

Metrics of a step: "examples" and "tokens" are counts, recorded per second; "seconds/NAME" is
time, recorded as a share of the elapsed time ("share/NAME"); "samples", if present, is a list of
JSON-able dicts for people to read (logs/samples.jsonl); everything else is recorded as the mean
over the steps since the last record.

Failures and their handling:
    SIGTERM                  the step is finished and saved; exit code 75: start it again (SIGINT
                             too, if there is one process)
    kill -9, power           resumes from the last complete checkpoint; incomplete ones are removed
    a full disk              ends with the reason; the checkpoint before is kept
    loss or gradient is      ends with the step's number; a state that is not finite is not saved
        not finite
    a damaged record         reported, counted, replaced by the next one; ends beyond
                             stage.max_damaged_records
    a missing shard          ends with its name
    another process is gone  ends within JAXASA_TIMEOUT seconds, with the reason
                             (parallel/distributed.py)
"""

import functools
import signal
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
from jax.experimental import multihost_utils

from jaxasa import config
from jaxasa.train import checkpoint, metrics
from jaxasa.train.best import BestCheckpoint
from jaxasa.train.state import TrainState


class Batches(Protocol):
    """An endless iterator over batches whose position can be saved as JSON."""

    def __iter__(self) -> Iterator[Any]: ...
    def __next__(self) -> Any: ...
    def get_state(self) -> Mapping: ...
    def set_state(self, state: Mapping) -> None: ...


@dataclass(frozen=True)
class Task:
    """A training task: a stage's name, data, step and evaluation.

    step(state, batch, key): (state with step + 1, metrics such as {"loss": []}); runs on the host.
    evaluate(params): {name: number}, or None for no evaluation.
    """

    name: str
    batches: Batches
    step: Callable[[TrainState, Any, jax.Array], tuple[TrainState, Mapping[str, Any]]]
    evaluate: Callable[[Mapping], Mapping[str, float] | None]


class Preempted(Exception):
    """A signal asked to stop: the state is saved, the stage unfinished (exit code 75)."""


def train(
    task: Task,
    state: TrainState,
    stage: config.Stage,
    *,
    folder: str | Path,
    logs: str | Path,
    meta: Mapping,
    config_text: str,
    seed: int,
    profile: int = 0,
    peak_steps_per_s: float | None = None,
) -> TrainState:
    """Trains from the latest checkpoint in `folder`, or else from `state`; returns the last state.

    Saves, evaluates and records as `stage` says, and at the last step. The key of step i is made
    of (seed, task.name, i), so a resumed run equals an uninterrupted one. `stage.best_metric` keeps
    the state of the best evaluation in folder/best.
    meta, config_text: saved with each checkpoint. profile: number of steps to trace, from the
    third of this process on (logs/profile, for TensorBoard). peak_steps_per_s: at the devices' peak
    FLOP/s, the denominator of the recorded "mfu".
    Raises ConfigError for a checkpoint of another config, for a loss that is not finite and for a
    `stage.best_metric` that is no evaluation; Preempted after SIGTERM or SIGINT, once saved.
    """
    with checkpoint.CheckpointManager(folder) as manager:
        if manager.latest_step() is not None:
            state, data_state = manager.restore(state, meta)
            task.batches.set_state(data_state)
        step = int(state.step)
        if step >= stage.steps:
            return state

        def snapshot() -> tuple[TrainState, Mapping, Mapping, str]:
            return state, task.batches.get_state(), meta, config_text

        step_key = _step_keys(seed, task.name, state.step.sharding)
        window = metrics.MetricWindow(task.name, step, peak_steps_per_s)
        with (
            metrics.MetricWriter(task.name, logs, step, stage.steps) as writer,
            BestCheckpoint(stage.best_metric, manager.folder / "best") as best,
            _Profiler(Path(logs) / "profile", step + 2, profile) as profiler,
            _PreemptionGuard() as guard,
        ):
            if stage.best_metric and step == 0:
                # Shows at once whether that evaluation exists, and how good the initial state is.
                best.update(0, task.evaluate(state.params), *snapshot())
                window.restart()
            before_last = last = None
            while step < stage.steps:
                profiler.before(step)
                # Waits for the step before the last: one may be running while the next batch is
                # drawn. Running further ahead would hold more batches in memory.
                jax.block_until_ready(before_last)
                # Drawn after saving, so that a saved data state is that of the saved step.
                with window.waiting():
                    batch = next(task.batches)
                before_last = last
                state, last = task.step(state, batch, step_key(step))
                step += 1
                window.add(last)
                writer.advance(step)

                is_last = step == stage.steps
                is_preempted = guard.is_requested(step)
                is_saving = is_last or is_preempted or step % stage.save_every == 0
                is_evaluating = is_last or (not is_preempted and step % stage.eval_every == 0)
                if step % stage.log_every == 0 or is_saving or is_evaluating:
                    means, samples = window.close()
                    writer.write(step, means)
                    writer.write_samples(step, samples)
                # Before saving: a step that has a checkpoint has all its records too.
                if is_evaluating:
                    evaluation = task.evaluate(state.params)
                    if evaluation:
                        writer.write(step, {f"eval/{k}": v for k, v in evaluation.items()})
                    best.update(step, evaluation, *snapshot())
                if is_saving:
                    manager.save(step, *snapshot())
                if is_evaluating or is_saving:
                    window.restart()
                # A signal may have come during the last step's evaluation and save.
                if is_preempted or (is_last and guard.is_requested(step)):
                    raise Preempted(f"{task.name}: stopped and saved at step {step}")
    return state


@functools.cache
def _step_keys(seed: int, name: str, sharding: jax.sharding.Sharding) -> Callable[[int], jax.Array]:
    """Step -> random key, on every device of the state, so that no step has to move it."""

    def key(step) -> jax.Array:
        purpose = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
        return jax.random.fold_in(purpose, step)

    return jax.jit(key, out_shardings=sharding)


class _Profiler:
    """A profiler trace of `count` steps from step `first` on."""

    def __init__(self, folder: Path, first: int, count: int):
        self._folder, self._first, self._end = folder, first, first + count
        self._is_on = False

    def __enter__(self) -> "_Profiler":
        return self

    def __exit__(self, *_) -> None:
        if self._is_on:
            jax.profiler.stop_trace()
            self._is_on = False

    def before(self, step: int) -> None:
        """Starts or stops the trace, if it is time, before `step` runs."""
        if self._first <= step < self._end and not self._is_on:
            jax.profiler.start_trace(str(self._folder))
            self._is_on = True
        elif step >= self._end:
            self.__exit__()


class _PreemptionGuard:
    """Turns the first SIGTERM or SIGINT into a request to stop; a second one acts at once."""

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self._is_requested = False
        self._old_handlers: dict[int, Any] = {}

    def __enter__(self) -> "_PreemptionGuard":
        # With several processes, jax's own SIGTERM handler agrees on one step among them.
        in_main = threading.current_thread() is threading.main_thread()
        if jax.process_count() == 1 and in_main:
            self._old_handlers = {s: signal.signal(s, self._request) for s in self._SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers = {}

    def _request(self, *_) -> None:
        self._is_requested = True
        self.__exit__()

    def is_requested(self, step: int) -> bool:
        """Whether to stop after `step`; with several processes, the same answer in all."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._is_requested
