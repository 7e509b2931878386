"""Rooms for tests, and what is inside of a primitive by its definition."""

from dataclasses import replace

import numpy as np

from lite3r_jax.data.synthetic.scene import make_scene
from lite3r_jax.data.synthetic.splits import seeds_of
from lite3r_jax.data.synthetic.world import BOXES, CYLINDERS, ELLIPSOIDS, affine_of


def scene(split="train", number=0, frames=4):
    return make_scene(seeds_of(split).start + number, frames)


def turn(seed: int) -> np.ndarray:
    """A random rotation [3, 3]."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.linalg.det(q)


def empty(world):
    return replace(world, active=np.arange(len(world.active)) == 0)


def with_one(world, kind: range, center, half, rotation):
    """The room with nothing but one primitive in it."""
    active, affine, sizes = world.active & False, world.affine.copy(), world.half.copy()
    active[[0, kind.start]] = True
    affine[kind.start] = affine_of(np.asarray(center), np.asarray(half), rotation)
    sizes[kind.start] = half
    return replace(world, active=active, affine=affine, half=sizes)


def depth_inside(world, number: int, points: np.ndarray) -> np.ndarray:
    """[N] of points [N, 3]: above 0 inside of a primitive, below outside, in its unit space."""
    x, y, z = (points @ world.affine[number, :, :3].T + world.affine[number, :, 3]).T
    if number == 0 or number in BOXES:
        return 1 - np.max(np.abs([x, y, z]), 0)
    if number in ELLIPSOIDS:
        return 1 - np.sqrt(x * x + y * y + z * z)
    assert number in CYLINDERS
    return np.minimum(1 - np.hypot(x, z), 1 - np.abs(y))


def filled(world, points: np.ndarray) -> np.ndarray:
    """Whether points [N, 3] are inside of anything, or out of the room."""
    things = np.flatnonzero(world.active)
    inside = [depth_inside(world, number, points) > 0 for number in things]
    return ~inside[0] | np.any(inside[1:], axis=0)
