"""Procedural textures: the color of a surface at (u, v), in NumPy or in JAX.

Three layers over each other: fractal value noise between two colors; a lattice of cells (checks,
bricks, planks, stripes) with its own tint in each cell and mortar between them; marks (discs,
squares, rings, glyphs) strewn over it. In place of them a surface may carry a photograph.
Everything is filtered by the width of a pixel on the surface, so that one sample a pixel suffices:
octaves finer than a pixel fade out, edges are as wide as a pixel. Numbers come from a hash of
lattice points.
"""

import math
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from lite3r_jax.data.synthetic.photographs import look_up

Array = Any  # of the module xp

OCTAVES = 5
_TURN = (1.62, 1.22)  # one octave to the next: a rotation times 2.03
_LACUNARITY = math.hypot(*_TURN)
GLYPH = (5, 6)  # dots of a glyph: columns, rows; those at the edge are empty


class Material(NamedTuple):
    """Parameters of a surface's texture; each is an array [...], each color three of them.

    Lengths are in the unit of the world, frequencies in cells a unit.

    Attributes:
        dark: color where the noise is 0, each channel in [0, 1].
        bright: color where it is 1.
        accent: color of mortar and of every other check.
        turn: angle of the pattern on the face.
        frequency_u: of the first octave, along u after the turn.
        frequency_v: likewise along v.
        gain: amplitude of an octave over that of the one before.
        contrast: of the noise; beyond about 3 it saturates.
        contour: 0, or how many contour lines are drawn into the noise instead of it.
        cell_u: width of a cell of the lattice.
        cell_v: its height.
        shift: how much every other row is shifted, in cells.
        zigzag: how far rows go up and down, in cells.
        check: weight of the accent in every other cell, 0 to 1.
        tint: how much the colors of cells vary, 0 to 1.
        mortar: width of the lines between cells.
        mark_cell: width of the lattice of marks.
        mark_share: share of its cells that have a mark.
        mark_size: half width of a mark, in its cells.
        mark_kind: 0 disc, 1 square, 2 ring, 3 glyph.
        mark_weight: how opaque marks are.
        shine: weight of the highlight.
        photo: which photograph of the world is shown in place of all that, or -1.
        photo_size: width of the photograph.
        photo_u: where it begins, along u after the turn.
        photo_v: likewise along v.
    """

    dark: Array
    bright: Array
    accent: Array
    turn: Array
    frequency_u: Array
    frequency_v: Array
    gain: Array
    contrast: Array
    contour: Array
    cell_u: Array
    cell_v: Array
    shift: Array
    zigzag: Array
    check: Array
    tint: Array
    mortar: Array
    mark_cell: Array
    mark_share: Array
    mark_size: Array
    mark_kind: Array
    mark_weight: Array
    shine: Array
    photo: Array
    photo_size: Array
    photo_u: Array
    photo_v: Array


_COLORS = 3  # the first fields of `Material`
COLUMNS = 3 * _COLORS + len(Material._fields) - _COLORS


def pack(material: Material) -> np.ndarray:
    """Packs a material of plain numbers into a row: float64 [COLUMNS]."""
    return np.array(
        [*material.dark, *material.bright, *material.accent, *material[_COLORS:]], np.float64
    )


def unpack(rows: Array) -> Material:
    """Returns the material of each point from `pack`ed rows [COLUMNS, ...]."""
    colors = [[rows[3 * i + c] for c in range(3)] for i in range(_COLORS)]
    return Material(*colors, *(rows[i] for i in range(3 * _COLORS, COLUMNS)))


def hashed(xp: ModuleType, i: Array, j: Array, seed: Array) -> Array:
    """Hashes lattice points, integers stored as floats, to 32 random bits each: uint32.

    The finalizer is lowbias32 (nullprogram.com/blog/2018/07/31).
    """
    x, y = (k.astype(xp.int32).astype(xp.uint32) for k in (i, j))
    h = x * np.uint32(0x9E3779B1) + y * np.uint32(0x85EBCA77) + seed
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B)
    return h ^ (h >> np.uint32(16))


def _share(h: Array, dtype: Any, shift: int = 0) -> Array:
    """Returns eight bits of a hash as a number in [0, 1]."""
    return ((h >> np.uint32(shift)) & np.uint32(255)).astype(dtype) * (1 / 255)


