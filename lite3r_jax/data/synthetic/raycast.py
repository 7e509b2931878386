"""Intersects rays with the primitives of a synthetic world, in NumPy or in JAX.

Every primitive is a unit one behind an affine map: a box is the cube [-1, 1]^3, an ellipsoid the
unit ball, a cylinder the unit disc times [-1, 1] along y. A map keeps the parameter t of a ray
o + t d, so the ray is brought into the unit space and cut there. Primitive 0 is the room, a box
seen from inside. Functions take the array module `xp` (numpy or jax.numpy) and keep the precision
of their arguments; vectors come as [3, ...].
"""

from types import ModuleType
from typing import Any, NamedTuple

from lite3r_jax.data.synthetic.world import BOXES, CYLINDERS, ELLIPSOIDS, ROOM

Array = Any  # of the module xp
_TINY = 1e-12  # in place of a direction that is parallel to a plane


def to_unit(affine: Array, o: Array, d: Array) -> tuple[Array, Array]:
    """Transforms origins and directions of rays to the unit space of one primitive.

    Args:
        affine: [3, 4].
        o: [3, ...] in the world.
        d: [3, ...] in the world.
    """
    rows = range(3)
    origin = [sum(affine[i, j] * o[j] for j in range(3)) + affine[i, 3] for i in rows]
    return origin, [sum(affine[i, j] * d[j] for j in range(3)) for i in rows]


def cut_box(xp: ModuleType, o: Array, d: Array) -> tuple[Array, Array]:
    """Returns t where rays o + t d enter and leave the cube; the entry is later if a ray misses."""
    near, far = -xp.inf, xp.inf
    for origin, direction in zip(o, d, strict=True):
        low, high = _slab(xp, origin, direction)
        near, far = xp.maximum(near, low), xp.minimum(far, high)
    return near, far


def cut_ellipsoid(xp: ModuleType, o: Array, d: Array) -> tuple[Array, Array]:
    """Returns t where rays o + t d enter and leave the unit ball, as `cut_box` for the cube."""
    return _disc(xp, o, d)


def cut_cylinder(xp: ModuleType, o: Array, d: Array) -> tuple[Array, Array]:
    """Returns t where rays o + t d enter and leave the cylinder, as `cut_box` for the cube."""
    near, far = _disc(xp, [o[0], o[2]], [d[0], d[2]])
    low, high = _slab(xp, o[1], d[1])
    return xp.maximum(near, low), xp.minimum(far, high)


CUTS = ((BOXES, cut_box), (ELLIPSOIDS, cut_ellipsoid), (CYLINDERS, cut_cylinder))
"""Range of the primitives of each kind, and the function that intersects rays with them."""


def cut_room(xp: ModuleType, half: Array, open_top: Array, o: Array, d: Array) -> Array:
    """Returns t where rays o + t d from inside reach a wall, floor or ceiling; infinite for sky.

    Args:
        xp: numpy or jax.numpy.
        half: [3] of the room.
        open_top: bool [].
        o: [3, ...] in the world.
        d: likewise.
    """
    exits = [_slab(xp, o[i] / half[i], d[i] / half[i])[1] for i in range(3)]
    end = xp.minimum(xp.minimum(exits[0], exits[1]), exits[2])
    return xp.where(open_top & (d[1] < 0) & (exits[1] <= end), xp.inf, end)


def nearer(
    xp: ModuleType, cut: tuple[Array, Array], active: Array, number: Array, end: Array, hit: Array
) -> tuple[Array, Array]:
    """Updates (t, primitive) of the first hit so far with the cut of one more primitive."""
    near, far = cut
    closer = active & (near < far) & (near > 0) & (near < end)
    return xp.where(closer, near, end), xp.where(closer, number, hit)


def _slab(xp: ModuleType, o: Array, d: Array) -> tuple[Array, Array]:
    inverse = 1 / xp.where(xp.abs(d) < _TINY, _TINY, d)
    one, other = (-1 - o) * inverse, (1 - o) * inverse
    return xp.minimum(one, other), xp.maximum(one, other)


