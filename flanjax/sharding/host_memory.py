"""Memory of a process whose device is its CPU: what a step gives back is kept for the next one.

XLA takes a step's temporaries from malloc and frees them, gigabytes at a time. glibc returns them to the system, which
maps and clears every page again at the next step: a fifth of a million faults a gigabyte.
"""

import ctypes
import sys

import jax

# From glibc's malloc.h; mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory if jax computes on the CPU; once a process, before anything else is asked of jax.

    A program on one CPU device then runs in the thread that calls it: memory of other threads' arenas, which glibc
    maps in pieces of 64 MB at the most, would go back all the same. Where malloc is not glibc's nothing is changed
    but that.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # read when the CPU becomes a device
    if jax.default_backend() != "cpu" or sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
