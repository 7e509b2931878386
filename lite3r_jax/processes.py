"""Several processes, on one host or on many, that compute a scene together (`jax.distributed`).

Beside JAX's own service every process keeps a connection to process 0, which the operating system
closes when a process ends, however that happens. So the others know at once and end with a
sentence, where a collective operation would wait for the one that is gone.
"""

import atexit
import hashlib
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from lite3r_jax.errors import InputError, printable
from lite3r_jax.interrupts import end_at_once

_ENDED = 1  # exit code of a process whose peer is gone
_GREETING = b"lite3r"
_HELLO = struct.Struct(f"!{len(_GREETING)}sII")  # number, count
_RETRY = 0.2  # seconds
_NOTICE = 5  # seconds in which a failure here may turn out to be one of a peer
_ADDRESS = 256  # bytes


@dataclass(frozen=True)
class ProcessOptions:
    """Processes that share the views of a scene or the batches of a training, on their own devices.

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
    """Joins the other processes for the block, within which `jax.devices()` are those of all.

    When a process ends before the others are done, these print why and leave at once with code 1,
    also from inside of a computation.

    Args:
        options: how; without a coordinator this does nothing.

    Raises:
        InputError: settings that do not fit together, or with which other processes cannot be
            reached.
    """
    check_processes(options)
    if not options.coordinator:
        yield
        return
    watch = _meet(options)
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
    """Returns whether this is process 0, the one that writes results and prints messages."""
    return jax.process_index() == 0


def every_value(value: int) -> list[int]:
    """Gathers a number from every process, on all of them, in their order; all have to call it.

    Args:
        value: the number of this process, below 2^31.
    """
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    every = multihost_utils.process_allgather(np.asarray([value], np.int32))
    return np.asarray(every).reshape(-1).tolist()


def from_first(array: np.ndarray) -> np.ndarray:
    """Broadcasts the array of process 0 to all processes, which all have to call it.

    Args:
        array: without NaN; of the other processes only shape and dtype count, which have to be
            those of process 0.
    """
    if jax.process_count() == 1:
        return array
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(array))


def refuse_different(body: Mapping[str, Any], of_what: str) -> None:
    """Raises if processes have different settings or inputs; all of them have to call it.

    Args:
        body: values of JSON that have to be equal everywhere.
        of_what: what they are, for the message.

    Raises:
        InputError: naming a process that differs from process 0.
    """
    if jax.process_count() == 1:
        return
    text = json.dumps(body, sort_keys=True, default=str)
    every = every_value(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1)
    for number, other in enumerate(every):
        if other != every[0]:
            raise InputError(
                f"process {number} of {len(every)}: has other {of_what} than process 0; start all"
                " with the same command but processes.number"
            )


@contextmanager
def all_ready() -> Iterator[None]:
    """Runs a block that has to succeed in all processes before they compute together.

    Raises:
        InputError: the block failed in another process; or the error of this one.
    """
    try:
        yield
    except InputError:
        every_value(0)
        raise
    if 0 in (ready := every_value(1)):
        raise InputError(
            f"process {ready.index(0)} of {len(ready)} could not prepare its part; see what it"
            " printed"
        )


def check_processes(options: ProcessOptions) -> None:
    """Raises if coordinator, count and number of the processes do not fit together.

    Raises:
        InputError: naming the settings.
    """
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


def _meet(options: ProcessOptions) -> "Watch":
    """Joins the other processes with `jax.distributed`, and connects to them."""
    try:
        if options.coordinator != "auto":
            return _by_address(options)
        _initialize({})
        if jax.process_count() == 1:
            raise InputError(
                "processes.coordinator=auto: the environment says that this process is alone; start"
                " it by srun or mpirun, or give HOST:PORT, count and number"
            )
        count, number = jax.process_count(), jax.process_index()
        if number:
            host, port = _address(_announced(""))
            return Watch(number, count, {0: _connected(host, port, number, options)[0]})
        with _server(0) as server:
            _announced(f"{socket.gethostname()}:{server.getsockname()[1]}")
            peers = _accepted(server, count, options.timeout)
        return Watch(0, count, _told(peers, 0))
    except InputError:
        end_at_once()
        raise


def _by_address(options: ProcessOptions) -> "Watch":
    """Connects at the address of the settings, then joins JAX at a port that process 0 chooses.

    JAX aborts where processes do not come together, so they call it only when all have connected.
    """
    host, port = _address(options.coordinator)
    count, number = options.count, options.number
    if number:
        peer, chosen = _connected(host, port, number, options)
        peers = {0: peer}
    else:
        with _server(port) as server:
            peers = _accepted(server, count, options.timeout)
        with _server(0) as free:
            chosen = free.getsockname()[1]
        _told(peers, chosen)
    _initialize(
        {
            "coordinator_address": f"{options.coordinator.rpartition(':')[0]}:{chosen}",
            "num_processes": count,
            "process_id": number,
            "initialization_timeout": options.timeout,
        }
    )
    return Watch(number, count, peers)


def _initialize(arguments: Mapping[str, Any]) -> None:
    try:
        jax.distributed.initialize(**arguments)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"processes.coordinator: jax.distributed could not begin ({reason}); join before"
            " anything is computed, and with auto start the processes by srun or mpirun"
        ) from error


def _address(text: str) -> tuple[str, int]:
    """Splits HOST:PORT, or [HOST]:PORT of IPv6, into host and port."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def _server(port: int) -> socket.socket:
    """Opens a socket that listens at every address of this host."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise InputError(
            f"processes.coordinator: port {port} cannot be listened on ({error.strerror}); choose"
            " another one, the same in all processes"
        ) from error


def _accepted(server: socket.socket, count: int, timeout: int) -> dict[int, socket.socket]:
    """Accepts the connections of all other processes within `timeout` seconds, by their numbers."""
    peers: dict[int, socket.socket] = {}
    try:
        _accept(server, count, timeout, peers)
    except InputError:
        for peer in peers.values():
            peer.close()
        raise
    return peers


def _accept(
    server: socket.socket, count: int, timeout: int, peers: dict[int, socket.socket]
) -> None:
    """Accepts connections as `_accepted` does, and adds each to `peers` as it comes."""
    until = time.monotonic() + timeout
    while len(peers) < count - 1:
        try:
            server.settimeout(max(0.01, until - time.monotonic()))
            peer, _ = server.accept()
            peer.settimeout(_NOTICE)
            hello = peer.recv(_HELLO.size)
        except OSError as error:
            if time.monotonic() < until:
                continue
            raise InputError(
                f"processes: {1 + len(peers)} of {count} came within {timeout} s; start all of them"
                " with the same processes.coordinator, and open the ports between the hosts"
            ) from error
        if len(hello) != _HELLO.size or not hello.startswith(_GREETING):
            peer.close()  # a program that looks for open ports
            continue
        _, number, theirs = _HELLO.unpack(hello)
        if theirs != count or number in peers or not 0 < number < count:
            peer.close()
            raise InputError(
                f"processes: another one came with count={theirs} and number={number}; processes"
                f" are {count} by the settings of process 0, each with another number"
            )
        peer.settimeout(None)
        _keep_alive(peer)
        peers[number] = peer


def _connected(
    host: str, port: int, number: int, options: ProcessOptions
) -> tuple[socket.socket, int]:
    """Connects to process 0; also returns the port that process 0 sends when all have connected."""
    until = time.monotonic() + options.timeout
    where = f"process 0 at {host}:{port}"
    while True:
        left = max(0.01, until - time.monotonic())
        try:
            peer = socket.create_connection((host, port), timeout=left)
            break
        except OSError as error:
            if time.monotonic() + _RETRY > until:
                raise InputError(
                    f"processes: {where} cannot be reached within {options.timeout} s"
                    f" ({error.strerror or error}); start it there, and open the ports between the"
                    " hosts"
                ) from error
            time.sleep(_RETRY)
    _keep_alive(peer)
    said = b""
    with suppress(OSError):
        peer.sendall(_HELLO.pack(_GREETING, number, options.count or jax.process_count()))
        peer.settimeout(max(0.01, until - time.monotonic()) + _NOTICE)
        while not said.endswith(b"\n") and (part := peer.recv(1)):
            said += part
    if not said.endswith(b"\n"):
        peer.close()
        raise InputError(f"processes: {where} ended before all had come; see what it printed")
    peer.settimeout(None)
    return peer, int(said)


def _told(peers: dict[int, socket.socket], port: int) -> dict[int, socket.socket]:
    """Sends all peers a port, which says that every process has connected; returns the peers."""
    for peer in peers.values():
        with suppress(OSError):
            peer.sendall(f"{port}\n".encode())
    return peers


def _announced(text: str) -> str:
    """Broadcasts the text of process 0 to all processes."""
    data = np.frombuffer(text.encode().ljust(_ADDRESS, b"\0"), np.uint8)
    return from_first(data.astype(np.int32)).astype(np.uint8).tobytes().rstrip(b"\0").decode()


class Watch:
    """Connections between process 0 and the others, over which processes say how they end."""

    def __init__(self, number: int, count: int, peers: dict[int, socket.socket]):
        """Starts a thread for each peer that listens to how the peer ends."""
        self.number, self.count, self._peers = number, count, peers
        self._ending = threading.Lock()  # held once it is said why this process ends
        self._done = {n: threading.Event() for n in range(count)}
        for peer in peers:
            self._follow(peer)

    def _follow(self, number: int) -> None:
        name = f"process {number}"
        threading.Thread(target=self._listen, args=(number,), name=name, daemon=True).start()

    def _listen(self, number: int) -> None:
        """Reads the messages of a peer until it is done; one that closes before has failed."""
        said = b""
        with suppress(OSError):
            while not said.endswith(b"\n") and (part := self._peers[number].recv(4096)):
                said += part
        text = said.decode("utf-8", "replace").strip()
        if text == "done":
            self._done[number].set()
            return
        who = f"process {number} of {self.count}"
        said_why = text.startswith("failed ")
        killed = f"{who} ended without a word: it was killed, or its host is gone"
        self._end(text.removeprefix("failed ") if said_why else killed)

    def _end(self, reason: str) -> None:
        """Ends this process at once and tells the others why, unless it is ending already."""
        if not self._ending.acquire(blocking=False):
            return  # what is heard now is the answer to what this process said
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
        """Waits until all processes are done, so that no normal end is taken for a failure."""
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
        """Tells the others that this process failed; a peer's failure is reported by that peer."""
        if not isinstance(error, InputError | KeyboardInterrupt):
            # A collective operation broke: if a peer is gone, a thread ends this process now.
            threading.Event().wait(_NOTICE)
        self._ending.acquire()
        reason = str(error) or type(error).__name__
        self._tell(f"failed process {self.number} of {self.count} ended: {reason}")


def _keep_alive(peer: socket.socket) -> None:
    """Turns on TCP keep-alive, since a host that loses its power closes no connection."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):  # of Linux
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
