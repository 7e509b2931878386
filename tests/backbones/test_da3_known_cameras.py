"""Known cameras as the model wants them, against upstream and in their meaning."""

import numpy as np
import pytest

from lite3r_jax import geometry
from lite3r_jax.backbones.da3.known_cameras import normalize


def four_rows(extrinsics):
    last = np.broadcast_to([0, 0, 0, 1.0], (*extrinsics.shape[:-2], 1, 4))
    return np.concatenate([extrinsics, last], -2)


@pytest.mark.parametrize("views", [1, 2, 3, 4, 5])
def test_normalization_agrees_with_upstream(golden_da3, parity, views):
    g = golden_da3("mod_align")
    got = four_rows(normalize(g[f"in_norm_ext_{views}"][0]))[None]
    key = f"norm_ext_out_{views}"
    parity("da3/mod_align", key, got, g[key], 5e-6, relative=True)


@pytest.mark.parametrize("views", [1, 2, 5])
def test_the_world_that_cameras_were_given_in_does_not_matter(views):
    """Moved, turned and, from three views on, in another unit, they are the same to the model."""
    rng = np.random.default_rng(views)
    poses = np.asarray(geometry.quat_to_mat(rng.standard_normal((views, 4))), np.float64)
    given = np.concatenate([poses, rng.standard_normal((views, 3, 1))], -1)
    turn = np.asarray(geometry.quat_to_mat(np.array([0.3, -0.2, 0.5, 0.8])), np.float64)
    world = np.block([[turn, np.array([[1.0], [-2], [3]])], [np.zeros((1, 3)), np.ones((1, 1))]])
    moved = given @ world
    if views >= 3:
        moved[..., 3] *= 7
    got = normalize(given)
    np.testing.assert_allclose(normalize(moved), got, atol=1e-4)
    np.testing.assert_allclose(got[0], np.eye(3, 4), atol=1e-6)
