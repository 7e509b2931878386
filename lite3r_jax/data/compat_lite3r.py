"""Reproduces the samples of Lite3R's loaders, errors included, to compare published figures.

Source: data/blendedmvs.py and data/dtu64.py of github.com/AIGeeksGroup/Lite3R. What is wrong there
and stays wrong here:

- the number of depth planes (the third number of a camera file's tail, 128) is taken for the
  largest depth, so that in scenes that reach further, depths above 1.5 * 128 are lost;
- intrinsics are scaled without regard to half pixels, and with the factor of the shorter side even
  where the rounded size has another;
- images pass through a conversion that lowers some values by one;
- frames are drawn from a generator that depends on all samples drawn before (`choose_frames`).

Damaged or missing files are errors here too.
"""

from collections.abc import Sequence

import numpy as np

from lite3r_jax.data.cam_file import CamFile
from lite3r_jax.data.transforms import Frame, normalize
from lite3r_jax.data.views import Sample, validate
from lite3r_jax.errors import InputError

_PLANES = 192  # what a tail of two numbers stands for


def fit_frames(
    frames: Sequence[tuple[Frame, CamFile]],
    size: tuple[int, int],
    *,
    dataset: str,
    scene: str,
    unit: str = "scene",
) -> Sample:
    """Crops, resizes, masks and normalizes frames as Lite3R's loaders do.

    Args:
        frames: each with unfiltered depth or none, and its camera file.
        size: (height, width), which are equal.
        dataset: see `data.views.Sample`, and so are `scene` and `unit`.
        scene: likewise.
        unit: likewise.

    Raises:
        InputError: a size that is not square; what `data.views.validate` refuses.
    """
    target, width = size
    if target != width or target < 1:
        raise InputError(f"size: compat=lite3r makes squares only, got {tuple(size)}")
    images, intrinsics, depths = [], [], []
    for frame, cam in frames:
        image, depth, k = _resize_crop(frame, target)
        images.append(image)
        intrinsics.append(k)
        if depth is not None:
            depths.append(_masked(depth, cam))
    depth = np.stack(depths) if depths else None
    sample = Sample(
        dataset=dataset,
        scene=scene,
        frames=tuple(frame.name for frame, _ in frames),
        images=np.stack(images),
        extrinsics=np.stack([frame.extrinsics for frame, _ in frames]).astype(np.float32),
        intrinsics=np.stack(intrinsics),
        depth=depth,
        mask=None if depth is None else depth > 0,
        unit=unit,
    )
    return validate(normalize(sample, "lite3r"))


def choose_frames(
    frames: Sequence[int], views: int, generator: np.random.Generator
) -> tuple[int, ...]:
    """Returns the frames that Lite3R's loaders would draw next from the generator.

    Args:
        frames: numbers of the scene's frames, ascending.
        views: number of views in the sample.
        generator: np.random.default_rng(seed), the same one for all samples in order.
    """
    anchor = generator.choice(list(frames))
    rest = [frame for frame in frames if frame != anchor]
    others = generator.choice(rest, size=views - 1, replace=len(rest) < views - 1)
    return int(anchor), *(int(frame) for frame in others)


def _resize_crop(frame: Frame, target: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    from PIL import Image

    width, height = frame.image.size
    scale = target / min(height, width)
    new = round(width * scale), round(height * scale)
    values = np.asarray(frame.image, np.float32) / 255.0
    lowered = Image.fromarray((values * 255).astype(np.uint8))
    image = np.asarray(lowered.resize(new), np.float32) / 255.0
    k = frame.intrinsics.astype(np.float32)
    k[:2, :2] *= scale
    k[:2, 2] *= scale
    x, y = max(0, (new[0] - target) // 2), max(0, (new[1] - target) // 2)
    k[:2, 2] -= [x, y]
    crop = np.s_[y : y + target, x : x + target]
    if frame.depth is None:
        return image[crop], None, k
    nearest = Image.fromarray(frame.depth).resize(new, Image.Resampling.NEAREST)
    return image[crop], np.asarray(nearest, np.float32)[crop], k


def _masked(depth: np.ndarray, cam: CamFile) -> np.ndarray:
    low = cam.depth_min
    high = cam.depth_num if cam.depth_num is not None else low + cam.depth_interval * _PLANES
    mask = depth > 0
    if high > 0:
        mask &= (depth >= 0.5 * low) & (depth <= 1.5 * high)
    if mask.any():
        mask &= depth <= 5.0 * float(np.median(depth[mask]))
    return np.where(mask, depth, np.float32(0))
