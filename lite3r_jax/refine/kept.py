"""Keeps matches on disk while a scene is refined, so that a run that was killed can continue."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lite3r_jax.errors import InputError
from lite3r_jax.files import atomic_write
from lite3r_jax.npz_file import open_npz
from lite3r_jax.refine.geometry_of_views import Cameras
from lite3r_jax.refine.matching import Arrays
from lite3r_jax.refine.options import RefineOptions
from lite3r_jax.scene import Scene

_KINDS = {
    "corners": ("<f8", 2), "corner": ("<i8", 1), "track": ("<i8", 1), "partner": ("<i8", 1),
    "pixel": ("<f8", 2), "confidence": ("<f4", 1), "one": ("<i8", 1), "two": ("<i8", 1),
    "alike": ("<f4", 1),
}  # fmt: skip


class Kept:
    """A folder with the matches of each view and round, of one scene with the same settings.

    Folders in the same place that belong to another prediction, other photos or other settings are
    deleted.
    """

    def __init__(self, folder: Path | None, key: str):
        """Opens the folder of matches, and deletes folders of other keys.

        Args:
            folder: made when the first matches are written; None: nothing is kept.
            key: hash of what the matches depend on, see `key_of`.
        """
        self._folder = None if folder is None else folder / key
        if folder is not None and folder.is_dir():
            for other in folder.iterdir():
                if other.is_dir() and other.name != key:
                    shutil.rmtree(other, ignore_errors=True)

    def __call__(self, number: int, view: int, make: Callable[[], Arrays]) -> Arrays:
        """Returns the matches of a view in a round: read from disk, or made and then written.

        Raises:
            InputError: a file of matches is damaged, or cannot be written.
        """
        if self._folder is None:
            return make()
        path = self._folder / f"{number}-{view:06d}.npz"
        if path.is_file():
            try:
                with open_npz(path) as file:
                    return {name: file.read(name, *_KINDS[name]) for name in file.names}
            except (InputError, KeyError) as error:
                raise InputError(
                    f"{path}: cannot be used again ({error}); delete it, and the same command makes"
                    " it anew"
                ) from error
        matches: dict[str, Any] = {
            name: np.asarray(values, _KINDS[name][0]) for name, values in make().items()
        }
        with atomic_write(path) as partial, partial.open("wb") as file:
            np.savez(file, **matches)
        return matches


def key_of(
    scene: Scene,
    options: RefineOptions,
    gray: Sequence[np.ndarray],
    usable: np.ndarray,
    known: bool,
) -> str:
    """Returns a hash of what matches depend on: photos, prediction, masks and settings."""
    cameras = Cameras.of(scene)
    body = hashlib.blake2b(digest_size=12)
    body.update(repr((sorted(asdict(options).items()), scene.names, known)).encode())
    arrays = (cameras.extrinsics, cameras.intrinsics, scene.depth, scene.boxes, usable, *gray)
    for array in arrays:
        body.update(repr((array.shape, array.dtype.str)).encode())
        body.update(np.ascontiguousarray(array).data)
    return body.hexdigest()
