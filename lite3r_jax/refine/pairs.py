"""Chooses the pairs of views to match by predicted overlap and baseline, a few for each view."""

import numpy as np

from lite3r_jax.refine.geometry_of_views import Cameras, DepthLookup, to_photo

_GRID = 12  # points across and down a view that are looked for in the others
_NEAR_ENOUGH = 0.25  # relative difference of depths of the same thing, as far as they are predicted
_GOOD_ANGLE = 8.0  # degrees between rays from which on a wider baseline adds little
_WIDE_ANGLE = 45.0  # beyond, things look too different
_LEAST = 0.05  # overlap of views that are worth matching


def choose_pairs(cameras: Cameras, depth: DepthLookup, partners: int) -> list[list[int]]:
    """Chooses for every view the partner views that it is matched with.

    Overlap is the share of a grid of points of one view that the other sees at about the predicted
    depth, the larger of both directions. It counts more with a baseline wide enough to determine
    depth, and less where the viewing angles differ too much. The pairs of a maximum spanning tree
    are always chosen, so that views are connected as far as they overlap at all.

    Args:
        cameras: predicted cameras.
        depth: predicted depth.
        partners: largest number of partners of each view, besides those of the tree.

    Returns:
        For each view the indices of its partners, ascending; if b is a partner of a, a is one of b.
    """
    from scipy.sparse.csgraph import minimum_spanning_tree

    score = _scores(cameras, depth)
    score = np.maximum(score, score.T)
    chosen = np.zeros(score.shape, bool)
    best = np.argsort(-score, axis=1, kind="stable")[:, :partners]
    np.put_along_axis(chosen, best, True, axis=1)
    tree = minimum_spanning_tree(np.where(score >= _LEAST / 4, 2 - score, 0))
    chosen[tree.nonzero()] = True
    chosen &= score >= _LEAST / 4
    chosen |= chosen.T
    return [np.flatnonzero(row).tolist() for row in chosen]


def _scores(cameras: Cameras, depth: DepthLookup) -> np.ndarray:
    """Scores in float64 [S, S] how well points of one view (row) can be matched in another."""
    scene, views = depth.scene, depth.scene.views
    height, width = scene.size
    u, v = np.meshgrid(
        (np.arange(_GRID) + 0.5) * width / _GRID - 0.5,
        (np.arange(_GRID) + 0.5) * height / _GRID - 0.5,
    )
    grid = np.stack([u.ravel(), v.ravel()], -1)
    centers, everyone = cameras.centers, np.arange(views)
    score = np.zeros((views, views))
    for a in range(views):
        view = np.full(len(grid), a)
        pixels = to_photo(scene, view, grid)
        z = depth.at(view, pixels)
        points = centers[a] + cameras.rays(view, pixels)[z > 0] * z[z > 0, None]
        if not len(points):
            continue
        into = np.repeat(everyone, len(points))
        again = np.tile(points, (views, 1))
        place, there = cameras.project(into, again)
        seen = depth.at(into, np.where((there > 0)[:, None], place, -1e9))
        visible = (there > 0) & (seen > 0) & (np.abs(seen - there) < _NEAR_ENOUGH * there)
        one, other = again - centers[a], again - centers[into]
        cosine = (one * other).sum(-1) / np.linalg.norm(one, axis=-1)
        cosine /= np.maximum(np.linalg.norm(other, axis=-1), 1e-12)
        angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
        worth = np.clip(0.3 + 0.7 * angle / _GOOD_ANGLE, 0, 1)
        worth *= np.clip(2 - angle / _WIDE_ANGLE, 0.1, 1)
        score[a] = (visible * worth).reshape(views, -1).sum(1) / len(grid)
    np.fill_diagonal(score, 0)
    return score
