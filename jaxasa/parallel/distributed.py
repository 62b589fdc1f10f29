# SPDX-License-Identifier: Apache-2.0
"""Several processes as one run: their start, and ending all of them when one fails.

A launcher sets the environment of each process:
    JAXASA_COORDINATOR   HOST:PORT of process 0, or "auto": as JAX finds it (SLURM, TPU VM, GKE)
    JAXASA_PROCESSES     number of processes, unless "auto"
    JAXASA_PROCESS       index of this one, from 0, unless "auto"
    JAXASA_TIMEOUT       seconds to wait for the others at start, and for their heartbeats: 5 to 40
Without JAXASA_COORDINATOR there is one process. All processes see the same work folder.
"""

import os
import socket
import sys
import threading
import time
import traceback
from typing import NoReturn

import jax

from jaxasa.config import ConfigError, check

_UNFINISHED = 75
# Exit codes with which all processes end at the same step: done, or saved and unfinished.
_COMMON_EXIT_CODES = (0, _UNFINISHED)
# In JAX's message if another process is gone: gloo on CPUs, nccl on GPUs, its coordinator.
_PEER_FAILURES = ("gloo", "nccl", "unavailable:", "coordination service", "heartbeat")


def initialize() -> None:
    """Calls jax.distributed.initialize as the environment says; prints which process this is.

    Raises ConfigError for an environment that does not fit. If not all processes have started
    within JAXASA_TIMEOUT seconds, this one prints the reason and ends with exit code 2. Later, if
    heartbeats of a process are missing for so long, JAX ends the others (SIGABRT) and names it.
    """
    coordinator = os.environ.get("JAXASA_COORDINATOR")
    if not coordinator:
        for name in ("JAXASA_PROCESSES", "JAXASA_PROCESS"):
            check(name not in os.environ, name, os.environ.get(name), "JAXASA_COORDINATOR with it")
        print("process 0 of 1", flush=True)
        return
    seconds = _timeout()
    options: dict = {}
    source, expected = f"JAXASA_COORDINATOR={coordinator}", None
    if coordinator == "auto":
        expected, source = _process_from_launcher(source)
    else:
        host, _, port = coordinator.rpartition(":")
        ok = bool(host) and port.isdecimal()
        check(ok, "JAXASA_COORDINATOR", coordinator, "HOST:PORT or auto")
        count = _number("JAXASA_PROCESSES", 1, 10**6)
        index = _number("JAXASA_PROCESS", 0, count - 1)
        expected = index, count
        options = {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
    if expected is None:
        print(f"a process on {socket.gethostname()}; its index is not known yet", flush=True)
    else:
        print("process {} of {}".format(*expected), flush=True)
    # JAX ends a process that waits too long by an abort, whose reason is hard to find.
    guard = threading.Timer(
        seconds, _abort_startup, (seconds, coordinator, source, options.get("process_id"))
    )
    guard.daemon = True
    guard.start()
    try:
        jax.distributed.initialize(
            **options,
            initialization_timeout=seconds + 5,
            heartbeat_timeout_seconds=seconds,
            shutdown_timeout_seconds=seconds,
        )
        devices = len(jax.devices())  # exchanged among the processes, so all must call it
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"JAXASA_COORDINATOR={coordinator}: {reason}") from error
    finally:
        guard.cancel()
    actual = jax.process_index(), jax.process_count()
    if actual != expected:
        print("process {} of {}".format(*actual), flush=True)
    kind = jax.devices()[0].platform
    print(f"{jax.local_device_count()} of {devices} devices ({kind}) are here", flush=True)


def is_peer_failure(error: BaseException) -> bool:
    """Whether `error` says that another process of this run is gone."""
    if not isinstance(error, jax.errors.JaxRuntimeError) or not _is_initialized():
        return False
    return any(word in str(error).lower() for word in _PEER_FAILURES)


def abort_on_error(code: int) -> None:
    """Ends this process with `code` at once if others would wait for it in vain; else returns.

    An orderly exit would wait for the others, which wait for this one in a collective. After an
    abrupt one they miss its heartbeats within JAXASA_TIMEOUT seconds. The end of process 0 aborts
    them immediately, so it waits a third of that time: an error that all of them have they then
    report themselves, and process 0 ends before it misses their heartbeats.
    """
    if code in _COMMON_EXIT_CODES or not _is_initialized():
        return
    error = sys.exc_info()[1]
    if error is not None and is_peer_failure(error):
        reason = str(error).strip().splitlines()[0]
        name = f"process {jax.process_index()} of {jax.process_count()}"
        print(f"jaxasa: {name}: another process is gone ({reason})", file=sys.stderr)
        _exit(_UNFINISHED)
    if error is not None:
        traceback.print_exc()
    if jax.process_index() == 0:
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(_timeout() / 3)
    _exit(code)


def _is_initialized() -> bool:
    return jax.distributed.is_initialized() and jax.process_count() > 1


def _timeout() -> int:
    return _number("JAXASA_TIMEOUT", 5, 40, "40")


def _number(name: str, low: int, high: int, default: str = "") -> int:
    value = os.environ.get(name, default)
    ok = value.isdecimal() and low <= int(value) <= high
    check(ok, name, value or None, f"a whole number from {low} to {high}")
    return int(value)


def _process_from_launcher(source: str) -> tuple[tuple[int, int] | None, str]:
    """((index, number of processes), hosts) as the launcher's environment says; None if unknown.

    JAX finds out by itself, but prints nothing before all processes have started. Knows SLURM and
    the TPU hosts of GKE; on a TPU VM, `source` is returned unchanged.
    """
    env = os.environ
    try:
        if "SLURM_PROCID" in env:
            hosts = f"SLURM_STEP_NODELIST={env.get('SLURM_STEP_NODELIST', '')}"
            return (int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"])), hosts
        if "TPU_WORKER_ID" in env:
            hosts = env["TPU_WORKER_HOSTNAMES"]
            each, part = len(hosts.split(",")), int(env.get("MEGASCALE_SLICE_ID", "0"))
            count = each * int(env.get("MEGASCALE_NUM_SLICES", "1"))
            index = part * each + int(env["TPU_WORKER_ID"])
            return (index, count), f"TPU_WORKER_HOSTNAMES={hosts}"
    except (KeyError, ValueError):
        pass  # incomplete: JAX reports it
    return None, source


def _abort_startup(seconds: int, coordinator: str, source: str, index: int | None) -> None:
    reason = "not all processes came"
    if index != 0 and coordinator != "auto":
        host, _, port = coordinator.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=2).close()
        except OSError as error:
            reason = f"it cannot be reached ({error.strerror or error})"
    print(f"jaxasa: {source}: {reason} within {seconds} s", file=sys.stderr)
    _exit(2)


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
