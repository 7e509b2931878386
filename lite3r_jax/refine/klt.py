"""Matches by guided tracking: corners are tracked from where predicted geometry places them.

A partner view is warped to what the first view would see if predicted cameras and depth were right,
so that views from the side, nearer or rotated look alike, and pyramidal Lucas-Kanade (Lucas and
Kanade, IJCAI 1981; in OpenCV with Bouguet's pyramids) tracks the remaining displacement. A match
has to pass a forward-backward check and to look alike. Points that were found in a view are tracked
on from that view, the longest tracks if there are too many, and new corners are taken only where no
point was found, so that a point has one track.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lite3r_jax.refine.geometry_of_views import Cameras, DepthLookup, to_photo
from lite3r_jax.refine.matching import Arrays, Task
from lite3r_jax.refine.observations import Observations
from lite3r_jax.scene import Scene

_WINDOW = 15  # pixels across what is compared while following
_COARSEST = 50  # pixels of the longer side from which on images are not halved again
_RETURN = 0.7  # pixels from where a match comes back to
_ALIKE = 0.8  # normalized correlation of the surroundings
_PATCH = 11  # pixels across the surroundings
_MARGIN = 8  # pixels from the border
_CELLS = 8  # across and down, over which corners are spread
_CANDIDATES = 4  # corners to choose from for each that is wanted
_FAR = 1e5  # pixels; beyond nothing is drawn
_ROWS = 30_000  # of what OpenCV remaps at once


def match(task: Task) -> Observations:
    """Tracks corners through the views by guided Lucas-Kanade, and returns their observations.

    `Task.corners` is how many points of each view are tracked into other views: those that earlier
    views were tracked to, the longest tracks of each part of the image first, and new corners where
    these are fewer. So the time for a view does not grow with the number of views.
    """
    seen: list[dict[int, np.ndarray]] = []  # track -> view -> pixel of the image
    in_view: list[list[int]] = [[] for _ in task.gray]
    for a in range(len(task.gray)):
        matches = task.keep(a, lambda a=a: _matches_from(task, a, in_view[a], seen))
        for pixel in matches["corners"]:
            in_view[a].append(len(seen))
            seen.append({a: pixel})
        for track, b, pixel in zip(
            matches["track"].tolist(), matches["partner"].tolist(), matches["pixel"], strict=True
        ):
            seen[track][b] = pixel
            in_view[b].append(track)
        task.progress()
    rows = [
        (number, view, *track[view])
        for number, track in enumerate(t for t in seen if len(t) > 1)
        for view in sorted(track)
    ]
    table = np.array(rows, np.float64).reshape(-1, 4)
    view = table[:, 1].astype(np.intp)
    pixel = task.to_photo(view, table[:, 2:])
    return Observations(table[:, 0].astype(np.intp), view, pixel)


def _matches_from(
    task: Task, a: int, numbers: list[int], seen: Sequence[Mapping[int, np.ndarray]]
) -> Arrays:
    """Detects new corners [N, 2] of a view, and tracks its points into its partner views.

    Args:
        task: the round of matching.
        a: the view.
        numbers: indices of the tracks that were found in the view; new tracks get the indices after
            those of `seen`.
        seen: pixel of each track so far in each view that it was found in, in the gray images.
    """
    known = np.array([seen[t][a] for t in numbers]).reshape(-1, 2)
    count = task.corners - len(known)
    fresh = find_corners(task.gray[a], task.scales[a], a, task.depth, known, count)
    track = np.array(numbers, np.intp)
    if count < 0:
        some = longest(known, [len(seen[t]) for t in numbers], task.gray[a].shape, task.corners)
        known, track = known[some], track[some]
    start = np.concatenate([known, fresh])
    track = np.concatenate([track, len(seen) + np.arange(len(fresh))])
    columns: list[tuple[np.ndarray, ...]] = []
    if len(start):
        surface = surface_points(task.depth.scene, task.cameras, a)
        for b in task.pairs[a]:
            new = np.array([t >= len(seen) or b not in seen[t] for t in track.tolist()])
            index, pixels = _follow(task, a, b, start, new, surface)
            columns.append((track[index], np.full(len(index), b), pixels))
    empty = (np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros((0, 2)))
    tracks, partner, pixel = (np.concatenate(each) for each in zip(empty, *columns, strict=True))
    return {"corners": fresh, "track": tracks, "partner": partner, "pixel": pixel}


def _follow(
    task: Task, a: int, b: int, start: np.ndarray, new: np.ndarray, surface: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Tracks pixels `start` [N, 2] of view a to view b; returns (indices found, pixels in b)."""
    place = task.places(a, b, task.to_photo(np.full(len(start), a), start))
    index = np.flatnonzero(new & np.isfinite(place).all(-1))
    if not len(index):
        return index, np.zeros((0, 2))
    gray, scene = task.gray, task.depth.scene
    where = _places(surface, task.cameras, scene, a, b, gray[a].shape, task.scales)
    pixels, good = _track(gray[a], gray[b], where, start[index])
    into = np.full(int(good.sum()), b)
    good[good] = task.depth.at(into, task.to_photo(into, pixels[good])) > 0  # and not masked
    return index[good], pixels[good]


