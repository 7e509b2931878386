"""Several processes, on one host or on many, that compute a scene together (`jax.distributed`).

Beside JAX's own service every process keeps a connection to process 0, which the operating system
closes when a process ends, however that happens. So the others know at once and end with a
sentence, where a collective operation would wait for the one that is gone.
"""

import atexit
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn

import jax
import numpy as np

from lite3r_jax.errors import InputError, printable
from lite3r_jax.interrupts import end_at_once

_ENDED = 1  # exit code of a process whose peer is gone
_PATIENCE = 60  # seconds in which processes that have joined connect, and in which they all finish
_NOTICE = 5  # seconds in which a failure here may turn out to be one of a peer
_ADDRESS = 256  # bytes


@dataclass(frozen=True)
class ProcessOptions:
    """Processes that share the views of a scene, each with its own devices.

    Attributes:
        coordinator: HOST:PORT at which process 0 can be reached by the others, with a port that is
            free there; "auto": what Slurm, Open MPI or a TPU pod say, as `jax.distributed` finds
            it; "": this process alone.
        count: how many there are.
        number: which of them this is, from 0 on; -1 where the environment says so.
        timeout: seconds to wait until all have joined.
    """

    coordinator: str = ""
    count: int = 0
    number: int = -1
    timeout: int = 300


@contextmanager
def joined(options: ProcessOptions) -> Iterator[None]:
    """Meanwhile this process is one of several; `jax.devices()` are those of all.

    When a process ends before the others are done, these print why and leave at once with code 1,
    also from inside of a computation.

    Args:
        options: how; without a coordinator this does nothing.

    Raises:
        InputError: settings that do not fit together, or that others cannot be reached with.
    """
    _check(options)
    if not options.coordinator:
        yield
        return
    _initialize(options)
    watch = _Watch(options)
    try:
        yield
        watch.finish()
    except BaseException as error:
        watch.fail(error)
        # JAX would wait at the end for processes that are gone.
        end_at_once()
        atexit.register(os._exit, _ENDED)
        raise


def is_first() -> bool:
    """Whether this process is the one that writes results and talks to people."""
    return jax.process_index() == 0


def every_value(value: int) -> list[int]:
    """A number of every process, on all of them, in their order. All have to call it.

    Args:
        value: of this process, below 2^31.
    """
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    every = multihost_utils.process_allgather(np.asarray([value], np.int32))
    return np.asarray(every).reshape(-1).tolist()


@contextmanager
def all_ready() -> Iterator[None]:
    """A step that all processes have to get through before they go on to compute together.

    Raises:
        InputError: another process could not; or that of this one.
    """
    try:
        yield
    except InputError:
        every_value(0)
        raise
    if 0 in (ready := every_value(1)):
        raise InputError(
            f"process {ready.index(0)} of {len(ready)} could not prepare this scene; see what it"
            " printed"
        )


def _check(options: ProcessOptions) -> None:
    where, count, number = options.coordinator, options.count, options.number
    if not where:
        if count or number >= 0:
            raise InputError(
                "processes.coordinator: not set, but processes.count or processes.number is; set"
                " HOST:PORT of process 0, or leave all of them out"
            )
        return
    if where == "auto":
        if count or number >= 0:
            raise InputError(
                "processes.coordinator=auto: takes number and count from the environment; leave"
                " out processes.count and processes.number, or give HOST:PORT"
            )
        return
    host, colon, port = where.rpartition(":")
    if not (host and colon and port.isascii() and port.isdecimal() and 0 < int(port) < 2**16):
        raise InputError(
            "processes.coordinator: expected HOST:PORT of process 0, such as 10.0.0.1:9911, or"
            f" auto; got {where!r}"
        )
    if count < 2 or not 0 <= number < count:
        raise InputError(
            f"processes: expected processes.count of at least 2 and processes.number from 0 to"
            f" count - 1, another one in each process; got count={count} and number={number}"
        )


def _initialize(options: ProcessOptions) -> None:
    given = {}
    if options.coordinator != "auto":
        given = {
            "coordinator_address": options.coordinator,
            "num_processes": options.count,
            "process_id": options.number,
        }
    try:
        jax.distributed.initialize(**given, initialization_timeout=options.timeout)
    except (ValueError, RuntimeError) as error:
        end_at_once()
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"processes.coordinator={options.coordinator}: the processes did not come together"
            f" ({reason}); check that process 0 runs on that host, that the port is free and"
            " reachable, and that all are started with the same count"
        ) from error


