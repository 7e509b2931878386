"""The camera head against upstream."""

import jax
import numpy as np
import pytest


@pytest.fixture(scope="module")
def camera_head(tiny_vggt):
    return jax.jit(tiny_vggt.camera_head.__call__, static_argnames="iterations")


@pytest.mark.parametrize(("suffix", "scale", "gate"), [("", 1.0, 4e-5), ("_small", 3e-3, 4e-5)])
def test_iterations_agree_with_upstream(golden, parity, camera_head, suffix, scale, gate):
    g = golden("modules/camera")
    got = camera_head(scale * g["camera_tokens"])
    name = f"pose_enc_list{suffix}"
    parity("modules/camera", name, got, g[name], gate)


def test_increments_agree_with_upstream(golden, parity, camera_head):
    """The first seven entries are linear, so increments are differences of the results."""
    g = golden("modules/camera")
    got = np.asarray(camera_head(g["camera_tokens"]))
    deltas = np.diff(got, axis=0, prepend=np.zeros_like(got[:1]))[..., :7]
    parity("modules/camera", "raw_delta", deltas, g["raw_delta"][..., :7], 4e-5)
    # Fields of view are rectified running sums.
    fov = np.maximum(np.cumsum(g["raw_delta"][..., 7:], axis=0), 0)
    np.testing.assert_allclose(got[..., 7:], fov, atol=4e-5)
    assert (np.cumsum(g["raw_delta"][..., 7:], axis=0) < 0).any(), "the unrectified sum matters"


def test_one_view_one_iteration(golden, parity, camera_head):
    g = golden("modules/camera")
    got = camera_head(g["camera_tokens"][:, :1], iterations=1)
    parity("modules/camera", "pose_enc_iter1_s1", got, g["pose_enc_iter1_s1"], 4e-5)


def test_views_see_each_other_and_scenes_do_not(golden, camera_head):
    tokens = golden("modules/camera")["camera_tokens"].copy()
    before = np.asarray(camera_head(tokens))
    tokens[0, 3] += np.random.default_rng(0).standard_normal(tokens.shape[-1])
    change = np.abs(np.asarray(camera_head(tokens)) - before).max(axis=(0, 3))
    assert (change[0] > 1e-4).all()
    assert (change[1] == 0).all()
