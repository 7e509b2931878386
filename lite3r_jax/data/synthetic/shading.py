"""Shading of points in a synthetic room, in NumPy or in JAX.

One lamp with Lambert's law, ambient light that comes more from above, and corners that get less of
it. None of this depends on the view; a highlight on some surfaces and the exposure do.
"""

from types import ModuleType
from typing import Any

import numpy as np

from lite3r_jax.data.synthetic import texture
from lite3r_jax.data.synthetic.raycast import Surface
from lite3r_jax.data.synthetic.world import ROOM, World

Array = Any  # of the module xp
_CORNER, _CORNER_REACH = 0.35, 0.3  # how much darker corners are, and how far that reaches
_GLOSS = 24  # exponent of highlights
WHITE = 1.2
"""Limit of the samples of a pixel: brighter ones count as this much in their mean."""


def color(
    xp: ModuleType,
    world: World,
    place: Surface,
    materials: Array,
    seeds: Array,
    point: Array,
    direction: Array,
    width: Array,
) -> list[Array]:
    """Computes red, green and blue of points on surfaces, before exposure.

    Args:
        xp: numpy or jax.numpy.
        world: the world that the points are in.
        place: result of `raycast.surface` for the points.
        materials: [COLUMNS, ...] of the face of each point.
        seeds: uint32 [...], likewise.
        point: [3, ...] in the world.
        direction: [3, ...] from the camera to them, of any length.
        width: [...] of a pixel at right angles to the ray, in the unit of the world.
    """
    n = place.normal
    length = xp.sqrt(sum(x * x for x in direction))
    facing = -sum(x * y for x, y in zip(n, direction, strict=True)) / length
    material = texture.unpack(materials)
    # between the widths across and along the slope
    on_face = width / xp.sqrt(xp.clip(facing, 0.05, 1))
    rgb = texture.albedo(xp, material, seeds, place.u, place.v, on_face, world.photos)

    to_lamp = [world.lamp[i] - point[i] for i in range(3)]
    square = sum(x * x for x in to_lamp)
    to_lamp = [x / xp.sqrt(square) for x in to_lamp]
    upright = sum(x * y for x, y in zip(n, to_lamp, strict=True))
    room = world.half[ROOM]
    reach = room[0] * room[0] + room[2] * room[2]
    lamp = world.lamp_power * 2.2 * xp.maximum(upright, 0) * reach / (reach + 2 * square)
    ambient = (1 - world.lamp_power) * (1.15 - 0.25 * n[1])
    for i in range(3):
        gap = xp.maximum(room[i] - xp.abs(point[i]), 0)
        ambient = ambient * (1 - _CORNER * (1 - n[i] * n[i]) * xp.exp(-gap / _CORNER_REACH))
    # what is left of the lamp's direction after reflection, against the way to the eye
    mirrored = [2 * upright * a - b for a, b in zip(n, to_lamp, strict=True)]
    along = -sum(x * y for x, y in zip(mirrored, direction, strict=True)) / length
    shine = material.shine * xp.maximum(along, 0) ** _GLOSS
    return [channel * (lamp + ambient) + shine for channel in rgb]


def sky(xp: ModuleType, world: World, direction: Array) -> list[Array]:
    """Computes red, green and blue of the sky, with some clouds, where rays leave the room."""
    length = xp.sqrt(sum(x * x for x in direction))
    up = xp.clip(-direction[1] / length, 0.05, 1)
    cloud = xp.zeros_like(up)
    x, y = direction[0] / (up * length), direction[2] / (up * length)
    seed = xp.zeros_like(x).astype(xp.uint32) + world.seeds[0]
    for octave, weight in enumerate((0.6, 0.4)):
        at = 0.7 * 2.1**octave
        noise = texture.value_noise(xp, x * at, y * at, seed + np.uint32(octave))
        cloud = cloud + weight * noise
    cloud = xp.clip(2.5 * cloud - 1.0, 0, 1) * up
    clear = [h + (z - h) * xp.sqrt(up) for h, z in zip(world.horizon, world.zenith, strict=True)]
    return [channel + 0.6 * cloud * (0.95 - channel) for channel in clear]


def expose(xp: ModuleType, rgb: list[Array], exposure: Array) -> list[Array]:
    """Applies exposure and rounds red, green and blue to eight bits: uint8, each [...]."""
    levels = [xp.clip(rgb[i] * exposure[i], 0, 1) * 255 + 0.5 for i in range(3)]
    return [level.astype(xp.uint8) for level in levels]
