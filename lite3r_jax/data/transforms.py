"""Crops and resizes frames together with their cameras, and brings scenes to unit size.

A box (x1, y1, x2, y2) is measured from the outer corner of the first pixel, which covers 0..1, as
in `data.images`. Pixel centers are at integers, so a point at pixel u of the source is at
(u + 0.5 - x1) * W / (x2 - x1) - 0.5 after the box was brought to W pixels. Both axes have their own
factor, so that fx and fy keep their ratio in the world.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from lite3r_jax.data.views import Sample, validate
from lite3r_jax.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

Box = tuple[float, float, float, float]
Normalization = Literal["lite3r", "vggt"]


@dataclass(frozen=True, eq=False)
class Frame:
    """One view as its files have it: image, camera and perhaps depth, at full size.

    Attributes:
        name: id within the scene.
        image: upright RGB image.
        extrinsics: [3, 4] world-to-camera.
        intrinsics: [3, 3] in pixels of `image`.
        depth: float32 [h, w], 0 where there is none; None without depth.
        depth_box: where the whole image lies in `depth`; None: the image fills the depth map.
    """

    name: str
    image: "PILImage"
    extrinsics: np.ndarray
    intrinsics: np.ndarray
    depth: np.ndarray | None = None
    depth_box: Box | None = None


def check_frame(frame: Frame, place: str) -> Frame:
    """Returns the frame itself if its principal point lies on its image, else raises.

    Where it does not, the intrinsics are for an image of another size.

    Raises:
        InputError: naming `place`.
    """
    (cx, cy), (width, height) = frame.intrinsics[:2, 2], frame.image.size
    if not (0 <= cx <= width - 1 and 0 <= cy <= height - 1):
        raise InputError(
            f"{place}: the principal point ({cx:g}, {cy:g}) is not on its image of"
            f" {width}x{height} pixels; expected intrinsics for that size"
        )
    return frame


def center_box(source: tuple[int, int], size: tuple[int, int]) -> Box:
    """Returns the largest box in the middle of an image with the aspect ratio of `size`.

    Args:
        source: (height, width) of the image.
        size: (height, width) that the box will be resized to.
    """
    height, width = source
    box_height = min(height, width * size[0] / size[1])
    box_width = min(width, height * size[1] / size[0])
    x1, y1 = (width - box_width) / 2, (height - box_height) / 2
    return x1, y1, x1 + box_width, y1 + box_height


def fit_intrinsics(intrinsics: np.ndarray, box: Box, size: tuple[int, int]) -> np.ndarray:
    """Returns intrinsics [..., 3, 3] after a box of the image was resized to (height, width)."""
    x1, y1, x2, y2 = box
    scale = np.array([size[1] / (x2 - x1), size[0] / (y2 - y1)])
    k = np.array(intrinsics, np.float64)
    k[..., :2, :2] *= scale[:, None]
    k[..., :2, 2] = (k[..., :2, 2] + 0.5 - [x1, y1]) * scale - 0.5
    return k


def fit_image(
    image: "PILImage", box: Box, size: tuple[int, int], out: np.ndarray | None = None
) -> np.ndarray:
    """Resizes a box of an image to (height, width) with Pillow's antialiased bicubic filter.

    Args:
        image: RGB.
        box: inside of it.
        size: (height, width).
        out: where to put the result; None: into a new array.

    Returns:
        float32 [H, W, 3] in [0, 1], multiples of 1/255.
    """
    from PIL import Image

    resized = image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box)
    return np.divide(np.asarray(resized, np.uint8), np.float32(255), out=out)


def fit_depth(depth: np.ndarray, box: Box, size: tuple[int, int]) -> np.ndarray:
    """Resizes a box of a depth map to (height, width) by the nearest pixel.

    Each value is that of the pixel below a new center. Depths are never averaged: between near and
    far there is nothing. The box may reach beyond the map, where there is no depth.
    """
    rows, row_inside = _below(box[1], box[3], size[0], depth.shape[0])
    columns, column_inside = _below(box[0], box[2], size[1], depth.shape[1])
    fitted = depth.take(rows, 0).take(columns, 1)
    fitted[~row_inside] = 0
    fitted[:, ~column_inside] = 0
    return fitted


def fit_frames(
    frames: Sequence[Frame],
    size: tuple[int, int],
    *,
    dataset: str,
    scene: str,
    unit: str = "scene",
    boxes: Sequence[Box] | None = None,
) -> Sample:
    """Crops and resizes frames to one size, and stacks them to a sample.

    Args:
        frames: at least one; all with depth or all without.
        size: (height, width) of the sample.
        dataset: see `Sample`, and so are `scene` and `unit`.
        scene: likewise.
        unit: likewise.
        boxes: what is kept of each image, inside of it; None: `center_box`.

    Returns:
        A valid sample.

    Raises:
        InputError: a size below 1; a box that is not inside its image; some frames with depth
            and some without; what `data.views.validate` refuses.
    """
    if min(size) < 1:
        raise InputError(f"size: expected height and width of at least 1, got {tuple(size)}")
    if boxes is None:
        boxes = [center_box((f.image.height, f.image.width), size) for f in frames]
    name = f"{dataset} {scene}"
    without = [frame.name for frame in frames if frame.depth is None]
    if without and len(without) < len(frames):
        raise InputError(f"{name} frame {without[0]}: has no depth, others have; leave it out")
    images = np.empty((len(frames), *size, 3), np.float32)
    cameras, depths = [], []
    for frame, box, image in zip(frames, boxes, images, strict=True):
        x1, y1, x2, y2 = box
        width, height = frame.image.size
        if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
            raise InputError(
                f"{name} frame {frame.name}: expected a box inside {width}x{height} pixels, got"
                f" {tuple(box)}"
            )
        fit_image(frame.image, box, size, out=image)
        cameras.append(fit_intrinsics(frame.intrinsics, box, size))
        if frame.depth is not None:
            depths.append(fit_depth(frame.depth, _depth_box(frame, box), size))
    depth = np.stack(depths).astype(np.float32) if depths else None
    return validate(
        Sample(
            dataset=dataset,
            scene=scene,
            frames=tuple(frame.name for frame in frames),
            images=images,
            extrinsics=np.stack([frame.extrinsics for frame in frames]).astype(np.float32),
            intrinsics=np.stack(cameras).astype(np.float32),
            depth=depth,
            mask=None if depth is None else depth > 0,
            unit=unit,
        )
    )


def normalize(sample: Sample, rule: Normalization) -> Sample:
    """Rescales a scene to about unit size by one of two rules.

    "lite3r": lengths are divided by the largest of median valid depth (if more than 100 pixels are
    valid), longest translation, and 1e-3; the world frame stays (data/blendedmvs.py of Lite3R; for
    samples without depth data/dtu64.py).

    "vggt": the world becomes the camera frame of view 0, and lengths are divided by the mean
    distance of the valid points from it. This is `geometry.normalize_scene` without JAX.

    Returns:
        The sample in the new unit; `scale` says what it is.

    Raises:
        InputError: an unknown rule; "vggt" without valid depth.
    """
    if rule == "lite3r":
        extrinsics, scale = sample.extrinsics.copy(), _lite3r_scale(sample)
    elif rule == "vggt":
        extrinsics, scale = _first_view_world(sample)
    else:
        raise InputError(
            f"normalization: expected {' or '.join(get_args(Normalization))}, got {rule!r}"
        )
    extrinsics[..., 3] /= scale
    return replace(
        sample,
        extrinsics=extrinsics.astype(np.float32),
        depth=None if sample.depth is None else sample.depth / np.float32(scale),
        scale=sample.scale * scale,
    )


def _lite3r_scale(sample: Sample) -> float:
    median = 0.0
    if sample.depth is not None and sample.mask is not None and sample.mask.sum() > 100:
        median = float(np.median(sample.depth[sample.mask]))
    return max(median, float(np.linalg.norm(sample.extrinsics[..., 3], axis=-1).max()), 1e-3)


def _first_view_world(sample: Sample) -> tuple[np.ndarray, float]:
    """Returns extrinsics relative to view 0, and the mean distance of points from its camera."""
    if sample.depth is None or sample.mask is None or not sample.mask.any():
        raise InputError(
            f"{sample.name}: has no valid depth, which the normalization vggt needs; use lite3r"
        )
    e, k = sample.extrinsics.astype(np.float64), sample.intrinsics.astype(np.float64)
    first = e[0, :, :3]
    relative = e[..., :3] @ first.T
    moved = np.concatenate([relative, e[..., 3:] - relative @ e[0, :, 3:]], -1)
    total = 0.0
    for s in range(sample.views):
        v, u = np.nonzero(sample.mask[s])
        z = sample.depth[s, v, u].astype(np.float64)
        rays = np.linalg.inv(k[s]) @ np.stack([u, v, np.ones(len(u))])
        points = moved[s, :, :3].T @ (rays * z - moved[s, :, 3:])
        total += float(np.linalg.norm(points, axis=0).sum())
    return moved, float(np.clip(total / (sample.mask.sum() + 1e-3), 1e-6, 1e6))


def _depth_box(frame: Frame, box: Box) -> Box:
    """Converts a box of the image to pixels of the depth map."""
    assert frame.depth is not None
    height, width = frame.depth.shape
    left, top, right, bottom = frame.depth_box or (0, 0, width, height)
    sx, sy = (right - left) / frame.image.width, (bottom - top) / frame.image.height
    return left + box[0] * sx, top + box[1] * sy, left + box[2] * sx, top + box[3] * sy


def _below(low: float, high: float, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the source pixel below each of `count` new centers, and whether there is one."""
    index = np.floor(low + (np.arange(count) + 0.5) * ((high - low) / count)).astype(np.intp)
    return index.clip(0, size - 1), (index >= 0) & (index < size)
