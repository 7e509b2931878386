"""Downloads of results: files as they are, folders as ZIP archives that are made while sent."""

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PIECE = 1 << 20


def is_folder(path: Path) -> bool:
    """Returns whether a result is a folder, which is sent as a ZIP archive."""
    return path.is_dir() and not path.is_symlink()


def zipped(folder: Path) -> Iterator[bytes]:
    """Yields the bytes of a ZIP archive of a folder; the whole is never in memory or on disk.

    Files are stored without compression, since pictures and arrays have their own. Equal folders
    give equal bytes.
    """
    out: Any = _Written()  # what zipfile asks of a file that cannot seek
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for path in sorted(_files(folder)):
            name = f"{folder.name}/{path.relative_to(folder).as_posix()}"
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))  # the first that a ZIP can have
            entry.external_attr = 0o644 << 16
            with path.open("rb") as file, archive.open(entry, "w", force_zip64=True) as target:
                while piece := file.read(_PIECE):
                    target.write(piece)
                    yield out.taken()
    yield out.taken()


def _files(folder: Path) -> Iterator[Path]:
    for where, _, names in os.walk(folder):
        for name in names:
            path = Path(where) / name
            if not path.is_symlink():
                yield path


class _Written:
    """A write-only file object that hands its bytes on as they are written."""

    def __init__(self):
        self._data, self._place = bytearray(), 0

    def write(self, data: bytes) -> int:
        self._data += data
        self._place += len(data)
        return len(data)

    def flush(self) -> None:
        pass

    def taken(self) -> bytes:
        data = bytes(self._data)
        self._data.clear()
        return data
