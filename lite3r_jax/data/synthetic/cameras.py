"""Random cameras in a synthetic room: their lenses and the paths that they follow."""

from dataclasses import dataclass

import numpy as np

from lite3r_jax.data.synthetic.rng import Rng
from lite3r_jax.data.synthetic.splits import Recipe

MARGIN = 0.3  # from cameras to walls
SIZES = ((576, 768), (576, 768), (768, 576), (512, 768), (576, 576), (432, 768))
"""Full (height, width) of the images of a scene; requested sizes are cropped from the center."""


@dataclass(frozen=True, eq=False)
class Cameras:
    """V cameras of one scene, in the unit of its world.

    Attributes:
        rotation: float64 [V, 3, 3], world to camera.
        center: float64 [V, 3], in the world.
        intrinsics: float64 [V, 3, 3], in pixels of `size`, centers at integers.
        exposure: float64 [V, 3], factor of red, green and blue.
        size: (height, width) of the pictures.
    """

    rotation: np.ndarray
    center: np.ndarray
    intrinsics: np.ndarray
    exposure: np.ndarray
    size: tuple[int, int]

    def extrinsics(self, scale: float) -> np.ndarray:
        """Returns world-to-camera extrinsics, float64 [V, 3, 4], with lengths times `scale`."""
        shift = -self.rotation @ self.center[..., None] * scale
        return np.concatenate([self.rotation, shift], -1)


def draw_cameras(rng: Rng, recipe: Recipe, room: np.ndarray, count: int) -> Cameras:
    """Draws cameras along a random path through a room, without checking what they see.

    Args:
        rng: source of random numbers.
        recipe: kinds and ranges of the paths.
        room: [3], half sizes of the room.
        count: how many cameras.
    """
    path = rng.choice(recipe.paths)
    center, target = _PATHS[path](rng, recipe, room, count)
    if path != "sphere":
        limit = room - MARGIN
        limit[1] = 0.8 * room[1]
        center = np.clip(center, -limit, limit)
    roll = rng.uniforms(count, low=-0.1, high=0.1)
    return _cameras(rng, look_at(center, target, roll), center, _lens(rng))


