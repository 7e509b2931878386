"""Settings of glibc's malloc: whether freed host memory is kept for reuse or given back."""

import ctypes
import sys
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h of glibc; mallopt(3)


def share_one_heap() -> bool:
    """Makes all threads of this process allocate from one heap, so that freed memory is reused.

    glibc gives threads heaps of their own, of 64 MiB at most: larger blocks are mapped anew each
    time, whatever `keep_freed_memory` keeps of the first heap. NumPy starts a thread as it is
    imported, whose heap others then use too, so programs call this before; that saves a training on
    a CPU a third of its memory (docs/benchmarks.md).

    Returns:
        Whether it had an effect: False without glibc, which is to say anywhere but on Linux.
    """
    return _set_options((_M_ARENA_MAX, 1))


def keep_freed_memory() -> bool:
    """Makes this process keep freed memory for reuse; for work that allocates alike in many steps.

    XLA on CPUs takes the memory of a step when it begins and frees it when it ends. glibc gives
    blocks of that size back to the system, which then has to clear every page of them again for the
    next step: a quarter to a third of the processor time of a small model's gradient. The gain in
    whole runs stands in docs/benchmarks.md. Memory is given back when the process ends.

    To be called before JAX is asked for its devices, or anything else starts threads: threads that
    have a heap of their own by then go on with it (`share_one_heap`).

    Returns:
        Whether it had an effect: False without glibc, which is to say anywhere but on Linux.
    """
    return share_one_heap() and _set_options((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))


def give_back_freed_memory() -> bool:
    """Returns the memory that this process has freed so far to the system (malloc_trim of glibc).

    Resident memory is then memory in use. Compiling a large model leaves many blocks behind that
    glibc keeps for later.

    Returns:
        Whether something was returned; False without glibc.
    """
    trim = _glibc("malloc_trim")
    return trim is not None and bool(trim(0))


def _set_options(*options: tuple[int, int]) -> bool:
    mallopt = _glibc("mallopt")
    return mallopt is not None and all(mallopt(option, value) for option, value in options)


def _glibc(name: str) -> Any:
    """Returns a function of glibc by its name; None without glibc (anywhere but on most Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), name, None)  # musl has neither of the two
