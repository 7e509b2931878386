"""Locks on outputs, so that one process writes at a time; a lock ends with its process."""

import errno
import os
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from lite3r_jax.errors import InputError, shown

# flock(2) of file systems that have no locks
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Locks a folder, so that no other process writes results into it until the block ends.

    The folder is made if need be, and written to, so that one that cannot be written is refused
    before anything is computed. A folder that was made here and is still empty at the end is
    removed. The lock is a file `.lock` inside, which the system unlocks when the process ends in
    any way. Where the file system has no locks, a warning says so and nothing is locked.

    Args:
        folder: the folder that this process is going to write into.
        what: what this process does there, for the message that another process shows.

    Raises:
        InputError: another process has the lock, named with what it does and since when; or the
            folder cannot be written.
    """
    with _held(folder / ".lock", folder, what):
        yield


@contextmanager
def locked_beside(path: Path, what: str) -> Iterator[None]:
    """Locks a file or folder that is replaced as a whole, by a lock file that lies beside it.

    Args:
        path: what will be written, by `files.atomic_write`.
        what: as for `locked`.

    Raises:
        InputError: as for `locked`.
    """
    path = Path(os.path.abspath(path))
    with _held(path.with_name(f".{path.name}.lock"), path, what):
        yield


@contextmanager
def _held(lock: Path, output: Path, what: str) -> Iterator[None]:
    file, made = None, []
    try:
        made = [place for place in lock.parents if not place.exists()]
        while file is None:  # the one before may have removed its file since it was opened
            file = _taken(lock, output)
        text = f"{what}, process {os.getpid()} of {socket.gethostname()}, since {_now()}"
        os.ftruncate(file, 0)
        os.pwrite(file, text.encode(), 0)
    except OSError as error:
        if file is not None:
            os.close(file)
        _remove_empty(made)
        raise InputError(f"{output}: cannot be written ({error.strerror or error})") from error
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()
        os.close(file)
        _remove_empty(made)


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _taken(lock: Path, output: Path) -> int | None:
    """Opens and locks the lock file; returns None if another process has just removed it."""
    import fcntl

    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except FileNotFoundError:
        if lock.parent.is_dir() or not os.path.lexists(lock.parent):
            return None  # another process has just removed the folder that it had made
        raise
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file), os.stat(lock)):
            return file
    except FileNotFoundError:
        pass
    except BlockingIOError as error:
        holder = shown(os.pread(file, 400, 0).decode("utf-8", "replace") or "just started")
        os.close(file)
        raise InputError(
            f"{output}: another run is writing there ({holder}); wait for it or take another folder"
        ) from error
    except OSError as error:
        if error.errno in _NO_LOCKS:
            print(
                f"{output}: its file system has no locks; start no second run there",
                file=sys.stderr,
            )
            return file
        os.close(file)
        raise
    os.close(file)
    return None


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
