"""The samples that multi-view datasets give, the interfaces of their readers, and checks.

Cameras follow OpenCV: x right, y down, z forward; extrinsics are world-to-camera, p_cam = R p + t.
A pixel (u, v) has its center at integers, as in the rest of the package. Depth is z in the camera
frame. All arrays are NumPy, so that samples can be made in worker processes without JAX.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

from lite3r_jax.errors import InputError

ROTATION_TOLERANCE = 1e-3  # largest entry of R R^T - I; files hold six digits or so

Scores = Mapping[int, Mapping[int, float]]
"""Overlap scores of pairs of frames: frame -> other frame -> score, larger for more overlap."""


@dataclass(frozen=True, eq=False)
class Views:
    """S views of one scene as images, without cameras or depth.

    Attributes:
        dataset: where it comes from, such as "blendedmvs".
        scene: id of the scene within the dataset.
        frames: id of each view within the scene, each different.
        images: float32 [S, H, W, 3], RGB in [0, 1].
    """

    dataset: str
    scene: str
    frames: tuple[str, ...]
    images: np.ndarray

    @property
    def name(self) -> str:
        """Name of the sample in messages: dataset and scene."""
        return f"{self.dataset} {self.scene}"

    @property
    def views(self) -> int:
        """Number of views."""
        return len(self.frames)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images in pixels."""
        return self.images.shape[1], self.images.shape[2]


V = TypeVar("V", bound=Views)


@dataclass(frozen=True, eq=False)
class Sample(Views):
    """S views of one scene with their cameras and perhaps depth.

    Attributes:
        dataset: see `Views`, and so are `scene`, `frames` and `images`.
        scene: likewise.
        frames: likewise.
        images: likewise.
        extrinsics: float32 [S, 3, 4] world-to-camera [R | t].
        intrinsics: float32 [S, 3, 3] in pixels of `images`: [[fx, 0, cx], [0, fy, cy], [0, 0, 1]].
        depth: float32 [S, H, W], z in the camera frame, 0 where there is none; None without depth.
        mask: bool [S, H, W], true where depth is valid, that is depth > 0; None without depth.
        unit: what the lengths in the dataset's files are: "mm", "m", or "scene" for a unit of the
            scene's own.
        scale: length 1 of this sample is `scale` of that unit. It is 1 before normalization.
    """

    extrinsics: np.ndarray
    intrinsics: np.ndarray
    depth: np.ndarray | None = None
    mask: np.ndarray | None = None
    unit: str = "scene"
    scale: float = 1.0


class ViewSource(Protocol):
    """Interface of every reader of a dataset: scenes with frames, read in any order."""

    scenes: tuple[str, ...]

    def frames(self, scene: str) -> tuple[int, ...]:
        """Returns the numbers of the frames of a scene, ascending."""
        ...

    def pairs(self, scene: str) -> Scores | None:
        """Returns the overlap scores of a scene's frames, or None if the dataset has none."""
        ...

    def read(self, scene: str, frames: Sequence[int], size: tuple[int, int]) -> Views:
        """Reads the given frames of a scene, in this order, at (height, width)."""
        ...


@runtime_checkable
class RenewableSource(Protocol):
    """Interface of a source that can replace its scenes by new ones."""

    def renewed(self, scene: str, generation: int) -> str:
        """Returns the scene that replaces one of `scenes` in a generation; in generation 0, itself.

        Generations come in order; once one has begun, only its scenes and those of the generation
        before it are read.
        """
        ...


class SceneSource(ViewSource, Protocol):
    """Interface of a reader of scenes whose cameras are known."""

    def read(self, scene: str, frames: Sequence[int], size: tuple[int, int]) -> Sample:
        """Implements `ViewSource.read`: reads frames with their cameras."""
        ...


def validate(sample: Sample) -> Sample:
    """Checks the arrays of a sample against everything that the docstring of `Sample` promises.

    Returns:
        The sample itself.

    Raises:
        InputError: the first thing that is wrong, with dataset, scene and frame.
    """
    _check_arrays(sample)
    images, e, k = sample.images, sample.extrinsics, sample.intrinsics.astype(np.float64)
    rotation = e[..., :3].astype(np.float64)
    height, width = sample.size
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite fails the first checks
        center, edge = k[:, :2, 2], np.array([width, height])
        checks = {
            "images must be finite and in [0, 1]": _each(images, lambda x: (x >= 0) & (x <= 1)),
            "extrinsics must be finite": _each(e, np.isfinite),
            "intrinsics must be finite": _each(k, np.isfinite),
            "extrinsics must hold a rotation (orthonormal)": _orthonormality(rotation)
            <= ROTATION_TOLERANCE,
            "extrinsics must hold a rotation (determinant +1), not a mirror": _finite_det(rotation)
            > 0,
            "focal lengths must be positive": (k[:, 0, 0] > 0) & (k[:, 1, 1] > 0),
            "intrinsics must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]": (k[:, 0, 1] == 0)
            & (k[:, 1, 0] == 0)
            & (k[:, 2] == [0, 0, 1]).all(-1),
            "the principal point must be on or near the image": (
                (center >= -0.5 * edge) & (center <= 1.5 * edge)
            ).all(-1),
        }
        if sample.depth is not None and sample.mask is not None:
            checks["depth must be finite and not negative"] = _each(
                sample.depth, lambda x: (x >= 0) & np.isfinite(x)
            )
            checks["the mask must be true just where depth is above 0"] = _each(
                sample.mask == (sample.depth > 0), lambda x: x
            )
    for rule, passed in checks.items():
        if not passed.all():
            frame = sample.frames[int(np.argmin(passed))]
            raise InputError(f"{sample.name} frame {frame}: {rule}; check the file it came from")
    return sample


