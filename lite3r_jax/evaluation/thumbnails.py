"""Thumbnails of one sample for pictures, small enough to be kept for every variant."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lite3r_jax.data.views import Sample
from lite3r_jax.errors import InputError
from lite3r_jax.evaluation.predictor import Output
from lite3r_jax.npz_file import open_npz

SIDE = 224
"""Longer side of pictures in pixels; larger maps are thinned to it."""
VIEWS = 4
"""Largest number of views of a sample that are shown, evenly spaced, the first among them."""
MOST = 1 << 26
"""Largest number of bytes of an array in a file."""


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """Small maps and cameras of a sample: its ground truth, or a model's prediction.

    Attributes:
        views: int [V], which of the S views of the sample have maps.
        images: uint8 [V, h, w, 3]; of the truth only.
        depth: float32 [V, h, w], z in the camera frame, 0 or not finite where there is none; None
            without depth.
        extrinsics: float32 [S, 3, 4] world-to-camera; None without cameras.
        intrinsics: float32 [S, 3, 3] in pixels of these maps; None without cameras.
    """

    views: np.ndarray
    images: np.ndarray | None = None
    depth: np.ndarray | None = None
    extrinsics: np.ndarray | None = None
    intrinsics: np.ndarray | None = None


def truth(sample: Sample) -> Thumbnails:
    """Makes the thumbnails of a sample's ground truth, which `score.in_unit` has normalized."""
    views, pick = _chosen(sample.views), _thinning(sample.size)
    images = np.rint(sample.images[views][(slice(None), *pick)] * 255).astype(np.uint8)
    depth = None if sample.depth is None else sample.depth[views][(slice(None), *pick)]
    return Thumbnails(
        views, images, depth, sample.extrinsics, _scaled(sample.intrinsics, sample.size)
    )


def predicted(output: Output, views: int, size: tuple[int, int]) -> Thumbnails:
    """Makes the thumbnails of a prediction for so many views of (height, width) `size`."""
    chosen = _chosen(views)
    depth = output.depth
    if depth is not None:
        depth = depth[chosen][(slice(None), *_thinning(size))]
    intrinsics = output.intrinsics
    if intrinsics is not None:
        intrinsics = _scaled(intrinsics, size)
    return Thumbnails(chosen, None, depth, output.extrinsics, intrinsics)


def pack(shown: Thumbnails) -> bytes:
    """Returns thumbnails as a compressed NPZ; equal arrays give equal bytes."""
    file = io.BytesIO()
    np.savez_compressed(file, **{k: x for k, x in vars(shown).items() if x is not None})
    return file.getvalue()


def unpack(path: Path) -> Thumbnails:
    """Reads the thumbnails that `pack` made.

    Raises:
        InputError: the file is damaged, or holds other arrays.
    """
    with open_npz(path, "delete it") as file:
        if wrong := (set(file.names) - _FORMS.keys()) | ({"views"} - set(file.names)):
            raise InputError(f"array {sorted(wrong)[0][:40]!r} missing or unknown; delete it")
        arrays = {name: file.read(name, *_FORMS[name], MOST) for name in file.names}
        shown = Thumbnails(**arrays)
        _check(shown)
    return shown


_FORMS = {"views": ("<i8", 1), "images": ("|u1", 4), "depth": ("<f4", 3), "extrinsics": ("<f4", 3),
          "intrinsics": ("<f4", 3)}  # fmt: skip
"""Name of an array -> its dtype and number of axes."""


def _check(shown: Thumbnails) -> None:
    """Raises if arrays are not the thumbnails of one sample."""
    count = len(shown.views)
    cameras = [x for x in (shown.extrinsics, shown.intrinsics) if x is not None]
    maps = [x for x in (shown.images, shown.depth) if x is not None]
    least = min((len(x) for x in cameras), default=1 << 30)
    ok = (
        0 < count <= VIEWS
        and 0 <= shown.views.min() <= shown.views.max() < least
        and all(len(x) == count and min(x.shape) > 0 and max(x.shape) <= SIDE for x in maps)
        and len({x.shape[1:3] for x in maps}) <= 1
        and (shown.images is None or shown.images.shape[3] == 3)
        and (shown.extrinsics is None or shown.extrinsics.shape[1:] == (3, 4))
        and (shown.intrinsics is None or shown.intrinsics.shape[1:] == (3, 3))
        and len({len(x) for x in cameras}) <= 1
        and all((np.abs(x[np.isfinite(x)]) < 1e15).all() for x in cameras)
        and (shown.extrinsics is None or np.isfinite(shown.extrinsics).all())
        and not any(np.isnan(x).any() for x in cameras)
        and (shown.images is None or all(np.isfinite(x).all() for x in cameras))
        and (shown.intrinsics is None or _invertible(shown.intrinsics))
    )
    if not ok:
        raise InputError("its arrays are not those of pictures of one sample; delete it")


def _invertible(intrinsics: np.ndarray) -> bool:
    """Returns whether no matrix of intrinsics is singular.

    Predictions may hold an infinite focal length, which is not singular.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        return bool(np.linalg.det(intrinsics).all())


def _chosen(count: int) -> np.ndarray:
    kept = min(count, VIEWS)
    return np.arange(kept) * count // kept


def _small(size: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _thinning(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns indices of the nearest pixels, by which maps are made smaller without averages.

    An average over an edge would be a depth that was not predicted.
    """
    rows, columns = (
        ((np.arange(small) + 0.5) * full / small).astype(int)
        for small, full in zip(_small(size), size, strict=True)
    )
    return rows[:, None], columns[None]


def _scaled(intrinsics: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = (small / full for small, full in zip(_small(size), size, strict=True))
    k = intrinsics.astype(np.float64)
    k[:, 0] *= width
    k[:, 1] *= height
    k[:, :2, 2] += 0.5 * np.array([width, height]) - 0.5  # pixel centers at integers
    return k.astype(np.float32)
