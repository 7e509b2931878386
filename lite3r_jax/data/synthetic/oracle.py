"""Exact ground truth by casting rays, in float64: depth, normals, visibility and tracks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lite3r_jax.data.synthetic import shading
from lite3r_jax.data.synthetic.cameras import Cameras
from lite3r_jax.data.synthetic.raycast import CUTS, cut_room, nearer, surface, to_unit
from lite3r_jax.data.synthetic.world import FACES, ROOM, World

_BEHIND = 1e-7  # points count as seen up to this share of their distance behind what is seen
SKY = -1
"""Number in place of a primitive where a ray leaves the room and hits nothing."""


def cast(world: World, origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Casts rays into a world and finds the first primitive that each ray hits.

    Args:
        world: the room; rays begin inside of it and outside of all things.
        origin: [3, N] or [3, 1].
        direction: [3, N], of any length.

    Returns:
        (t [N] of the point origin + t direction, infinite in the sky; primitive [N], `SKY` there).
    """
    t = cut_room(np, world.half[ROOM], world.open_top, origin, direction)
    t = np.where(world.void, np.inf, t)
    primitive = np.where(np.isfinite(t), ROOM, SKY)
    with np.errstate(invalid="ignore", over="ignore"):  # of rays that miss
        for kind, cut in CUTS:
            for number in kind:
                if world.active[number]:
                    o, d = to_unit(world.affine[number], origin, direction)
                    t, primitive = nearer(np, cut(np, o, d), True, number, t, primitive)
    return t, primitive


@dataclass(frozen=True, eq=False)
class View:
    """One rendered view: its image, depth, normals and the primitive at each pixel.

    Attributes:
        image: uint8 [H, W, 3].
        depth: float64 [H, W], z in the camera frame in units of the sample; 0 in the sky.
        normals: float64 [H, W, 3] in the camera frame, towards the camera; 0 in the sky.
        primitive: int [H, W], what is seen, `SKY` for the sky.
    """

    image: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    primitive: np.ndarray


def rays(cameras: Cameras, view: int, pixels: np.ndarray) -> np.ndarray:
    """Returns ray directions in the world [3, N], of depth 1, through pixels [2, N] (u, v)."""
    (fx, _, cx), (_, fy, cy), _ = cameras.intrinsics[view]
    u, v = pixels
    return cameras.rotation[view].T @ np.stack([(u - cx) / fx, (v - cy) / fy, np.ones(len(u))])


def render(world: World, cameras: Cameras, view: int, *, samples: int = 1) -> View:
    """Renders one view at `cameras.size`; `render.render` is faster and less exact.

    Args:
        world: the room.
        cameras: V of them.
        view: number of the camera to render.
        samples: color is the mean of samples x samples rays a pixel; all else is that of the
            middle of the pixel.
    """
    height, width = cameras.size
    v, u = np.mgrid[0:height, 0:width].reshape(2, -1).astype(np.float64)
    rgb, t, primitive, normals = _trace(world, cameras, view, np.stack([u, v]), samples)
    if samples > 1:
        steps = (np.arange(samples) + 0.5) / samples - 0.5
        total = np.zeros_like(rgb)
        for du in steps:
            for dv in steps:
                part = _trace(world, cameras, view, np.stack([u + du, v + dv]), samples)[0]
                total += np.clip(part, 0, shading.WHITE)
        rgb = total / samples**2
    image = np.stack(shading.expose(np, list(rgb), cameras.exposure[view]), -1)
    return View(
        image=image.reshape(height, width, 3),
        depth=(t * world.scale).reshape(height, width),
        normals=normals.T.reshape(height, width, 3),
        primitive=primitive.reshape(height, width),
    )