def surface_points(scene: Scene, cameras: Cameras, view: int) -> np.ndarray:
    """Unprojects the network pixels of a view by its depth to world points [H * W, 3].

    Pixels without depth get the median depth, since no point is tracked from such pixels.
    """
    height, width = scene.size
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    of = np.full(u.size, view)
    pixels = to_photo(scene, of, np.stack([u.ravel(), v.ravel()], -1))
    z = scene.depth[view].ravel().astype(np.float64)
    good = np.isfinite(z) & (z > 0)
    z = np.where(good, z, np.median(z[good]) if good.any() else 1.0)
    return cameras.centers[view] + cameras.rays(of, pixels) * z[:, None]


def _places(
    surface: np.ndarray,
    cameras: Cameras,
    scene: Scene,
    a: int,
    b: int,
    shape: tuple[int, int],
    scales: np.ndarray,
) -> np.ndarray:
    """Maps the pixels of image a to image b by predicted geometry; returns float32 [h, w, 2]."""
    import cv2

    place, z = cameras.project(np.full(len(surface), b), surface)
    off = z <= 0
    for axis in (0, 1):  # whole rows at once take several times as long
        place[:, axis] = (place[:, axis] + 0.5) * scales[b, axis] - 0.5
        off |= np.abs(place[:, axis]) > _FAR
    place[off] = -_FAR
    grid = place.reshape(*scene.size, 2).astype(np.float32)
    # pixels of image a in the network image
    x1, y1, x2, y2 = scene.boxes[a].astype(np.float64)
    size = scene.source_sizes[a] * scales[a]
    stretch = np.array([x2 - x1, y2 - y1]) / size
    origin = 0.5 * stretch + [x1, y1] - 0.5
    to_grid = np.array([[stretch[0], 0, origin[0]], [0, stretch[1], origin[1]]])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(
        grid, to_grid, (shape[1], shape[0]), flags=how, borderMode=cv2.BORDER_REPLICATE
    )


