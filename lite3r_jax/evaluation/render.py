"""Renders points and cameras to a picture, from one viewpoint for all models of a scene."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lite3r_jax import geometry
from lite3r_jax.evaluation.world_points import world_points

WIDTH, HEIGHT = 480, 400
OVERSAMPLED = 2  # rendered so much larger, then averaged
GROUND = (21, 24, 29)
_FOCAL = 1.35  # over the width: a field of view of 41 degrees
_YAW, _PITCH = np.radians([22.0, 26.0])
_MARGIN = 1.12  # outlines of cameras, and predicted points, lie beyond what is looked at
_FAR = 1.5  # times the distance of the farthest point or camera
_FRUSTUM = 0.09  # depth of a drawn camera over the distance of the place that is looked from
_SPLAT = 1.3  # width of a drawn point over the spacing of pixels: no holes between turned ones
_LARGEST, _DRAWN = 48, 6_000_000  # width of a drawn point, and area of all, in pixels
_STRETCH = 3  # a drawn point on a slanted surface over one that faces its camera


@dataclass(frozen=True, eq=False)
class Cloud:
    """Points of depth maps, with the cameras that they were seen from.

    Attributes:
        xyz: float64 [N, 3].
        rgb: uint8 [N, 3].
        normal: float64 [N, 3], towards the camera that saw the point.
        spacing: float64 [N], how far neighboring pixels are apart on the surface, but not beyond
            edges.
        extrinsics: float64 [S, 3, 4] world-to-camera.
        intrinsics: float64 [S, 3, 3].
        size: (height, width) of the maps.
    """

    xyz: np.ndarray
    rgb: np.ndarray
    normal: np.ndarray
    spacing: np.ndarray
    extrinsics: np.ndarray
    intrinsics: np.ndarray
    size: tuple[int, int]


def unproject(
    depth: np.ndarray, extrinsics: np.ndarray, intrinsics: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Unprojects depth to float64 world points [V, h, w, 3]; also returns a mask [V, h, w].

    The mask says where there is depth.
    """
    known = np.isfinite(depth) & (depth > 0)
    return world_points(np.where(known, depth, 1), extrinsics, intrinsics), known


def cloud(
    depth: np.ndarray,
    images: np.ndarray,
    views: np.ndarray,
    extrinsics: np.ndarray,
    intrinsics: np.ndarray,
) -> Cloud:
    """Makes the point cloud of all pixels with depth, in the colors of the images.

    Args:
        depth: [V, h, w], 0 or not finite where there is none.
        images: uint8 [V, h, w, 3].
        views: int [V], the cameras of these maps.
        extrinsics: [S, 3, 4] world-to-camera.
        intrinsics: [S, 3, 3] in pixels of the maps.
    """
    xyz, known = unproject(depth, extrinsics[views], intrinsics[views])
    rotation = extrinsics[views, :, :3].astype(np.float64)
    center = -np.einsum("sji,sj->si", rotation, extrinsics[views, :, 3].astype(np.float64))
    down, right = (_slope(xyz, axis) for axis in (1, 2))
    normal = np.cross(right, down)
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)
    away = ((center[:, None, None] - xyz) * normal).sum(-1, keepdims=True) < 0
    across = np.where(known, depth, 0) / intrinsics[views, 0, 0][:, None, None]
    apart = np.maximum(*(np.linalg.norm(x, axis=-1) for x in (right, down)))
    spacing = np.clip(apart, across, _STRETCH * across)
    return Cloud(
        xyz[known], images[known], np.where(away, -normal, normal)[known],
        spacing[known].astype(np.float64), extrinsics.astype(np.float64),
        intrinsics.astype(np.float64), (depth.shape[1], depth.shape[2]),
    )  # fmt: skip


def _slope(x: np.ndarray, axis: int) -> np.ndarray:
    """Returns differences per pixel along an axis: central ones, one-sided at the edges."""
    if x.shape[axis] < 2:
        return np.zeros_like(x)
    return np.gradient(x, axis=axis)


