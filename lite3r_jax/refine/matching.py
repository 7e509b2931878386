"""The input of a matcher, and the merging of matches between pairs of views into tracks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lite3r_jax.refine.geometry_of_views import Cameras, DepthLookup
from lite3r_jax.refine.observations import Observations

Arrays = Mapping[str, np.ndarray]
Keep = Callable[[int, Callable[[], Arrays]], Arrays]
"""Takes a view and a function that makes its matches; returns its matches, stored or new."""

NEAR_ENOUGH = 0.25
"""Largest relative difference between a view's depth at a projected point and the point's own."""
REACH = (0.15, 0.05)
"""Largest distance of a match from its predicted place, in the first round and in later rounds.
It is a share of the longer side of the photo, for matchers that do not search around the predicted
place only."""


class Tracker(Protocol):
    """Interface that tracks points of one view into others, as the track head of VGGT does."""

    def __call__(
        self, views: Sequence[int], points: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tracks points of the first view into all views.

        Args:
            views: indices of the views; the points are in the first of them.
            points: float32 [N, 2] in pixels of the network images, centers at integers.

        Returns:
            (pixels [len(views), N, 2] of the network images, visibility and confidence
            [len(views), N] in [0, 1]).
        """
        ...


@dataclass(frozen=True, eq=False)
class Task:
    """The input of one round of matching: images, predicted geometry, pairs of views, and limits.

    Attributes:
        gray: uint8 [h, w] of every view: the photos in gray, perhaps made smaller.
        scales: [S, 2], size of the gray images over that of the photos.
        cameras: predicted cameras, in pixels of the photos.
        depth: predicted depth; there are matches only where it is usable.
        pairs: partners of every view, with which it is matched.
        corners: number of corners of each view.
        keep: returns stored matches of a view, or makes and stores them, see `Keep`.
        reach: how far off its predicted place a match may be, as a share of the longer side.
        tracker: tracker of points, needed by the matcher `track`.
        progress: called after each view.
    """

    gray: Sequence[np.ndarray]
    scales: np.ndarray
    cameras: Cameras
    depth: DepthLookup
    pairs: Sequence[Sequence[int]]
    corners: int
    keep: Keep = lambda view, make: make()
    reach: float = REACH[0]
    tracker: Tracker | None = None
    progress: Callable[[], object] = lambda: None

    def to_photo(self, view: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        """Converts pixels [M, 2] of gray images to pixels of the photos, centers at integers."""
        return (pixels + 0.5) / self.scales[view] - 0.5

    def places(self, a: int, b: int, pixels: np.ndarray) -> np.ndarray:
        """Maps photo pixels [N, 2] of view a to view b by predicted geometry.

        Returns:
            float64 [N, 2] in pixels of the photo; NaN where there is no depth, the point is behind
            the camera, or view b has another depth at that pixel.
        """
        view, into = np.full(len(pixels), a), np.full(len(pixels), b)
        z = self.depth.at(view, pixels)
        points = self.cameras.centers[a] + self.cameras.rays(view, pixels) * z[:, None]
        place, there = self.cameras.project(into, points)
        other = self.depth.at(into, np.where((there > 0)[:, None], place, -1e9))
        good = (z > 0) & (other > 0) & (np.abs(other - there) < NEAR_ENOUGH * there)
        return np.where(good[:, None], place, np.nan)

    def near(self, a: int, b: int, pixels: np.ndarray, matched: np.ndarray) -> np.ndarray:
        """Checks whether matches in view b are near their predicted places and have depth.

        A match is near if it is within `reach` of the place.

        Args:
            a: index of a view.
            b: index of another view.
            pixels: pixels [N, 2] of the photo of view a.
            matched: matched pixels [N, 2] of the photo of view b.

        Returns:
            bool [N].
        """
        side = float(self.depth.scene.source_sizes[b].max())
        off = np.linalg.norm(self.places(a, b, pixels) - matched, axis=-1)
        with np.errstate(invalid="ignore"):
            return (off < self.reach * side) & (
                self.depth.at(np.full(len(matched), b), matched) > 0
            )


def merge(
    view: np.ndarray, pixel: np.ndarray, one: np.ndarray, two: np.ndarray, worth: np.ndarray
) -> Observations:
    """Merges matches between pairs of views into tracks with at most one observation in each view.

    Matches are joined from the best to the worst; a match that would put two observations of one
    view into a track is left out.

    Args:
        view: int [K], view of each place that was matched.
        pixel: [K, 2], pixel of each place in the photo.
        one: int [E], index of one place of each match.
        two: int [E], index of the other place, in another view.
        worth: [E], quality of each match; larger is better.

    Returns:
        Tracks of two or more views.
    """
    parent = list(range(len(view)))
    members: dict[int, dict[int, int]] = {}  # root -> view -> place

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    views = view.tolist()
    order = np.argsort(-worth, kind="stable")
    for a, b in zip(one[order].tolist(), two[order].tolist(), strict=True):
        a, b = root(a), root(b)
        if a == b:
            continue
        left = members.setdefault(a, {views[a]: a})
        right = members.setdefault(b, {views[b]: b})
        if left.keys() & right.keys():
            continue
        if len(left) < len(right):
            a, b, left, right = b, a, right, left
        left.update(right)
        parent[b] = a
        del members[b]
    tracks = [sorted(track.items()) for _, track in sorted(members.items()) if len(track) > 1]
    place = np.array([p for track in tracks for _, p in track], np.intp)
    number = np.repeat(np.arange(len(tracks)), [len(track) for track in tracks])
    return Observations(number.astype(np.intp), view[place].astype(np.intp), pixel[place])
