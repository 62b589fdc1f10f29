# SPDX-License-Identifier: Apache-2.0
"""A progress bar on stderr for loops of more than a few seconds."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import rich.console
import rich.progress


@contextlib.contextmanager
def progress(title: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Yields `advance(n)`, which counts `unit`s of `total`; without a terminal, prints one line."""
    start, done = time.monotonic(), 0
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[rate]}"),
        rich.progress.TimeRemainingColumn(),
    )
    bar = rich.progress.Progress(
        *columns,
        console=rich.console.Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )
    with bar:
        task = bar.add_task(title, total=total, rate="")

        def advance(count: int) -> None:
            nonlocal done
            done += count
            rate = done / max(time.monotonic() - start, 1e-3)
            bar.update(task, advance=count, rate=f"{rate:.1f} {unit}/s")

        yield advance
    seconds = time.monotonic() - start
    rate = done / max(seconds, 1e-3)
    print(f"{title}: {done} {unit} in {seconds:.1f} s ({rate:.1f}/s)", file=sys.stderr)