def _trace(
    world: World, cameras: Cameras, view: int, pixels: np.ndarray, samples: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns color [3, N], depth [N] in world units, primitive [N] and normals [3, N]."""
    direction = rays(cameras, view, pixels)
    origin = cameras.center[view][:, None]
    t, primitive = cast(world, origin, direction)
    hit = primitive != SKY
    onto, end, number = direction[:, hit], t[hit], primitive[hit]
    point = origin + end * onto
    affine = np.moveaxis(world.affine[number], 0, -1)
    place = surface(np, affine, world.half[number].T, number, point)
    face = number * FACES + place.face
    rgb = np.stack(shading.sky(np, world, direction))
    rgb[:, hit] = shading.color(
        np, world, place, world.materials[face].T, world.seeds[face], point, onto,
        end / (cameras.intrinsics[view, 0, 0] * samples),
    )  # fmt: skip
    normals = np.zeros_like(rgb)
    normals[:, hit] = cameras.rotation[view] @ np.stack(place.normal)
    return rgb, np.where(hit, t, 0.0), primitive, normals


def project(cameras: Cameras, view: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Projects world points [3, N] to pixels [2, N] and depth [N] in the unit of the world."""
    moved = cameras.rotation[view] @ (points - cameras.center[view][:, None])
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels = (cameras.intrinsics[view] @ moved)[:2] / moved[2]
    return pixels, moved[2]


def visible(world: World, cameras: Cameras, view: int, points: np.ndarray) -> np.ndarray:
    """Returns which points on surfaces [3, N] a view sees: in front, on the image, not occluded."""
    pixels, depth = project(cameras, view, points)
    height, width = cameras.size
    with np.errstate(invalid="ignore"):
        inside = (pixels >= -0.5) & (pixels <= [[width - 0.5], [height - 0.5]])
    seen = inside.all(0) & (depth > 0)
    origin = cameras.center[view][:, None]
    t, _ = cast(world, origin, points[:, seen] - origin)
    seen[seen] = t >= 1 - _BEHIND
    return seen


@dataclass(frozen=True, eq=False)
class Tracks:
    """Points on surfaces, followed through all views.

    Attributes:
        points: float64 [N, 3] in the world frame of the sample, in its units.
        pixels: float64 [V, N, 2], (u, v) in each view, also of hidden points; NaN behind
            the camera.
        visible: bool [V, N], whether they are seen.
    """

    points: np.ndarray
    pixels: np.ndarray
    visible: np.ndarray


def tracks(world: World, cameras: Cameras, view: int, pixels: np.ndarray) -> Tracks:
    """Follows the surface points at some pixels of one view through all views.

    Args:
        world: the room.
        cameras: V of them.
        view: the one that the pixels are of.
        pixels: [N, 2], (u, v); none may show the sky.

    Raises:
        ValueError: a pixel shows the sky, which has no position.
    """
    direction = rays(cameras, view, np.asarray(pixels, np.float64).T)
    origin = cameras.center[view][:, None]
    t, primitive = cast(world, origin, direction)
    if (primitive == SKY).any():
        raise ValueError("pixels: expected surfaces, one shows the sky")
    points = origin + t * direction
    places, seen = [], []
    for other in range(len(cameras.center)):
        at, depth = project(cameras, other, points)
        places.append(np.where(depth > 0, at, np.nan).T)
        seen.append(visible(world, cameras, other, points))
    return Tracks(points.T * world.scale, np.stack(places), np.stack(seen))


@dataclass(frozen=True, eq=False)
class Probe:
    """Hits of a coarse grid of rays from each of V cameras.

    Attributes:
        t: float64 [V, N], depth in the unit of the world, infinite in the sky.
        points: float64 [V, 3, N], in the world; not finite in the sky.
        primitive: int [V, N], what is hit.
    """

    t: np.ndarray
    points: np.ndarray
    primitive: np.ndarray


def probe(world: World, cameras: Cameras, grid: tuple[int, int]) -> Probe:
    """Casts a coarse grid of rays from every camera.

    Args:
        world: the room.
        cameras: V of them.
        grid: rows and columns of rays, N together.
    """
    height, width = cameras.size
    v, u = (np.indices(grid).reshape(2, -1) + 0.5) * np.reshape(
        [height / grid[0], width / grid[1]], (2, 1)
    ) - 0.5
    views = range(len(cameras.center))
    direction = np.stack([rays(cameras, view, np.stack([u, v])) for view in views])
    origin = np.repeat(cameras.center, len(u), axis=0).T
    t, hit = cast(world, origin, np.moveaxis(direction, 0, 1).reshape(3, -1))
    t = t.reshape(len(views), -1)
    with np.errstate(invalid="ignore"):  # infinity times 0
        points = cameras.center[..., None] + t[:, None] * direction
    return Probe(t, points, hit.reshape(t.shape))


def shared(
    world: World, cameras: Cameras, probed: Probe, view: int, others: Sequence[int]
) -> np.ndarray:
    """Returns the share of what each other view sees that one view sees too: [len(others)].

    Args:
        world: the room.
        cameras: V of them.
        probed: result of `probe`; the sky counts as seen by nobody else.
        view: number of the one view.
        others: numbers of the other views.
    """
    points, t = probed.points[list(others)], probed.t[list(others)]
    hit = np.isfinite(t)
    seen = np.zeros(hit.shape, bool)
    seen[hit] = visible(world, cameras, view, np.moveaxis(points, 1, 0)[:, hit])
    return seen.mean(-1)