def moved(cloud: Cloud, sim3: geometry.Sim3) -> Cloud:
    """Applies a similarity to the points and cameras of a cloud."""
    scale, turn, shift = (np.asarray(x, np.float64) for x in sim3)
    rotation, t = cloud.extrinsics[..., :3], cloud.extrinsics[..., 3]
    turned = rotation @ turn.T
    extrinsics = np.concatenate([turned, (scale * t - turned @ shift)[..., None]], -1)
    return replace(
        cloud,
        xyz=scale * cloud.xyz @ turn.T + shift,
        normal=cloud.normal @ turn.T,
        spacing=scale * cloud.spacing,
        extrinsics=extrinsics,
    )


def centers(extrinsics: np.ndarray) -> np.ndarray:
    """Returns the centers [S, 3] of cameras."""
    return -np.einsum("sji,sj->si", extrinsics[..., :3], extrinsics[..., 3])


def viewpoint(cloud: Cloud, others: np.ndarray) -> np.ndarray:
    """Chooses a pose behind, above and beside the cameras from which the scene is in the picture.

    Args:
        cloud: most points and all cameras of it are seen.
        others: [M, 3], further points that are seen, unless they are far away from the cloud.

    Returns:
        World-to-camera [3, 4].
    """
    rotation, c = cloud.extrinsics[..., :3], centers(cloud.extrinsics)
    target = np.median(cloud.xyz, 0)
    up = _unit(-rotation[:, 1].mean(0), -rotation[0, 1])
    ahead = target - c.mean(0)
    ahead = _unit(ahead - up * (ahead @ up), rotation[0, 2])
    side = np.cross(ahead, up)
    look = np.cos(_PITCH) * (np.cos(_YAW) * ahead + np.sin(_YAW) * side) - np.sin(_PITCH) * up
    right = _unit(np.cross(look, up), rotation[0, 0])
    axes = np.stack([right, np.cross(look, right), look])
    away = [np.linalg.norm(x - target, axis=-1) for x in (cloud.xyz, c, others)]
    near = others[away[2] < _FAR * max(float(np.quantile(away[0], 0.98)), float(away[1].max()))]
    # as near as possible with nearly all points, and all cameras, on the picture
    edge = 2 * _FOCAL * np.array([1, WIDTH / HEIGHT])
    clouds = (cloud.xyz - target) @ axes.T, (np.concatenate([c, near]) - target) @ axes.T
    shift, distance = np.zeros(2), 0.0
    for _ in range(4):
        needed = [(np.abs(q[:, :2] - shift) * edge).max(-1) - q[:, 2] for q in clouds]
        distance = max(float(np.quantile(needed[0], 0.98)), float(needed[1].max()), 1e-6)
        ends = []
        for q, share in zip(clouds, (0.02, 0.0), strict=True):
            z = np.maximum(q[:, 2:] + distance, 0.05 * distance)
            ends += list(np.quantile((q[:, :2] - shift) / z, [share, 1 - share], axis=0))
        shift = shift + distance * (np.min(ends, 0) + np.max(ends, 0)) / 2
    place = np.array([-shift[0], -shift[1], _MARGIN * distance]) - axes @ target
    return np.concatenate([axes, place[:, None]], -1)


