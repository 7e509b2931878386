"""What the process does with memory that it has freed."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h of glibc; mallopt(3)


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for what it will need next; for work in many steps.

    XLA on CPUs takes the memory of a step when it begins and frees it when it ends. glibc gives
    blocks of that size back to the system, which then has to clear every page of them again for the
    next step: a quarter to a third of the processor time of a small model's gradient. What it is
    worth in whole runs stands in docs/benchmarks.md. Memory is given back when the process ends.

    To be called before the first computation: threads that have a heap of their own by then go on
    with it.

    Returns:
        Whether it had an effect: False without glibc, which is to say anywhere but on Linux.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    # Heaps of threads are of limited size, and what is larger is mapped: so one heap, no mapping.
    options = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))
    return all(mallopt(option, value) for option, value in options)
