"""Families of textures, each of which draws random materials of one kind."""

from collections.abc import Callable

import numpy as np

from lite3r_jax.data.synthetic.photographs import TRAINING
from lite3r_jax.data.synthetic.rng import Rng
from lite3r_jax.data.synthetic.texture import Material

ORDINARY = (
    "plaster", "cloth", "planks", "bricks", "tiles", "checks", "stripes", "mosaic", "terrazzo",
    "confetti",
)  # fmt: skip
"""Families of textures that training shows."""
UNSEEN = ("glyphs", "rings", "zigzag", "contours")
"""Families of textures that training never shows."""
BARE = ("bare",)
"""Families with hardly any texture."""
PHOTOGRAPHS = ("photograph", "photograph", "plaster", "planks", "cloth", "tiles")
"""Families of textures for splits in which a third of the surfaces carry a photograph."""
REPEATED = ("repeated tiles", "repeated checks", "repeated stripes", "repeated dots")
"""Families of patterns whose cells are all alike."""


def draw_material(rng: Rng, family: str, size: float = 1.0) -> Material:
    """Draws a random material of a family.

    Args:
        rng: source of random numbers.
        family: name of a family, from one of the lists above.
        size: how large the pattern is; 1 for rooms of some meters.
    """
    dark, bright, accent = _colors(rng)
    material = Material(
        dark=dark,
        bright=bright,
        accent=accent,
        turn=0.0,
        frequency_u=rng.uniform(1.2, 2.4),
        frequency_v=rng.uniform(1.2, 2.4),
        gain=rng.uniform(0.75, 0.95),
        contrast=rng.uniform(1.6, 3.6),
        contour=0.0,
        cell_u=1.0,
        cell_v=1.0,
        shift=0.0,
        zigzag=0.0,
        check=0.0,
        tint=0.0,
        mortar=0.0,
        mark_cell=1.0,
        mark_share=0.0,
        mark_size=0.3,
        mark_kind=0.0,
        mark_weight=0.0,
        shine=rng.uniform(0.0, 0.12) if rng.chance(0.3) else 0.0,
        photo=-1.0,
        photo_size=1.0,
        photo_u=0.0,
        photo_v=0.0,
    )
    material = _FAMILIES[family](rng, material)
    return material._replace(
        frequency_u=material.frequency_u / size,
        frequency_v=material.frequency_v / size,
        cell_u=material.cell_u * size,
        cell_v=material.cell_v * size,
        mortar=material.mortar * size,
        mark_cell=material.mark_cell * size,
        photo_size=material.photo_size * size,
        photo_u=material.photo_u * size,
        photo_v=material.photo_v * size,
    )


