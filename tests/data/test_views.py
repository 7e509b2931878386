"""The sample contract, and the check that views agree."""

import re
from dataclasses import replace

import numpy as np
import pytest

from lite3r_jax.data.views import Sample, cross_view_check, validate
from lite3r_jax.errors import InputError
from tests.data.world import look_at, views


def sample_of(made, **changes) -> Sample:
    depth = np.stack([view.depth for view in made])
    whole = Sample(
        dataset="world",
        scene="room",
        frames=tuple(f"{i:08d}" for i in range(len(made))),
        images=np.stack([view.rgb for view in made]) / np.float32(255),
        extrinsics=np.stack([view.extrinsics for view in made]).astype(np.float32),
        intrinsics=np.stack([view.intrinsics for view in made]).astype(np.float32),
        depth=depth,
        mask=depth > 0,
    )
    return replace(whole, **changes)


@pytest.fixture(scope="module")
def sample():
    return sample_of(views(3, (48, 64)))


def changed(array, index, value):
    array = array.copy()
    array[index] = value
    return array


def test_a_right_sample_passes(sample):
    assert validate(sample) is sample
    validate(replace(sample, depth=None, mask=None))
    assert (sample.views, sample.size, sample.name) == (3, (48, 64), "world room")


@pytest.mark.parametrize(
    "field,index,value,message",
    [
        ("images", (1, 2, 3, 0), 1.5, "images must be finite and in [0, 1]"),
        ("images", (1, 2, 3, 0), np.nan, "images must be finite and in [0, 1]"),
        ("extrinsics", (1, 0, 3), np.inf, "extrinsics must be finite"),
        ("extrinsics", (1, 0, 0), 2, "extrinsics must hold a rotation (orthonormal)"),
        ("intrinsics", (1, 0, 2), np.nan, "intrinsics must be finite"),
        ("intrinsics", (1, 1, 1), -50, "focal lengths must be positive"),
        ("intrinsics", (1, 0, 1), 0.5, "intrinsics must be [[fx, 0, cx]"),
        ("intrinsics", (1, 2, 2), 2, "intrinsics must be [[fx, 0, cx]"),
        ("intrinsics", (1, 0, 2), 200, "the principal point must be on or near the image"),
        ("depth", (1, 4, 5), -1, "depth must be finite and not negative"),
        ("depth", (1, 4, 5), np.inf, "depth must be finite and not negative"),
        ("depth", (1, 4, 5), 0, "the mask must be true just where depth is above 0"),
        ("mask", (1, 4, 5), False, "the mask must be true just where depth is above 0"),
    ],
)
def test_a_wrong_value_is_named_with_dataset_scene_and_frame(sample, field, index, value, message):
    broken = replace(sample, **{field: changed(getattr(sample, field), index, value)})
    with pytest.raises(InputError, match=re.escape(f"world room frame 00000001: {message}")):
        validate(broken)


def test_a_mirror_is_no_camera(sample):
    mirror = changed(sample.extrinsics, 2, -sample.extrinsics[2])
    with pytest.raises(InputError, match=r"frame 00000002: .*not a mirror"):
        validate(replace(sample, extrinsics=mirror))


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"frames": ("0", "1", "1")}, "each once"),
        ({"frames": ("0", "1")}, r"images is float32 \[3, 48, 64, 3\], expected float32 \[2"),
        ({"mask": None}, "depth and mask go together"),
        ({"scale": 0.0}, "scale must be positive"),
        ({"scale": float("nan")}, "scale must be positive"),
    ],
)
def test_what_does_not_belong_together_is_refused(sample, changes, message):
    with pytest.raises(InputError, match=message):
        validate(replace(sample, **changes))


@pytest.mark.parametrize("field", ["images", "extrinsics", "intrinsics", "depth", "mask"])
def test_other_types_and_shapes_are_refused(sample, field):
    array = getattr(sample, field)
    for broken in (array.astype(np.float64), array[:2]):
        with pytest.raises(InputError, match=f"world room: {field} is"):
            validate(replace(sample, **{field: broken}))


def test_true_cameras_and_depth_agree_across_views(sample):
    check = cross_view_check(sample)
    assert np.nanmax(check.error) < 0.01
    assert check.visible.min() > 0.6 and check.in_view.min() > 0.4
    np.testing.assert_array_equal(np.diag(check.error), 0)
    sparse = cross_view_check(sample, stride=3)
    np.testing.assert_allclose(sparse.visible, check.visible, atol=0.05)


@pytest.mark.parametrize("mistake", ["camera to world", "one camera moved", "depth scaled"])
def test_wrong_geometry_is_seen(sample, mistake):
    e, depth = sample.extrinsics.copy(), sample.depth.copy()
    if mistake == "camera to world":
        rotation = e[..., :3].swapaxes(1, 2)
        e = np.concatenate([rotation, -rotation @ e[..., 3:]], -1)
    elif mistake == "one camera moved":
        e[0, 2, 3] += 0.5
    else:
        depth[0] *= 1.2
    check = cross_view_check(validate(replace(sample, extrinsics=e, depth=depth)))
    # a view from which nothing is in view at all is as telling
    error = np.nan_to_num([check.error[0, 1], check.error[1, 0]], nan=1)
    assert error.min() > 0.05
    if mistake != "camera to world":
        assert check.error[1, 2] < 0.01


def test_views_of_opposite_walls_share_nothing():
    made = views(2, (24, 32))
    back = replace(made[1], extrinsics=look_at([0, 0, -2.4], [0, 0, -9]))
    check = cross_view_check(sample_of([made[0], back]))
    assert check.in_view[0, 1] == 0 and np.isnan(check.error[0, 1])


def test_the_check_needs_depth(sample):
    with pytest.raises(InputError, match="world room: has no depth"):
        cross_view_check(replace(sample, depth=None, mask=None))
