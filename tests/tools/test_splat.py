"""The small rasterizer for splats: its geometry, its gradient, and what cameras are worth to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite3r_jax.data.synthetic.source import SyntheticScenes
from tools.benchmark import splat
from tools.benchmark.refine import scene_of
from tools.benchmark.splat import VIEWS, compared, reduced

render = jax.jit(splat.render, static_argnums=3)
LENS = np.array([[20.0, 0, 7.5], [0, 20.0, 7.5], [0, 0, 1]], np.float32)
POSE = np.eye(3, 4, dtype=np.float32)


def splats(*centers, scale=0.02, opacity=8.0):
    """One Gaussian at each place; the first is red, the second green."""
    colors = np.array([[8.0, -8, -8], [-8, 8, -8]], np.float32)
    return {
        "center": jnp.array(centers, jnp.float32),
        "log_scale": jnp.full(len(centers), np.log(scale), jnp.float32),
        "color": jnp.asarray(colors[: len(centers)]),
        "opacity": jnp.full(len(centers), opacity, jnp.float32),
    }


def test_a_gaussian_is_where_its_center_is_seen_and_as_wide_as_it_is():
    image = np.asarray(render(splats([0.125, -0.075, 1.0], [9.0, 9, 1]), POSE, LENS, 16, 0.01))
    red = image[..., 0] - image[..., 0].min()
    v, u = np.unravel_index(np.argmax(red), red.shape)
    assert (u, v) == (10, 6)
    # variance of its weight in pixels: (focal length x scale)^2 and what is added
    wide = splats([0.125, -0.075, 1.0], [9.0, 9, 1], scale=0.06, opacity=-4.0)
    weight = np.asarray(render(wide, POSE, LENS, 16, 0.01))[..., 0]
    weight = weight - np.median(weight[:, 0])
    columns = weight.sum(0) / weight.sum()
    middle = (columns * np.arange(16)).sum()
    variance = (columns * (np.arange(16) - middle) ** 2).sum()
    assert middle == pytest.approx(10, abs=0.05)
    assert variance == pytest.approx((20 * 0.06) ** 2 * (1 + 0.125**2) + 0.3, rel=0.05)


def test_what_is_in_front_hides_what_is_behind_and_nothing_is_behind_the_camera():
    for near, far, channel in ((1.0, 2.0, 0), (2.0, 1.0, 1)):
        both = splats([0, 0, near], [0, 0, far], scale=0.3)
        image = np.asarray(render(both, POSE, LENS, 16, 0.01))
        assert image[7, 7, channel] > 0.9 > 0.1 > image[7, 7, 1 - channel]
    behind = np.asarray(render(splats([0, 0, -1.0]), POSE, LENS, 16, 0.01))
    np.testing.assert_allclose(behind, np.broadcast_to(behind[0, 0], behind.shape))


def test_gradients_are_those_of_differences():
    some = splats([0.1, 0.0, 1.0], [-0.1, 0.05, 1.5], scale=0.1, opacity=0.5)
    target = np.random.default_rng(0).random((16, 16, 3)).astype(np.float32)

    def loss(values):
        return ((render(values, POSE, LENS, 16, 0.01) - target) ** 2).sum()

    gradient = jax.grad(loss)(some)
    for name in some:
        step = 1e-2 if name != "center" else 1e-3
        direction = np.random.default_rng(1).normal(size=some[name].shape).astype(np.float32)
        ends = [loss(some | {name: some[name] + sign * step * direction}) for sign in (1, -1)]
        slope = float(ends[0] - ends[1]) / (2 * step)
        assert float((gradient[name] * direction).sum()) == pytest.approx(slope, rel=0.03, abs=0.02)


def test_smaller_images_have_the_lens_of_their_pixels():
    source = SyntheticScenes("test", 1, 2, samples=1)
    scene = scene_of(source.read(source.scenes[0], range(2), (112, 112)))
    images, lens = reduced(scene, 28)
    np.testing.assert_allclose(images[0, 0, 0], scene.images[0, :4, :4].mean((0, 1)) / 255, 1e-5)
    # the outer corner of the first pixel is seen in the same direction
    for k, size in ((lens[0], 28), (scene.intrinsics[0], 112)):
        assert (-0.5 - k[0, 2]) / k[0, 0] == pytest.approx(
            (-0.5 - scene.intrinsics[0, 0, 2]) / scene.intrinsics[0, 0, 0], abs=1e-6
        )
        assert k[0, 0] / size == pytest.approx(scene.intrinsics[0, 0, 0] / 112, rel=1e-6)


@pytest.mark.slow
def test_refined_cameras_give_splats_nearly_as_good_as_true_ones():
    source = SyntheticScenes("test", 1, VIEWS, samples=1)
    truth = scene_of(source.read(source.scenes[0], range(VIEWS), (448, 448)))
    psnr, _ = compared(truth, 2.0, seed=0, size=56, steps=90, count=1500)
    assert psnr["refined"] > psnr["predicted"] + 1
    assert psnr["true"] - psnr["refined"] < 1
