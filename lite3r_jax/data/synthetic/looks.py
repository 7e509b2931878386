"""Families of textures: each draws looks of one kind."""

from collections.abc import Callable

import numpy as np

from lite3r_jax.data.synthetic.draws import Draws
from lite3r_jax.data.synthetic.texture import Look

ORDINARY = (
    "plaster", "cloth", "planks", "bricks", "tiles", "checks", "stripes", "mosaic", "terrazzo",
    "confetti",
)  # fmt: skip
"""Those of training."""
UNSEEN = ("glyphs", "rings", "zigzag", "contours")
"""Those that training never shows."""
BARE = ("bare",)
"""Hardly any texture."""
REPEATED = ("repeated tiles", "repeated checks", "repeated stripes", "repeated dots")
"""Cells that are all alike."""


def draw_look(draws: Draws, family: str, size: float = 1.0) -> Look:
    """A look of a family.

    Args:
        draws: where numbers come from.
        family: one of those above.
        size: how large the pattern is; 1 for rooms of some metres.
    """
    dark, bright, accent = _colours(draws)
    look = Look(
        dark=dark,
        bright=bright,
        accent=accent,
        turn=0.0,
        frequency_u=draws.uniform(1.2, 2.4),
        frequency_v=draws.uniform(1.2, 2.4),
        gain=draws.uniform(0.75, 0.95),
        contrast=draws.uniform(1.6, 3.6),
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
        shine=draws.uniform(0.0, 0.12) if draws.chance(0.3) else 0.0,
    )
    look = _FAMILIES[family](draws, look)
    return look._replace(
        frequency_u=look.frequency_u / size,
        frequency_v=look.frequency_v / size,
        cell_u=look.cell_u * size,
        cell_v=look.cell_v * size,
        mortar=look.mortar * size,
        mark_cell=look.mark_cell * size,
    )


