"""Solves cameras from matches in rounds of bundle adjustment, triangulation and filtering."""

from dataclasses import dataclass

import numpy as np

from lite3r_jax.refine.adjustment import Lenses, adjust
from lite3r_jax.refine.geometry_of_views import Cameras
from lite3r_jax.refine.observations import Observations, angles, errors, lengths, triangulate

LIMIT = 2.0
"""Reprojection error, in pixels of images up to 1,000 pixels, above which a match is an outlier."""
_FIRST, _LIMITS = 8.0, (4.0, 2.0, 1.0)  # filters after each round, times the limit
_LEAST_ANGLE = 0.5  # degrees between rays of a point that is kept
_LEAST_MATCHES = 20  # of a view that is tied
SOME = 400
"""Number of observations of a view that suffices for a bundle adjustment in the rounds.
Further tracks are left out to save time."""
_MANY = 1500  # likewise in the last adjustment
_ROUGH, _FINE = 1e-4, 1e-6  # relative change of the cost at which the rounds end, and the last one


@dataclass(frozen=True, eq=False)
class Solution:
    """Adjusted cameras and triangulated points, with the observations and views that hold them.

    Attributes:
        cameras: cameras of all views; those of views that are not tied have not changed.
        points: float64 [N, 3], points of all tracks.
        used: bool [M], observations that fit; of very many, the last adjustment used only a part.
        tied: bool [S], views that are connected by enough matches.
        parallax: pixels that the median point moves between views relative to a point at infinity.
    """

    cameras: Cameras
    points: np.ndarray
    used: np.ndarray
    tied: np.ndarray
    parallax: float = np.inf


def limits(sizes: np.ndarray) -> np.ndarray:
    """Returns `LIMIT` [S] scaled to photos of the sizes (width, height) [S, 2], in their pixels."""
    return LIMIT * np.maximum(1, sizes.max(-1) / 1000)


def solve(
    obs: Observations,
    cameras: Cameras,
    lenses: Lenses,
    fixed_poses: bool,
    precisely: bool = True,
) -> Solution:
    """Adjusts cameras to matches, and rejects matches that do not fit.

    Args:
        obs: observations, of two or more views for each track.
        cameras: predicted cameras.
        lenses: which views share a camera, and which intrinsics are adjusted.
        fixed_poses: whether poses are known and do not change.
        precisely: whether the last adjustment continues until the cost hardly changes and uses more
            observations than the others, which takes most of the time if there are many views; not
            needed for cameras that only guide new matches.
    """
    limit = limits(lenses.sizes)[obs.view]
    scale = float(np.median(limit)) / 2
    start = cameras
    cameras = lenses.joined(cameras)
    points = triangulate(obs, cameras, 4 * scale)
    off = errors(obs, cameras, points)
    used, tied = _tied(obs, np.isfinite(off), len(lenses.group))
    if not used.any():
        return Solution(start, points, used, tied)
    parallax = np.inf
    first = float(np.clip(np.median(off[used]), scale, _FIRST * scale))
    for loss, bound in zip((first, scale, scale), _LIMITS, strict=True):
        sub, numbers = obs.where(enough(obs, used, SOME))
        cameras, points[numbers] = adjust(
            sub, cameras, points[numbers], lenses, loss, fixed_poses, _ROUGH
        )
        points = triangulate(obs, cameras, scale, points)
        off = errors(obs, cameras, points)
        seen = lengths(obs, off < bound * limit) >= 2
        wide = angles(obs, cameras, points)
        if seen.any():
            focal = np.median(cameras.intrinsics[:, 0, 0])
            parallax = float(np.median(np.radians(wide[seen])) * focal)
        wide = wide > _LEAST_ANGLE
        used, tied = _tied(obs, (off < bound * limit) & wide[obs.track], len(tied))
        if not used.any():
            break
    if used.any():
        chosen = enough(obs, used, _MANY if precisely else SOME)
        sub, numbers = obs.where(chosen)
        tolerance = _FINE if precisely else _ROUGH
        cameras, points[numbers] = adjust(
            sub, cameras, points[numbers], lenses, scale, fixed_poses, tolerance
        )
        if chosen.sum() < used.sum():  # cameras hardly moved, the points of the others follow
            points = triangulate(obs, cameras, scale, points)
    kept = tied[:, None, None]
    cameras = Cameras(
        np.where(kept, cameras.extrinsics, start.extrinsics),
        np.where(kept, cameras.intrinsics, start.intrinsics),
        None if cameras.radial is None else np.where(tied, cameras.radial, 0.0),
    )
    return Solution(cameras, points, used, tied, parallax)


def enough(obs: Observations, used: np.ndarray, count: int) -> np.ndarray:
    """Selects observations bool [M] of the longest tracks, until each view has `count` of them.

    A track is left out where all of its views have enough without it.
    """
    length = lengths(obs, used)
    have = np.zeros(int(obs.view.max(initial=-1)) + 1, np.int64)
    if (np.bincount(obs.view[used], minlength=len(have)) <= count).all():
        return used
    index = np.flatnonzero(used)
    starts = np.searchsorted(obs.track[index], np.arange(obs.tracks + 1))
    taken = np.zeros(obs.tracks, bool)
    for track in np.argsort(-length, kind="stable").tolist():
        views = obs.view[index[starts[track] : starts[track + 1]]]
        if len(views) and (have[views] < count).any():
            taken[track] = True
            have[views] += 1
    return used & taken[obs.track]


def _tied(obs: Observations, good: np.ndarray, views: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns which observations count, bool [M], and which views are connected, bool [S].

    Tracks need two good observations. If there are more than two views, only tracks in three or
    more views connect views, and a view needs enough of such observations, since matches between
    two views alone do not determine the length of their baseline.
    """
    least = min(3, views)
    tied = np.ones(views, bool)
    while True:
        good = good & tied[obs.view]
        length = lengths(obs, good)[obs.track]
        good &= length >= 2
        counts = np.bincount(obs.view[good & (length >= least)], minlength=views)
        enough = (counts >= _LEAST_MATCHES) & _largest_part(obs, good & (length >= least), views)
        if (enough == tied).all():
            return good, tied
        tied = tied & enough


def _largest_part(obs: Observations, good: np.ndarray, views: int) -> np.ndarray:
    """Returns bool [S]: the views of the largest connected component of views that share tracks."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    track, view = obs.track[good], obs.view[good]
    size = views + obs.tracks
    graph = coo_array((np.ones(len(track)), (view, views + track)), shape=(size, size))
    _, label = connected_components(graph, directed=False)
    label = label[:views]
    sizes = np.bincount(label, minlength=size)[label]
    return label == label[np.argmax(sizes)]
