"""Matches by SIFT (Lowe, IJCV 2004; OpenCV's): features that look alike near predicted places.

Descriptors are compared as RootSIFT: square roots of the L1-normalized descriptors (Arandjelovic
and Zisserman, CVPR 2012). In a pair of views only features within reach of the place that predicted
geometry gives can match, so that repeated texture does not mislead; a match has to be the best in
both directions, and better than the second best by Lowe's ratio.
"""

import numpy as np

from lite3r_jax.refine.matching import Arrays, Task, merge
from lite3r_jax.refine.observations import Observations

_PER_CORNER = 4  # features for each corner that is asked for: most have no match
_CONTRAST = 0.01  # OpenCV's 0.04 leaves little of rooms with plain walls
_RATIO = 0.85  # of distances to the best and the second best
_MARGIN = 4  # pixels from the border


def match(task: Task) -> Observations:
    """Matches SIFT features between the views, and merges the matches into tracks."""
    features = [_features(task, view) for view in range(len(task.gray))]
    starts = np.cumsum([0, *(len(pixels) for pixels, _ in features)])
    ones, twos, worths = [], [], []
    for a in range(len(features)):
        later = [b for b in task.pairs[a] if b > a]
        matches = task.keep(a, lambda a=a, later=later: _matches(task, features, a, later))
        ones.append(matches["one"] + starts[a])
        twos.append(matches["two"] + starts[matches["partner"]])
        worths.append(matches["alike"])
        task.progress()
    view = np.repeat(np.arange(len(features)), np.diff(starts))
    pixel = np.concatenate([pixels for pixels, _ in features])
    return merge(view, pixel, *(np.concatenate(each) for each in (ones, twos, worths)))


def _features(task: Task, view: int) -> tuple[np.ndarray, np.ndarray]:
    """Detects features with depth; returns photo pixels [N, 2] and descriptors uint8 [N, 128]."""
    import cv2

    sift = cv2.SIFT.create(nfeatures=_PER_CORNER * task.corners, contrastThreshold=_CONTRAST)
    points, descriptors = sift.detectAndCompute(task.gray[view], None)
    if not points:
        return np.zeros((0, 2)), np.zeros((0, 128), np.uint8)
    places = np.array([point.pt for point in points], np.float64)
    height, width = task.gray[view].shape
    edge = (width - 1 - _MARGIN, height - 1 - _MARGIN)
    good = np.all((places >= _MARGIN) & (places <= edge), axis=-1)
    of = np.full(len(places), view)
    pixels = task.to_photo(of, places)
    good &= task.depth.at(of, pixels) > 0
    return pixels[good], np.asarray(descriptors)[good].astype(np.uint8)


def _matches(
    task: Task, features: list[tuple[np.ndarray, np.ndarray]], a: int, partners: list[int]
) -> Arrays:
    """Matches a view with its partners; returns indices of features and their similarities."""
    pixels, descriptors = features[a]
    mine = _unit(descriptors)
    rows = [_pair(task, a, b, pixels, mine, *features[b]) for b in partners]
    one, two, alike = (np.concatenate([np.zeros(0), *(row[i] for row in rows)]) for i in range(3))
    partner = np.repeat(np.array(partners, np.int64), [len(row[0]) for row in rows])
    return {
        "one": one.astype(np.int64), "two": two.astype(np.int64),
        "partner": partner, "alike": alike.astype(np.float32),
    }  # fmt: skip


def _pair(
    task: Task,
    a: int,
    b: int,
    pixels: np.ndarray,
    mine: np.ndarray,
    others: np.ndarray,
    theirs: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matches views a and b; returns indices of features in a and in b, and their similarities."""
    place = task.places(a, b, pixels)
    seen = np.flatnonzero(np.isfinite(place).all(-1))
    nothing = np.zeros(0, np.intp)
    if not len(seen) or len(others) < 2:
        return nothing, nothing, np.zeros(0)
    side = float(task.depth.scene.source_sizes[b].max())
    u, v = (place[seen, axis, None] - others[:, axis] for axis in (0, 1))
    alike = np.where(u**2 + v**2 < (task.reach * side) ** 2, mine[seen] @ _unit(theirs).T, -1)
    best, back = np.argmax(alike, axis=1), np.argmax(alike, axis=0)
    row = np.arange(len(seen))
    first = alike[row, best]
    alike[row, best] = -1
    # on the unit sphere the squared distance is 2 - 2 cos; nothing else within reach: 2
    distance, second = (np.sqrt(np.maximum(2 - 2 * x, 0)) for x in (first, alike.max(axis=1)))
    good = (first > 0) & (back[best] == row) & (distance < _RATIO * second)
    return seen[good], best[good], first[good]


def _unit(descriptors: np.ndarray) -> np.ndarray:
    """Converts descriptors to RootSIFT, float32 vectors of length 1."""
    values = descriptors.astype(np.float32)
    return np.sqrt(values / np.maximum(values.sum(-1, keepdims=True), 1))
