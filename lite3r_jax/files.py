"""Files and folders that appear under their name only when they are complete."""

import ctypes
import os
import secrets
import shutil
import socket
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lite3r_jax.errors import InputError

_PARTIAL, _OLD = "partial", "old"


def user_cache() -> Path:
    """Returns the cache directory of this package for the user, by the custom of the system."""
    home = Path.home()
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "lite3r_jax"
    if sys.platform == "win32":
        return home / "AppData" / "Local" / "lite3r_jax" / "Cache"
    return home / ".cache" / "lite3r_jax"


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary path for a file or a folder that is renamed to `path` at the block's end.

    If the block fails, or the process is killed, nothing is left under the final name and what was
    there before stays. A folder takes the place of another in one step where the system can
    exchange names (Linux, most file systems); elsewhere there is a moment in which neither is
    there, and the next call for the same `path` puts the old one back. Temporary files that killed
    processes of this machine left beside `path` are removed. Missing parents of `path` are made.

    Args:
        path: final name.
        overwrite: whether something that exists may be replaced.

    Raises:
        InputError: `path` exists and may not be replaced, or cannot be written.
    """
    path = Path(path)
    _clear_leftovers(path)
    if os.path.lexists(path) and not overwrite:
        raise InputError(f"{path}: exists already; choose another place or allow overwriting")
    partial, old = temporary_name(path, _PARTIAL), temporary_name(path, _OLD)
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                os.lstat(partial)  # a name that is too long is refused before the work
            yield partial
            _put(partial, path, old, overwrite)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        _remove(partial)
    _remove(old)


def check_writable(path: Path) -> None:
    """Raises if a file could not be written; to be called before its contents are computed.

    Raises:
        InputError: its folder cannot be made or written, or a folder is in its place.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; name a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error


def temporary_name(path: Path, kind: str = _PARTIAL) -> Path:
    """Returns a free name beside `path` that names the machine and the process that write there."""
    return path.with_name(f".{path.name}.{kind}-{_host()}-{os.getpid()}-{secrets.token_hex(4)}")


def _host() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _clear_leftovers(path: Path) -> None:
    """Restores what a killed process had moved aside, and removes what it had left unfinished."""
    left = {kind: _of_dead_processes(path, kind) for kind in (_PARTIAL, _OLD)}
    if left[_OLD] and not os.path.lexists(path):
        with suppress(OSError):
            os.rename(max(left[_OLD], key=lambda old: old.stat().st_ctime), path)
    for name in (*left[_PARTIAL], *left[_OLD]):
        _remove(name)


def _of_dead_processes(path: Path, kind: str) -> list[Path]:
    """Returns temporary names beside `path` whose process ran on this machine and is gone."""
    start = f".{path.name}.{kind}-{_host()}-"
    try:
        names = [name for name in os.listdir(path.parent) if name.startswith(start)]
    except OSError:
        return []
    pids = {name: name.removeprefix(start).partition("-")[0] for name in names}
    dead = [name for name, pid in pids.items() if pid.isdecimal() and not _alive(int(pid))]
    return [path.with_name(name) for name in dead]


def _alive(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid)


def _put(partial: Path, path: Path, old: Path, overwrite: bool) -> None:
    folder = partial.is_dir() or path.is_dir()
    if overwrite and folder and os.path.lexists(path):
        if _exchange(partial, path):
            return  # `partial` is now the name of what was there, and goes
        os.rename(path, old)
    try:
        if overwrite:
            os.replace(partial, path)
        elif os.path.lexists(path):  # it came while we wrote
            raise InputError(f"{path}: exists already; another program wrote it meanwhile")
        else:
            os.rename(partial, path)
    except (OSError, InputError):
        if os.path.lexists(old):
            os.rename(old, path)
        raise


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two paths in one step; returns whether the system could (renameat2 of Linux 3.15)."""
    try:
        swap = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, TypeError, AttributeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return swap(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _remove(path: Path) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
