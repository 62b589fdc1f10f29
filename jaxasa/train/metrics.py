"""Where a run's numbers go: metrics.jsonl, TensorBoard and the console."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from jaxasa.core.files import write_text

# What the progress bar shows of a record.
BRIEF = ("loss", "reward/total", "steps_per_s", "examples_per_s", "mfu", "data_wait")


class Writer:
    """Writes one record a step to `logs`/metrics.jsonl, TensorBoard and the console.

    On a terminal the console shows a progress bar, elsewhere a line per record. What an
    earlier run recorded beyond step `start` is removed, since those steps are done again.
    Only process 0 writes. A context manager.
    """

    def __init__(self, name: str, logs: str | Path, start: int, steps: int):
        self.name, self.steps = name, steps
        self._first = jax.process_index() == 0
        self._start, self._began = start, time.monotonic()
        self._file = self._events = None
        console = Console(stderr=True, quiet=not self._first)
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
        if self._first:
            path = Path(logs) / "metrics.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._samples = path.with_name("samples.jsonl")
            for file in (path, self._samples):
                if file.is_file():
                    write_text(file, "".join(kept(file.read_text(encoding="utf-8"), start)))
            self._file = path.open("a", encoding="utf-8")
            self._events = SummaryWriter(str(path.parent), purge_step=start + 1)

    def __enter__(self) -> "Writer":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()
        if self._first:
            self._file.close()
            self._events.close()

    def advance(self, step: int) -> None:
        """Moves the progress bar to `step`."""
        self._bar.update(self._task, completed=step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Records `values` of `step`; what is not finite becomes null in the JSON."""
        if not self._first:
            return
        values = {name: float(value) for name, value in values.items()}
        record = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **record}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()
        self._show(step, values)

    def samples(self, step: int, found: Sequence[Mapping]) -> None:
        """Adds what a step has to show to samples.jsonl, and to TensorBoard as text."""
        if not self._first or not found:
            return
        with self._samples.open("a", encoding="utf-8") as file:
            for row in found:
                file.write(json.dumps({"step": step, **row}, ensure_ascii=False) + "\n")
        blocks = (json.dumps(row, ensure_ascii=False, indent=1) for row in found)
        self._events.add_text("samples", "\n\n".join(f"```\n{b}\n```" for b in blocks), step)

    def _show(self, step: int, values: Mapping[str, float]) -> None:
        shown = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        is_evaluation = any(name.startswith("eval/") for name in values)
        if self._bar.disable or is_evaluation:
            spent = time.monotonic() - self._began
            left = spent / max(1, step - self._start) * (self.steps - step)
            line = f"{self.name} {step}/{self.steps} {shown} eta {left:.0f} s"
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        if not is_evaluation:
            brief = [n for n in BRIEF if n in values]
            self._bar.update(self._task, shown=" ".join(f"{n} {values[n]:.3g}" for n in brief))


def kept(text: str, step: int) -> list[str]:
    """The whole lines of a metrics.jsonl that belong to steps up to `step`."""
    lines = []
    # Not `splitlines`: what a model said may hold other ends of lines than this one.
    for line in text.split("\n")[:-1]:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # a line that a killed run left unfinished
        if record["step"] <= step:
            lines.append(line + "\n")
    return lines
