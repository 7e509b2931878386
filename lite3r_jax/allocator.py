"""Whether freed host memory is kept for the next step or given back to the system (glibc)."""

import ctypes
import sys
from typing import Any

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
    mallopt = _glibc("mallopt")
    # Heaps of threads are of limited size, and what is larger is mapped: so one heap, no mapping.
    options = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))
    return mallopt is not None and all(mallopt(option, value) for option, value in options)


def give_back_freed_memory() -> bool:
    """Return what was freed so far to the system, so that what is resident is in use.

    Compiling a large model leaves many blocks behind that glibc keeps for later.

    Returns:
        Whether something was returned; False without glibc.
    """
    trim = _glibc("malloc_trim")
    return trim is not None and bool(trim(0))


def _glibc(name: str) -> Any:
    """One of its functions; None without it, which is to say anywhere but on most of Linux."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), name, None)  # musl has neither of the two
