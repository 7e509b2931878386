"""Keeps a prediction on disk while its scene is refined, so that a killed run can go on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lite3r_jax.backbones.base import Prediction
from lite3r_jax.errors import InputError
from lite3r_jax.files import atomic_write
from lite3r_jax.npz_file import open_npz

FILE = "prediction.npz"
"""Name of the file of a prediction, in the folder in which refinement keeps matches."""
# of `Prediction`, number of axes
_FIELDS = {
    "pose_enc": 3, "extrinsics": 4, "intrinsics": 4, "depth": 5, "depth_conf": 4,
    "world_points": 5, "world_points_conf": 4, "rays": 5, "rays_conf": 4,
}  # fmt: skip


def kept_prediction(work: Path | None, make: Callable[[], Prediction]) -> Prediction:
    """Reads the prediction kept in a folder, bit for bit, or makes a new one and keeps it there.

    With several processes the prediction is always made anew: they compute a pass together, and
    none may skip it because of files that the others do not see.

    Args:
        work: of this scene, model and these settings alone; None: nothing is kept.
        make: runs the model; its prediction is without tracks.

    Raises:
        InputError: what is kept is damaged, or cannot be written; what `make` raises.
    """
    if work is None or jax.process_count() > 1:
        return make()
    path = work / FILE
    if path.is_file():
        try:
            with open_npz(path) as file:
                unit: Any = str(file.read("unit", "<U", 0))
                names = set(file.names) - {"unit"}
                arrays = {name: file.read(name, "<f4", _FIELDS[name]) for name in names}
        except (InputError, KeyError) as error:
            raise InputError(
                f"{path}: cannot be used again ({error}); delete it, and the same command makes it"
                " anew"
            ) from error
        return Prediction(**arrays, unit=unit)
    made = jax.device_get(make())
    assert made.tracks is None
    fields = {name: getattr(made, name) for name in _FIELDS if getattr(made, name) is not None}
    with atomic_write(path) as partial, partial.open("wb") as out:
        np.savez(out, unit=np.array(made.unit), **fields)
    return made
