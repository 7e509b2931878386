"""Renders images and depth of a synthetic world to NumPy arrays, by either renderer."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from lite3r_jax.data.synthetic import oracle
from lite3r_jax.data.synthetic.cameras import Cameras
from lite3r_jax.data.synthetic.world import World
from lite3r_jax.data.transforms import center_box, fit_intrinsics
from lite3r_jax.errors import InputError

Renderer = Literal["numpy", "jax"]


def cut(cameras: Cameras, views: Sequence[int], size: tuple[int, int]) -> Cameras:
    """Returns some of the cameras with images cropped from the center to (height, width)."""
    at, box = list(views), center_box(cameras.size, size)
    return replace(
        cameras,
        rotation=cameras.rotation[at],
        center=cameras.center[at],
        intrinsics=fit_intrinsics(cameras.intrinsics[at], box, size),
        exposure=cameras.exposure[at],
        size=tuple(size),
    )


def check_renderer(renderer: str) -> None:
    """Refuses a name that is no renderer.

    Raises:
        InputError: no such renderer.
    """
    if renderer not in get_args(Renderer):
        raise InputError(f"renderer: expected {' or '.join(get_args(Renderer))}, got {renderer!r}")


def draw(
    world: World, cameras: Cameras, *, samples: int = 1, renderer: Renderer = "numpy"
) -> tuple[np.ndarray, np.ndarray]:
    """Renders images and depth of all cameras.

    Args:
        world: the room.
        cameras: V of them.
        samples: color is the mean of samples x samples rays a pixel.
        renderer: "numpy": in float64, in any process. "jax": in float32 on the CPU; several times
            faster, after a compilation for each size. It starts JAX: a process that shall not take
            an accelerator needs JAX's setting jax_platforms="cpu" first.

    Returns:
        (uint8 [V, H, W, 3], float32 [V, H, W] z in units of the sample, 0 in the sky).

    Raises:
        InputError: no such renderer.
    """
    check_renderer(renderer)
    if renderer == "jax":
        return _in_jax(world, cameras, samples)
    views = range(len(cameras.center))
    drawn = [oracle.render(world, cameras, view, samples=samples) for view in views]
    depth = np.stack([view.depth for view in drawn]).astype(np.float32)
    return np.stack([view.image for view in drawn]), depth


def _in_jax(world: World, cameras: Cameras, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Renders with JAX view by view, so that a size compiles once for any number of views."""
    import jax

    from lite3r_jax.data.synthetic.render import Lens, lens_of, render, stack

    worlds, lenses, images, depth = stack([world]), lens_of(cameras), [], []
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        for view in range(len(cameras.center)):
            lens = Lens(*(x[None, view : view + 1] for x in lenses))
            pictures = render(worlds, lens, size=cameras.size, samples=samples)
            images.append(np.asarray(pictures.images[0, 0]))
            depth.append(np.asarray(pictures.depth[0, 0]))
    return np.stack(images), np.stack(depth)