def _disc(xp: ModuleType, o: Array, d: Array) -> tuple[Array, Array]:
    """Intersects rays with the unit circle or ball, from the point nearest to its center.

    This form loses no digits for small primitives far away, as b^2 - 4ac would in float32.
    """
    square = xp.maximum(sum(x * x for x in d), _TINY)
    middle = -sum(x * y for x, y in zip(o, d, strict=True)) / square
    depth = 1 - sum((x + middle * y) ** 2 for x, y in zip(o, d, strict=True))
    half = xp.sqrt(xp.maximum(depth, 0) / square)
    miss = depth <= 0
    return xp.where(miss, xp.inf, middle - half), xp.where(miss, -xp.inf, middle + half)


class Surface(NamedTuple):
    """Face, normal and texture coordinates of the points at which rays end.

    Attributes:
        face: int32 [...], 0 to 5: the side of a box (2 * axis + whether it is the positive one) or
            the side of the cube that an ellipsoid is seen through; 0 for the side of a cylinder.
        normal: [3, ...] of length 1, out of a primitive or into the room.
        u: [...] coordinate on the face, in the unit of the world.
        v: [...] likewise.
    """

    face: Array
    normal: tuple[Array, Array, Array]
    u: Array
    v: Array


def surface(xp: ModuleType, affine: Array, half: Array, primitive: Array, point: Array) -> Surface:
    """Computes face, normal and texture coordinates of points on primitives.

    Args:
        xp: numpy or jax.numpy.
        affine: [3, 4, ...] of the primitive at each point.
        half: [3, ...] its half sizes.
        primitive: int [...] its number.
        point: [3, ...] on it.
    """
    (x, y, z), _ = to_unit(affine, point, [0, 0, 0])
    ellipsoid = (primitive >= ELLIPSOIDS.start) & (primitive < ELLIPSOIDS.stop)
    cylinder = primitive >= CYLINDERS.start
    radius = xp.sqrt(x * x + z * z)
    side = cylinder & (xp.abs(y) <= radius)
    # the axis of the face: the largest coordinate, along y for the ends of a cylinder
    along_y = (xp.abs(y) > xp.abs(x)) & (xp.abs(y) >= xp.abs(z))
    along_y = xp.where(cylinder, ~side, along_y)
    along_x = ~along_y & (xp.abs(x) >= xp.abs(z)) & ~cylinder
    major = xp.where(along_x, x, xp.where(along_y, y, z))
    axis = xp.where(along_x, 0, xp.where(along_y, 1, 2))
    face = xp.where(side, 0, 2 * axis + (major > 0)).astype(xp.int32)

    sign, zero = xp.sign(major), xp.zeros_like(x)
    flat = (
        xp.where(along_x, sign, zero),
        xp.where(along_y, sign, zero),
        xp.where(along_x | along_y, zero, sign),
    )
    round_normal = (x, xp.where(side, zero, y), z)
    curved = ellipsoid | side
    n = [xp.where(curved, r, f) for r, f in zip(round_normal, flat, strict=True)]
    normal = [sum(affine[i, j] * n[i] for i in range(3)) for j in range(3)]
    length = xp.sqrt(sum(c * c for c in normal))
    length = xp.where(primitive == ROOM, -length, length)

    stretch = xp.where(ellipsoid, 1 / xp.maximum(xp.abs(major), 0.5), 1.0)
    turn = xp.arctan2(z, x) * (0.5 * (half[0] + half[2]))
    u = xp.where(side, turn, stretch * xp.where(along_x, z * half[2], x * half[0]))
    v = xp.where(side, y * half[1], stretch * xp.where(along_y, z * half[2], y * half[1]))
    return Surface(face, (normal[0] / length, normal[1] / length, normal[2] / length), u, v)
