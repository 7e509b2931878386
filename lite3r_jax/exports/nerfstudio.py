"""Writes data in nerfstudio's format (docs.nerf.studio/quickstart/data_conventions.html).

A frame's transform_matrix is camera-to-world with OpenGL's camera axes (x right, y up, z backward).
The world is that of the scene, also for points.ply; nerfstudio orients and scales it when it loads.
Pixels have their centers at halves. Depth is z in the camera frame.
"""

import json
from pathlib import Path

import numpy as np

from lite3r_jax.errors import InputError
from lite3r_jax.exports.cameras import opengl_poses
from lite3r_jax.exports.depth_maps import masked_depth, write_png16
from lite3r_jax.exports.images import ImageSet, write_images
from lite3r_jax.exports.names import with_suffixes
from lite3r_jax.exports.ply import write_ply
from lite3r_jax.exports.points import PointCloud
from lite3r_jax.scene import UNITS, Scene


def write_nerfstudio(
    scene: Scene, cloud: PointCloud, images: ImageSet, folder: Path, depth_step: float = 0.001
) -> None:
    """Writes transforms.json, images/, depth/ and points.ply of a scene.

    Depth maps cover the exported images, at the resolution of the network: nerfstudio stretches a
    depth map to the size of its image. 0 is no depth, also where a photo was cropped away.

    Args:
        scene: scene with cameras and depth.
        cloud: points of the scene.
        images: images that are written to images/.
        folder: folder that is made.
        depth_step: see `ExportOptions`; written as depth_unit_scale_factor, the name of the setting
            that nerfstudio's loader takes if it is not 0.001.

    Raises:
        InputError: no depth can be written with this step.
    """
    depth = masked_depth(scene)
    steps = depth / depth_step
    if not ((steps >= 0.5) & (steps <= 65535)).any():
        raise InputError(
            f"export.depth_step: no depth is between 1 and 65535 steps of {depth_step:g}; the"
            f" largest is {float(depth.max()):g}"
        )
    write_images(scene, images, folder / "images")
    write_ply(cloud, folder / "points.ply")
    depth_names = with_suffixes(images.names, [".png"] * scene.views)
    frames = []
    for s, (name, depth_name, pose) in enumerate(
        zip(images.names, depth_names, opengl_poses(scene), strict=True)
    ):
        path = folder / "depth" / depth_name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png16(_cut(depth[s], images.boxes[s]), depth_step, path)
        k = images.intrinsics[s].tolist()
        width, height = images.sizes[s].tolist()
        frames.append(
            {
                "file_path": f"images/{name}",
                "depth_file_path": f"depth/{depth_name}",
                "w": width,
                "h": height,
                "fl_x": k[0][0],
                "fl_y": k[1][1],
                "cx": k[0][2] + 0.5,
                "cy": k[1][2] + 0.5,
                "transform_matrix": pose.tolist(),
            }
        )
    transforms = {
        "camera_model": "OPENCV",  # without distortion parameters: a pinhole
        "ply_file_path": "points.ply",
        "depth_unit_scale_factor": depth_step,
        "unit": UNITS[scene.unit],  # not of the format
        "frames": frames,
    }
    text = json.dumps(transforms, indent=1, ensure_ascii=False)
    (folder / "transforms.json").write_text(text + "\n", encoding="utf-8")


def _cut(depth: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Samples depth in a box of the network image, at about its resolution; 0 outside."""
    columns, inside_x = _nearest(box[0], box[2], depth.shape[1])
    rows, inside_y = _nearest(box[1], box[3], depth.shape[0])
    return np.where(inside_y[:, None] & inside_x, depth[np.ix_(rows, columns)], 0)


def _nearest(low: float, high: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns nearest indices along low..high of an axis of `size` pixels, and if in range."""
    count = max(round(high - low), 1)
    index = np.floor(low + (np.arange(count) + 0.5) * (high - low) / count).astype(int)
    return index.clip(0, size - 1), (index >= 0) & (index < size)
