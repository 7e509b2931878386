"""Random changes of samples: cameras follow, colors do what they say, nothing else happens."""

import colorsys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from lite3r_jax.data.augment import (
    Augmentation,
    Look,
    augment,
    crop_views,
    mirror,
    recolor,
    take_views,
)
from lite3r_jax.data.sampling import Uniform
from lite3r_jax.data.views import Sample, cross_view_check, validate
from lite3r_jax.errors import InputError
from tests.data.test_views import sample_of
from tests.data.world import views

EVERYTHING = Augmentation(
    brightness=0.5, contrast=0.5, saturation=0.5, hue=0.1, jitter=0.9, gray=0.05, blur=0.3,
    shared=0.3, channels=0.3, crop=0.7, aspect=1.2, place="random", mirror=0.5, shuffle=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def sample():
    return sample_of(views(3, (48, 64)))


@pytest.fixture(scope="module")
def charts():
    """Two views whose color says which pixel it is: red is 3 times the column, green the row."""
    height, width = 60, 80
    v, u = np.mgrid[:height, :width]
    image = np.stack([3 * u, 3 * v, np.full_like(u, 90)], -1).astype(np.float32) / np.float32(255)
    depth = (2 + 0.02 * u + 0.03 * v).astype(np.float32)
    camera = views(2, (height, width))
    return Sample(
        dataset="chart",
        scene="0",
        frames=("0", "1"),
        images=np.stack([image] * 2),
        extrinsics=np.stack([view.extrinsics for view in camera]).astype(np.float32),
        intrinsics=np.stack([view.intrinsics for view in camera]).astype(np.float32),
        depth=np.stack([depth] * 2),
        mask=np.ones((2, height, width), bool),
    )


def noise(seed=0, size=(24, 32)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def flat(*images: np.ndarray) -> Sample:
    """Views that show uint8 pictures."""
    made = sample_of(views(len(images), images[0].shape[:2]))
    return replace(made, images=np.stack(images) / np.float32(255))


def test_switched_off_it_is_the_identity(sample):
    assert augment(sample, Augmentation(), Uniform(0, 0)) is sample
    assert augment(sample, Augmentation(jitter=1, sigma=5, shared=1), Uniform(0, 0)) is sample
    assert Augmentation().read_size((518, 392)) == (518, 392)


def test_it_is_a_function_of_where_the_random_numbers_start(sample):
    first, second, other = (
        augment(sample, EVERYTHING, Uniform(3, index), (40, 56)) for index in (5, 5, 6)
    )
    for name in ("images", "extrinsics", "intrinsics", "depth", "mask"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert first.frames == second.frames
    assert np.abs(first.images - other.images).max() > 0.1


@settings(deadline=None, max_examples=60)
@given(
    crop=st.floats(0.4, 1),
    aspect=st.floats(1, 1.5),
    place=st.sampled_from(["center", "random"]),
    mirrored=st.booleans(),
    seed=st.integers(0, 2**32),
    size=st.tuples(st.integers(30, 90), st.integers(30, 90)),
)
def test_every_pixel_shows_what_lies_on_its_ray(charts, crop, aspect, place, mirrored, seed, size):
    options = Augmentation(
        crop=crop, aspect=aspect, place=place, mirror=float(mirrored), shuffle=True
    )
    got = validate(augment(charts, options, Uniform(seed, 0), size))
    assert got.size == size
    assert got.images.dtype == got.depth.dtype == got.intrinsics.dtype == np.float32
    v, u = np.mgrid[4 : size[0] - 4, 4 : size[1] - 4]  # the filter is cut off at the border
    for view, frame in enumerate(got.frames):
        source, camera = charts.intrinsics[int(frame)], got.intrinsics[view]
        shown = got.images[view, 4:-4, 4:-4, :2] * 255 / 3  # column and row
        signs = (-1 if mirrored else 1), 1
        for axis, place in enumerate((u, v)):
            ray = signs[axis] * (place - camera[axis, 2]) / camera[axis, axis]
            source_place = ray * source[axis, axis] + source[axis, 2]
            assert np.abs(source_place - shown[..., axis]).max() < 0.25  # images have 8 bits
        wanted = 2 + shown @ [0.02, 0.03]
        below = np.abs(got.depth[view, 4:-4, 4:-4] - wanted)
        assert below.max() < 0.05 * (0.5 + 0.25)  # the nearest pixel, so at most half of one off


def test_views_still_agree_with_each_other_after_everything(sample):
    before = cross_view_check(sample)
    for index in range(10):
        after = cross_view_check(augment(sample, EVERYTHING, Uniform(1, index), (96, 128)))
        seen = after.in_view > 0.2
        assert seen.sum() > 3
        assert after.error[seen].max() < 2 * before.error.max()


def test_mirroring_twice_gives_the_sample_back(sample):
    once = validate(mirror(sample))
    assert np.abs(once.extrinsics - sample.extrinsics).max() > 0.1
    twice = mirror(once)
    for name in ("images", "extrinsics", "depth", "mask"):
        np.testing.assert_array_equal(getattr(twice, name), getattr(sample, name))
    np.testing.assert_allclose(twice.intrinsics, sample.intrinsics, rtol=1e-6)


def test_a_mirrored_camera_sees_the_mirrored_point_on_the_mirrored_pixel(sample):
    point, flip = np.array([0.3, -0.2, 0.4]), np.array([-1, 1, 1])
    flipped = mirror(sample)

    def pixel(of: Sample, view: int, at: np.ndarray) -> np.ndarray:
        seen = of.intrinsics[view] @ (of.extrinsics[view, :, :3] @ at + of.extrinsics[view, :, 3])
        return np.array([*(seen[:2] / seen[2]), seen[2]])

    for view in range(sample.views):
        u, v, z = pixel(sample, view, point)
        np.testing.assert_allclose(pixel(flipped, view, point * flip), [63 - u, v, z], atol=1e-3)


def test_a_whole_box_at_the_same_size_changes_nothing(sample):
    got = crop_views(sample, [(0, 0, 64, 48)] * 3, (48, 64))
    for name in ("images", "intrinsics", "depth", "mask"):
        np.testing.assert_array_equal(getattr(got, name), getattr(sample, name))


def test_a_centerd_crop_leaves_a_central_principal_point_in_the_middle(sample):
    k = sample.intrinsics.copy()
    k[:, :2, 2] = 31.5, 23.5
    got = augment(replace(sample, intrinsics=k), Augmentation(crop=0.5, aspect=1.3), Uniform(0, 1))
    np.testing.assert_allclose(got.intrinsics[:, :2, 2], [[31.5, 23.5]] * 3, atol=1e-4)
    assert (got.intrinsics[:, 0, 0] > 1.02 * k[:, 0, 0]).all()


def test_views_are_read_so_large_that_no_crop_magnifies_them():
    options = Augmentation(crop=0.8)
    assert options.read_size((518, 392)) == (648, 490)
    assert 0.8 * 648 >= 518 and 0.8 * 490 >= 392


def test_views_move_together_with_all_that_is_theirs(sample):
    got = take_views(sample, (2, 0))
    assert got.frames == (sample.frames[2], sample.frames[0])
    for name in ("images", "extrinsics", "intrinsics", "depth", "mask"):
        np.testing.assert_array_equal(getattr(got, name), getattr(sample, name)[[2, 0]])
    bare = take_views(replace(sample, depth=None, mask=None), (1,))
    assert bare.depth is None and bare.mask is None


def test_shuffling_makes_every_view_the_reference_as_often(sample):
    options = Augmentation(shuffle=True)
    first = [augment(sample, options, Uniform(0, i)).frames[0] for i in range(300)]
    assert all(70 < first.count(frame) < 130 for frame in sample.frames)  # 4 sigma


def test_a_view_without_a_change_of_color_keeps_its_bits(sample):
    odd = replace(sample, images=sample.images * np.float32(0.7))  # no multiples of 1/255
    got = recolor(odd, [Look(), Look(brightness=0.5), Look()])
    np.testing.assert_array_equal(got.images[[0, 2]], odd.images[[0, 2]])
    assert np.abs(got.images[1] - odd.images[1]).max() > 0.1


LUMA = [0.299, 0.587, 0.114]


@pytest.mark.parametrize(
    "look,wanted",
    [
        (Look(brightness=1.4), lambda x: 1.4 * x),
        (Look(contrast=0.6), lambda x: 0.6 * x + 0.4 * (x @ LUMA).mean()),
        (Look(contrast=1.5), lambda x: 1.5 * x - 0.5 * (x @ LUMA).mean()),
        (Look(saturation=0.3), lambda x: 0.3 * x + 0.7 * (x @ LUMA)[..., None]),
        (Look(saturation=1.5), lambda x: 1.5 * x - 0.5 * (x @ LUMA)[..., None]),
        (Look(saturation=0), lambda x: np.tile((x @ LUMA)[..., None], 3)),
        (Look(channels=(2, 0, 1)), lambda x: x[..., [2, 0, 1]]),
        (Look(brightness=0.8, contrast=1.2), lambda x: 0.96 * x - 0.16 * (x @ LUMA).mean()),
    ],
)
def test_colors_change_as_named(look, wanted):
    picture = noise()
    got = recolor(flat(picture), [look]).images[0]
    np.testing.assert_allclose(
        got, np.clip(wanted(picture.astype(float)), 0, 255) / 255, atol=0.51 / 255
    )


def test_hue_turns_colors_and_keeps_luma():
    picture = noise().clip(100, 156)  # far enough from both ends not to be clipped
    for turn in (0.1, -0.25, 0.5):
        got = recolor(flat(picture), [Look(hue=turn)]).images[0]
        before, after = (
            np.array([colorsys.rgb_to_yiq(*rgb) for rgb in image.reshape(-1, 3).astype(float)])
            for image in (picture / 255, got)
        )
        assert np.abs(after[:, 0] - before[:, 0]).max() < 0.02  # colorsys has luma of two digits
        color = [image[:, 1] + 1j * image[:, 2] for image in (before, after)]
        strong = np.abs(color[0]) > 0.08
        turned = np.angle(color[1][strong] / color[0][strong]) / (2 * np.pi)
        assert np.abs((turned - turn + 0.5) % 1 - 0.5).max() < 0.03
    gray = np.repeat(noise()[..., :1], 3, -1)
    np.testing.assert_array_equal(recolor(flat(gray), [Look(hue=0.3)]).images[0] * 255, gray)


def test_blur_is_that_of_pillow():
    picture = noise()
    wanted = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(1.5)))
    np.testing.assert_array_equal(
        recolor(flat(picture), [Look(sigma=1.5)]).images[0], wanted / np.float32(255)
    )


@pytest.mark.parametrize("shared", [0.0, 1.0])
def test_views_share_their_look_only_if_asked(shared):
    options = Augmentation(brightness=0.4, blur=0.5, shared=shared)
    pair = flat(noise(), noise())
    alike = [
        np.array_equal(*augment(pair, options, Uniform(0, index)).images) for index in range(20)
    ]
    assert all(alike) if shared else not any(alike)


def test_channels_are_permuted_alike_in_all_views():
    pair = flat(noise(0), noise(1))
    orders = set()
    for index in range(40):
        got = augment(pair, Augmentation(channels=1), Uniform(0, index))
        order = tuple(
            int(np.argmin([np.abs(got.images[0, ..., i] - pair.images[0, ..., j]).max()
                           for j in range(3)]))
            for i in range(3)
        )  # fmt: skip
        np.testing.assert_array_equal(got.images, pair.images[..., list(order)])
        orders.add(order)
    assert len(orders) == 6


def test_probabilities_are_kept():
    one = flat(np.array([[[200, 60, 60]]], np.uint8).repeat(8, 0).repeat(8, 1))
    count = 400

    def changed(options: Augmentation) -> int:
        return sum(
            not np.array_equal(augment(one, options, Uniform(1, i)).images, one.images)
            for i in range(count)
        )

    for options in (Augmentation(gray=0.3), Augmentation(jitter=0.3, saturation=0.9)):
        assert 80 < changed(options) < 160  # 4 sigma


@pytest.mark.parametrize(
    "field,value",
    [("brightness", -0.1), ("hue", 0.6), ("gray", 1.5), ("crop", 0.0), ("aspect", 0.5),
     ("sigma", float("nan")), ("place", "left")],
)  # fmt: skip
def test_options_without_a_meaning_are_refused_by_name(field, value):
    with pytest.raises(InputError, match=f"augmentation.{field}: expected"):
        Augmentation(**{field: value})
