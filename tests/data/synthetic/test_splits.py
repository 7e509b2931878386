"""Splits: they share no seed, and each has the property that it is named for."""

import itertools

import numpy as np
import pytest

from lite3r_jax.data.synthetic import materials
from lite3r_jax.data.synthetic.drawing import cut, draw
from lite3r_jax.data.synthetic.rng import Rng
from lite3r_jax.data.synthetic.splits import RECIPES, seeds_of, split_of
from lite3r_jax.data.synthetic.texture import unpack
from lite3r_jax.errors import InputError
from tests.data.synthetic.rooms import scene

SPLITS = list(RECIPES)


def described(split, count=3):
    """SIFT descriptors of the first view of some scenes."""
    import cv2

    sift, per_scene = cv2.SIFT_create(), []
    for number in range(count):
        made = scene(split, number)
        images, _ = draw(made.world, cut(made.cameras, (0,), (168, 224)))
        descriptors = sift.detectAndCompute(cv2.cvtColor(images[0], cv2.COLOR_RGB2GRAY), None)[1]
        per_scene.append(np.zeros((0, 128)) if descriptors is None else descriptors)
    return per_scene


@pytest.fixture(scope="module")
def ordinary():
    return described("test")


def angles(split, count=20):
    """Largest angle between optical axes of each scene, in degrees."""
    axes = [scene(split, number).cameras.rotation[:, 2] for number in range(count)]
    return np.rad2deg([np.arccos((axis @ axis.T).clip(-1, 1)).max() for axis in axes])


def worlds(split):
    return [scene(split, number).world for number in range(10)]


def unseen(world):
    """Whether each face in use has a pattern that training must not show."""
    material = unpack(world.materials.T)
    marks = (material.mark_kind > 1.5) & (material.mark_weight > 0)
    return (marks | (material.zigzag > 0) | (material.contour > 0))[np.repeat(world.active, 6)]


def test_splits_share_no_seed():
    ranges = [seeds_of(split) for split in SPLITS]
    assert all(a.stop <= b.start for a, b in itertools.pairwise(ranges))
    for split, seeds in zip(SPLITS, ranges, strict=True):
        assert len(seeds) >= 10**9
        assert split_of(seeds[0]) == split_of(seeds[-1]) == split


@pytest.mark.parametrize(
    "split,number,half,seed,center",
    [
        ("train", 0, [4.672601420, 1.344303771, 3.349810468], 4092803930,
         [0.566357996, -0.346621284, -0.293165785]),
        ("new_textures", 7, [4.812191133, 1.229271688, 3.816559467], 1705779442,
         [-2.617936512, -0.110154369, 0.755876116]),
        ("sky", 3, [3.444796030, 1.697603251, 3.823946951], 2355729901,
         [0.527246964, 0.077491572, 1.614071855]),
        ("photographs", 3, [2.947231326, 1.443867002, 3.426536852], 1012337949,
         [-0.932906366, 0.177415311, -1.947332385]),
    ],
)  # fmt: skip
def test_seeds_name_the_scenes_that_they_have_always_named(split, number, half, seed, center):
    made = scene(split, number)
    np.testing.assert_allclose(made.world.half[0], half, atol=1e-8)
    np.testing.assert_allclose(made.cameras.center[0], center, atol=1e-8)
    assert made.world.seeds[0] == seed


def test_train_validation_and_test_are_drawn_alike_and_differ():
    assert RECIPES["train"] == RECIPES["validation"] == RECIPES["test"]
    assert scene("train").world.half[0, 0] != scene("validation").world.half[0, 0]


def test_new_textures_are_never_in_training():
    assert not set(RECIPES["train"].families) & set(RECIPES["new_textures"].families)
    assert not any(unseen(world).any() for world in worlds("train"))
    assert all(unseen(world).all() for world in worlds("new_textures"))


@pytest.mark.parametrize(
    "families",
    [
        materials.ORDINARY,
        materials.UNSEEN,
        materials.BARE,
        materials.REPEATED,
        materials.PHOTOGRAPHS,
    ],
)
def test_families_draw_looks_that_are_colors_and_lengths(families):
    for family in families:
        for seed in range(10):
            material = materials.draw_material(Rng(seed), family, 0.7)
            colors = np.concatenate([material.dark, material.bright, material.accent])
            assert colors.min() >= 0 and colors.max() <= 1
            assert (
                min(material.frequency_u, material.frequency_v, material.cell_u, material.cell_v)
                > 0
            )
            assert material.photo_size > 0
            assert 0 < material.mark_size < 0.5 and material.mark_cell > 0


def test_wide_baselines_have_larger_angles():
    assert np.median(angles("wide_baseline")) > 1.4 * np.median(angles("test"))


def test_low_texture_has_few_keypoints(ordinary):
    few, many = (
        np.median([len(d) for d in per_scene]) for per_scene in (described("low_texture"), ordinary)
    )
    assert few < 0.2 * many and many > 200


def test_repetitive_textures_look_alike_within_one_image(ordinary):
    import cv2

    def nearest(per_scene):
        """Median distance of a keypoint to the most similar one of the same image."""
        pairs = [cv2.BFMatcher().knnMatch(d, d, k=2) for d in per_scene if len(d) > 2]
        return np.median([second.distance for pair in pairs for _, second in pair])

    assert nearest(described("repetitive")) < 0.7 * nearest(ordinary)


def test_only_the_sky_has_no_depth():
    for split in ("test", "sky"):
        for number in range(3):
            made = scene(split, number)
            size = made.cameras.size[0] // 16, made.cameras.size[1] // 16
            _, depth = draw(made.world, cut(made.cameras, range(4), size))
            empty = (depth == 0).mean((1, 2))
            low, high = (0.02, 0.7) if split == "sky" else (0, 0)
            assert (empty >= low).all() and (empty <= high).all()


def test_other_splits_are_refused():
    with pytest.raises(InputError, match=r"split: expected one of train, .*, got 'dev'"):
        seeds_of("dev")  # type: ignore[arg-type]
