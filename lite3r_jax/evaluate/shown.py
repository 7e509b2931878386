"""What pictures of one sample are made from, small enough to be kept for every row."""

import io
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from lite3r_jax.data.views import Sample
from lite3r_jax.errors import InputError
from lite3r_jax.evaluate.predictor import Output

SIDE = 224
"""Longer side of pictures in pixels; larger maps are thinned to it."""
VIEWS = 4
"""Of a sample that are shown, evenly spaced, the first among them."""


@dataclass(frozen=True, eq=False)
class Shown:
    """The truth about a sample, or what a model says about it.

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


def truth(sample: Sample) -> Shown:
    """Of a sample that is `score.in_unit`."""
    views, pick = _chosen(sample.views), _thinning(sample.size)
    images = np.rint(sample.images[views][(slice(None), *pick)] * 255).astype(np.uint8)
    depth = None if sample.depth is None else sample.depth[views][(slice(None), *pick)]
    return Shown(views, images, depth, sample.extrinsics, _scaled(sample.intrinsics, sample.size))


def predicted(output: Output, views: int, size: tuple[int, int]) -> Shown:
    """Of a prediction for so many images of that (height, width)."""
    chosen = _chosen(views)
    depth = output.depth
    if depth is not None:
        depth = depth[chosen][(slice(None), *_thinning(size))]
    intrinsics = output.intrinsics
    if intrinsics is not None:
        intrinsics = _scaled(intrinsics, size)
    return Shown(chosen, None, depth, output.extrinsics, intrinsics)


def pack(shown: Shown) -> bytes:
    """As a compressed NPZ; equal arrays give equal bytes."""
    file = io.BytesIO()
    np.savez_compressed(file, **{k: x for k, x in vars(shown).items() if x is not None})
    return file.getvalue()


def unpack(path: Path) -> Shown:
    """What `pack` made.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return Shown(**{name: file[name] for name in file.files})
    except (OSError, ValueError, TypeError, KeyError, EOFError, BadZipFile) as error:
        raise InputError(f"{path}: is damaged; delete it") from error


def _chosen(count: int) -> np.ndarray:
    kept = min(count, VIEWS)
    return np.arange(kept) * count // kept


def _small(size: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _thinning(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the nearest pixels: what is shown is what was said, not a mean over an edge."""
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
    k[:, :2, 2] += 0.5 * np.array([width, height]) - 0.5  # pixel centres at integers
    return k.astype(np.float32)