def _track(
    one: np.ndarray, two: np.ndarray, where: np.ndarray, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Tracks pixels of image one into image two by Lucas-Kanade, guided by predicted positions.

    Image two is warped to what the first view would see if the prediction were right, and the
    remaining displacement is tracked between image one and the warped image.

    Args:
        one: image uint8 [h, w].
        two: image uint8 [h', w'].
        where: float32 [h, w, 2], predicted position in image two of each pixel of image one.
        start: [N, 2], pixels in image one.

    Returns:
        (pixels [N, 2] of image two, bool [N] which of them passed all checks).
    """
    import cv2

    cv: Any = cv2  # whose stubs do not know that maps and guesses may be left out
    how = {
        "winSize": (_WINDOW, _WINDOW),
        "maxLevel": max(0, int(np.log2(max(one.shape) / _COARSEST))),
        "criteria": (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 0.01),
    }
    drawn = cv.remap(two, where, None, cv2.INTER_LINEAR)
    p = start.astype(np.float32)[:, None]
    q, forth, _ = cv.calcOpticalFlowPyrLK(one, drawn, p, None, **how)
    back, home, _ = cv.calcOpticalFlowPyrLK(drawn, one, q, None, **how)
    there = q[:, 0].astype(np.float64)
    good = (forth[:, 0] == 1) & (home[:, 0] == 1)
    good &= np.linalg.norm(back[:, 0] - start, axis=-1) < _RETURN
    pixels = cv.remap(where, q, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    pixels = pixels[:, 0].astype(np.float64)
    height, width = two.shape
    inside = (pixels > _MARGIN) & (pixels < (width - 1 - _MARGIN, height - 1 - _MARGIN))
    good &= np.all(inside, axis=-1)
    index = np.flatnonzero(good)
    if len(index):
        alike = _correlation(_patches(one, start[index]), _patches(drawn, there[index]))
        good[index] = alike > _ALIKE
    return pixels, good


def _patches(image: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Samples patches float32 [N, patch * patch] around pixels [N, 2], bilinear."""
    import cv2

    step = np.arange(_PATCH) - _PATCH // 2
    u = np.broadcast_to(centers[:, None, None, 0] + step, (len(centers), _PATCH, _PATCH))
    v = np.broadcast_to(centers[:, None, None, 1] + step[:, None], u.shape)
    u, v = (x.reshape(-1, _PATCH).astype(np.float32) for x in (u, v))
    pieces = [
        cv2.remap(image, u[i : i + _ROWS], v[i : i + _ROWS], cv2.INTER_LINEAR)
        for i in range(0, len(u), _ROWS)
    ]
    return np.concatenate(pieces).reshape(len(centers), -1).astype(np.float32)


def _correlation(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    one, two = (x - x.mean(-1, keepdims=True) for x in (one, two))
    return (one * two).sum(-1) / np.sqrt((one**2).sum(-1) * (two**2).sum(-1) + 1e-9)


def find_corners(
    gray: np.ndarray,
    scale: np.ndarray,
    view: int,
    depth: DepthLookup,
    known: np.ndarray,
    count: int,
) -> np.ndarray:
    """Detects at most `count` corners [N, 2], away from known points, spread over image and depth.

    They are taken in turns from cells of the image and thirds of the range of depth, the strongest
    of each first.
    """
    import cv2

    if count <= 0:
        return np.zeros((0, 2))
    height, width = gray.shape
    apart = max(4, round(np.sqrt(height * width) / 75))
    free = np.full(gray.shape, 255, np.uint8)
    free[:_MARGIN], free[-_MARGIN:], free[:, :_MARGIN], free[:, -_MARGIN:] = 0, 0, 0, 0
    for u, v in np.rint(known).astype(int).tolist():
        cv2.circle(free, (u, v), apart, 0, -1)
    corners = cv2.goodFeaturesToTrack(gray, _CANDIDATES * count, 0.002, apart, mask=free)
    if corners is None:
        return np.zeros((0, 2))
    pixels = corners[:, 0].astype(np.float64)  # strongest first
    z = depth.at(np.full(len(pixels), view), (pixels + 0.5) / scale - 0.5)
    pixels, z = pixels[z > 0], z[z > 0]
    if not len(pixels):
        return pixels
    third = np.searchsorted(np.quantile(z, (1 / 3, 2 / 3)), z)
    return pixels[_in_turns(3 * _cells(pixels, gray.shape) + third)[:count]]


def longest(
    pixels: np.ndarray, lengths: Sequence[int], shape: tuple[int, int], count: int
) -> np.ndarray:
    """Chooses the tracks of a view to track on: in turns from cells of the image, longest first.

    Args:
        pixels: [N, 2], pixels of the tracks in the image.
        lengths: number of views of each of the N tracks.
        shape: (height, width) of the image.
        count: largest number of tracks that are chosen.

    Returns:
        The indices of the chosen tracks, ascending.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return np.sort(order[_in_turns(_cells(pixels[order], shape))[:count]])


def _cells(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns the index [N] of the grid cell of the image that each of the pixels [N, 2] is in."""
    height, width = shape
    cell = (pixels * _CELLS / (width, height)).astype(int)
    return cell[:, 1] * _CELLS + cell[:, 0]


def _in_turns(place: np.ndarray) -> np.ndarray:
    """Returns the order [N] that takes the first entry of each place, then the second of each."""
    order = np.argsort(place, kind="stable")
    turn = np.empty(len(place), int)  # how many of the same place are before
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    turn[order] = np.arange(len(place)) - np.repeat(starts, np.diff(np.append(starts, len(place))))
    return np.argsort(turn, kind="stable")