def value_noise(xp: ModuleType, x: Array, y: Array, seed: Array) -> Array:
    """Computes value noise in [0, 1): random at lattice points, between them smoothstep."""
    i, j = xp.floor(x), xp.floor(y)
    a, b = x - i, y - j
    a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
    corner = [
        (hashed(xp, i + k, j + m, seed) >> np.uint32(8)).astype(x.dtype) * 2.0**-24
        for m in (0, 1)
        for k in (0, 1)
    ]
    low = corner[0] + (corner[1] - corner[0]) * a
    high = corner[2] + (corner[3] - corner[2]) * a
    return low + (high - low) * b


def albedo(
    xp: ModuleType,
    material: Material,
    seed: Array,
    u: Array,
    v: Array,
    width: Array,
    photos: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Computes red, green and blue of points on a texture, each [...] in [0, 1].

    Args:
        xp: numpy or jax.numpy.
        material: of each point.
        seed: uint32 [...], of the surface.
        u: [...] on the face.
        v: likewise.
        width: [...] of a pixel on the face, in the unit of u and v.
        photos: of `photographs.pyramids`, where surfaces carry some.
    """
    cos, sin = xp.cos(material.turn), xp.sin(material.turn)
    a, b = cos * u + sin * v, cos * v - sin * u
    shade = _noise(xp, material, seed, a, b, width)
    check, tint, mortar = _lattice(xp, material, seed, a, b, width)
    mark, hue = _marks(xp, material, seed, a, b, width)
    check = material.check * (0.5 + 0.5 * check)
    color = []
    for c in range(3):
        base = material.dark[c] + (material.bright[c] - material.dark[c]) * shade
        base = base + check * (material.accent[c] * (0.6 + 0.4 * shade) - base)
        base = base * (1 + material.tint * tint[c])
        base = base + mortar * (material.accent[c] - base)
        base = base + mark * (hue[c] - base)
        color.append(xp.clip(base, 0, 1))
    if photos is not None:
        size = material.photo_size
        shown = look_up(
            xp, photos, xp.maximum(material.photo, 0).astype(xp.int32),
            (a - material.photo_u) / size, (b - material.photo_v) / size, width / size,
        )  # fmt: skip
        color = [xp.where(material.photo >= 0, p, c) for p, c in zip(shown, color, strict=True)]
    return color[0], color[1], color[2]


def _fade(xp: ModuleType, cells: Array) -> Array:
    """Returns the weight of a pattern with `cells` cells a pixel: 1 up to 1/3, 0 from 1."""
    return xp.clip(1.5 - 1.5 * cells, 0, 1)


def _noise(
    xp: ModuleType, material: Material, seed: Array, a: Array, b: Array, width: Array
) -> Array:
    x, y = a * material.frequency_u, b * material.frequency_v
    cells = width * xp.maximum(material.frequency_u, material.frequency_v)
    coarse = cells
    value, total, amplitude = xp.zeros_like(x), 0.0, xp.ones_like(x)
    for octave in range(OCTAVES):
        noise = value_noise(xp, x, y, seed + np.uint32(octave)) - 0.5
        value = value + amplitude * _fade(xp, cells) * noise
        total = total + amplitude
        x, y = _TURN[0] * x - _TURN[1] * y, _TURN[1] * x + _TURN[0] * y
        cells, amplitude = cells * _LACUNARITY, amplitude * material.gain
    value = value / total
    lines = 0.5 * xp.sin(material.contour * value) * _fade(xp, coarse * material.contour * 0.2)
    return xp.clip(0.5 + xp.where(material.contour > 0, lines, material.contrast * value), 0, 1)


def _lattice(
    xp: ModuleType, material: Material, seed: Array, a: Array, b: Array, width: Array
) -> tuple[Array, list[Array], Array]:
    """Returns check (+1 and -1 in turn), tint of three channels in [-1, 1], mortar in [0, 1]."""
    x, y = a / material.cell_u, b / material.cell_v
    y = y + material.zigzag * xp.abs(2 * (x - xp.floor(x)) - 1)
    row = xp.floor(y)
    x = x + material.shift * (row - 2 * xp.floor(row * 0.5))
    column = xp.floor(x)
    in_x, in_y = x - column, y - row
    # distance to the next edge; zigzags are as wide along y as straight rows
    to_x = xp.minimum(in_x, 1 - in_x) * material.cell_u
    to_y = xp.minimum(in_y, 1 - in_y) * material.cell_v
    # rows of zigzags have no columns
    edge = xp.where(material.zigzag > 0, to_y, xp.minimum(to_x, to_y))
    column = xp.where(material.zigzag > 0, 0, column)
    fade = _fade(xp, width / xp.minimum(material.cell_u, material.cell_v))
    soft = xp.clip(2 * edge / width, 0, 1) * fade
    parity = column + row
    check = soft * (1 - 2 * (parity - 2 * xp.floor(parity * 0.5)))
    h = hashed(xp, column, row, seed ^ np.uint32(0xA511E9B3))
    # cells differ in brightness more than in hue
    gray = 1.5 * _share(h, x.dtype, 24) - 0.75
    tint = [soft * (gray + 0.5 * _share(h, x.dtype, shift) - 0.25) for shift in (0, 8, 16)]
    mortar = xp.clip((0.5 * material.mortar - edge) / width + 0.5, 0, 1)
    mortar = xp.where(material.mortar > 0, mortar, 0) * fade
    return check, tint, mortar


def _marks(
    xp: ModuleType, material: Material, seed: Array, a: Array, b: Array, width: Array
) -> tuple[Array, list[Array]]:
    """Returns the opacity in [0, 1] and the color of three channels of the marks."""
    x, y = a / material.mark_cell, b / material.mark_cell
    i, j = xp.floor(x), xp.floor(y)
    h = hashed(xp, i, j, seed ^ np.uint32(0x63D83595))
    dtype = x.dtype
    size = material.mark_size * (0.6 + 0.4 * _share(h, dtype, 24))
    room = 1 - 2 * size
    x = x - i - size - room * _share(h, dtype, 16)  # from the middle of the mark
    y = y - j - size - room * _share(h, dtype, 8)
    soft = width / material.mark_cell
    radius = xp.sqrt(x * x + y * y)
    disc = size - radius
    square = size - xp.maximum(xp.abs(x), xp.abs(y))
    ring = 0.3 * size - xp.abs(radius - 0.7 * size)
    inside = xp.where(
        material.mark_kind < 0.5, disc, xp.where(material.mark_kind < 1.5, square * 1.2, ring)
    )
    cover = xp.clip(inside / soft + 0.5, 0, 1)
    cover = xp.where(
        material.mark_kind < 2.5, cover, _glyph(xp, x / size, y / size, h, soft / size)
    )
    other = hashed(xp, i, j, seed ^ np.uint32(0x2545F491))
    there = _share(other, dtype, 24) < material.mark_share
    fade = xp.clip(1.5 - 0.75 * soft / size, 0, 1)
    opacity = xp.where(there, cover, 0) * fade * material.mark_weight
    return opacity, [_share(other, dtype, shift) for shift in (0, 8, 16)]


def _glyph(xp: ModuleType, x: Array, y: Array, h: Array, soft: Array) -> Array:
    """Draws dots of a bitmap whose bits are those of a hash; x and y go from -1 to 1."""
    columns, rows = GLYPH
    x, y, soft = 0.5 * (x + 1) * columns - 0.5, 0.5 * (y + 1) * rows - 0.5, soft * (0.5 * rows)
    i, j = xp.floor(x), xp.floor(y)

    def dot(k: Array, m: Array) -> Array:
        on = (k > 0) & (k < columns - 1) & (m > 0) & (m < rows - 1)  # a margin of one dot
        place = xp.clip(k + columns * m, 0, columns * rows - 1).astype(xp.uint32)
        return xp.where(on & (((h >> place) & np.uint32(1)) > 0), 1.0, 0.0).astype(x.dtype)

    # each edge between dots is as wide as a pixel
    a = xp.clip((x - i - 0.5) / xp.maximum(soft, 1e-3) + 0.5, 0, 1)
    b = xp.clip((y - j - 0.5) / xp.maximum(soft, 1e-3) + 0.5, 0, 1)
    low = dot(i, j) * (1 - a) + dot(i + 1, j) * a
    high = dot(i, j + 1) * (1 - a) + dot(i + 1, j + 1) * a
    return low * (1 - b) + high * b
