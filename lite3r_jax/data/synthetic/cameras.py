"""Cameras in a room: lenses and paths, drawn at random."""

from dataclasses import dataclass

import numpy as np

from lite3r_jax.data.synthetic.draws import Draws
from lite3r_jax.data.synthetic.splits import Recipe

MARGIN = 0.3  # from cameras to walls
SIZES = ((576, 768), (576, 768), (768, 576), (512, 768), (576, 576), (432, 768))
"""(height, width) of the pictures of a scene; sizes that are asked for are cut from the middle."""


@dataclass(frozen=True, eq=False)
class Cameras:
    """V cameras of one scene, in the unit of its world.

    Attributes:
        rotation: float64 [V, 3, 3], world to camera.
        centre: float64 [V, 3], in the world.
        intrinsics: float64 [V, 3, 3], in pixels of `size`, centres at integers.
        exposure: float64 [V, 3], factor of red, green and blue.
        size: (height, width) of the pictures.
    """

    rotation: np.ndarray
    centre: np.ndarray
    intrinsics: np.ndarray
    exposure: np.ndarray
    size: tuple[int, int]

    def extrinsics(self, scale: float) -> np.ndarray:
        """float64 [V, 3, 4] world-to-camera, in units of which the world has `scale` a unit."""
        shift = -self.rotation @ self.centre[..., None] * scale
        return np.concatenate([self.rotation, shift], -1)


def draw_cameras(draws: Draws, recipe: Recipe, room: np.ndarray, count: int) -> Cameras:
    """Cameras along a path through a room; whether they see anything is not looked at.

    Args:
        draws: where numbers come from.
        recipe: what paths there are.
        room: [3], half sizes.
        count: how many cameras.
    """
    path = draws.choice(recipe.paths)
    centre, target = _PATHS[path](draws, recipe, room, count)
    limit = room - MARGIN
    limit[1] = 0.8 * room[1]
    centre = np.clip(centre, -limit, limit)
    roll = draws.uniforms(count, low=-0.1, high=0.1)
    return _cameras(draws, look_at(centre, target, roll), centre, _lens(draws))


