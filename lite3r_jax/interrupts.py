"""Handling of Ctrl-C: a process ends at once and cleanly, whatever it is doing."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from typing import Any, NoReturn

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes of programs that Ctrl-C and SIGTERM ended, by the custom of shells."""
MESSAGE = "interrupted; no file is half-written"
_PATIENCE = 1.5  # seconds that Python code has to clean up in
_at_once = threading.Event()


def run_as_process(main: Callable[[], int]) -> NoReturn:
    """Do what `sys.exit(main())` does, and end at once when interrupted.

    Python turns Ctrl-C into a KeyboardInterrupt only when compiled code returns to it, which in a
    compilation of XLA takes minutes, and loses it in callbacks of the garbage collector; and an
    interpreter that ends right after an interrupted compilation crashes in XLA. So a thread watches
    for interrupts: a process that has not ended soon after one is ended from there, and one that
    was interrupted or terminated ends without taking the interpreter down in order. Files are safe
    in both cases, since they get their names only when they are complete.

    Code with a handler of its own for SIGINT (a training that saves) is left to it; a second
    interrupt ends the process all the same.

    Args:
        main: gives the exit code; turns KeyboardInterrupt into `INTERRUPTED`, and SIGTERM into
            `TERMINATED`.
    """
    ended = threading.Event()
    _watch(ended)
    code = main()
    ended.set()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # all is done: no traceback of what is left
    if code in (INTERRUPTED, TERMINATED) or _at_once.is_set():
        _leave(code)
    sys.exit(code)


def end_at_once() -> None:
    """Makes `run_as_process` end without the handlers and threads that run at interpreter exit."""
    _at_once.set()


@contextmanager
def ended_at_once() -> Iterator[None]:
    """Makes Ctrl-C end the process at once with one line, inside of the block; for imports.

    Imports write no files that could be left half-written.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def end(*_: Any) -> None:
        os.write(2, f"\n{MESSAGE}\n".encode())
        _leave(INTERRUPTED)

    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _watch(ended: threading.Event) -> None:
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return  # a job in the background, which is born with interrupts ignored
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    shown = sys.unraisablehook

    def unraisable(lost: Any) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):  # of these `follow` knows
            shown(lost)

    sys.unraisablehook = unraisable

    def follow() -> None:
        seen = 0
        while number := os.read(reader, 1):
            seen += number[0] == signal.SIGINT
            default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
            if (seen > 1 or (seen and default)) and not ended.wait(_PATIENCE):
                os.write(2, f"\n{MESSAGE}\n".encode())
                _leave(INTERRUPTED)

    threading.Thread(target=follow, name="interrupts", daemon=True).start()


def _leave(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


@contextmanager
def kept_from_children(*signals: signal.Signals) -> Iterator[None]:
    """Blocks signals inside of the block, so that processes started there never see these signals.

    This process gets the signals when the block ends. Keyboards and schedulers signal all processes
    of a job, of which the first one decides when to stop. A child that had to ignore the signals
    itself would be ended by one that comes while the child starts.
    """
    resource_tracker.ensure_running()  # its start would let the signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
