"""Photographs on surfaces: their colors from near and from afar, and the splits that show them."""

from pathlib import Path

import numpy as np
import pytest
import skimage
from hypothesis import given
from hypothesis import strategies as st

from lite3r_jax.data.sources import frozen_lists
from lite3r_jax.data.synthetic.drawing import cut, draw
from lite3r_jax.data.synthetic.photographs import (
    HELD_OUT,
    LEVELS,
    SIDE,
    TRAINING,
    look_up,
    pyramids,
)
from lite3r_jax.data.synthetic.texture import unpack
from lite3r_jax.errors import InputError
from tests.data.synthetic.rooms import scene


def colors(number, x, y, width):
    """[N, 3] of points [N] of a photograph of training."""
    x, y = np.atleast_1d(x).astype(float), np.atleast_1d(y).astype(float)
    chosen = np.full(x.shape, number)
    channels = look_up(np, pyramids(TRAINING), chosen, x, y, np.full(x.shape, float(width)))
    return np.stack(channels, -1)


def test_from_near_the_pixels_of_the_photograph_are_seen():
    from PIL import Image

    with Image.open(Path(skimage.data_dir) / "coffee.png") as file:
        whole = file.convert("RGB")
    half = (whole.width - whole.height) // 2
    square = whole.crop((half, 0, half + whole.height, whole.height))
    wanted = np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BOX)) / 255
    rows, columns = np.random.default_rng(0).integers(0, SIDE, (2, 200))
    actual = colors(
        TRAINING.index("coffee.png"), (columns + 0.5) / SIDE, (rows + 0.5) / SIDE, 1 / SIDE
    )
    np.testing.assert_allclose(actual, wanted[rows, columns], atol=1 / 255)


@pytest.mark.parametrize("pixels", [2, 16, 64])
def test_from_afar_colors_are_means_over_what_a_pixel_covers(pixels):
    side = SIDE // pixels
    middles = (np.arange(side) + 0.5) / side
    x, y = (grid.ravel() for grid in np.meshgrid(middles, middles))
    for number, one in enumerate(pyramids(TRAINING)):
        square = one[: SIDE * SIDE].reshape(side, pixels, side, pixels, 3) / 255
        actual = colors(number, x, y, pixels / SIDE)
        np.testing.assert_allclose(actual, square.mean((1, 3)).reshape(-1, 3), atol=1.01 / 255)


def test_every_level_is_the_mean_of_the_pixels_of_the_one_before():
    for one in pyramids(HELD_OUT):
        side, start, before = SIDE, 0, None
        for _ in range(LEVELS):
            level = one[start : start + side * side].reshape(side, side, 3).astype(float)
            if before is not None:
                mean = before.reshape(side, 2, side, 2, 3).mean((1, 3))
                np.testing.assert_allclose(level, mean, atol=1.01)  # of rounding twice
            start, side, before = start + side * side, side // 2, level
        assert start == len(one)


@given(
    x=st.floats(-5, 5),
    y=st.floats(-5, 5),
    width=st.floats(1e-6, 3),
    number=st.integers(0, len(TRAINING) - 1),
)
def test_photographs_go_on_as_mirror_images_without_a_seam(x, y, width, number):
    here = colors(number, x, y, width)
    assert (here >= 0).all() and (here <= 1).all()
    for other in (colors(number, -x, y, width), colors(number, x, 2 - y, width)):
        np.testing.assert_allclose(other, here, atol=1e-9)
    edge = colors(number, [1 - 1e-9, 1 + 1e-9], [y, y], width)
    np.testing.assert_allclose(edge[0], edge[1], atol=1e-5)


def test_a_third_of_the_surfaces_carry_photographs_and_all_of_them_occur():
    shown = []
    for number in range(20):
        world = scene("train_photographs", number).world
        shown.extend(unpack(world.materials.T).photo[np.repeat(world.active, 6)])
    assert 0.25 < np.mean(np.array(shown) >= 0) < 0.42
    assert set(shown) == {-1.0, *map(float, range(len(TRAINING)))}


def test_held_out_photographs_are_never_in_training():
    assert not set(TRAINING) & set(HELD_OUT) and len(TRAINING) == len(HELD_OUT)
    assert (scene("train_photographs", 0).world.photos == pyramids(TRAINING)).all()
    assert (scene("photographs", 0).world.photos == pyramids(HELD_OUT)).all()
    assert scene("test", 0).world.photos is None
    assert len(frozen_lists()["photographs"]) == 64
    assert "train_photographs" not in frozen_lists()


def test_pictures_have_the_colors_of_the_photographs():
    """The same room with other photographs differs where they are, and nowhere in depth."""
    from dataclasses import replace

    made = scene("photographs", 4)
    cameras = cut(made.cameras, (0, 2), (64, 64))
    images, depth = draw(made.world, cameras)
    other, far = draw(replace(made.world, photos=pyramids(TRAINING)), cameras)
    assert (depth == far).all()
    changed = (images != other).any(-1).mean()
    assert 0.02 < changed < 0.9


def test_another_picture_under_the_name_is_refused(tmp_path, monkeypatch):
    (tmp_path / "coffee.png").write_bytes(b"another")
    monkeypatch.setattr(skimage, "data_dir", str(tmp_path))
    for name in ("coffee.png", "rocket.jpg"):  # another, and none
        with pytest.raises(InputError, match=rf"{name}: not the photograph .* scikit-image 0\.26"):
            pyramids((name,))
