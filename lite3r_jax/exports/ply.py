"""Writes point clouds as binary PLY."""

from pathlib import Path

import numpy as np

from lite3r_jax.exports.points import PointCloud
from lite3r_jax.scene import UNITS

_HEADER = """\
ply
format binary_little_endian 1.0
comment world: camera frame of the first view (OpenCV: x right, y down, z forward)
comment unit: {unit}
element vertex {count}
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
property float confidence
end_header
"""
_VERTEX = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3), ("confidence", "<f4")])


def write_ply(cloud: PointCloud, path: Path) -> None:
    """Writes points with color and confidence as binary PLY 1.0, in the world of the scene.

    Programs that do not know the property confidence skip it; CloudCompare and MeshLab can show it.
    """
    vertices = np.empty(len(cloud), _VERTEX)
    vertices["xyz"] = cloud.xyz
    vertices["rgb"] = cloud.rgb
    vertices["confidence"] = cloud.conf
    with path.open("wb") as file:
        file.write(_HEADER.format(count=len(cloud), unit=UNITS[cloud.unit]).encode())
        vertices.tofile(file)
