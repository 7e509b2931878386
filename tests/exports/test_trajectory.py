"""TUM trajectories, read back by numpy and scipy."""

import numpy as np
from scipy.spatial.transform import Rotation

from lite3r_jax.exports import write


def test_known_points_reproject(room, tmp_path):
    path = write(room.scene, tmp_path, ["tum"])["tum"]
    assert path.name == "trajectory.txt"
    rows = np.loadtxt(path)
    assert rows.shape == (4, 8)
    np.testing.assert_array_equal(rows[:, 0], np.arange(4))
    for s, row in enumerate(rows):
        xyz = room.seen(s)
        camera = Rotation.from_quat(row[4:]).inv().apply(xyz - row[1:4])
        pixels = camera @ room.lenses[s].T
        assert np.abs(pixels[:, :2] / pixels[:, 2:] - room.project(s, xyz)).max() < 0.01