def table_cameras(rng: Rng, count: int) -> Cameras:
    """Draws cameras in rows on part of a sphere, around the table of any `place_on_table` room."""
    rows = max(int(np.sqrt(count / 2.5)), 1)
    row, column = np.divmod(np.arange(count), -(-count // rows))
    lift = np.deg2rad(12 + 40 * (row + 0.5) / rows)
    turn = np.deg2rad(75) * (2 * (column + 0.5) / (-(-count // rows)) - 1)
    turn = turn * np.where(row % 2, -1, 1)  # there and back, as an arm moves
    turn, lift = (x + rng.uniforms(count, low=-0.03, high=0.03) for x in (turn, lift))
    center = np.stack(
        [np.sin(turn) * np.cos(lift), -np.sin(lift), -np.cos(turn) * np.cos(lift)], -1
    )
    center = 2.3 * center + [0, 0.4, 0]
    target = rng.uniforms(count, 3, low=-0.06, high=0.06) + [0, 0.4, 0]
    lens = (576, 768), np.array([[760.0, 0, 383.5], [0, 760.0, 287.5], [0, 0, 1]])
    return _cameras(rng, look_at(center, target, np.zeros(count)), center, lens)


def look_at(center: np.ndarray, target: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """Returns world-to-camera rotations [V, 3, 3] of upright cameras, rolled about their axis."""
    forward = target - center
    forward = forward / np.linalg.norm(forward, axis=-1, keepdims=True)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right = right / np.linalg.norm(right, axis=-1, keepdims=True)
    down = np.cross(forward, right)
    cos, sin = np.cos(roll)[:, None], np.sin(roll)[:, None]
    return np.stack([cos * right + sin * down, cos * down - sin * right, forward], -2)


def _lens(rng: Rng) -> tuple[tuple[int, int], np.ndarray]:
    """Draws (size, intrinsics) with a view of 40 to 90 degrees along the longer side."""
    size = rng.choice(SIZES)
    focal = 0.5 * max(size) / np.tan(0.5 * np.deg2rad(rng.uniform(40, 90)))
    off = rng.uniforms(2, low=-0.02, high=0.02)
    squeeze = rng.uniform(0.98, 1.02)
    cx, cy = (size[1] - 1) / 2 + off[0] * size[1], (size[0] - 1) / 2 + off[1] * size[0]
    return size, np.array([[focal, 0, cx], [0, focal * squeeze, cy], [0, 0, 1]])


def _cameras(
    rng: Rng,
    rotation: np.ndarray,
    center: np.ndarray,
    lens: tuple[tuple[int, int], np.ndarray],
) -> Cameras:
    count = len(center)
    gain = rng.uniforms(count, 1, low=0.9, high=1.1)
    white = rng.uniforms(1, 3, low=0.95, high=1.05) * rng.uniforms(count, 3, low=0.98, high=1.02)
    size, intrinsics = lens
    return Cameras(rotation, center, np.tile(intrinsics, (count, 1, 1)), gain * white, size)


def _orbit(rng: Rng, recipe: Recipe, room: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws (centers, targets) of cameras on an arc around the middle of a room."""
    small = min(room[0], room[2])
    angle = rng.uniform(0, 2 * np.pi) + rng.uniform(*recipe.arc) * _steps(rng, count)
    radius = rng.uniform(0.65, 1.0) * small - MARGIN
    radius = radius + 0.08 * small * rng.uniforms(count, low=-1)
    high = rng.uniform(-0.5, 0.35) * room[1] + 0.12 * room[1] * rng.uniforms(count, low=-1)
    center = np.stack([radius * np.sin(angle), high, -radius * np.cos(angle)], -1)
    target = rng.uniforms(1, 3, low=-0.12, high=0.12) + rng.uniforms(count, 3, low=-0.08, high=0.08)
    return center, target * small + [0, rng.uniform(*recipe.gaze) * room[1], 0]


def _walk(rng: Rng, recipe: Recipe, room: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws (centers, targets) of a walk along a bent line, looking at something far away."""
    heading = rng.uniform(0, 2 * np.pi)
    steps = rng.uniform(*recipe.reach) * _steps(rng, count)
    way = heading + rng.uniform(-0.5, 0.5) * steps
    start = rng.uniforms(3, low=-0.4, high=0.4) * room
    center = start + np.stack([steps * np.sin(way), 0 * steps, -steps * np.cos(way)], -1)
    center[:, 1] = rng.uniform(-0.4, 0.1) * room[1] + rng.uniforms(count, low=-0.06, high=0.06)
    gaze = heading + rng.choice((0.0, 0.5, -0.5, 1.3, -1.3)) + rng.uniform(-0.3, 0.3)
    far = start + 1.2 * max(room[0], room[2]) * np.array([np.sin(gaze), 0, -np.cos(gaze)])
    far[1] = rng.uniform(*recipe.gaze) * room[1]
    return center, far + rng.uniforms(count, 3, low=-0.3, high=0.3)


def _look_around(
    rng: Rng, recipe: Recipe, room: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws (centers, targets) of someone who turns, with the camera at arm's length."""
    turn = rng.uniform(0, 2 * np.pi) + rng.uniform(0.7, 1.5) * _steps(rng, count)
    foot = rng.uniforms(3, low=-0.5, high=0.5) * room
    foot[1] = rng.uniform(-0.4, 0.1) * room[1]
    out = np.stack([np.sin(turn), 0 * turn, -np.cos(turn)], -1)
    center = foot + rng.uniform(0.8, 1.4) * out + rng.uniforms(count, 3, low=-0.12, high=0.12)
    gaze = out + [0, 0.6 * rng.uniform(*recipe.gaze), 0]
    return center, center + gaze + rng.uniforms(count, 3, low=-0.06, high=0.06)


def _sphere(
    rng: Rng, recipe: Recipe, room: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws (centers, targets) of cameras around the middle of a void, from any side and height."""
    del room
    angle = rng.uniform(0, 2 * np.pi) + rng.uniform(*recipe.arc) * _steps(rng, count)
    slope = rng.uniform(-0.5, 0.5) * _steps(rng, count)
    lift = rng.uniform(-0.7, 0.7) + slope + rng.uniforms(count, low=-0.1, high=0.1)
    radius = rng.uniform(2.8, 4.2) * rng.uniforms(count, low=0.85, high=1.15)
    center = np.stack(
        [np.sin(angle) * np.cos(lift), -np.sin(lift), -np.cos(angle) * np.cos(lift)], -1
    )
    target = rng.uniforms(1, 3, low=-0.4, high=0.4) + rng.uniforms(count, 3, low=-0.25, high=0.25)
    return radius[:, None] * center, target


def _along(rng: Rng, recipe: Recipe, room: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws (centers, targets) of a walk along a corridor, either way, looking roughly ahead."""
    steps = rng.uniform(*recipe.reach) * _steps(rng, count)
    way = rng.choice((-1.0, 1.0))
    start = rng.uniforms(3, low=-0.35, high=0.35) * room
    sway = rng.uniforms(count, low=-0.15, high=0.15)
    center = start + np.stack([sway, 0 * steps, way * steps], -1)
    center[:, 1] = rng.uniform(-0.4, 0.1) * room[1] + rng.uniforms(count, low=-0.06, high=0.06)
    gaze = rng.uniform(-0.6, 0.6) + rng.uniforms(count, low=-0.08, high=0.08)
    ahead = np.stack([np.sin(gaze), 0 * gaze, way * np.cos(gaze)], -1)
    ahead[:, 1] = rng.uniform(*recipe.gaze) + rng.uniforms(count, low=-0.05, high=0.05)
    return center, center + 3 * ahead


def _steps(rng: Rng, count: int) -> np.ndarray:
    """Draws increasing positions on a path from -0.5 to 0.5, not quite evenly spaced."""
    even = (np.arange(count) + 0.5) / count - 0.5
    return even + rng.uniforms(count, low=-0.3, high=0.3) / count


_PATHS = {
    "orbit": _orbit, "walk": _walk, "look_around": _look_around, "sphere": _sphere,
    "along": _along,
}  # fmt: skip
