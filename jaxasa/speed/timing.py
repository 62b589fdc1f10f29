# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing of jaxasa and a PyTorch baseline, and the rows of the result.

Both run in one process with the same number of threads, in float32, with the same weights and
batch. Each round times one and then the other, so that both see the same load; medians are
reported.
"""

import importlib
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from jaxasa.config import ConfigError

INSTALL = "pip install 'jaxasa[speed]'"


def import_baselines(*names: str) -> list[Any]:
    """Imports the baseline's modules and gives torch the CPUs of this process.

    Raises ConfigError with the command to install a missing one.
    """
    modules = []
    for name in names:
        try:
            modules.append(importlib.import_module(name))
        except ImportError as error:
            raise ConfigError(f"bench speed needs {name} ({error}): {INSTALL}") from None
    importlib.import_module("torch").set_num_threads(len(os.sched_getaffinity(0)))
    return modules


def time_interleaved(
    name: str, ours: Callable[[], Any], baseline: Callable[[], Any], rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of `rounds` alternating calls of both, after one warm-up call of each."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for n in track(range(rounds + 1), description=name, console=Console(stderr=True)):
        for call, samples in zip((ours, baseline), seconds, strict=True):
            elapsed = time_call(call)
            if n:
                samples.append(elapsed)
    return seconds


def time_call(call: Callable[[], Any]) -> float:
    """Seconds of a call, which must block until its results are ready."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def result_row(
    name: str, seconds: tuple[Sequence[float], Sequence[float]], peer: str, work: float = 1.0
) -> dict:
    """A result row with rates by the median times; `work`: steps or tokens per call."""
    ours, baseline = (work / statistics.median(samples) for samples in seconds)
    return {
        "what": name,
        "ours_per_s": round(ours, 3),
        "peer_per_s": round(baseline, 3),
        "peer": peer,
        "ratio": round(ours / baseline, 3),
    }


def print_table(rows: Sequence[dict]) -> None:
    """Prints the rows as a table."""
    table = Table("what", "jaxasa /s", "baseline /s", "ratio", "baseline")
    for row in rows:
        numbers = (f"{row[name]:.2f}" for name in ("ours_per_s", "peer_per_s", "ratio"))
        table.add_row(row["what"], *numbers, row["peer"])
    Console().print(table)
