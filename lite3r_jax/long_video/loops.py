"""Loop closure: finds chunks that show the same place, and measures their similarity by the model.

Views are described by the model's own tokens. Two chunks with similar views are a candidate; half a
chunk's number of views around each of the two places then go through the model in one pass, and the
prediction of each half is fitted onto the chunk that its views come from. So the similarity between
the chunks is measured by two fits of the same views, and is taken only if the halves see each
other's surfaces at the same depth.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lite3r_jax.geometry import Sim3
from lite3r_jax.long_video.chunks import Chunk
from lite3r_jax.long_video.joint import INLIER, Joint, unprojected
from lite3r_jax.long_video.similarity import views_of
from lite3r_jax.scene import Scene

DESCRIBED = 16
"""Largest number of views of a chunk whose descriptors are kept; they are evenly spread."""
LEAST_SEEN = 0.2
"""Least share of the points of one half of a loop that the other half sees at the same depth."""
_COMPONENTS = 64  # of descriptors, the rest tells views apart no further and takes time


@dataclass(frozen=True)
class Candidate:
    """Two chunks that may show the same place: a loop that has not been measured yet.

    Attributes:
        first: index of the earlier chunk.
        second: index of the later chunk.
        first_frame: number of the frame of the first chunk that is most like one of the second.
        second_frame: number of that frame of the second chunk.
        alike: cosine between the descriptors of the two frames.
    """

    first: int
    second: int
    first_frame: int
    second_frame: int
    alike: float


@dataclass(frozen=True)
class Loop:
    """The measured similarity of a loop candidate, or the reason why there is none.

    Attributes:
        candidate: the two chunks.
        similarity: from the world of the second chunk into that of the first; None if not measured.
        error: median errors of both fits (distance over depth), combined as root of the sum of
            squares.
        seen: share of the points that both halves see at the same depth, see `seen_alike`.
        fault: why the loop is not taken; "" where it is.
    """

    candidate: Candidate
    similarity: Sim3 | None
    error: float = 0.0
    seen: float = 0.0
    fault: str = ""


def described(views: int) -> np.ndarray:
    """Returns the indices of the views, of a chunk's `views`, whose descriptors are kept."""
    return np.unique(np.linspace(0, views - 1, min(views, DESCRIBED)).round().astype(int))


def find_candidates(
    chunks: Sequence[Chunk], descriptors: Sequence[np.ndarray], most: int
) -> list[Candidate]:
    """Finds the pairs of chunks, at least a chunk's length apart, whose views are most alike.

    Their most similar views are at least as alike as two views of one chunk that are a quarter of
    its length apart (median). The best pairs come first; pairs whose chunks are the same as or next
    to those of a better pair come after all others.

    Args:
        chunks: chunks of the video.
        descriptors: descriptors of each chunk's `described` views, float [K, D].
        most: largest number of pairs.
    """
    vectors = _compared(descriptors)
    needed = _usual_likeness(vectors)
    candidates = []
    for a, chunk in enumerate(chunks):
        for b in range(a + 1, len(chunks)):
            if chunks[b].start < chunk.stop + len(chunk):
                continue
            alike = vectors[a] @ vectors[b].T
            i, j = np.unravel_index(int(alike.argmax()), alike.shape)
            if alike[i, j] >= needed:
                ahead, behind = (
                    c.start + int(described(len(c))[k]) for c, k in ((chunk, i), (chunks[b], j))
                )
                candidates.append(Candidate(a, b, ahead, behind, float(alike[i, j])))
    candidates.sort(key=lambda each: (-each.alike, each.first, each.second))
    spread: list[Candidate] = []
    for each in candidates:
        if len(spread) == most:
            return spread
        if all(max(abs(each.first - k.first), abs(each.second - k.second)) > 1 for k in spread):
            spread.append(each)
    first = set(spread)
    rest = [each for each in candidates if each not in first]
    return [*spread, *rest][:most]


