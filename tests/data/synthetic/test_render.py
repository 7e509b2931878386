"""The JAX renderer draws what the oracle draws."""

import numpy as np
import pytest

from lite3r_jax.data.synthetic import oracle
from lite3r_jax.data.synthetic.drawing import cut, draw
from lite3r_jax.data.synthetic.render import Lens, lens_of, render, stack
from lite3r_jax.errors import InputError
from tests.data.synthetic.rooms import scene

SIZE = (45, 64)
EDGES = 0.0005  # share of the pixels whose rays may pass an edge on either side


@pytest.fixture(scope="module")
def made():
    """Two rooms, one without ceiling, with two cameras each."""
    return [(s.world, cut(s.cameras, (0, 2), SIZE)) for s in (scene("train", 1), scene("sky", 1))]


@pytest.fixture(scope="module")
def pictures(made):
    """Both at once, in strips of 15 rows, three strips at a time."""
    lenses = [lens_of(cameras) for _, cameras in made]
    lens = Lens(*(np.stack(arrays) for arrays in zip(*lenses, strict=True)))
    worlds = stack([world for world, _ in made])
    drawn = render(worlds, lens, size=SIZE, chunk=3, strip_pixels=1000)
    return [np.asarray(x) for x in drawn]


@pytest.fixture(scope="module")
def truth(made):
    return [[oracle.render(w, c, view) for view in range(2)] for w, c in made]


def test_depth_is_exact_but_for_edges(pictures, truth):
    wanted = np.array([[view.depth for view in views] for views in truth])
    assert pictures[1].dtype == np.float32
    off = np.abs(pictures[1] - wanted) > 1e-5 * wanted
    assert off.mean() <= EDGES
    assert (wanted[0] > 0).all() and (wanted[1] == 0).any()


def test_normals_are_exact_but_for_edges(pictures, truth):
    wanted = np.array([[view.normals for view in views] for views in truth])
    assert (np.abs(pictures[2] - wanted).max(-1) > 1e-4).mean() <= EDGES
    length = np.linalg.norm(wanted, axis=-1)
    np.testing.assert_allclose(length, pictures[1] > 0, atol=1e-6)


def test_images_are_equal_but_for_edges(pictures, truth):
    wanted = np.array([[view.image for view in views] for views in truth]).astype(int)
    assert pictures[0].dtype == np.uint8
    assert (np.abs(pictures[0] - wanted).max(-1) > 1).mean() <= EDGES
    assert wanted.std() > 20  # there is something to see


def test_more_samples_come_nearer_to_the_mean_over_a_pixel_and_leave_depth_alone(made):
    world, cameras = made[0]
    small = cut(cameras, (0,), (18, 24))
    one, two, many = (oracle.render(world, small, 0, samples=samples) for samples in (1, 2, 7))
    np.testing.assert_array_equal(one.depth, two.depth)
    far, near = (np.abs(view.image - many.image.astype(float)).mean() for view in (one, two))
    assert near < 0.7 * far


@pytest.mark.slow
def test_both_renderers_draw_the_same_arrays(made):
    world, cameras = made[1]
    (a, x), (b, y) = (draw(world, cameras, samples=2, renderer=which) for which in ("numpy", "jax"))
    assert a.dtype == b.dtype and x.dtype == y.dtype and a.shape == b.shape == (2, *SIZE, 3)
    assert (np.abs(a.astype(int) - b).max(-1) > 1).mean() <= EDGES
    assert (np.abs(x - y) > 1e-5 * x).mean() <= EDGES


def test_other_renderers_are_refused(made):
    with pytest.raises(InputError, match="renderer: expected numpy or jax, got 'torch'"):
        draw(*made[0], renderer="torch")
