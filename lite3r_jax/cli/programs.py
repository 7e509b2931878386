"""Errors, signals and exit codes, the same for every program of the command line."""

import argparse
import errno
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import jax

from lite3r_jax.errors import InputError, did_you_mean, printable
from lite3r_jax.interrupts import INTERRUPTED, MESSAGE, TERMINATED

BAD_INPUT = 2
# Faults of the place that was named and not of the program, wherever it is first looked at.
_PLACES = {errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC}
_TERMINATED = "terminated; no file is half-written"
_CALLBACK = 0.02  # seconds after which a callback of the garbage collector has returned


class Terminated(BaseException):
    """Raised at SIGTERM: all is left as by an interrupt, so that partial files are removed."""


def exit_code(run: Callable[[], int], shown: Callable[[str], str] = str) -> int:
    """Run a program; bad input is one line on stderr and never a traceback.

    SIGTERM ends it like an interrupt does, once Python code runs again. A training in its steps
    takes the signal itself, saves and ends with 75.

    Args:
        run: the program, which gives its exit code.
        shown: changes a message before it is shown.

    Returns:
        What `run` gives; 2 for bad input; 130 when interrupted, 143 when terminated.
    """
    for stream in (sys.stdout, sys.stderr):  # of any locale
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    terminated = threading.Event()
    try:
        with _termination(terminated):
            return run()
    except InputError as error:
        print(f"error: {_short(shown(printable(error)))}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        if error.errno not in _PLACES or error.filename is None:
            raise
        name = _short(shown(printable(os.fsdecode(error.filename))))
        print(f"error: {name}: {error.strerror}; give another place", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(MESSAGE, file=sys.stderr)
        return INTERRUPTED
    except Terminated:
        print(_TERMINATED, file=sys.stderr)
        return TERMINATED
    except Exception as error:
        if terminated.is_set():  # compiled code that Python was called from made an error of it
            print(f"while it was terminated: {_short(printable(error))}", file=sys.stderr)
            print(_TERMINATED, file=sys.stderr)
            return TERMINATED
        reason = missing_device()  # JAX's errors for it have several types
        if reason is None:
            raise
        print(f"error: {reason}", file=sys.stderr)
        return BAD_INPUT


def _short(message: str, limit: int = 4000) -> str:
    """Leaves out the middle of a message that has more than `limit` characters."""
    half = limit // 2
    return message if len(message) <= limit else f"{message[:half]} ... {message[-half:]}"


def missing_device() -> str | None:
    """Returns in a line why JAX has no device, or None if it has one."""
    try:
        jax.devices()
    except Exception as error:  # of several types, some without a message
        asked = jax.config.jax_platforms or "unset"  # pyright: ignore[reportAttributeAccessIssue]
        reason = " ".join(str(error).split())[:200] or "jax has no support for it installed"
        return (
            f"JAX_PLATFORMS={asked}: there is no such device here ({reason}); unset it, or install"
            " jax for the device (pip install 'lite3r_jax[cuda12]')"
        )
    return None


@contextmanager
def _termination(terminated: threading.Event) -> Iterator[None]:
    """Raise `Terminated` at the first SIGTERM; further ones do not disturb the cleaning up.

    Python drops what is raised in callbacks of its garbage collector and in finalizers, and JAX has
    such callbacks: a signal that is lost there is sent again once they have returned.

    Args:
        terminated: set when the signal came.
    """
    free = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # else another program has a use
    if not free or threading.current_thread() is not threading.main_thread():
        yield
        return
    mine = os.getpid()

    def stop(*_: Any) -> None:
        if os.getpid() != mine:  # a process that was forked ends as it would have
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        terminated.set()
        raise Terminated

    shown = sys.unraisablehook

    def unraisable(lost: Any) -> None:
        if not issubclass(lost.exc_type, Terminated):
            return shown(lost)
        signal.signal(signal.SIGTERM, stop)
        threading.Timer(_CALLBACK, os.kill, (mine, signal.SIGTERM)).start()

    sys.unraisablehook = unraisable
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.unraisablehook = shown


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `InputError` for a faulty command line."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError in place of leaving the process, with the nearest name."""
        near = ""
        if wrong := re.match(r"unrecognized arguments: (\S+)", message):
            near = did_you_mean(wrong[1].partition("=")[0], self._known_options())
        elif wrong := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            near = did_you_mean(wrong[1], re.findall(r"[\w.-]+", wrong[2]))
        raise InputError(f"{message}{near}; see {self.prog} --help")

    def _known_options(self) -> Iterator[str]:
        """Yields the options of this parser and of its subcommands."""
        for action in self._actions:
            yield from action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    yield from command._known_options()