def table_cameras(draws: Draws, count: int) -> Cameras:
    """Cameras in rows on a part of a sphere around a table, for all rooms of `furnish_table`."""
    rows = max(int(np.sqrt(count / 2.5)), 1)
    row, column = np.divmod(np.arange(count), -(-count // rows))
    lift = np.deg2rad(12 + 40 * (row + 0.5) / rows)
    turn = np.deg2rad(75) * (2 * (column + 0.5) / (-(-count // rows)) - 1)
    turn = turn * np.where(row % 2, -1, 1)  # there and back, as an arm moves
    turn, lift = (x + draws.uniforms(count, low=-0.03, high=0.03) for x in (turn, lift))
    centre = np.stack(
        [np.sin(turn) * np.cos(lift), -np.sin(lift), -np.cos(turn) * np.cos(lift)], -1
    )
    centre = 2.3 * centre + [0, 0.4, 0]
    target = draws.uniforms(count, 3, low=-0.06, high=0.06) + [0, 0.4, 0]
    lens = (576, 768), np.array([[760.0, 0, 383.5], [0, 760.0, 287.5], [0, 0, 1]])
    return _cameras(draws, look_at(centre, target, np.zeros(count)), centre, lens)


def look_at(centre: np.ndarray, target: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """World-to-camera rotations [V, 3, 3] of upright cameras, turned about their axis by `roll`."""
    forward = target - centre
    forward = forward / np.linalg.norm(forward, axis=-1, keepdims=True)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right = right / np.linalg.norm(right, axis=-1, keepdims=True)
    down = np.cross(forward, right)
    cos, sin = np.cos(roll)[:, None], np.sin(roll)[:, None]
    return np.stack([cos * right + sin * down, cos * down - sin * right, forward], -2)


def _lens(draws: Draws) -> tuple[tuple[int, int], np.ndarray]:
    """(size, intrinsics): 40 to 90 degrees along the longer side."""
    size = draws.choice(SIZES)
    focal = 0.5 * max(size) / np.tan(0.5 * np.deg2rad(draws.uniform(40, 90)))
    off = draws.uniforms(2, low=-0.02, high=0.02)
    squeeze = draws.uniform(0.98, 1.02)
    cx, cy = (size[1] - 1) / 2 + off[0] * size[1], (size[0] - 1) / 2 + off[1] * size[0]
    return size, np.array([[focal, 0, cx], [0, focal * squeeze, cy], [0, 0, 1]])


def _cameras(
    draws: Draws,
    rotation: np.ndarray,
    centre: np.ndarray,
    lens: tuple[tuple[int, int], np.ndarray],
) -> Cameras:
    count = len(centre)
    gain = draws.uniforms(count, 1, low=0.9, high=1.1)
    white = draws.uniforms(1, 3, low=0.95, high=1.05) * draws.uniforms(
        count, 3, low=0.98, high=1.02
    )
    size, intrinsics = lens
    return Cameras(rotation, centre, np.tile(intrinsics, (count, 1, 1)), gain * white, size)


def _orbit(
    draws: Draws, recipe: Recipe, room: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """(centres, targets) on an arc around the middle."""
    small = min(room[0], room[2])
    angle = draws.uniform(0, 2 * np.pi) + draws.uniform(*recipe.arc) * _steps(draws, count)
    radius = draws.uniform(0.65, 1.0) * small - MARGIN
    radius = radius + 0.08 * small * draws.uniforms(count, low=-1)
    high = draws.uniform(-0.5, 0.35) * room[1] + 0.12 * room[1] * draws.uniforms(count, low=-1)
    centre = np.stack([radius * np.sin(angle), high, -radius * np.cos(angle)], -1)
    target = draws.uniforms(1, 3, low=-0.12, high=0.12) + draws.uniforms(
        count, 3, low=-0.08, high=0.08
    )
    return centre, target * small + [0, draws.uniform(*recipe.gaze) * room[1], 0]


def _walk(
    draws: Draws, recipe: Recipe, room: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """(centres, targets) of a walk along a bent line, the eye on something far away."""
    heading = draws.uniform(0, 2 * np.pi)
    steps = draws.uniform(*recipe.reach) * _steps(draws, count)
    way = heading + draws.uniform(-0.5, 0.5) * steps
    start = draws.uniforms(3, low=-0.4, high=0.4) * room
    centre = start + np.stack([steps * np.sin(way), 0 * steps, -steps * np.cos(way)], -1)
    centre[:, 1] = draws.uniform(-0.4, 0.1) * room[1] + draws.uniforms(count, low=-0.06, high=0.06)
    gaze = heading + draws.choice((0.0, 0.5, -0.5, 1.3, -1.3)) + draws.uniform(-0.3, 0.3)
    far = start + 1.2 * max(room[0], room[2]) * np.array([np.sin(gaze), 0, -np.cos(gaze)])
    far[1] = draws.uniform(*recipe.gaze) * room[1]
    return centre, far + draws.uniforms(count, 3, low=-0.3, high=0.3)


def _look_around(
    draws: Draws, recipe: Recipe, room: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """(centres, targets) of someone who turns, with the camera at arm's length."""
    turn = draws.uniform(0, 2 * np.pi) + draws.uniform(0.7, 1.5) * _steps(draws, count)
    foot = draws.uniforms(3, low=-0.5, high=0.5) * room
    foot[1] = draws.uniform(-0.4, 0.1) * room[1]
    out = np.stack([np.sin(turn), 0 * turn, -np.cos(turn)], -1)
    centre = foot + draws.uniform(0.8, 1.4) * out + draws.uniforms(count, 3, low=-0.12, high=0.12)
    gaze = out + [0, 0.6 * draws.uniform(*recipe.gaze), 0]
    return centre, centre + gaze + draws.uniforms(count, 3, low=-0.06, high=0.06)


def _steps(draws: Draws, count: int) -> np.ndarray:
    """From -0.5 to 0.5, not quite regular."""
    even = (np.arange(count) + 0.5) / count - 0.5
    return even + draws.uniforms(count, low=-0.3, high=0.3) / count


_PATHS = {"orbit": _orbit, "walk": _walk, "look_around": _look_around}
