"""Synthetic worlds other than furnished rooms: things that float in a void, and corridors."""

from collections.abc import Sequence

import numpy as np

from lite3r_jax.data.synthetic.place_objects import (
    WorldBuilder,
    along_walls,
    build_room,
    finish,
    stand,
)
from lite3r_jax.data.synthetic.rng import Rng
from lite3r_jax.data.synthetic.world import BOXES, CYLINDERS, ELLIPSOIDS, ROOM, World

VOID = (5.0, 5.0, 5.0)
"""Half sizes of the void in which things float; light is placed by it, but no wall is seen."""
_THIN = 0.01  # half thickness of quads


def place_floating(rng: Rng, families: Sequence[str]) -> World:
    """Draws a world of quads, blobs and solids that float in a void, with sky all around.

    Things have any size, place and tilt. Nothing in one view tells how far a thing is: sizes and
    the grain of textures vary by a factor of seven or more, independently of each other and of the
    place; nothing stands on anything.

    Args:
        rng: source of random numbers.
        families: of textures.
    """
    builder = WorldBuilder(rng, families, 1.0)
    builder.place(ROOM, (0, 0, 0), VOID)
    for number in range(rng.between(12, 24)):
        kind = rng.choice((BOXES, BOXES, BOXES, ELLIPSOIDS, CYLINDERS))
        large = number < 3  # so that pictures are filled
        size = rng.uniform(0.9, 1.8) if large else rng.log_uniform(0.15, 1.1)
        half = size * rng.uniforms(3, low=0.45, high=1.0)
        if large or (kind is BOXES and rng.chance(0.75)):
            kind = BOXES
            half[2] = _THIN
        elif kind is CYLINDERS:
            half[2] = half[0]
        builder.size = rng.log_uniform(0.35, 2.5)
        center = rng.uniforms(3, low=-1.0, high=1.0) * [2.2, 1.7, 2.2]
        builder.add(kind, center, half, any_rotation(rng))
    return finish(builder, scale=rng.log_uniform(0.1, 100) / 5, void=True)


def place_corridor(rng: Rng, families: Sequence[str]) -> World:
    """Draws a long narrow room along z with things on its floor and walls.

    Args:
        rng: source of random numbers.
        families: of textures.
    """
    x, y, z = rng.uniform(1.0, 1.8), rng.uniform(1.15, 1.7), rng.uniform(5.0, 9.0)
    builder = WorldBuilder(rng, families, rng.uniform(0.7, 1.1))
    build_room(builder, (x, y, z))
    along_walls(builder, (x, y, z))
    for _ in range(rng.between(8, 14)):
        side = rng.choice((-1, 1)) * rng.uniform(0.4, 0.8) * x
        stand(builder, np.array([side, 0, rng.uniform(-0.9, 0.9) * z]), y, 0.6)
    return finish(builder, scale=rng.log_uniform(0.1, 100) / (2 * z))


def any_rotation(rng: Rng) -> np.ndarray:
    """Draws a uniformly random rotation [3, 3] (Shoemake, Uniform random rotations, 1992)."""
    u = rng.uniforms(3)
    one, other = 2 * np.pi * u[1], 2 * np.pi * u[2]
    low, high = np.sqrt(1 - u[0]), np.sqrt(u[0])
    x, y, z, w = low * np.sin(one), low * np.cos(one), high * np.sin(other), high * np.cos(other)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
