"""Speed against torch: what the comparisons share.

Both sides run in one process on the same number of threads, in float32, on the same weights or
sizes and the same batch. A round times one and then the other; what is reported are medians.
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


def peers(*names: str) -> list[Any]:
    """The modules of torch's side; ConfigError saying what to install. torch gets our threads."""
    found = []
    for name in names:
        try:
            found.append(importlib.import_module(name))
        except ImportError as error:
            raise ConfigError(f"bench speed needs {name} ({error}): {INSTALL}") from None
    importlib.import_module("torch").set_num_threads(len(os.sched_getaffinity(0)))
    return found


def in_turn(
    what: str, ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of `rounds` calls of each, taken in turn after a call of each that does not count."""
    taken: tuple[list[float], list[float]] = ([], [])
    for n in track(range(rounds + 1), description=what, console=Console(stderr=True)):
        for call, seconds in zip((ours, theirs), taken, strict=True):
            spent = timed(call)
            if n:
                seconds.append(spent)
    return taken


def timed(call: Callable[[], Any]) -> float:
    """Seconds that a call takes; it must wait for its own results."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def row(
    what: str, seconds: tuple[Sequence[float], Sequence[float]], peer: str, work: float = 1.0
) -> dict:
    """A row of the result: `work` (steps, tokens) a call, by the medians of ours and the peer's."""
    ours, theirs = (work / statistics.median(taken) for taken in seconds)
    return {
        "what": what,
        "ours_per_s": round(ours, 3),
        "peer_per_s": round(theirs, 3),
        "peer": peer,
        "ratio": round(ours / theirs, 3),
    }


def show(rows: Sequence[dict]) -> None:
    """Prints the rows as a table."""
    made = Table("what", "ours a second", "peer a second", "ratio", "peer")
    for found in rows:
        numbers = (f"{found[name]:.2f}" for name in ("ours_per_s", "peer_per_s", "ratio"))
        made.add_row(found["what"], *numbers, found["peer"])
    Console().print(made)
