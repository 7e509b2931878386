"""Runs a generator in a process of its own and yields its items in the calling process."""

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from lite3r_jax.backbones.base import register_places, registered_places
from lite3r_jax.errors import InputError
from lite3r_jax.interrupts import kept_from_children


class Died(Exception):
    """Raised when a process ends before its generator does, or has to end together with it."""


def in_subprocess(generator: Callable[..., Iterator[Any]], *args: Any) -> Iterator[Any]:
    """Yields what `generator(*args)` yields in a new process, item by item.

    The new process imports everything itself, so devices that this one has not touched are free
    for it, and all its memory is given back when it ends.

    Args:
        generator: a function at the top level of a module.
        *args: of it; they and what it yields are pickled.

    Raises:
        InputError: it was raised there.
        RuntimeError: another exception was raised there, whose text it holds.
        Died: the process was killed, or it was raised there.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(
        target=_run, args=(there, generator, args, registered_places()), daemon=True
    )
    with kept_from_children(signal.SIGINT):  # this process ends that one
        process.start()
    there.close()  # so that the end of the process ends the pipe
    try:
        while True:
            try:
                kind, value = here.recv()
            except EOFError:
                process.join()
                raise Died(_reason(process.exitcode)) from None
            if kind == "item":
                yield value
            elif kind == "end":
                return
            elif kind == "input":
                raise InputError(value)
            elif kind == "died":
                raise Died(value)
            else:
                raise RuntimeError(value)
    finally:
        here.close()
        process.terminate()
        process.join()


def _run(
    pipe: Connection,
    generator: Callable[..., Iterator[Any]],
    args: tuple[Any, ...],
    backbones: tuple[tuple[str, str], ...],
) -> None:
    try:
        register_places(backbones)
        for item in generator(*args):
            pipe.send(("item", item))
        pipe.send(("end", None))
    except InputError as error:
        pipe.send(("input", str(error)))
    except Died as error:
        pipe.send(("died", str(error)))
    except Exception:  # whatever it is, the process that waits shows it and goes on
        pipe.send(("error", traceback.format_exc()))


def _reason(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        perhaps = ", as systems do where memory is short" if name == "SIGKILL" else ""
        return f"the process was ended by {name}{perhaps}"
    return f"the process ended with code {code}"
