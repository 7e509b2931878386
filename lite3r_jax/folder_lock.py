"""One writer for each output: a lock that ends with the process that holds it."""

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
    """Keep other processes out of a folder until the block ends.

    The folder is made if need be, and written to, so that one that cannot be written is refused
    before anything is computed. One that was made here and is still empty at the end goes again.
    The lock is a file `.lock` inside, which the system unlocks when the process ends in any way.

    Args:
        folder: the folder that this process is going to write into.
        what: what it does there, for the message that another process shows.

    Raises:
        InputError: another process is in it, named with what it does and since when; or it cannot
            be written.
    """
    with _held(folder / ".lock", folder, what):
        yield


@contextmanager
def locked_beside(path: Path, what: str) -> Iterator[None]:
    """`locked` for a file or folder that is replaced as a whole: the lock lies beside it.

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
    """The open, locked file; None where it is no longer the file of that name."""
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
