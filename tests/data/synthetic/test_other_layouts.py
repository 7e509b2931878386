"""Floating things and corridors: what one view tells about depth, and what it does not."""

import warnings

import numpy as np
import pytest

from lite3r_jax.data.synthetic import oracle
from lite3r_jax.data.synthetic.drawing import cut, draw
from lite3r_jax.data.synthetic.oracle import SKY
from lite3r_jax.data.synthetic.other_layouts import any_rotation
from lite3r_jax.data.synthetic.rng import Rng
from lite3r_jax.data.synthetic.world import ROOM
from tests.data.synthetic.rooms import scene


def seen(split, count=12):
    """(scene, what a grid of rays of all its views meets) of some scenes."""
    made = [scene(split, number) for number in range(count)]
    return [(one, oracle.probe(one.world, one.cameras, (12, 16))) for one in made]


def test_floating_things_have_no_wall_floor_or_ceiling_behind_them():
    for _, rays in seen("floating"):
        assert (rays.primitive != ROOM).all()
        assert 0.02 < (rays.primitive == SKY).mean() < 0.55
        assert len(set(rays.primitive.ravel())) > 4


def test_the_size_of_a_floating_thing_says_little_about_its_distance():
    """In the picture a thing is as large as its size over its distance: sizes vary more."""
    sizes, distances = [], []
    for made, rays in seen("floating", 30):
        for number in set(rays.primitive[0]) - {SKY}:
            distances.append(np.median(rays.t[0][rays.primitive[0] == number]))
            sizes.append(made.world.half[number].max())
    spread, wide = np.std(np.log(distances)), np.std(np.log(sizes))
    assert wide > 1.25 * spread
    assert abs(np.corrcoef(np.log(sizes), np.log(distances))[0, 1]) < 0.35


def test_height_in_the_picture_tells_depth_in_rooms_and_not_among_floating_things():
    """What a network can guess from one view: the lower, the nearer."""

    def correlation(split):
        correlations = []
        for _, rays in seen(split, 20):
            t = rays.t.reshape(len(rays.t), 12, 16)
            t = np.where(np.isfinite(t), t, np.nan)
            rows = np.nanmedian(np.log(t), axis=2)  # [V, 12], from above
            correlations.append([np.corrcoef(np.arange(12), row)[0, 1] for row in rows])
        return np.nanmean(correlations)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rows of nothing but sky
        assert correlation("test") < -0.3
        assert abs(correlation("floating")) < 0.2


@pytest.mark.parametrize("split", ["floating", "corridor", "photographs"])
def test_both_renderers_draw_the_same(split):
    made = scene(split, 1)
    cameras = cut(made.cameras, (0,), (56, 56))
    (image, depth), (other, far) = (draw(made.world, cameras, renderer=r) for r in ("numpy", "jax"))
    assert ((depth == 0) == (far == 0)).mean() > 0.999
    both = (depth > 0) & (far > 0)
    assert np.median(np.abs(depth[both] / far[both] - 1)) < 1e-5
    assert (np.abs(image.astype(int) - other).max(-1) > 1).mean() < 0.01


def test_corridors_are_long_and_cameras_look_along_them():
    for number in range(10):
        made = scene("corridor", number)
        x, _, z = made.world.half[ROOM]
        assert z > 2.5 * x
        forward = made.cameras.rotation[:, 2]
        assert (np.abs(forward[:, 2]) > 0.7).all()


def test_any_rotation_is_one_and_they_have_no_direction_of_their_own():
    turns = np.stack([any_rotation(Rng(0, number)) for number in range(400)])
    np.testing.assert_allclose(turns @ turns.swapaxes(1, 2), np.tile(np.eye(3), (400, 1, 1)),
                               atol=1e-12)  # fmt: skip
    np.testing.assert_allclose(np.linalg.det(turns), 1)
    assert np.abs(turns.mean(0)).max() < 0.12