def _compared(descriptors: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Projects centered descriptors on the principal components of all views, at unit length."""
    rows = np.concatenate([np.asarray(each, np.float32) for each in descriptors])
    rows = rows - rows.mean(0)
    spread = rows.T @ rows
    _, axes = np.linalg.eigh(spread)
    rows = rows @ axes[:, -_COMPONENTS:]
    rows = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
    return np.split(rows, np.cumsum([len(each) for each in descriptors])[:-1])


def _usual_likeness(vectors: Sequence[np.ndarray]) -> float:
    """Returns the median cosine between views of one chunk that are a quarter of it apart."""
    cosines = []
    for each in vectors:
        step = max(1, len(each) // 4)
        cosines.append((each[step:] * each[:-step]).sum(-1))
    every = np.concatenate(cosines)
    return float(np.median(every)) if every.size else 1.0


def halves(candidate: Candidate, chunks: Sequence[Chunk]) -> tuple[range, range]:
    """Returns the two ranges of frames that measure a loop: half a chunk around each place."""
    first, second = chunks[candidate.first], chunks[candidate.second]
    size = len(first)
    counts = size // 2, size - size // 2
    ranges = []
    for chunk, frame, count in zip(
        (first, second), (candidate.first_frame, candidate.second_frame), counts, strict=True
    ):
        start = min(max(frame - count // 2, chunk.start), chunk.stop - count)
        ranges.append(range(start, start + count))
    return ranges[0], ranges[1]


def judged(
    candidate: Candidate, similarity: Sim3, joints: tuple[Joint, Joint], seen: float
) -> Loop:
    """Makes a `Loop` of a measurement, with a fault if the halves do not confirm each other.

    Args:
        candidate: the two chunks.
        similarity: from the world of the second chunk into that of the first.
        joints: fits of both halves onto their chunks.
        seen: result of `seen_alike` for the two halves.
    """
    error = float(np.hypot(joints[0].error, joints[1].error))
    fault = ""
    if seen < LEAST_SEEN:
        fault = (
            f"{100 * seen:.0f} % of the points are seen from the other place at their depth,"
            f" {100 * LEAST_SEEN:.0f} % are needed"
        )
    return Loop(candidate, similarity, error, seen, fault)


def seen_alike(first: Scene, second: Scene) -> float:
    """Returns the share of points, from 0 to 1, that two sets of views see at the same depth.

    A point of one set is confirmed if some view of the other set has its depth within `INLIER`; the
    share is weighted by confidence. It is computed both ways, and the smaller one is returned.

    Args:
        first: some views of a prediction.
        second: other views of the same prediction, in the same world.
    """
    return min(_confirmed(first, second), _confirmed(second, first))


def _confirmed(scene: Scene, by: Scene) -> float:
    height, width = scene.size
    step = max(1, int(np.sqrt(height * width / 200)))
    rows, columns = np.arange(step // 2, height, step), np.arange(step // 2, width, step)
    views = np.unique(np.linspace(0, scene.views - 1, min(8, scene.views)).astype(int))
    others = np.unique(np.linspace(0, by.views - 1, min(8, by.views)).astype(int))
    xyz, weights = [], []
    for s in views.tolist():
        one = _one(scene, s)
        depth = one.depth[:, rows][:, :, columns].astype(np.float64)
        valid = one.inside()[:, rows][:, :, columns] & np.isfinite(depth) & (depth > 0)
        xyz.append(unprojected(one, depth, rows, columns)[valid])
        weights.append(one.depth_conf[:, rows][:, :, columns][valid])
    points = np.concatenate(xyz)
    if not len(points):
        return 0.0
    confirmed = np.zeros(len(points), bool)
    for s in others.tolist():
        extrinsics = by.extrinsics[s].astype(np.float64)
        cam = points @ extrinsics[:, :3].T + extrinsics[:, 3]
        z = np.where(cam[:, 2] > 0, cam[:, 2], np.inf)
        k = by.intrinsics[s].astype(np.float64)
        u = np.rint(k[0, 0] * cam[:, 0] / z + k[0, 2]).clip(-1, width).astype(int)
        v = np.rint(k[1, 1] * cam[:, 1] / z + k[1, 2]).clip(-1, height).astype(int)
        inside = (cam[:, 2] > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
        depth = by.depth[s][v.clip(0, height - 1), u.clip(0, width - 1)]
        with np.errstate(invalid="ignore"):
            confirmed |= inside & (np.abs(cam[:, 2] - depth) < INLIER * depth)
    sure = np.concatenate(weights).astype(np.float64)
    return float(sure[confirmed].sum() / sure.sum())


def _one(scene: Scene, view: int) -> Scene:
    return views_of(scene, slice(view, view + 1))
