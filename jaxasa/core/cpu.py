# SPDX-License-Identifier: Apache-2.0
"""CPU settings that make training faster, and worker processes of one thread each.

If libtpu is installed for `jaxasa plan` and there is no TPU, JAX is told not to look for one: it
would print errors and wait for a cloud's metadata server before it used the CPU.

On other platforms, and with other C libraries than glibc, `tune` changes nothing.
"""

import contextlib
import ctypes
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
# Environment variables for the number of threads of numpy's libraries, numba, pyroomacoustics.
_THREADS = tuple(f"{name}_NUM_THREADS" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA", "PRA"))
# Sums may be added in any order, so that XLA can use vector instructions for them: softmax and
# norms take most of a small decoder's step. NaN and infinity keep their meaning, and a run
# repeats itself bit for bit. Flags that the user has set in XLA_FLAGS win.
_FAST_MATH = "--xla_cpu_enable_fast_math=true"
_TPU_NODES = ("accel[0-9]*", "vfio/[0-9]*")  # in /dev, by the names of its drivers


def tune() -> None:
    """Sets XLA flags and memory allocation; call it before jax is imported."""
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_enable_fast_math" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_FAST_MATH}".strip()
    has_libtpu = importlib.util.find_spec("libtpu") is not None
    if "JAX_PLATFORMS" not in os.environ and has_libtpu and not _has_any(*_TPU_NODES):
        os.environ["JAX_PLATFORMS"] = _platforms()
    _keep_memory()


def _platforms() -> str:
    """Platforms that JAX may look for besides TPUs."""
    return "cuda,cpu" if _has_any("nvidia[0-9]*") else "rocm,cpu" if _has_any("kfd") else "cpu"


def _has_any(*patterns: str) -> bool:
    """Whether /dev has a device node of one of these patterns."""
    return any(path for pattern in patterns for path in Path("/dev").glob(pattern))


@contextlib.contextmanager
def one_thread_each(**more: str) -> Iterator[None]:
    """Sets the environment so that processes spawned inside use one thread each.

    more: further variables for them. They read these when they import numpy, before any code of
    jaxasa could set them.
    """
    variables = dict.fromkeys(_THREADS, "1") | more
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _keep_memory() -> None:
    """Keeps freed memory with the process, and takes large blocks from its heap, not from mmap.

    XLA on the CPU allocates its temporaries anew at each step. By default glibc returns large
    ones to the kernel, which then clears and maps their pages again: that took a fifth of a
    training step. All threads share one heap, since a block of more than 64 MB fits into no other
    and would be mapped anew each time in spite of these settings.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_TOP_PAD, 2**28)
    mallopt(_ARENA_MAX, 1)
