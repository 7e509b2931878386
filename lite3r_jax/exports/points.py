"""The points of a scene that are worth showing: by confidence, by voxel, by number."""

from dataclasses import dataclass
from typing import get_args

import numpy as np

from lite3r_jax import geometry
from lite3r_jax.errors import InputError
from lite3r_jax.exports.edges import edges
from lite3r_jax.scene import PointSource, Scene

_SAMPLE = 100_000  # points of which the size of a scene is told
_CELL_LIMIT = float(1 << 40)  # keeps the cells of points far outside within int64


@dataclass(frozen=True)
class PointOptions:
    """Which points of a scene are kept.

    Attributes:
        source: "depth": depth maps unprojected with the cameras; "head": the model's point head.
        conf_percentile: pixels surer than this percentage of all valid pixels of the scene are
            kept, and those that tie with the limit, so that a constant confidence keeps all;
            0 keeps all, 100 only the surest.
        max_points: more than this many are thinned, spread evenly over views and pixels; 0 is no
            limit.
        voxel: of all points in a cube with this edge the surest is kept. The edge is a fraction
            of `diagonal` of the points; 0 is off. Comes after the confidence, before the number.
        drop_edges: leave out points at edges of objects, which hang between foreground and
            background: pixels where both depth and normals have an edge, see `exports.edges`.
    """

    source: PointSource = "depth"
    conf_percentile: float = 50.0
    max_points: int = 1_000_000
    voxel: float = 0.0
    drop_edges: bool = False

    def __post_init__(self):
        if self.source not in get_args(PointSource):
            raise InputError(f"points.source: expected depth or head, got {self.source!r}")
        if not 0 <= self.conf_percentile <= 100:
            raise InputError(
                f"points.conf_percentile: expected 0 to 100, got {self.conf_percentile}"
            )
        if not isinstance(self.max_points, int) or self.max_points < 0:
            raise InputError(
                f"points.max_points: expected a whole number, 0 for no limit, got {self.max_points}"
            )
        if self.voxel and not 1e-5 <= self.voxel <= 1:  # below, float32 points differ no more
            raise InputError(f"points.voxel: expected 0 (off) or 1e-5 to 1, got {self.voxel}")


@dataclass(frozen=True, eq=False)
class PointCloud:
    """N points with the pixels that they come from, ordered by view, then row, then column.

    Attributes:
        xyz: float32 [N, 3] in the world of the scene.
        rgb: uint8 [N, 3], the color of the pixel.
        conf: float32 [N].
        view: int32 [N].
        pixel: int32 [N, 2], (u, v) in the network image.
    """

    xyz: np.ndarray
    rgb: np.ndarray
    conf: np.ndarray
    view: np.ndarray
    pixel: np.ndarray

    def __len__(self) -> int:
        return len(self.xyz)


def confidence_mask(scene: Scene, options: PointOptions) -> np.ndarray:
    """Pixels with a valid point that pass the confidence percentile.

    Returns:
        bool [S, H, W].

    Raises:
        InputError: there is no point head, or no pixel has a valid point.
    """
    return _confident(scene, options)[2]


def select_points(scene: Scene, options: PointOptions) -> PointCloud:
    """The points that the options keep; the same for the same scene and options.

    Raises:
        InputError: there is no point head, or no pixel has a valid point.
    """
    points, conf, mask = _confident(scene, options)
    flat = np.flatnonzero(mask)
    points, conf = points.reshape(-1, 3), conf.reshape(-1)
    if options.voxel:
        flat = flat[_surest_of_voxels(points[flat], conf[flat], options.voxel)]
    flat = flat[_spread(len(flat), options.max_points)]
    height, width = scene.size
    view = flat // (height * width)
    row = flat // width
    pixel = np.stack([flat - row * width, row - view * height], -1)
    return PointCloud(
        xyz=points[flat],
        rgb=scene.images.reshape(-1, 3)[flat],
        conf=conf[flat],
        view=view.astype(np.int32),
        pixel=pixel.astype(np.int32),
    )


def thinned(cloud: PointCloud, limit: int) -> PointCloud:
    """At most `limit` of the points, spread evenly; 0 is no limit."""
    kept = _spread(len(cloud), limit)
    columns = (cloud.xyz, cloud.rgb, cloud.conf, cloud.view, cloud.pixel)
    return PointCloud(*(column[kept] for column in columns))


def diagonal(xyz: np.ndarray) -> float:
    """Robust size of N points [N, 3]: diagonal of the box from the 5th to the 95th percentile.

    Of many points an even sample counts.
    """
    low, high = np.percentile(xyz[_spread(len(xyz), _SAMPLE)], [5, 95], axis=0)
    return float(np.linalg.norm(high - low))


def _confident(scene: Scene, options: PointOptions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    points, conf, valid = scene.points(options.source)
    values = conf[valid]
    if not values.size:
        other = "head" if options.source == "depth" else "depth"
        raise InputError(
            f"points: no pixel has a valid point with points.source={options.source};"
            f" look at the depth maps, or try points.source={other}"
        )
    # a value that occurs, so that at least the pixels that have it stay
    limit = np.percentile(values, options.conf_percentile, method="lower")
    mask = valid & (conf >= limit)
    if options.drop_edges:
        mask &= ~_edges(scene, points, valid, options.source)
        if not mask.any():
            raise InputError(
                "points: every pixel that is sure enough lies on an edge; lower"
                " points.conf_percentile, or set points.drop_edges=false"
            )
    return points, conf, mask


def _edges(scene: Scene, points: np.ndarray, valid: np.ndarray, source: PointSource) -> np.ndarray:
    """bool [S, H, W]: see `exports.edges`."""
    at_edges = np.empty_like(valid)
    for s in range(scene.views):
        depth = scene.depth[s]
        if source == "head":
            depth = np.asarray(geometry.transform_points(scene.extrinsics[s], points[s]))[..., 2]
        at_edges[s] = edges(points[s], depth, valid[s])
    return at_edges


def _surest_of_voxels(xyz: np.ndarray, conf: np.ndarray, voxel: float) -> np.ndarray:
    """Indices of the points to keep, in order; the first where confidences tie."""
    edge = diagonal(xyz) * voxel or 1.0
    cells = np.floor(xyz.astype(np.float64) / edge).clip(-_CELL_LIMIT, _CELL_LIMIT)
    x, y, z = cells.astype(np.int64).T
    # One number per cell. It may wrap around: only cells 2^21 edges apart could meet.
    key = x + (y << 21) + (z << 42)
    surest_first = np.argsort(-conf, kind="stable")
    _, first = np.unique(key[surest_first], return_index=True)
    return np.sort(surest_first[first])


def _spread(count: int, limit: int) -> np.ndarray | slice:
    """At most `limit` indices of `count`: one of each of `limit` equal runs; 0 is no limit.

    Which one is drawn, because a fixed step would draw stripes across the images.
    """
    if not limit or count <= limit:
        return slice(None)
    edges = np.arange(limit + 1) * count // limit
    lengths = np.diff(edges)
    return edges[:-1] + (np.random.default_rng(0).random(limit) * lengths).astype(np.int64)
