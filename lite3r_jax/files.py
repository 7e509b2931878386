"""Files and folders that appear under their name only when they are complete."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lite3r_jax.errors import InputError


@contextmanager
def staged(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """A free path beside `path`, to write a file or a folder at, that becomes `path` at the end.

    If the block fails, or the process is killed, nothing is left under the final name and what was
    there before stays. An old file or folder is moved aside only when its successor is complete,
    and removed last. Missing parents of `path` are made.

    Args:
        path: final name.
        overwrite: whether something that exists may be replaced.

    Raises:
        InputError: `path` exists and may not be replaced, or cannot be written.
    """
    path = Path(path)
    if os.path.lexists(path) and not overwrite:
        raise InputError(f"{path}: exists already; choose another place or allow overwriting")
    token = secrets.token_hex(4)
    partial = path.with_name(f".{path.name}.partial-{token}")
    old = path.with_name(f".{path.name}.old-{token}")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            _put(partial, path, old, overwrite)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        _remove(partial)
    _remove(old)


def _put(partial: Path, path: Path, old: Path, overwrite: bool) -> None:
    folder = partial.is_dir() or path.is_dir()
    if overwrite and folder and os.path.lexists(path):
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


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
