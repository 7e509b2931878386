"""Fits predicted depth to refined cameras by a scale for each view, and a shift where it helps."""

from dataclasses import dataclass

import numpy as np

from lite3r_jax.refine.observations import Observations

_FEW = 10  # points below which a view takes the scale of the others
_MANY = 60  # points from which a shift is tried
_BETTER = 0.8  # error with a shift over that without, on points that were not fitted, to be taken
_ROUNDS = 20


@dataclass(frozen=True, eq=False)
class DepthFit:
    """Scale and shift of each view that map predicted depth to depth of the refined cameras.

    Attributes:
        scale: float64 [S], positive.
        shift: float64 [S]; 0 where it does not help.
    """

    scale: np.ndarray
    shift: np.ndarray

    def __call__(self, depth: np.ndarray) -> np.ndarray:
        """Returns depth [S, H, W] scaled and shifted; depth that is not positive stays as it is."""
        wide = (slice(None), None, None)
        moved = depth * self.scale[wide].astype(np.float32)
        moved = moved + self.shift[wide].astype(np.float32)
        return np.where(depth > 0, moved, depth)


def fit_depth(
    obs: Observations,
    predicted: np.ndarray,
    refined: np.ndarray,
    conf: np.ndarray,
    least: np.ndarray,
) -> DepthFit:
    """Fits predicted depth to the depth of refined points, view by view.

    The scale is a median of ratios, weighted by confidence. A shift is taken where it lowers the
    error on held-out points by a fifth (fitted to even tracks and tested on odd ones, and the other
    way round), and leaves all depth positive.

    Args:
        obs: M observations of refined points.
        predicted: predicted depth [M] at the observations; 0: none.
        refined: depth [M] of the refined point in the camera of the view.
        conf: confidence [M] of the predicted depth; larger is more certain.
        least: smallest predicted depth [S] of each view.

    Returns:
        The fit; views with few points have the median scale of the others, or 1.
    """
    views = len(least)
    scale, shift = np.full(views, np.nan), np.zeros(views)
    good = (predicted > 0) & (refined > 0) & np.isfinite(conf) & (conf > 0)
    for view in range(views):
        mine = good & (obs.view == view)
        if mine.sum() < _FEW:
            continue
        d, z, w, odd = predicted[mine], refined[mine], conf[mine], obs.track[mine] % 2 == 1
        scale[view] = _scale(d, z, w)
        if len(d) < _MANY:
            continue
        plain, shifted = 0.0, 0.0
        for half in (odd, ~odd):
            plain += _error(d[~half], z[~half], _scale(d[half], z[half], w[half]), 0.0)
            shifted += _error(d[~half], z[~half], *_line(d[half], z[half], w[half]))
        a, b = _line(d, z, w)
        if shifted < _BETTER * plain and a > 0 and a * least[view] + b > 0.1 * a * least[view]:
            scale[view], shift[view] = a, b
    others = np.nanmedian(scale) if np.isfinite(scale).any() else 1.0
    return DepthFit(np.where(np.isfinite(scale), scale, others), shift)


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """Returns the weighted median: the value with half of the weight on either side."""
    order = np.argsort(values, kind="stable")
    share = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(share, 0.5 * share[-1])])


def _scale(d: np.ndarray, z: np.ndarray, w: np.ndarray) -> float:
    return weighted_median(z / d, w)


def _error(d: np.ndarray, z: np.ndarray, a: float, b: float) -> float:
    return float(np.mean(np.abs(a * d + b - z) / z)) if len(d) else 0.0


def _line(d: np.ndarray, z: np.ndarray, w: np.ndarray) -> tuple[float, float]:
    """Returns (a, b) of least weighted sum of |a d + b - z| / z, by reweighted least squares."""
    a, b = _scale(d, z, w), 0.0
    for _ in range(_ROUNDS):
        off = np.abs(a * d + b - z) / z
        weight = w / z**2 / np.maximum(off, 1e-3)
        mean_d, mean_z = np.average(d, weights=weight), np.average(z, weights=weight)
        spread = (weight * (d - mean_d) ** 2).sum()
        if spread <= 1e-12 * (weight * d**2).sum():
            return a, b
        a = float((weight * (d - mean_d) * (z - mean_z)).sum() / spread)
        b = float(mean_z - a * mean_d)
    return a, b
