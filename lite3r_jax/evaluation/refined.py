"""Refinement of predictions by matches between images, for variants that end in +refine."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from lite3r_jax.evaluation.predictor import Output
from lite3r_jax.refine import refine
from lite3r_jax.scene import Scene, StillPhoto


def refining(
    predictor: Callable[[np.ndarray], Sequence[Output]],
) -> Callable[[np.ndarray], list[Output]]:
    """Wraps a predictor so that outputs are refined (`refined`); images are [B, S, H, W, 3]."""

    def predict(images: np.ndarray) -> list[Output]:
        outputs = predictor(images)
        return [refined(*each) for each in zip(images, outputs, strict=False)]

    return predict


def refined(images: np.ndarray, output: Output) -> Output:
    """Refines the cameras and depth of a prediction, with the default settings of refinement.

    Matches are made in the images that the model saw, and confidence does not count. What cannot be
    refined stays as it was predicted, as for users.

    Args:
        images: float32 [S, H, W, 3] in [0, 1].
        output: with cameras and depth.

    Raises:
        InputError: pycolmap or OpenCV is not installed.
    """
    e, k, depth = output.extrinsics, output.intrinsics, output.depth
    if e is None or k is None or depth is None:
        return output
    if not (np.isfinite(e).all() and np.isfinite(k).all()):
        return output
    views, height, width = depth.shape
    pixels = np.rint(images * 255).astype(np.uint8)
    scene = Scene(
        names=tuple(f"{view}.png" for view in range(views)),
        images=pixels,
        depth=depth,
        depth_conf=np.ones_like(depth),
        extrinsics=e,
        intrinsics=k,
        boxes=np.tile(np.array([0, 0, width, height], np.float32), (views, 1)),
        source_sizes=np.tile(np.array([width, height]), (views, 1)),
        photos=tuple(map(StillPhoto, pixels)),
    )
    result = refine(scene).scene
    return replace(
        output, depth=result.depth, extrinsics=result.extrinsics, intrinsics=result.intrinsics
    )
