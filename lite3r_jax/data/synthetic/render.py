"""Renders images and depth of many views at once in JAX, for training data made on the fly.

Compiled once for each size. Equal to `oracle.render` within float32, except where a ray passes an
edge closely.
"""

import functools
from collections.abc import Sequence
from dataclasses import fields
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lite3r_jax.data.synthetic import shading
from lite3r_jax.data.synthetic.cameras import Cameras
from lite3r_jax.data.synthetic.raycast import CUTS, cut_room, nearer, surface, to_unit
from lite3r_jax.data.synthetic.world import FACES, ROOM, World

_NAMES = [field.name for field in fields(World)]
jax.tree_util.register_dataclass(World, data_fields=_NAMES, meta_fields=[])

STRIP_PIXELS = 1 << 14
"""About how many pixels are drawn at once, so that intermediate values fit into caches."""


Array = jax.Array | np.ndarray


class Lens(NamedTuple):
    """Cameras as float32 arrays that have the same leading axes.

    Attributes:
        rotation: float32 [..., 3, 3], world to camera.
        center: float32 [..., 3], in the unit of the world.
        focal: float32 [..., 2], fx and fy in pixels.
        middle: float32 [..., 2], cx and cy.
        exposure: float32 [..., 3].
    """

    rotation: Array
    center: Array
    focal: Array
    middle: Array
    exposure: Array


class Pictures(NamedTuple):
    """Rendered images, depth and normals of many views.

    Attributes:
        images: uint8 [..., H, W, 3].
        depth: float32 [..., H, W], z in the camera frame in units of the sample; 0 in the sky.
        normals: float32 [..., H, W, 3] in the camera frame, towards the camera; 0 in the sky.
    """

    images: jax.Array
    depth: jax.Array
    normals: jax.Array


def lens_of(cameras: Cameras) -> Lens:
    """Returns all cameras of a scene as NumPy arrays [V, ...]; `render` takes stacks of these."""
    k = cameras.intrinsics
    focal, middle = np.stack([k[:, 0, 0], k[:, 1, 1]], -1), k[:, :2, 2]
    every = (cameras.rotation, cameras.center, focal, middle, cameras.exposure)
    return Lens(*(np.asarray(x, np.float32) for x in every))


def stack(worlds: Sequence[World]) -> World:
    """Stacks worlds for `render` to 32-bit arrays [B, ...]; all have photographs or none has."""

    def of_32_bits(*parts: np.ndarray) -> np.ndarray:
        stacked = np.stack(parts)
        return stacked.astype(np.float32) if stacked.dtype == np.float64 else stacked

    return jax.tree.map(of_32_bits, *worlds)


@functools.partial(jax.jit, static_argnames=("size", "samples", "chunk", "strip_pixels"))
def render(
    worlds: World,
    lens: Lens,
    *,
    size: tuple[int, int],
    samples: int = 1,
    chunk: int = 1,
    strip_pixels: int = STRIP_PIXELS,
) -> Pictures:
    """Renders images, depth and normals of B worlds with V cameras each: [B, V, ...].

    Pictures are drawn in strips of rows, so that memory does not grow with their number beyond the
    result. Numbers of worlds and cameras are shapes: each pair of them compiles once.

    Args:
        worlds: result of `stack`: arrays [B, ...].
        lens: cameras, stacked from those of `lens_of` to [B, V, ...].
        size: (height, width).
        samples: color is the mean of samples x samples rays a pixel; depth and normals are those
            of the middle of the pixel.
        chunk: how many strips are drawn at once: 1 for CPUs, whose caches hold one, more for GPUs.
        strip_pixels: a strip has about as many, but at least one row.
    """
    height, width = size
    count, views = lens.center.shape[:2]
    strips = min(-(-height * width // strip_pixels), height)
    rows = -(-height // strips)
    strips = -(-height // rows)  # none of them empty

    def strip(item: jax.Array):
        world, view, first = item
        of_world = jax.tree.map(lambda x: x[world], worlds)
        of_view = jax.tree.map(lambda x: x[world, view], lens)
        return _strip(of_world, of_view, first * rows, (rows, width), samples)

    items = jnp.indices((count, views, strips)).reshape(3, -1).T
    # Stacked inside of the loop, XLA on CPUs would compute each channel from the start.
    parts = jax.lax.optimization_barrier(jax.lax.map(strip, items, batch_size=chunk))
    shape = (count, views, strips * rows, width)
    rgb, depth, normals = jax.tree.map(lambda x: x.reshape(shape)[:, :, :height], parts)
    return Pictures(jnp.stack(rgb, -1), depth, jnp.stack(normals, -1))


def _strip(world: World, lens: Lens, first: jax.Array, size: tuple[int, int], samples: int):
    """Renders some rows: three channels, depth, and three components of the normal."""
    v, u = jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) for n in size), indexing="ij")
    v = v + first
    rgb, depth, normals = _trace(world, lens, u, v, samples)
    if samples > 1:

        def add(at, total):
            i, j = at // samples, at % samples
            du, dv = ((k + 0.5) / samples - 0.5 for k in (i, j))
            part, _, _ = _trace(world, lens, u + du, v + dv, samples)
            return [t + jnp.clip(p, 0, shading.WHITE) for t, p in zip(total, part, strict=True)]

        zero = [jnp.zeros_like(u)] * 3
        rgb = jax.lax.fori_loop(0, samples * samples, add, zero)
        rgb = [channel / samples**2 for channel in rgb]
    return shading.expose(jnp, rgb, lens.exposure), depth, normals


def _trace(world: World, lens: Lens, u: jax.Array, v: jax.Array, samples: int):
    x, y = (u - lens.middle[0]) / lens.focal[0], (v - lens.middle[1]) / lens.focal[1]
    r = lens.rotation
    direction = [r[0, i] * x + r[1, i] * y + r[2, i] for i in range(3)]
    t, hit = _cast(world, lens.center, direction)
    seen = jnp.isfinite(t)
    end = jnp.where(seen, t, 1.0)
    point = [o + end * d for o, d in zip(lens.center, direction, strict=True)]
    affine = jnp.moveaxis(world.affine[hit], (-2, -1), (0, 1))
    half = jnp.moveaxis(world.half[hit], -1, 0)
    place = surface(jnp, affine, half, hit, point)
    face = hit * FACES + place.face
    materials = jnp.moveaxis(world.materials[face], -1, 0)
    rgb = shading.color(
        jnp, world, place, materials, world.seeds[face], point, direction,
        end / (lens.focal[0] * samples),
    )  # fmt: skip
    sky = shading.sky(jnp, world, direction)
    rgb = [jnp.where(seen, here, there) for here, there in zip(rgb, sky, strict=True)]
    n = place.normal
    normals = [jnp.where(seen, sum(r[i, j] * n[j] for j in range(3)), 0.0) for i in range(3)]
    return rgb, jnp.where(seen, t * world.scale, 0.0), normals


def _cast(world: World, center: Array, direction: list[jax.Array]):
    t = cut_room(jnp, world.half[ROOM], world.open_top, center, direction)
    t = jnp.where(world.void, jnp.inf, t)
    hit = jnp.full(t.shape, ROOM, jnp.int32)
    for kind, cut in CUTS:

        def step(number, state, cut=cut):
            o, d = to_unit(world.affine[number], center, direction)
            return nearer(jnp, cut(jnp, o, d), world.active[number], number, *state)

        t, hit = jax.lax.fori_loop(kind.start, kind.stop, step, (t, hit))
    return t, hit