@dataclass(frozen=True, eq=False)
class CrossViewCheck:
    """Agreement of the depth maps and cameras of several views, for each pair of views.

    Rows are the views that pixels come from, columns the views that they are projected into.

    Attributes:
        in_view: float64 [S, S], share of the valid pixels of one view that fall onto a valid pixel
            of the other.
        visible: float64 [S, S], share of the pixels in view whose depth agrees, which are the ones
            not hidden in the other view; NaN where nothing is in view.
        error: float64 [S, S], median over the pixels in view of |z - depth| / depth; NaN likewise.
            It is large if more than half is hidden, or if cameras or depth are wrong.
    """

    in_view: np.ndarray
    visible: np.ndarray
    error: np.ndarray


def cross_view_check(sample: Sample, *, tolerance: float = 0.02, stride: int = 1) -> CrossViewCheck:
    """Reprojects the depth of each view into each other one and compares at the nearest pixel.

    Args:
        sample: a sample with depth.
        tolerance: largest relative difference of depths that agree.
        stride: only every `stride`-th row and column is looked at.

    Raises:
        InputError: the sample has no depth.
    """
    if sample.depth is None or sample.mask is None:
        raise InputError(f"{sample.name}: has no depth; there is nothing to compare across views")
    height, width = sample.size
    e, k = sample.extrinsics.astype(np.float64), sample.intrinsics.astype(np.float64)
    # 1 where a view meets itself: every pixel is in view, and its own depth is right
    in_view, visible, error = (
        np.eye(sample.views),
        np.eye(sample.views),
        np.zeros((sample.views,) * 2),
    )
    for i in range(sample.views):
        v, u = np.nonzero(sample.mask[i, ::stride, ::stride])
        v, u = v * stride, u * stride
        z = sample.depth[i, v, u].astype(np.float64)
        rays = np.linalg.solve(k[i], np.stack([u, v, np.ones(len(u))]))
        world = e[i, :, :3].T @ (rays * z - e[i, :, 3:])
        for j in range(sample.views):
            if j == i:
                continue
            point = e[j, :, :3] @ world + e[j, :, 3:]
            point = point[:, point[2] > 0]
            pixel = np.rint((k[j] @ point)[:2] / point[2])
            on = ((pixel >= 0) & (pixel < [[width], [height]])).all(0)
            column, row = pixel[:, on].astype(np.intp)
            seen = sample.depth[j, row, column].astype(np.float64)
            off = np.abs(point[2, on] - seen)[seen > 0] / seen[seen > 0]
            in_view[i, j] = len(off) / max(len(u), 1)
            visible[i, j] = (off <= tolerance).mean() if len(off) else np.nan
            error[i, j] = np.median(off) if len(off) else np.nan
    return CrossViewCheck(in_view, visible, error)


def _check_arrays(sample: Sample) -> None:
    s = len(sample.frames)
    if s == 0 or len(set(sample.frames)) < s:
        raise InputError(
            f"{sample.name}: expected at least one frame and each once, got {list(sample.frames)}"
        )
    maps = (s, *sample.images.shape[1:3])
    wanted = {
        "images": ((*maps, 3), np.float32),
        "extrinsics": ((s, 3, 4), np.float32),
        "intrinsics": ((s, 3, 3), np.float32),
        "depth": (maps, np.float32),
        "mask": (maps, np.bool_),
    }
    for name, (shape, dtype) in wanted.items():
        array: np.ndarray | None = getattr(sample, name)
        if array is None and name in ("depth", "mask"):
            continue
        if array is None or array.shape != shape or array.dtype != dtype or 0 in shape:
            got = "missing" if array is None else f"{array.dtype} {list(array.shape)}"
            raise InputError(
                f"{sample.name}: {name} is {got}, expected {dtype.__name__} {list(shape)}"
                f" for {s} frames"
            )
    if (sample.depth is None) != (sample.mask is None):
        raise InputError(f"{sample.name}: depth and mask go together; give both or neither")
    if not (np.isfinite(sample.scale) and sample.scale > 0):
        raise InputError(f"{sample.name}: scale must be positive, got {sample.scale}")


def _each(array: np.ndarray, rule) -> np.ndarray:
    """Returns bool [S]: whether a rule holds for all values of each view."""
    return rule(array).reshape(len(array), -1).all(-1)


def _orthonormality(rotation: np.ndarray) -> np.ndarray:
    return np.abs(rotation @ rotation.swapaxes(-1, -2) - np.eye(3)).max((-1, -2))


def _finite_det(rotation: np.ndarray) -> np.ndarray:
    return np.linalg.det(np.nan_to_num(rotation, posinf=0, neginf=0))
