"""A synthetic world as arrays of fixed size: its primitives, materials and light.

Axes are those of a camera that stands upright: x right, y down, z forward. The middle of the room
is the origin, its walls stand at `half[0]`. Lengths are about meters; `scale` says how many units
of the sample one of them is.
"""

from dataclasses import dataclass, field

import numpy as np

ROOM = 0
"""Number of the primitive that is the room."""
BOXES = range(1, 15)
ELLIPSOIDS = range(15, 20)
CYLINDERS = range(20, 25)
PRIMITIVES = 25
FACES = 6


@dataclass(frozen=True, eq=False)
class World:
    """A room with what is in it, as a fixed number of primitives; inactive ones do not exist.

    Attributes:
        affine: float64 [PRIMITIVES, 3, 4], from the world to the unit space of each primitive.
        half: float64 [PRIMITIVES, 3], half sizes along its own axes.
        active: bool [PRIMITIVES].
        open_top: bool [], whether the room has the sky in place of a ceiling.
        materials: float64 [PRIMITIVES * FACES, COLUMNS], `texture.pack`ed.
        seeds: uint32 [PRIMITIVES * FACES], of the texture of each face.
        lamp: float64 [3], where the light is.
        lamp_power: float64 [], of it; the rest is ambient light.
        horizon: float64 [3], color of the sky near the horizon.
        zenith: float64 [3], color of the sky overhead.
        scale: float64 [], units of the sample per unit of the world.
        void: bool [], whether there are no walls, floor and ceiling: the sky is all around.
        photos: of `photographs.pyramids`, uint8 [P, ..., 3]; None where no surface carries one.
    """

    affine: np.ndarray
    half: np.ndarray
    active: np.ndarray
    open_top: np.ndarray
    materials: np.ndarray
    seeds: np.ndarray
    lamp: np.ndarray
    lamp_power: np.ndarray
    horizon: np.ndarray
    zenith: np.ndarray
    scale: np.ndarray
    void: np.ndarray = field(default_factory=lambda: np.array(False))
    photos: np.ndarray | None = None


def affine_of(center: np.ndarray, half: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Returns the affine map [3, 4] from the world to the unit space of a primitive.

    Args:
        center: [3] in the world.
        half: [3], half sizes along the primitive's own axes.
        rotation: [3, 3], from the primitive's axes to the world's.
    """
    linear = rotation.T / np.reshape(half, (3, 1))
    return np.concatenate([linear, -linear @ np.reshape(center, (3, 1))], -1)