def _colors(rng: Rng) -> list[np.ndarray]:
    """Draws a dark and a bright color of near hues, often of wood or stone, and any accent."""
    hue = rng.uniform(0.02, 0.14) if rng.chance(0.45) else rng.uniform()
    saturation = 0.6 * rng.uniform() ** 1.5 + 0.04
    dark = _rgb(hue, saturation, rng.uniform(0.15, 0.5))
    bright = _rgb(
        hue + rng.uniform(-0.12, 0.12), saturation * rng.uniform(0.3, 1), rng.uniform(0.7, 1)
    )
    accent = _rgb(rng.uniform(), rng.uniform(0.0, 0.8), rng.uniform(0.2, 0.95))
    return [dark, bright, accent]


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """Converts HSV to RGB; hue counts turns."""
    ramp = np.abs((hue + np.array([0.0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1
    return value * (1 - saturation * (1 - np.clip(ramp, 0, 1)))


def _plaster(rng: Rng, material: Material) -> Material:
    return material._replace(turn=rng.uniform(0, np.pi))


def _cloth(rng: Rng, material: Material) -> Material:
    """Changes a material to noise that is stretched along one axis."""
    return material._replace(
        frequency_u=material.frequency_u * rng.uniform(0.6, 1.2),
        frequency_v=material.frequency_v * rng.uniform(2.5, 4),
        turn=rng.choice((0.0, 0.5 * np.pi)),
    )


def _planks(rng: Rng, material: Material) -> Material:
    wide = rng.uniform(0.12, 0.3)
    return material._replace(
        frequency_u=1.2,
        frequency_v=rng.uniform(4, 7),
        contrast=rng.uniform(2, 3.5),
        cell_u=rng.uniform(0.8, 2.2),
        cell_v=wide,
        shift=rng.uniform(0.3, 0.5),
        tint=rng.uniform(0.2, 0.5),
        mortar=rng.uniform(0.005, 0.02),
        accent=material.dark * 0.5,
        turn=rng.choice((0.0, 0.5 * np.pi)),
    )


def _bricks(rng: Rng, material: Material) -> Material:
    high = rng.uniform(0.1, 0.3)
    return material._replace(
        cell_u=high * rng.uniform(1.8, 3),
        cell_v=high,
        shift=0.5,
        tint=rng.uniform(0.2, 0.6),
        mortar=high * rng.uniform(0.06, 0.15),
    )


def _tiles(rng: Rng, material: Material) -> Material:
    cell = rng.uniform(0.2, 0.6)
    return material._replace(
        cell_u=cell,
        cell_v=cell * rng.uniform(0.8, 1.25),
        tint=rng.uniform(0.1, 0.5),
        mortar=cell * rng.uniform(0.02, 0.08),
    )


def _checks(rng: Rng, material: Material) -> Material:
    cell = rng.uniform(0.12, 0.5)
    return material._replace(
        cell_u=cell,
        cell_v=cell,
        check=rng.uniform(0.5, 0.9),
        tint=rng.uniform(0.0, 0.3),
        turn=rng.choice((0.0, 0.25 * np.pi)),
    )


def _stripes(rng: Rng, material: Material) -> Material:
    return material._replace(
        cell_u=rng.uniform(0.06, 0.35),
        cell_v=rng.uniform(3, 30),
        check=rng.uniform(0.3, 0.9),
        tint=rng.uniform(0.2, 0.6),
        turn=rng.choice((0.0, 0.5 * np.pi, 0.25 * np.pi)),
    )


def _mosaic(rng: Rng, material: Material) -> Material:
    cell = rng.uniform(0.06, 0.2)
    return material._replace(
        cell_u=cell,
        cell_v=cell,
        shift=rng.choice((0.0, 0.5)),
        tint=rng.uniform(0.5, 0.9),
        mortar=cell * rng.uniform(0.0, 0.1),
    )


def _terrazzo(rng: Rng, material: Material) -> Material:
    return material._replace(
        contrast=material.contrast * 0.7,
        mark_cell=rng.uniform(0.08, 0.35),
        mark_share=rng.uniform(0.4, 0.9),
        mark_size=rng.uniform(0.2, 0.42),
        mark_weight=rng.uniform(0.5, 0.95),
        turn=rng.uniform(0, np.pi),
    )


def _confetti(rng: Rng, material: Material) -> Material:
    return _terrazzo(rng, material)._replace(mark_kind=1.0, contrast=material.contrast)


def _glyphs(rng: Rng, material: Material) -> Material:
    return material._replace(
        contrast=material.contrast * 0.5,
        mark_cell=rng.uniform(0.2, 0.5),
        mark_share=rng.uniform(0.7, 1),
        mark_size=rng.uniform(0.35, 0.48),
        mark_kind=3.0,
        mark_weight=rng.uniform(0.7, 1),
    )


def _rings(rng: Rng, material: Material) -> Material:
    return material._replace(
        contrast=material.contrast * 0.7,
        mark_cell=rng.uniform(0.2, 0.6),
        mark_share=rng.uniform(0.6, 1),
        mark_size=rng.uniform(0.3, 0.45),
        mark_kind=2.0,
        mark_weight=rng.uniform(0.6, 0.95),
    )


def _zigzag(rng: Rng, material: Material) -> Material:
    high = rng.uniform(0.1, 0.25)
    return material._replace(
        cell_u=high * rng.uniform(2, 4),
        cell_v=high,
        zigzag=rng.uniform(0.8, 2.0),
        check=rng.uniform(0.4, 0.9),
        tint=rng.uniform(0.2, 0.6),
        turn=rng.choice((0.0, 0.5 * np.pi)),
    )


def _contours(rng: Rng, material: Material) -> Material:
    return material._replace(contour=rng.uniform(20, 45), gain=rng.uniform(0.6, 0.8))


def _photograph(rng: Rng, material: Material) -> Material:
    return material._replace(
        photo=float(rng.below(len(TRAINING))),
        photo_size=rng.log_uniform(0.5, 2.5),
        photo_u=rng.uniform(-1, 1),
        photo_v=rng.uniform(-1, 1),
        turn=rng.choice((0.0, 0.0, 0.5 * np.pi)) if rng.chance(0.7) else rng.uniform(0, 2 * np.pi),
    )


def _bare(rng: Rng, material: Material) -> Material:
    middle = 0.35 * material.dark + 0.65 * material.bright
    return material._replace(
        dark=middle * 0.97,
        bright=middle,
        frequency_u=0.4,
        frequency_v=0.4,
        gain=0.5,
        shine=rng.uniform(0.0, 0.1),
    )


def _repeated(rng: Rng, material: Material) -> Material:
    """Changes a material to one tone with hardly any noise, so that only its pattern varies."""
    return material._replace(dark=material.bright * 0.995, contrast=0.5)


def _repeated_tiles(rng: Rng, material: Material) -> Material:
    return _tiles(rng, _repeated(rng, material))._replace(tint=0.0)


def _repeated_checks(rng: Rng, material: Material) -> Material:
    return _checks(rng, _repeated(rng, material))._replace(tint=0.0)


def _repeated_stripes(rng: Rng, material: Material) -> Material:
    return _stripes(rng, _repeated(rng, material))._replace(tint=0.0, cell_v=1e4)


def _repeated_dots(rng: Rng, material: Material) -> Material:
    """Changes a material to dots in rows: a check of small cells with mortar around."""
    cell = rng.uniform(0.08, 0.2)
    return _repeated(rng, material)._replace(
        cell_u=cell, cell_v=cell, check=0.8, mortar=cell * 0.4, tint=0.0
    )


_FAMILIES: dict[str, Callable[[Rng, Material], Material]] = {
    "plaster": _plaster,
    "cloth": _cloth,
    "planks": _planks,
    "bricks": _bricks,
    "tiles": _tiles,
    "checks": _checks,
    "stripes": _stripes,
    "mosaic": _mosaic,
    "terrazzo": _terrazzo,
    "confetti": _confetti,
    "glyphs": _glyphs,
    "rings": _rings,
    "zigzag": _zigzag,
    "contours": _contours,
    "photograph": _photograph,
    "bare": _bare,
    "repeated tiles": _repeated_tiles,
    "repeated checks": _repeated_checks,
    "repeated stripes": _repeated_stripes,
    "repeated dots": _repeated_dots,
}