class _Watch:
    """Connections between process 0 and the others, over which they say how they end."""

    def __init__(self, options: ProcessOptions):
        self.number, self.count = jax.process_index(), jax.process_count()
        self._done = {n: threading.Event() for n in range(self.count)}
        self._finishing = False
        self._peers: dict[int, socket.socket] = {}
        if self.number == 0:
            server = socket.create_server(("", 0), backlog=self.count)
            host = options.coordinator.rpartition(":")[0] or socket.gethostname()
            self._announced(f"{host}:{server.getsockname()[1]}")
            server.settimeout(_PATIENCE)
            with server:
                for _ in range(self.count - 1):
                    self._welcome(server)
        else:
            host, _, port = self._announced("").rpartition(":")
            self._peers[0] = self._connect(host, int(port))
            self._follow(0)

    def _announced(self, text: str) -> str:
        """The text of process 0."""
        from jax.experimental import multihost_utils

        data = np.frombuffer(text.encode().ljust(_ADDRESS, b"\0"), np.uint8)
        every = multihost_utils.broadcast_one_to_all(data.astype(np.int32))
        return np.asarray(every).astype(np.uint8).tobytes().rstrip(b"\0").decode()

    def _welcome(self, server: socket.socket) -> None:
        try:
            peer, _ = server.accept()
            number = int.from_bytes(peer.recv(4), "big")
        except OSError as error:
            end_at_once()
            raise InputError(
                f"processes: only {1 + len(self._peers)} of {self.count} processes reached process"
                f" 0 within {_PATIENCE} s; open the ports between the hosts"
            ) from error
        _keep_alive(peer)
        self._peers[number] = peer
        self._follow(number)

    def _connect(self, host: str, port: int) -> socket.socket:
        try:
            peer = socket.create_connection((host, port), timeout=_PATIENCE)
        except OSError as error:
            end_at_once()
            raise InputError(
                f"processes: process 0 cannot be reached at {host}:{port} ({error.strerror});"
                " open the ports between the hosts"
            ) from error
        peer.settimeout(None)
        _keep_alive(peer)
        peer.sendall(self.number.to_bytes(4, "big"))
        return peer

    def _follow(self, number: int) -> None:
        name = f"process {number}"
        threading.Thread(target=self._listen, args=(number,), name=name, daemon=True).start()

    def _listen(self, number: int) -> None:
        """Read what a peer says until it says that it is done; it failed if it says no more."""
        said = b""
        with suppress(OSError):
            while not said.endswith(b"\n") and (part := self._peers[number].recv(4096)):
                said += part
        text = said.decode("utf-8", "replace").strip()
        if text == "done":
            self._done[number].set()
            return
        who = f"process {number} of {self.count}"
        if text.startswith("failed "):
            self._end(text.removeprefix("failed "))
        self._end(f"{who} ended without a word: it was killed, or its host is gone")

    def _end(self, reason: str) -> NoReturn:
        """Leave at once, and let the others know why."""
        line = f"error: {printable(reason)}; process {self.number} ends, start all of them again"
        with suppress(OSError):
            os.write(2, f"{line}\n".encode())
        self._tell(f"failed {reason}")
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(_ENDED)

    def _tell(self, text: str) -> None:
        for peer in self._peers.values():
            with suppress(OSError):
                peer.sendall(f"{' '.join(text.split())}\n".encode())

    def finish(self) -> None:
        """Wait until all are done, so that no end is taken for a failure."""
        if self.number:
            self._tell("done")
        for number in self._peers:
            self._done[number].wait()
        if not self.number:
            self._tell("done")
            # Followers close first; what is left in the way of the last word is not lost.
            for peer in self._peers.values():
                with suppress(OSError):
                    peer.shutdown(socket.SHUT_WR)

    def fail(self, error: BaseException) -> None:
        """Tell the others; a failure that is one of theirs is reported from there."""
        if not isinstance(error, InputError | KeyboardInterrupt):
            # A collective operation broke: if a peer is gone, a thread ends this process now.
            threading.Event().wait(_NOTICE)
        reason = str(error) or type(error).__name__
        self._tell(f"failed process {self.number} of {self.count} ended: {reason}")


def _keep_alive(peer: socket.socket) -> None:
    """Ask whether the other side is there; a host without power closes nothing."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):  # of Linux
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
