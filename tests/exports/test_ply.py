"""PLY, read back by trimesh."""

import numpy as np
import trimesh

from lite3r_jax.exports import ExportOptions, PointOptions, select_points, write

OPTIONS = ExportOptions(points=PointOptions(max_points=3000))


def test_points_come_back_with_color_and_confidence(room, tmp_path):
    path = write(room.scene, tmp_path, ["ply"], OPTIONS)["ply"]
    assert path == tmp_path / "points.ply"
    cloud = select_points(room.scene, OPTIONS.points)
    read = trimesh.load(path)
    assert isinstance(read, trimesh.PointCloud)
    np.testing.assert_array_equal(read.vertices, cloud.xyz)
    np.testing.assert_array_equal(read.colors[:, :3], cloud.rgb)
    raw = read.metadata["_ply_raw"]["vertex"]["data"]
    np.testing.assert_array_equal(raw["confidence"].ravel(), cloud.conf)


def test_points_lie_on_the_wall_and_have_its_color(room, tmp_path):
    path = write(room.scene, tmp_path, ["ply"], OPTIONS)["ply"]
    read = trimesh.load(path)
    view = select_points(room.scene, OPTIONS.points).view
    for s in range(4):
        xyz = np.asarray(read.vertices)[view == s]
        pixels = room.project(s, xyz)
        assert np.abs(room.wall(s, pixels)[0] - xyz).max() < 1e-4
    assert np.abs(read.colors[:, :3] - room.texture(np.asarray(read.vertices))).max() < 2


def test_header_states_the_convention(room, tmp_path):
    head = write(room.scene, tmp_path, ["ply"], OPTIONS)["ply"].read_bytes()[:500]
    assert head.startswith(b"ply\nformat binary_little_endian 1.0\ncomment world: ")
