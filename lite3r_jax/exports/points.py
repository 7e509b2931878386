"""Selects the points of a scene to export by masks, confidence, voxel grid and number."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np

from lite3r_jax.errors import InputError
from lite3r_jax.exports.masks import left_out, parse_masks
from lite3r_jax.scene import PointSource, Scene

AUTO = -1.0
"""Value of `PointOptions.conf_percentile` that derives the limit from what the confidence means."""
_ERRORS = 3.0  # times the expected error of the median pixel
_PROBABLE = 0.1  # of the example of pi^3
_SAMPLE = 100_000  # points of which the size of a scene is told
_CELL_LIMIT = float(1 << 40)  # keeps the cells of points far outside within int64


@dataclass(frozen=True)
class PointOptions:
    """Options for which points of a scene are exported.

    Attributes:
        source: "depth": depth maps unprojected with the cameras; "head": the model's point head.
        conf_percentile: pixels surer than this percentage of all valid pixels of the scene that
            no mask leaves out are kept, and those that tie with the limit, so that a constant
            confidence keeps all; 0 keeps all, 100 only the surest. -1: by what the confidence
            means, see `confidence_limit`.
        max_points: more than this many are thinned, spread evenly over views and pixels; 0 is no
            limit.
        voxel: edge of the cubes in each of which only the surest point is kept, as a fraction of
            `diagonal` of the points; 0 is off. Comes after the confidence, before the number.
        mask: pixels that give no points, with commas between; depth maps keep them. sky: see
            `exports.sky`; black, white: backgrounds of these colors; edges: of objects, where
            points hang between foreground and background, see `exports.edges`.
        mask_folder: folder of masks with the names of the photos, 0 where a photo gives no points,
            see `exports.masks`; of several scenes a folder for each in it. "" without.
    """

    source: PointSource = "depth"
    conf_percentile: float = AUTO
    max_points: int = 1_000_000
    voxel: float = 0.0
    mask: str = ""
    mask_folder: str = ""

    def __post_init__(self):
        if self.source not in get_args(PointSource):
            raise InputError(f"points.source: expected depth or head, got {self.source!r}")
        if not 0 <= self.conf_percentile <= 100 and self.conf_percentile != AUTO:
            raise InputError(
                "points.conf_percentile: expected 0 to 100, or -1 for what the confidence means,"
                f" got {self.conf_percentile}"
            )
        if not isinstance(self.max_points, int) or self.max_points < 0:
            raise InputError(
                f"points.max_points: expected a whole number, 0 for no limit, got {self.max_points}"
            )
        if self.voxel and not 1e-5 <= self.voxel <= 1:  # below, float32 points differ no more
            raise InputError(f"points.voxel: expected 0 (off) or 1e-5 to 1, got {self.voxel}")
        parse_masks(self.mask)


@dataclass(frozen=True, eq=False)
class PointCloud:
    """N points with the pixels that they come from, ordered by view, then row, then column.

    Attributes:
        xyz: float32 [N, 3] in the world of the scene.
        rgb: uint8 [N, 3], the color of the pixel.
        conf: float32 [N], confidence of each point.
        view: int32 [N], view of each point.
        pixel: int32 [N, 2], (u, v) in the network image.
        unit: unit of lengths, see `Scene`.
    """

    xyz: np.ndarray
    rgb: np.ndarray
    conf: np.ndarray
    view: np.ndarray
    pixel: np.ndarray
    unit: str = "model"

    def __len__(self) -> int:
        return len(self.xyz)


def confidence_limit(conf: np.ndarray, percentile: float) -> float:
    """Returns the least confidence of a pixel that is kept.

    AUTO has two meanings. Values of 1 and more (VGGT, Depth Anything 3) are trained with the loss
    conf * error - a log(conf), which is least where conf = a / error: pixels whose expected error
    is more than three times that of the median pixel are dropped. Values from 0 to 1 (pi^3) are
    probabilities that a point is right: pixels below 0.1 are dropped, as in the example of its
    authors. Half of the pixels stay in any case.

    Args:
        conf: [N], confidence of the N >= 1 pixels that count.
        percentile: see `PointOptions.conf_percentile`.
    """
    if percentile == AUTO:
        median = float(np.median(conf))
        return min(_PROBABLE, median) if conf.max() <= 1 else median / _ERRORS
    # a value that occurs, so that at least the pixels that have it stay
    return float(np.percentile(conf, percentile, method="lower"))


def hidden_percentage(conf: np.ndarray, percentile: float) -> float:
    """Returns the initial percentage of a slider that hides the least confident points.

    Args:
        conf: [N], confidence of all points that the slider may show.
        percentile: see `PointOptions.conf_percentile`.
    """
    if percentile != AUTO:
        return percentile
    share = float((conf < confidence_limit(conf, percentile)).mean())
    return float(np.floor(100 * share) + 1) if share else 0.0  # a whole number that hides them all


def confidence_mask(scene: Scene, options: PointOptions) -> np.ndarray:
    """Finds the pixels whose valid point neither masks nor the confidence limit exclude.

    Returns:
        bool [S, H, W].

    Raises:
        InputError: as `select_points`.
    """
    return _confident(scene, options, {})[2]


def select_points(
    scene: Scene, options: PointOptions, backgrounds: Mapping[str, np.ndarray] | None = None
) -> PointCloud:
    """Selects the points of a scene that the options keep; deterministic.

    Args:
        scene: the scene.
        options: which points are kept.
        backgrounds: masks of `masks.background` that were computed before, by kind; None: none.

    Raises:
        InputError: there is no point head, no pixel has a valid point or all are masked, or a mask
            is missing or of another size than its photo.
    """
    points, conf, mask = _confident(scene, options, backgrounds or {})
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
        unit=scene.unit,
    )


def thinned(cloud: PointCloud, limit: int) -> PointCloud:
    """Reduces a point cloud to at most `limit` points, spread evenly; 0 is no limit."""
    kept = _spread(len(cloud), limit)
    columns = (cloud.xyz, cloud.rgb, cloud.conf, cloud.view, cloud.pixel)
    return PointCloud(*(column[kept] for column in columns), unit=cloud.unit)


def diagonal(xyz: np.ndarray) -> float:
    """Returns the robust size of points [N, 3]: diagonal of their 5th to 95th percentile box.

    Of many points only an even sample is used.
    """
    low, high = np.percentile(xyz[_spread(len(xyz), _SAMPLE)], [5, 95], axis=0)
    return float(np.linalg.norm(high - low))


def _confident(
    scene: Scene, options: PointOptions, backgrounds: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    points, conf, valid = scene.points(options.source)
    if not valid.any():
        other = "head" if options.source == "depth" else "depth"
        raise InputError(
            f"points: no pixel has a valid point with points.source={options.source};"
            f" look at the depth maps, or try points.source={other}"
        )
    kinds, folder = parse_masks(options.mask), options.mask_folder
    if kinds or folder:
        valid &= ~left_out(scene, kinds, folder, points, valid, options.source, backgrounds)
        if not valid.any():
            given = [f"points.mask={options.mask}"] * bool(kinds)
            given += [f"points.mask_folder={folder}"] * bool(folder)
            raise InputError(
                f"points: {' and '.join(given)} mask every pixel that has a point; mask less"
            )
    return points, conf, valid & (conf >= confidence_limit(conf[valid], options.conf_percentile))


def _surest_of_voxels(xyz: np.ndarray, conf: np.ndarray, voxel: float) -> np.ndarray:
    """Returns ascending indices of the most confident point of each voxel, the first if tied."""
    edge = diagonal(xyz) * voxel or 1.0
    cells = np.floor(xyz.astype(np.float64) / edge).clip(-_CELL_LIMIT, _CELL_LIMIT)
    x, y, z = cells.astype(np.int64).T
    # One number per cell. It may wrap around: only cells 2^21 edges apart could meet.
    key = x + (y << 21) + (z << 42)
    surest_first = np.argsort(-conf, kind="stable")
    _, first = np.unique(key[surest_first], return_index=True)
    return np.sort(surest_first[first])


def _spread(count: int, limit: int) -> np.ndarray | slice:
    """Returns at most `limit` of `count` indices, one of each of `limit` equal runs; 0: all.

    The index within a run is random, because a fixed step would draw stripes across the images.
    """
    if not limit or count <= limit:
        return slice(None)
    edges = np.arange(limit + 1) * count // limit
    lengths = np.diff(edges)
    return edges[:-1] + (np.random.default_rng(0).random(limit) * lengths).astype(np.int64)
