"""What makes training on a CPU faster, set once when a command starts.

Both are for the CPU only; on other platforms, and elsewhere than on glibc, they change nothing.
"""

import ctypes
import os

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
# Sums may be added in any order, so that XLA can use vector instructions for them: softmax and
# norms take most of a small decoder's step. NaN and infinity keep their meaning, and a run
# repeats itself bit for bit. What XLA_FLAGS says already is left as it is.
_FAST_MATH = "--xla_cpu_enable_fast_math=true"


def tune() -> None:
    """Called before jax is imported: reads XLA_FLAGS once, and memory is taken from then on."""
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_enable_fast_math" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_FAST_MATH}".strip()
    _keep_memory()


def _keep_memory() -> None:
    """Freed memory stays with the process, and large blocks come from its heap, not from mmap.

    XLA on the CPU allocates its temporaries anew at each step. By default glibc gives large ones
    back to the kernel, which then clears and maps their pages again: a fifth of a training
    step's time here went to that.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_TOP_PAD, 2**28)
    mallopt(_ARENA_MAX, 2)
