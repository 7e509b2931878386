"""Conversion of camera poses to the conventions of other programs, and checks before export."""

import jax
import numpy as np

from lite3r_jax import geometry
from lite3r_jax.errors import InputError
from lite3r_jax.scene import Scene

FLIP = np.diag([1.0, -1.0, -1.0])
"""Matrix between OpenCV's and OpenGL's (x right, y up, z backward) camera axes, both ways."""

_ROTATION_TOLERANCE = 1e-3
_mat_to_quat = jax.jit(geometry.mat_to_quat)  # operation by operation it compiles for a second


def check_cameras(scene: Scene) -> None:
    """Refuses a scene with cameras that the file formats cannot describe.

    Raises:
        InputError: a camera is not finite, has no valid rotation, has a focal length that is not
            positive, or has skew, or a photo has no extent; the message names the first such view.
    """
    r = scene.extrinsics[..., :3].astype(np.float64)
    k = scene.intrinsics.astype(np.float64)
    box = scene.boxes.astype(np.float64)
    finite = np.isfinite(scene.extrinsics).all((1, 2)) & np.isfinite(k).all((1, 2))
    with np.errstate(invalid="ignore"):  # views that are not finite fail the first check
        off = np.abs(r @ r.swapaxes(1, 2) - np.eye(3)).max((1, 2))
        checks = {
            "its camera is not finite": finite,
            "its extrinsics have no rotation": (off < _ROTATION_TOLERANCE) & (np.linalg.det(r) > 0),
            "its focal lengths are not positive": (k[:, 0, 0] > 0) & (k[:, 1, 1] > 0),
            "its intrinsics are not [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]": (k[:, 0, 1] == 0)
            & (k[:, 1, 0] == 0)
            & (k[:, 2] == [0, 0, 1]).all(-1),
            "the photo has no extent": np.isfinite(box).all(-1)
            & (box[:, 2:] > box[:, :2]).all(-1)
            & (scene.source_sizes > 0).all(-1),
        }
    for problem, passed in checks.items():
        if not passed.all():
            name = scene.names[int(np.argmin(passed))]
            raise InputError(f"{name}: {problem}; nothing can be exported with it, leave it out")


def quaternions(rotations: np.ndarray) -> np.ndarray:
    """Converts rotations [S, 3, 3] to unit quaternions float64 [S, 4] (x, y, z, w) with w >= 0."""
    quats = np.asarray(_mat_to_quat(rotations), np.float64)
    return quats / np.linalg.norm(quats, axis=-1, keepdims=True)


def opengl_poses(scene: Scene) -> np.ndarray:
    """Returns camera-to-world poses float64 [S, 4, 4] with OpenGL's camera axes."""
    poses = np.tile(np.eye(4), (scene.views, 1, 1))
    poses[:, :3, :3] = scene.camera_to_world[..., :3] @ FLIP
    poses[:, :3, 3] = scene.camera_to_world[..., 3]
    return poses
