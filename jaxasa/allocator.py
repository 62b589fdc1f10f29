"""glibc's allocator, told to keep what it has.

XLA on the CPU allocates its temporaries anew at each step. By default glibc gives large ones
back to the kernel, which then clears and maps their pages again: a fifth of a training
step's time here went to that. Elsewhere than on glibc nothing happens.
"""

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_memory() -> None:
    """Freed memory stays with the process, and large blocks come from its heap, not from mmap."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_TOP_PAD, 2**28)
    mallopt(_ARENA_MAX, 2)
