"""Matches by the track head of a model: corners of some views are tracked into their partners.

Every view has to be a query view or a partner of a few query views, which are chosen greedily; for
each query view the model runs over the view and its partners, so that the cost grows with the
number of views. Matches have the resolution of the network images, and no more.
"""

from collections.abc import Sequence

import numpy as np

from lite3r_jax.errors import InputError
from lite3r_jax.refine.geometry_of_views import to_network, to_photo
from lite3r_jax.refine.klt import find_corners
from lite3r_jax.refine.matching import Arrays, Task, merge
from lite3r_jax.refine.observations import Observations

_COVER = 3  # query views that every view is followed from, or is one of
_VISIBLE, _SURE = 0.5, 0.2  # least visibility and confidence
_SAME = 1.0  # network pixels within which what was followed is a corner of the other view


def match(task: Task) -> Observations:
    """Tracks corners of the query views by the model, and merges the matches into tracks."""
    if task.tracker is None:
        raise InputError(
            "refine.matches=track: there is no track head; choose klt or sift, or give a tracker"
        )
    queries, matches = query_views(task.pairs), {}
    for a in range(len(task.gray)):
        if a in queries:
            matches[a] = task.keep(a, lambda a=a: _followed(task, a))
        task.progress()
    view = [np.full(len(each["corners"]), a) for a, each in matches.items()]
    pixel = [each["corners"] for each in matches.values()]
    starts = dict(zip(matches, np.cumsum([0, *map(len, pixel)]).tolist(), strict=False))
    count = sum(map(len, pixel))
    ones, twos, worths = [], [], []
    for a, each in matches.items():
        place = np.arange(len(each["partner"])) + count
        count += len(place)
        view.append(each["partner"])
        pixel.append(each["pixel"])
        for b in set(each["partner"].tolist()) & set(matches):
            mine = np.flatnonzero(each["partner"] == b)
            place[mine] = _snapped(task, b, matches[b]["corners"], each["pixel"][mine], place[mine],
                                   starts[b])  # fmt: skip
        ones.append(each["corner"] + starts[a])
        twos.append(place)
        worths.append(each["confidence"])
    joined = (np.concatenate(each) for each in (view, pixel, ones, twos, worths))
    return merge(*joined)


def query_views(pairs: Sequence[Sequence[int]]) -> list[int]:
    """Chooses query views so that each view is a query, or a partner of `_COVER` queries.

    A view with fewer than `_COVER` partners needs all of its partners as queries.
    """
    need = np.array([min(_COVER, len(partners)) for partners in pairs])
    chosen: list[int] = []
    while True:
        gain = [
            -1 if a in chosen else int((need[partners] > 0).sum() + max(need[a], 0))
            for a, partners in enumerate(map(list, pairs))
        ]
        if not (need > 0).any() or max(gain, default=0) <= 0:
            return chosen
        a = int(np.argmax(gain))
        chosen.append(a)
        need[[*pairs[a]]] -= 1
        need[a] = 0


def _followed(task: Task, a: int) -> Arrays:
    """Detects corners [N, 2] of a view, and tracks them into its partners, in photo pixels."""
    assert task.tracker is not None
    scene, partners = task.depth.scene, list(task.pairs[a])
    corners = find_corners(task.gray[a], task.scales[a], a, task.depth, np.zeros((0, 2)),
                           task.corners)  # fmt: skip
    of = np.full(len(corners), a)
    corners = task.to_photo(of, corners)
    columns: list[tuple[np.ndarray, ...]] = []
    if len(corners) and partners:
        points = to_network(scene, of, corners).astype(np.float32)
        places, visible, sure = task.tracker([a, *partners], points)
        for b, place, seen, conf in zip(partners, places[1:], visible[1:], sure[1:], strict=True):
            pixels = to_photo(scene, np.full(len(place), b), place.astype(np.float64))
            good = (seen > _VISIBLE) & (conf > _SURE) & task.near(a, b, corners, pixels)
            index = np.flatnonzero(good)
            columns.append((index, np.full(len(index), b), pixels[index], conf[index]))
    empty = (np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros((0, 2)), np.zeros(0))
    corner, partner, pixel, confidence = (
        np.concatenate(each) for each in zip(empty, *columns, strict=True)
    )
    return {
        "corners": corners, "corner": corner, "partner": partner, "pixel": pixel,
        "confidence": confidence,
    }  # fmt: skip


def _snapped(
    task: Task, b: int, corners: np.ndarray, pixels: np.ndarray, place: np.ndarray, start: int
) -> np.ndarray:
    """Replaces tracked places by the corners of view b that are at the same pixels."""
    if not len(corners):
        return place
    from scipy.spatial import KDTree

    low, high = task.depth.scene.boxes[b, :2], task.depth.scene.boxes[b, 2:]
    pixel = float((task.depth.scene.source_sizes[b] / (high - low)).max())  # of the network
    off, nearest = KDTree(corners).query(pixels)
    return np.where(off < _SAME * pixel, nearest + start, place)
