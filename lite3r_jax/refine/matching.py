"""What matchers are given, and matches between pairs of views merged into tracks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lite3r_jax.refine.geometry_of_views import Cameras, DepthLookup
from lite3r_jax.refine.observations import Observations

Arrays = Mapping[str, np.ndarray]
Keep = Callable[[int, Callable[[], Arrays]], Arrays]
"""(view, how its matches are made) -> its matches: those kept of a run that was stopped, or new."""

NEAR_ENOUGH = 0.25
"""Relative difference between the depth that a view has at a point and that of the point itself."""
REACH = (0.15, 0.05)
"""Share of the longer side that a match may be off its predicted place, in the first round of
matching and in the others, for matchers that do not look around the predicted place alone."""


class Tracker(Protocol):
    """Follows points of one view into others, as the track head of VGGT does."""

    def __call__(
        self, views: Sequence[int], points: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Follow points.

        Args:
            views: numbers of the views; the points are of the first.
            points: float32 [N, 2] in pixels of the network images, centers at integers.

        Returns:
            (pixels [len(views), N, 2] of the network images, visibility and confidence
            [len(views), N] in [0, 1]).
        """
        ...


@dataclass(frozen=True, eq=False)
class Task:
    """One round of matching.

    Attributes:
        gray: uint8 [h, w] of every view: the photos, perhaps made smaller.
        scales: [S, 2], size of these images over that of the photos.
        cameras: predicted, in pixels of the photos.
        depth: predicted; there are matches only where it is usable.
        pairs: partners of every view.
        corners: of each view.
        keep: gives matches of a view, see there.
        reach: how far off its predicted place a match may be, as a share of the longer side.
        tracker: for `track`.
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
        """Pixels [M, 2] of the gray images to those of the photos, centers at integers."""
        return (pixels + 0.5) / self.scales[view] - 0.5

    def places(self, a: int, b: int, pixels: np.ndarray) -> np.ndarray:
        """Where photo pixels [N, 2] of view a are in view b by predicted geometry.

        Returns:
            float64 [N, 2] in pixels of the photo; NaN where there is no depth, the point is behind
            the camera, or what view b has there is at another depth.
        """
        view, into = np.full(len(pixels), a), np.full(len(pixels), b)
        z = self.depth.at(view, pixels)
        points = self.cameras.centers[a] + self.cameras.rays(view, pixels) * z[:, None]
        place, there = self.cameras.project(into, points)
        other = self.depth.at(into, np.where((there > 0)[:, None], place, -1e9))
        good = (z > 0) & (other > 0) & (np.abs(other - there) < NEAR_ENOUGH * there)
        return np.where(good[:, None], place, np.nan)

    def near(self, a: int, b: int, pixels: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Whether what was found in view b is within reach of the predicted place, and has depth.

        Args:
            a: a view.
            b: another.
            pixels: [N, 2] of the photo of view a.
            found: [N, 2] of the photo of view b.

        Returns:
            bool [N].
        """
        side = float(self.depth.scene.source_sizes[b].max())
        off = np.linalg.norm(self.places(a, b, pixels) - found, axis=-1)
        with np.errstate(invalid="ignore"):
            return (off < self.reach * side) & (self.depth.at(np.full(len(found), b), found) > 0)


def merge(
    view: np.ndarray, pixel: np.ndarray, one: np.ndarray, two: np.ndarray, worth: np.ndarray
) -> Observations:
    """Tracks of matches between pairs of views; none has two observations in one view.

    Matches are joined from the best to the worst; one that would put two observations of one view
    into a track is left out.

    Args:
        view: int [K], of each place that was matched.
        pixel: [K, 2] of the photo.
        one: int [E], a place of each match.
        two: int [E], the other, in another view.
        worth: [E], larger is better.

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