def _unit(x: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    length = float(np.linalg.norm(x))
    return x / length if length > 1e-9 else otherwise


def draw(
    cloud: Cloud,
    view: np.ndarray,
    cameras: Sequence[tuple[np.ndarray, np.ndarray, tuple[int, int, int]]],
) -> np.ndarray:
    """Draws the points whose surface faces the viewer, and cameras as outlines.

    Surfaces that turn their back are left out, so that one looks into rooms from outside.

    Args:
        cloud: what is drawn.
        view: world-to-camera [3, 4], see `viewpoint`.
        cameras: (extrinsics [S, 3, 4], intrinsics [S, 3, 3] in pixels of the maps of the cloud,
            color), the later above the earlier.

    Returns:
        uint8 [HEIGHT, WIDTH, 3].
    """
    from PIL import Image, ImageDraw

    picture = Image.fromarray(_points(cloud, view))
    pen = ImageDraw.Draw(picture)
    eye = float(np.linalg.norm(centers(view[None])[0] - np.median(cloud.xyz, 0)))
    for extrinsics, intrinsics, color in cameras:
        for corners in _outlines(extrinsics, intrinsics, cloud.size, _FRUSTUM * eye):
            at, z = _place(corners, view)
            if (z > 1e-6).all():
                apex, *base = map(tuple, at)
                for k in range(4):
                    pen.line([base[k - 1], base[k]], fill=color, width=2 * OVERSAMPLED)
                    pen.line([apex, base[k]], fill=color, width=2 * OVERSAMPLED)
    return np.asarray(picture.resize((WIDTH, HEIGHT), Image.Resampling.BOX))


def _points(cloud: Cloud, view: np.ndarray) -> np.ndarray:
    width, height = WIDTH * OVERSAMPLED, HEIGHT * OVERSAMPLED
    front = ((centers(view[None])[0] - cloud.xyz) * cloud.normal).sum(-1) > 0
    at, z = _place(cloud.xyz, view)
    front &= (z > 1e-6) & ((at > 0) & (at < (width, height))).all(-1)
    at, z, rgb, spacing = at[front], z[front], cloud.rgb[front], cloud.spacing[front]
    order = np.argsort(-z, kind="stable")  # the nearest last: it stays
    largest = int(np.sqrt(_DRAWN / max(len(z), 1)).clip(1, _LARGEST))
    side = np.ceil(_SPLAT * _FOCAL * width * spacing / z).clip(1, largest).astype(np.int32)[order]
    # on a canvas with a margin, so that no square has to be cut
    corner = np.rint(at[order] - (side[:, None] - 1) / 2).astype(np.int32) + _LARGEST
    wide = width + 2 * _LARGEST
    first = corner[:, 1] * wide + corner[:, 0]
    count = side * side
    number = np.arange(count.sum(), dtype=np.int32)
    number -= np.repeat(np.cumsum(count, dtype=np.int32) - count, count)
    sides = np.repeat(side, count)
    place = np.repeat(first, count) + number // sides * wide + number % sides
    canvas = np.zeros((height + 2 * _LARGEST) * wide, np.int32)
    canvas[place] = np.repeat(1 + np.arange(len(side), dtype=np.int32), count)
    colors = np.concatenate([np.array([GROUND], np.uint8), rgb[order]])
    inner = canvas.reshape(-1, wide)[_LARGEST:-_LARGEST, _LARGEST:-_LARGEST]
    return colors[inner]


def _place(points: np.ndarray, view: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Projects points to pixels of the oversampled picture; also returns their depth."""
    p = points @ view[:, :3].T + view[:, 3]
    z = p[:, 2]
    center = np.array([WIDTH, HEIGHT]) * OVERSAMPLED / 2
    focal = _FOCAL * WIDTH * OVERSAMPLED
    return center + focal * p[:, :2] / np.where(np.abs(z) > 1e-6, z, 1)[:, None], z


def _outlines(
    extrinsics: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int], depth: float
) -> np.ndarray:
    """Returns the apex and four corners of every camera's frustum, [S, 5, 3] in the world."""
    height, width = size
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)]) - 0.5
    pixels = np.concatenate([corners, np.ones((4, 1))], -1)
    rays = np.einsum("nj,sij->sni", pixels, np.linalg.inv(intrinsics))
    camera = np.concatenate([np.zeros((len(rays), 1, 3)), depth * rays], 1)
    return np.einsum("sni,sij->snj", camera - extrinsics[:, None, :, 3], extrinsics[..., :3])
