"""Lists folders of numbered files, and finds missing and duplicate files."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lite3r_jax.errors import InputError


@dataclass(frozen=True)
class Inventory:
    """The complete and the incomplete frames of a scene, and the faults of its files.

    Attributes:
        frames: numbers of the frames of which nothing is missing, ascending.
        faults: each a line that names a file or folder and what was expected.
        partial: numbers of the frames of which something is missing.
    """

    frames: tuple[int, ...]
    faults: tuple[str, ...] = ()
    partial: tuple[int, ...] = ()

    def complete(self) -> tuple[int, ...]:
        """Returns the complete frames of a scene, or raises if the scene has any fault.

        Raises:
            InputError: the first fault, and how many there are besides.
        """
        if self.faults:
            more = len(self.faults) - 1
            raise InputError(self.faults[0] + (f" (and {more} more faults)" if more else ""))
        return self.frames


def subfolders(folder: str | os.PathLike[str]) -> list[str]:
    """Returns the sorted names of the folders in a folder, without hidden ones.

    Raises:
        InputError: it is no folder or cannot be read.
    """
    path = Path(folder)
    return [name for name in _listed(path) if (path / name).is_dir()]


def numbered_files(folder: Path, pattern: str) -> tuple[dict[int, Path], list[str]]:
    """Finds the files whose whole name fits a pattern, by the number in its only group.

    Args:
        folder: where to look.
        pattern: regular expression; names that do not fit are left alone.

    Returns:
        (number -> file, faults: two names with one number).

    Raises:
        InputError: it is no folder or cannot be read.
    """
    files: dict[int, Path] = {}
    faults: list[str] = []
    for name in _listed(folder):
        match = re.fullmatch(pattern, name, re.ASCII)
        if match is None:
            continue
        number = int(match[1])
        if number in files:
            faults.append(f"{folder / name}: has the number of {files[number].name}; remove one")
        else:
            files[number] = folder / name
    return files, faults


def take_inventory(folders: Mapping[str, tuple[Path, str, str]]) -> Inventory:
    """Compares folders that should have files of the same numbers, one folder for each kind.

    Args:
        folders: what one file is ("image", "camera") -> (folder, pattern for `numbered_files`, name
            of a file as a %-format of its number, for messages).
    """
    files: dict[str, dict[int, Path]] = {}
    faults: list[str] = []
    for what, (folder, pattern, form) in folders.items():
        try:
            files[what], twice = numbered_files(folder, pattern)
            faults += twice
            if not files[what]:
                faults.append(f"{folder}: has no {what}; expected files named like {form % 0}")
        except InputError as error:
            files[what] = {}
            faults.append(str(error))
    numbers = set().union(*files.values())
    for number in sorted(numbers):
        having = [what for what in files if number in files[what]]
        faults += [
            f"{folders[what][0] / (folders[what][2] % number)}: is missing; frame {number} has"
            f" {' and '.join(having)} but no {what}"
            for what in files
            if files[what] and number not in files[what]  # an empty folder was named already
        ]
    whole = {n for n in numbers if all(n in present for present in files.values())}
    return Inventory(tuple(sorted(whole)), tuple(faults), tuple(sorted(numbers - whole)))


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except NotADirectoryError as error:
        raise InputError(f"{folder}: is a file; expected a folder") from error
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be read ({error.strerror or error}); expected a folder"
        ) from error
