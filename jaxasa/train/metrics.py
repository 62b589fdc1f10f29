# SPDX-License-Identifier: Apache-2.0
"""A run's metrics: means over steps, metrics.jsonl, TensorBoard and the console."""

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from jaxasa.config import ConfigError
from jaxasa.core.files import atomic_write_text

COUNTS = ("examples", "tokens")
# Shown next to the progress bar.
BRIEF = ("loss", "reward", "steps_per_s", "examples_per_s", "mfu", "data_wait")


class MetricWindow:
    """Metrics of the steps since the last record, their time, and the time spent on data.

    name: of the stage. step: the last one before the window. peak_steps_per_s: see loop.train.
    """

    def __init__(self, name: str, step: int, peak_steps_per_s: float | None):
        self._name, self._step, self._peak = name, step, peak_steps_per_s
        self._values: list[Mapping[str, Any]] = []
        self.restart()

    def restart(self) -> None:
        """Sets the clock to zero, after work that is not to be counted."""
        self._start, self._waited = time.monotonic(), 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time in its block as time spent on data."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    def add(self, values: Mapping[str, Any]) -> None:
        """Adds a step's metrics, which stay on the device, so that the host need not wait."""
        self._values.append(values)

    def close(self) -> tuple[dict[str, float], list[dict]]:
        """(means to record, samples of the last step); the next window begins.

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
                        "number: lower learning_rate or max_grad_norm; the last checkpoint is kept"
                    )
        elapsed = max(time.monotonic() - self._start, 1e-9)
        means = {}
        for name in {name: None for row in rows for name in row}:
            values = [float(row[name]) for row in rows if name in row]
            if name in COUNTS:
                means[f"{name}_per_s"] = math.fsum(values) / elapsed
            elif name.startswith("seconds/"):
                means[f"share/{name.removeprefix('seconds/')}"] = math.fsum(values) / elapsed
            else:
                means[name] = math.fsum(values) / len(values)
        means["steps_per_s"] = len(rows) / elapsed
        if self._peak:
            means["mfu"] = means["steps_per_s"] / self._peak
        means["data_wait"] = self._waited / elapsed
        self._values.clear()
        self.restart()
        return means, samples[-1] if samples else []


class MetricWriter:
    """Writes records to `logs`/metrics.jsonl, TensorBoard and the console.

    On a terminal the console shows a progress bar, elsewhere a line per record. Records of an
    earlier run after step `start` are removed, since those steps are repeated. Only process 0
    writes. A context manager.
    """

    def __init__(self, name: str, logs: str | Path, start: int, steps: int):
        self.name, self.steps = name, steps
        self._is_writer = jax.process_index() == 0
        self._first_step, self._start = start, time.monotonic()
        self._file: TextIO | None = None
        self._events: SummaryWriter | None = None
        console = Console(stderr=True, quiet=not self._is_writer)
        self._bar = Progress(
            TextColumn(name),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(name, total=steps, completed=start, shown="")
        if self._is_writer:
            path = Path(logs) / "metrics.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._samples = path.with_name("samples.jsonl")
            for file in (path, self._samples):
                if file.is_file():
                    lines = lines_up_to(file.read_text(encoding="utf-8"), start)
                    atomic_write_text(file, "".join(lines))
            self._file = path.open("a", encoding="utf-8")
            self._events = SummaryWriter(str(path.parent), purge_step=start + 1)

    def __enter__(self) -> "MetricWriter":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()
        if self._file is not None and self._events is not None:
            self._file.close()
            self._events.close()

    def advance(self, step: int) -> None:
        """Moves the progress bar to `step`."""
        self._bar.update(self._task, completed=step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Records `values` of `step`; a value that is not finite becomes null in the JSON."""
        if self._file is None or self._events is None:
            return
        values = {name: float(value) for name, value in values.items()}
        record = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **record}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()
        self._show(step, values)

    def write_samples(self, step: int, samples: Sequence[Mapping]) -> None:
        """Adds a step's samples to samples.jsonl, and to TensorBoard as text."""
        if self._events is None or not samples:
            return
        with self._samples.open("a", encoding="utf-8") as file:
            for row in samples:
                file.write(json.dumps({"step": step, **row}, ensure_ascii=False) + "\n")
        blocks = (json.dumps(row, ensure_ascii=False, indent=1) for row in samples)
        self._events.add_text("samples", "\n\n".join(f"```\n{b}\n```" for b in blocks), step)

    def _show(self, step: int, values: Mapping[str, float]) -> None:
        shown = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        is_evaluation = any(name.startswith("eval/") for name in values)
        if self._bar.disable or is_evaluation:
            elapsed = time.monotonic() - self._start
            eta = elapsed / max(1, step - self._first_step) * (self.steps - step)
            line = f"{self.name} {step}/{self.steps} {shown} eta {eta:.0f} s"
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        if not is_evaluation:
            brief = [n for n in BRIEF if n in values]
            self._bar.update(self._task, shown=" ".join(f"{n} {values[n]:.3g}" for n in brief))


def lines_up_to(text: str, step: int) -> list[str]:
    """The complete lines of a metrics.jsonl or samples.jsonl of steps up to `step`."""
    lines = []
    # Not `splitlines`: a completion may hold other line separators.
    for line in text.split("\n")[:-1]:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # left incomplete by a killed run
        if record["step"] <= step:
            lines.append(line + "\n")
    return lines
