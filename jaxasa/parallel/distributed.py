"""Several processes as one run: joining them, and ending all of them when one ends.

A launcher says in the environment of each process who belongs together:
    JAXASA_COORDINATOR   HOST:PORT of process 0, or "auto": as JAX finds it (SLURM, TPU VM, GKE)
    JAXASA_PROCESSES     how many there are, unless "auto"
    JAXASA_PROCESS       which of them this is, from 0, unless "auto"
    JAXASA_TIMEOUT       seconds to wait for one another, at start and for a sign of life: 5 to 40
Without JAXASA_COORDINATOR a process is alone. All of them see the same work folder.
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

# Exit codes with which all processes leave together: done, or saved and unfinished.
_TOGETHER = (0, 75)
_UNFINISHED = 75
# What JAX says where another process is gone: gloo on CPUs, nccl on GPUs, its coordinator.
_LOST = ("gloo", "nccl", "unavailable:", "coordination service", "heartbeat")


def initialize() -> None:
    """Prints which process this is, and joins the others where the environment names any.

    Raises ConfigError for an environment that does not fit. A process that cannot join in
    JAXASA_TIMEOUT seconds says why and ends with exit code 2; later, one that misses another
    for so long is ended by JAX (SIGABRT), which names the process that is gone.
    """
    coordinator = os.environ.get("JAXASA_COORDINATOR")
    if not coordinator:
        for name in ("JAXASA_PROCESSES", "JAXASA_PROCESS"):
            check(name not in os.environ, name, os.environ.get(name), "JAXASA_COORDINATOR with it")
        print("process 0 of 1", flush=True)
        return
    seconds = _timeout()
    who: dict = {}
    where, told = f"JAXASA_COORDINATOR={coordinator}", None
    if coordinator == "auto":
        told, where = _process_from_launcher(where)
    else:
        host, _, port = coordinator.rpartition(":")
        ok = bool(host) and port.isdecimal()
        check(ok, "JAXASA_COORDINATOR", coordinator, "HOST:PORT or auto")
        count = _number("JAXASA_PROCESSES", 1, 10**6)
        told = _number("JAXASA_PROCESS", 0, count - 1), count
        who = {"coordinator_address": coordinator, "num_processes": count, "process_id": told[0]}
    if told is None:
        print(f"a process on {socket.gethostname()}; which one is known when all came", flush=True)
    else:
        print("process {} of {}".format(*told), flush=True)
    # JAX ends a process that waits too long by an abort, whose reason is hard to find.
    guard = threading.Timer(
        seconds, _abort_startup, (seconds, coordinator, where, who.get("process_id"))
    )
    guard.daemon = True
    guard.start()
    try:
        jax.distributed.initialize(
            **who,
            initialization_timeout=seconds + 5,
            heartbeat_timeout_seconds=seconds,
            shutdown_timeout_seconds=seconds,
        )
        devices = len(jax.devices())  # exchanged among the processes, so all must come here
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"JAXASA_COORDINATOR={coordinator}: {reason}") from error
    finally:
        guard.cancel()
    found = jax.process_index(), jax.process_count()
    if told != found:
        print("process {} of {}".format(*found), flush=True)
    kind = jax.devices()[0].platform
    print(f"{jax.local_device_count()} of {devices} devices ({kind}) are here", flush=True)


def is_peer_failure(error: BaseException) -> bool:
    """Whether `error` says that another process of this run is gone."""
    if not isinstance(error, jax.errors.JaxRuntimeError) or not _is_initialized():
        return False
    return any(word in str(error).lower() for word in _LOST)


def abort_on_error(code: int) -> None:
    """Ends this process with `code` where others would wait for it in vain; else returns.

    Leaving in order would wait for the others, which wait for this one in a collective. Gone
    without a word, it is missed by them within JAXASA_TIMEOUT seconds. The end of process 0 aborts
    them at once: it waits a third of that time, so that they tell an error that all meet
    themselves, and leaves before it misses those that have told it.
    """
    if code in _TOGETHER or not _is_initialized():
        return
    error = sys.exc_info()[1]
    if error is not None and is_peer_failure(error):
        reason = str(error).strip().splitlines()[0]
        where = f"process {jax.process_index()} of {jax.process_count()}"
        print(f"jaxasa: {where}: another process is gone ({reason})", file=sys.stderr)
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


def _process_from_launcher(where: str) -> tuple[tuple[int, int] | None, str]:
    """Which process this is, of how many, and where they run, as far as a launcher says so.

    JAX finds the same for itself, but says nothing before all have come. SLURM, or the TPU hosts
    of GKE; a TPU VM asks a server for it, and `where` stays what it was.
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
        pass  # half an environment: what JAX makes of it is said later
    return None, where


def _abort_startup(seconds: int, coordinator: str, where: str, index: int | None) -> None:
    reason = "not all processes came"
    if index != 0 and coordinator != "auto":
        host, _, port = coordinator.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=2).close()
        except OSError as error:
            reason = f"it cannot be reached ({error.strerror or error})"
    print(f"jaxasa: {where}: {reason} within {seconds} s", file=sys.stderr)
    _exit(2)


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
