"""Finds pixels at edges of objects, whose points float between foreground and background.

Source: the example of pi^3 (pi3/utils/geometry.py). A pixel counts if it is an edge of both depth
and normals: depth alone also changes on slanted surfaces, normals alone at the corners of a room.
"""

import numpy as np

DEPTH_STEP = 0.03
"""Relative depth range, among a pixel and its neighbors, above which the pixel is a depth edge."""
NORMAL_ANGLE = 5.0
"""Angle in degrees between neighboring normals above which a pixel is a normal edge."""
_AROUND = tuple((row, column) for row in (-1, 0, 1) for column in (-1, 0, 1))


def edges(points: np.ndarray, depth: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Finds the pixels of one view that are edges of both depth and normals.

    Args:
        points: float32 [H, W, 3], in the camera frame or in the world.
        depth: float32 [H, W], z in the camera frame.
        valid: bool [H, W]; other pixels do not count as neighbors.

    Returns:
        bool [H, W].
    """
    valid = valid & np.isfinite(points).all(-1) & np.isfinite(depth) & (depth > 0)
    surface, known = normals(points, valid)
    return depth_edges(depth, valid) & normal_edges(surface, known)


def depth_edges(depth: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Finds pixels whose valid neighbors (3 x 3) differ by more than `DEPTH_STEP` of their depth.

    Args:
        depth: [H, W], positive where valid.
        valid: bool [H, W].

    Returns:
        bool [H, W].
    """
    far = _largest(np.where(valid, depth, -np.inf))
    near = _largest(np.where(valid, -depth, -np.inf))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num((far + near) / depth) > DEPTH_STEP


def normals(points: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes surface normals from each pixel and its neighbors up, left, down and right.

    Args:
        points: [H, W, 3].
        valid: bool [H, W].

    Returns:
        (unit normals [H, W, 3], 0 where there is none; bool [H, W], true where there is a normal:
        the pixel and two neighbors that follow each other around it are valid).
    """
    points = np.where(valid[..., None], points, 0)
    sides = [_shifted(points, *step) - points for step in ((-1, 0), (0, -1), (1, 0), (0, 1))]
    there = [_shifted(valid, *step) & valid for step in ((-1, 0), (0, -1), (1, 0), (0, 1))]
    total, known = np.zeros_like(points), np.zeros_like(valid)
    for i in range(4):
        both = there[i] & there[(i + 1) % 4]
        total += _unit(np.cross(sides[i], sides[(i + 1) % 4])) * both[..., None]
        known |= both
    return np.where(known[..., None], _unit(total), 0), known


def normal_edges(surface: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Finds pixels near which the normals of neighbors differ by more than `NORMAL_ANGLE`.

    Args:
        surface: unit normals [H, W, 3].
        known: bool [H, W], true where there is a normal.

    Returns:
        bool [H, W]: pixels with a normal where the pixel or one of its neighbors differs by more
        than that angle from one of its own neighbors.
    """
    height, width = known.shape
    rows, columns = np.arange(height), np.arange(width)
    angle = np.zeros((height, width), np.float32)
    for row, column in _AROUND:
        at = np.ix_((rows + row).clip(0, height - 1), (columns + column).clip(0, width - 1))
        cosine = (surface * surface[at]).sum(-1).clip(-1, 1)
        angle = np.maximum(angle, np.where(known[at], np.arccos(cosine), 0))
    return (_largest(angle) > np.radians(NORMAL_ANGLE)) & known


def _shifted(values: np.ndarray, row: int, column: int) -> np.ndarray:
    """Returns for every pixel its neighbor at the offset (row, column); 0 beyond the border."""
    height, width = values.shape[:2]
    padded = np.pad(values, ((1, 1), (1, 1)) + ((0, 0),) * (values.ndim - 2))
    return padded[1 + row : 1 + row + height, 1 + column : 1 + column + width]


def _largest(values: np.ndarray) -> np.ndarray:
    """Returns for each pixel [H, W] the largest value among the pixel and its 8 neighbors."""
    height, width = values.shape
    padded = np.pad(values, 1, constant_values=-np.inf)
    result = values
    for row, column in _AROUND:
        result = np.maximum(
            result, padded[1 + row : 1 + row + height, 1 + column : 1 + column + width]
        )
    return result


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.sqrt((vectors * vectors).sum(-1, keepdims=True))
    return vectors / np.maximum(length, 1e-12)
