"""How processes use the CPU: settings that make training faster, and workers of one thread.

Where libtpu is installed for `jaxasa plan` and no TPU is there, JAX is told not to look for one:
it would print errors, and wait for the metadata server of a cloud, before it took the CPU.

On other platforms, and elsewhere than on glibc, `tune` changes nothing.
"""

import contextlib
import ctypes
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
# What numpy's libraries, numba and pyroomacoustics ask for their number of threads.
_THREADS = tuple(f"{name}_NUM_THREADS" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA", "PRA"))
# Sums may be added in any order, so that XLA can use vector instructions for them: softmax and
# norms take most of a small decoder's step. NaN and infinity keep their meaning, and a run
# repeats itself bit for bit. What XLA_FLAGS says already is left as it is.
_FAST_MATH = "--xla_cpu_enable_fast_math=true"


def tune() -> None:
    """Called before jax is imported: reads XLA_FLAGS once, and memory is taken from then on."""
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_enable_fast_math" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_FAST_MATH}".strip()
    if "JAX_PLATFORMS" not in os.environ and importlib.util.find_spec("libtpu"):
        if not _has_any("accel[0-9]*", "vfio/[0-9]*"):
            os.environ["JAX_PLATFORMS"] = _platforms()
    _keep_memory()


def _platforms() -> str:
    """What JAX may look for besides TPUs."""
    return "cuda,cpu" if _has_any("nvidia[0-9]*") else "rocm,cpu" if _has_any("kfd") else "cpu"


def _has_any(*patterns: str) -> bool:
    """Whether a device node is there, of a TPU as its drivers name them, or of a GPU."""
    return any(path for pattern in patterns for path in Path("/dev").glob(pattern))


@contextlib.contextmanager
def one_thread_each(**more: str) -> Iterator[None]:
    """Processes spawned inside start one thread each; `more` are variables of theirs too.

    They read these when they import numpy, before any code of ours could set them.
    """
    wanted = dict.fromkeys(_THREADS, "1") | more
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _keep_memory() -> None:
    """Freed memory stays with the process, and large blocks come from its heap, not from mmap.

    XLA on the CPU allocates its temporaries anew at each step. By default glibc gives large ones
    back to the kernel, which then clears and maps their pages again: a fifth of a training
    step's time here went to that. All threads share one heap: a block of more than 64 MB fits into
    no other, and would be mapped anew each time whatever is said here.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_TOP_PAD, 2**28)
    mallopt(_ARENA_MAX, 1)
