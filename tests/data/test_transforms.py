"""Crop, resize and normalize: a point stays on its pixel."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from lite3r_jax import geometry
from lite3r_jax.data.transforms import (
    Frame,
    center_box,
    check_frame,
    fit_depth,
    fit_frames,
    fit_image,
    fit_intrinsics,
    normalize,
)
from lite3r_jax.data.views import cross_view_check
from lite3r_jax.errors import InputError
from tests.data.test_views import sample_of
from tests.data.world import cast, views

SIDES = st.integers(16, 80)
POINT = st.tuples(st.floats(-2, 2), st.floats(-2, 2), st.floats(0.5, 5))


@st.composite
def boxes(draw):
    """(height, width) of an image, a box inside of it, a new size."""
    height, width = draw(SIDES), draw(SIDES)
    x1, y1 = draw(st.floats(0, width / 2)), draw(st.floats(0, height / 2))
    x2, y2 = draw(st.floats(x1 + 4, width)), draw(st.floats(y1 + 4, height))
    return (height, width), (x1, y1, x2, y2), (draw(SIDES), draw(SIDES))


def frame_of(view, **changes) -> Frame:
    image = Image.fromarray(view.rgb)
    return replace(Frame("0", image, view.extrinsics, view.intrinsics, view.depth), **changes)


@settings(deadline=None)
@given(case=boxes(), point=POINT)
def test_a_projected_point_stays_on_its_pixel(case, point):
    (height, width), box, size = case
    k = np.array([[1.1 * width, 0, 0.47 * width], [0, 0.9 * width, 0.55 * height], [0, 0, 1]])
    new = fit_intrinsics(k, box, size)
    before, after = (camera @ point / point[2] for camera in (k, new))
    # as a share of the box, from its outer edge, where it was and where it is
    share = (before[:2] + 0.5 - box[:2]) / np.subtract(box[2:], box[:2])
    np.testing.assert_allclose((after[:2] + 0.5) / size[::-1], share, atol=1e-9)
    np.testing.assert_allclose(new[2], [0, 0, 1])


@settings(max_examples=40, deadline=None)
@given(case=boxes(), rise=st.tuples(st.floats(-1, 1), st.floats(-1, 1)))
def test_the_image_moves_with_the_intrinsics(case, rise):
    """A ramp keeps its values under any symmetric filter, so it tells where each pixel is from."""
    (height, width), box, size = case
    assume(min(box[2] - box[0], box[3] - box[1]) >= 8)
    v, u = np.mgrid[0:height, 0:width]
    k = np.array([[50.0, 0, 20], [0, 60, 30], [0, 0, 1]])
    new = fit_intrinsics(k, box, size)
    values = rise[0] * u + rise[1] * v
    span = np.ptp(values) or 1.0
    assume(span > 1e-9)  # below, the ramp itself is rounding noise
    ramp = (values - values.min()) / span * 255
    rgb = np.repeat(np.rint(ramp).astype(np.uint8)[..., None], 3, -1)
    fitted = fit_image(Image.fromarray(rgb), box, size)[..., 0] * 255
    column, row = np.meshgrid(np.arange(size[1]), np.arange(size[0]))
    old_u = (column - new[0, 2]) / new[0, 0] * 50 + 20
    old_v = (row - new[1, 2]) / new[1, 1] * 60 + 30
    expected = (rise[0] * old_u + rise[1] * old_v - values.min()) / span * 255
    # the filter reaches two source pixels, or two new ones, over edges where the ramp ends
    reach = 2 + 2 * max(1, (box[2] - box[0]) / size[1], (box[3] - box[1]) / size[0])
    inside = (old_u >= reach) & (old_u <= width - 1 - reach)
    inside &= (old_v >= reach) & (old_v <= height - 1 - reach)
    # rounding twice to 8 bits, and bicubic's weights over rounded values
    assert np.abs(fitted - expected)[inside].max(initial=0) < 1.6


def test_cropped_and_resized_views_are_those_a_camera_there_would_see():
    view = views(1, (96, 128))[0]
    box, size = (13.0, 5.5, 111.0, 89.5), (42, 49)
    sample = fit_frames([frame_of(view)], size, dataset="world", scene="room", boxes=[box])
    rgb, depth = cast(view.extrinsics, fit_intrinsics(view.intrinsics, box, size), size)
    assert sample.depth is not None
    error = np.abs(sample.depth[0] - depth) / depth
    assert np.median(error) < 0.005 and (error < 0.03).mean() > 0.97
    assert np.abs(sample.images[0] * 255 - rgb).mean() < 6
    shifted = np.abs(sample.images[0, :, 1:] * 255 - rgb[:, :-1]).mean()
    assert shifted > 2 * np.abs(sample.images[0] * 255 - rgb).mean()


def test_whole_image_at_its_own_size_is_unchanged():
    view = views(1, (48, 64))[0]
    sample = fit_frames([frame_of(view)], (48, 64), dataset="world", scene="room")
    np.testing.assert_array_equal(np.rint(sample.images[0] * 255), view.rgb)
    np.testing.assert_array_equal(sample.depth[0], view.depth)
    np.testing.assert_allclose(sample.intrinsics[0], view.intrinsics, rtol=1e-6)


@settings(deadline=None)
@given(height=SIDES, width=SIDES, size=st.tuples(SIDES, SIDES))
def test_the_middle_box_is_inside_largest_and_of_the_right_shape(height, width, size):
    x1, y1, x2, y2 = center_box((height, width), size)
    assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
    assert (x2 - x1) * size[0] == pytest.approx((y2 - y1) * size[1])
    assert max((x2 - x1) / width, (y2 - y1) / height) == pytest.approx(1)
    assert x1 == pytest.approx(width - x2) and y1 == pytest.approx(height - y2)


@settings(deadline=None)
@given(case=boxes())
def test_depth_is_that_of_the_pixel_below_and_never_averaged(case):
    (height, width), box, size = case
    depth = np.arange(1, height * width + 1, dtype=np.float32).reshape(height, width)
    fitted = fit_depth(depth, box, size)
    i, j = size[0] // 2, size[1] // 3
    y = box[1] + (i + 0.5) * (box[3] - box[1]) / size[0]
    x = box[0] + (j + 0.5) * (box[2] - box[0]) / size[1]
    near = [depth[min(int(y + a), height - 1), min(int(x + b), width - 1)]
            for a in (-1e-9, 1e-9) for b in (-1e-9, 1e-9)]  # fmt: skip
    assert fitted[i, j] in near
    assert np.isin(fitted, depth).all()


def test_depth_of_another_size_covers_the_same_photo():
    view = views(1, (48, 64))[0]
    small = view.depth[::2, ::2]
    borders = np.pad(small, ((3, 5), (2, 0)), constant_values=99)
    for depth, box in ((small, None), (borders, (2.0, 3.0, 34.0, 27.0))):
        frame = frame_of(view, depth=depth, depth_box=box)
        sample = fit_frames([frame], (48, 64), dataset="world", scene="room")
        np.testing.assert_array_equal(sample.depth[0], np.kron(small, np.ones((2, 2))))


def test_what_lies_beyond_a_depth_map_has_none():
    view = views(1, (48, 64))[0]
    frame = frame_of(view, depth=view.depth[:, :32], depth_box=(-16.0, 0.0, 48.0, 48.0))
    mask = fit_frames([frame], (48, 64), dataset="world", scene="room").mask[0]
    assert mask[:, 16:48].all() and not mask[:, :16].any() and not mask[:, 48:].any()


@pytest.mark.parametrize("box", [(-1, 0, 64, 48), (0, 0, 64.5, 48), (5, 0, 5, 48)])
def test_boxes_outside_of_the_image_are_refused(box):
    frame = frame_of(views(1, (48, 64))[0])
    with pytest.raises(InputError, match="world room frame 0: expected a box inside 64x48"):
        fit_frames([frame], (8, 8), dataset="world", scene="room", boxes=[box])


def test_other_bad_input_is_refused():
    view = views(1, (48, 64))[0]
    frame, bare = frame_of(view), frame_of(view, name="1", depth=None)
    with pytest.raises(InputError, match="frame 1: has no depth, others have"):
        fit_frames([frame, bare], (8, 8), dataset="world", scene="room")
    with pytest.raises(InputError, match="size: expected"):
        fit_frames([frame], (0, 8), dataset="world", scene="room")
    with pytest.raises(InputError, match=r"cam\.txt: the principal point .* is not on its image"):
        check_frame(frame_of(view, intrinsics=view.intrinsics * [[4], [4], [1]]), "cam.txt")


# -- scale ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample():
    made = views(3, (24, 32), scale=37.0)
    made[1].depth[3:6] = 0
    return sample_of(made)


def test_vggt_normalization_is_that_of_the_training_loss(sample):
    @jax.jit
    def in_training(depth, extrinsics, intrinsics):
        world, _, mask = geometry.unproject_to_world(depth, extrinsics, intrinsics)
        return geometry.normalize_scene(extrinsics[None], world[None], depth[None], mask[None])

    extrinsics, _, depth, scale = in_training(sample.depth, sample.extrinsics, sample.intrinsics)
    got = normalize(sample, "vggt")
    assert got.scale == pytest.approx(float(scale[0]), rel=1e-5)
    np.testing.assert_allclose(got.extrinsics, extrinsics[0], atol=1e-5)
    np.testing.assert_allclose(got.depth, depth[0], atol=1e-5)
    np.testing.assert_allclose(got.extrinsics[0], np.eye(3, 4), atol=1e-6)


def test_lite3r_scale_is_the_larger_of_median_depth_and_longest_translation(sample):
    median = float(np.median(sample.depth[sample.mask]))
    longest = float(np.linalg.norm(sample.extrinsics[..., 3], axis=-1).max())
    assert normalize(sample, "lite3r").scale == pytest.approx(max(median, longest))
    near = replace(sample, extrinsics=sample.extrinsics * np.float32([1, 1, 1, 1e-6]))
    assert normalize(near, "lite3r").scale == pytest.approx(median)
    bare = replace(sample, depth=None, mask=None)
    assert normalize(bare, "lite3r").scale == pytest.approx(longest)


@pytest.mark.parametrize("rule", ["lite3r", "vggt"])
def test_normalization_keeps_the_geometry(sample, rule):
    got = normalize(sample, rule)
    np.testing.assert_allclose(
        cross_view_check(got).error, cross_view_check(sample).error, atol=1e-4
    )
    np.testing.assert_allclose(got.depth * got.scale, sample.depth, rtol=1e-5)
    again = normalize(replace(got, scale=got.scale * 2), rule)
    assert again.scale == pytest.approx(2 * got.scale, rel=1e-3)


def test_normalization_that_cannot_be_done_is_refused(sample):
    with pytest.raises(InputError, match="world room: has no valid depth"):
        normalize(replace(sample, depth=None, mask=None), "vggt")
    with pytest.raises(InputError, match="expected lite3r or vggt, got 'unit'"):
        normalize(sample, "unit")  # type: ignore[arg-type]
