"""Writes the trajectory of the camera as text."""

from pathlib import Path

import numpy as np

from lite3r_jax.exports.cameras import quaternions
from lite3r_jax.scene import UNITS, Scene


def write_trajectory(scene: Scene, path: Path) -> None:
    """Writes cameras in the TUM RGB-D format: timestamp tx ty tz qx qy qz qw, a line per view.

    The pose is camera-to-world, with OpenCV's camera axes. The timestamp is the index of the view,
    since photos have none. Format: cvg.cit.tum.de/data/datasets/rgbd-dataset/file_formats.
    """
    poses = scene.camera_to_world
    rows = np.concatenate([poses[..., 3], quaternions(poses[..., :3])], -1)
    lines = ["# timestamp tx ty tz qx qy qz qw (camera to world; the timestamp is the view)"]
    lines += [f"# unit: {UNITS[scene.unit]}"]
    lines += [f"{s} " + " ".join(f"{x:.9g}" for x in row) for s, row in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n", "ascii")