def _colours(draws: Draws) -> list[np.ndarray]:
    """Dark, bright and accent: hues near each other, often of wood or stone; any accent."""
    hue = draws.uniform(0.02, 0.14) if draws.chance(0.45) else draws.uniform()
    saturation = 0.6 * draws.uniform() ** 1.5 + 0.04
    dark = _rgb(hue, saturation, draws.uniform(0.15, 0.5))
    bright = _rgb(
        hue + draws.uniform(-0.12, 0.12), saturation * draws.uniform(0.3, 1), draws.uniform(0.7, 1)
    )
    accent = _rgb(draws.uniform(), draws.uniform(0.0, 0.8), draws.uniform(0.2, 0.95))
    return [dark, bright, accent]


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """HSV to RGB; hue counts turns."""
    ramp = np.abs((hue + np.array([0.0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1
    return value * (1 - saturation * (1 - np.clip(ramp, 0, 1)))


def _plaster(draws: Draws, look: Look) -> Look:
    return look._replace(turn=draws.uniform(0, np.pi))


def _cloth(draws: Draws, look: Look) -> Look:
    """Noise that is stretched along one way."""
    return look._replace(
        frequency_u=look.frequency_u * draws.uniform(0.6, 1.2),
        frequency_v=look.frequency_v * draws.uniform(2.5, 4),
        turn=draws.choice((0.0, 0.5 * np.pi)),
    )


def _planks(draws: Draws, look: Look) -> Look:
    wide = draws.uniform(0.12, 0.3)
    return look._replace(
        frequency_u=1.2,
        frequency_v=draws.uniform(4, 7),
        contrast=draws.uniform(2, 3.5),
        cell_u=draws.uniform(0.8, 2.2),
        cell_v=wide,
        shift=draws.uniform(0.3, 0.5),
        tint=draws.uniform(0.2, 0.5),
        mortar=draws.uniform(0.005, 0.02),
        accent=look.dark * 0.5,
        turn=draws.choice((0.0, 0.5 * np.pi)),
    )


def _bricks(draws: Draws, look: Look) -> Look:
    high = draws.uniform(0.1, 0.3)
    return look._replace(
        cell_u=high * draws.uniform(1.8, 3),
        cell_v=high,
        shift=0.5,
        tint=draws.uniform(0.2, 0.6),
        mortar=high * draws.uniform(0.06, 0.15),
    )


def _tiles(draws: Draws, look: Look) -> Look:
    cell = draws.uniform(0.2, 0.6)
    return look._replace(
        cell_u=cell,
        cell_v=cell * draws.uniform(0.8, 1.25),
        tint=draws.uniform(0.1, 0.5),
        mortar=cell * draws.uniform(0.02, 0.08),
    )


def _checks(draws: Draws, look: Look) -> Look:
    cell = draws.uniform(0.12, 0.5)
    return look._replace(
        cell_u=cell,
        cell_v=cell,
        check=draws.uniform(0.5, 0.9),
        tint=draws.uniform(0.0, 0.3),
        turn=draws.choice((0.0, 0.25 * np.pi)),
    )


def _stripes(draws: Draws, look: Look) -> Look:
    return look._replace(
        cell_u=draws.uniform(0.06, 0.35),
        cell_v=draws.uniform(3, 30),
        check=draws.uniform(0.3, 0.9),
        tint=draws.uniform(0.2, 0.6),
        turn=draws.choice((0.0, 0.5 * np.pi, 0.25 * np.pi)),
    )


def _mosaic(draws: Draws, look: Look) -> Look:
    cell = draws.uniform(0.06, 0.2)
    return look._replace(
        cell_u=cell,
        cell_v=cell,
        shift=draws.choice((0.0, 0.5)),
        tint=draws.uniform(0.5, 0.9),
        mortar=cell * draws.uniform(0.0, 0.1),
    )


def _terrazzo(draws: Draws, look: Look) -> Look:
    return look._replace(
        contrast=look.contrast * 0.7,
        mark_cell=draws.uniform(0.08, 0.35),
        mark_share=draws.uniform(0.4, 0.9),
        mark_size=draws.uniform(0.2, 0.42),
        mark_weight=draws.uniform(0.5, 0.95),
        turn=draws.uniform(0, np.pi),
    )


def _confetti(draws: Draws, look: Look) -> Look:
    return _terrazzo(draws, look)._replace(mark_kind=1.0, contrast=look.contrast)


def _glyphs(draws: Draws, look: Look) -> Look:
    return look._replace(
        contrast=look.contrast * 0.5,
        mark_cell=draws.uniform(0.2, 0.5),
        mark_share=draws.uniform(0.7, 1),
        mark_size=draws.uniform(0.35, 0.48),
        mark_kind=3.0,
        mark_weight=draws.uniform(0.7, 1),
    )


def _rings(draws: Draws, look: Look) -> Look:
    return look._replace(
        contrast=look.contrast * 0.7,
        mark_cell=draws.uniform(0.2, 0.6),
        mark_share=draws.uniform(0.6, 1),
        mark_size=draws.uniform(0.3, 0.45),
        mark_kind=2.0,
        mark_weight=draws.uniform(0.6, 0.95),
    )


def _zigzag(draws: Draws, look: Look) -> Look:
    high = draws.uniform(0.1, 0.25)
    return look._replace(
        cell_u=high * draws.uniform(2, 4),
        cell_v=high,
        zigzag=draws.uniform(0.8, 2.0),
        check=draws.uniform(0.4, 0.9),
        tint=draws.uniform(0.2, 0.6),
        turn=draws.choice((0.0, 0.5 * np.pi)),
    )


def _contours(draws: Draws, look: Look) -> Look:
    return look._replace(contour=draws.uniform(20, 45), gain=draws.uniform(0.6, 0.8))


def _bare(draws: Draws, look: Look) -> Look:
    middle = 0.35 * look.dark + 0.65 * look.bright
    return look._replace(
        dark=middle * 0.97,
        bright=middle,
        frequency_u=0.4,
        frequency_v=0.4,
        gain=0.5,
        shine=draws.uniform(0.0, 0.1),
    )


def _repeated(draws: Draws, look: Look) -> Look:
    """One tone, no noise: all that differs is the pattern."""
    return look._replace(dark=look.bright * 0.995, contrast=0.5)


def _repeated_tiles(draws: Draws, look: Look) -> Look:
    return _tiles(draws, _repeated(draws, look))._replace(tint=0.0)


def _repeated_checks(draws: Draws, look: Look) -> Look:
    return _checks(draws, _repeated(draws, look))._replace(tint=0.0)


def _repeated_stripes(draws: Draws, look: Look) -> Look:
    return _stripes(draws, _repeated(draws, look))._replace(tint=0.0, cell_v=1e4)


def _repeated_dots(draws: Draws, look: Look) -> Look:
    """A check of small cells with mortar around: dots in rows."""
    cell = draws.uniform(0.08, 0.2)
    return _repeated(draws, look)._replace(
        cell_u=cell, cell_v=cell, check=0.8, mortar=cell * 0.4, tint=0.0
    )


_FAMILIES: dict[str, Callable[[Draws, Look], Look]] = {
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
    "bare": _bare,
    "repeated tiles": _repeated_tiles,
    "repeated checks": _repeated_checks,
    "repeated stripes": _repeated_stripes,
    "repeated dots": _repeated_dots,
}
