"""Frozen splits of the synthetic dataset: their seeds and the recipes of their scenes.

Nothing here may change, since a seed names the same data for ever.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from lite3r_jax.data.synthetic import materials
from lite3r_jax.data.synthetic.photographs import HELD_OUT, TRAINING
from lite3r_jax.errors import InputError

Split = Literal[
    "train", "validation", "test", "new_textures", "wide_baseline", "low_texture", "repetitive",
    "sky", "train_floating", "floating", "train_corridor", "corridor", "train_photographs",
    "photographs",
]  # fmt: skip
CameraPath = Literal["orbit", "walk", "look_around", "sphere", "along"]
Layout = Literal["room", "floating", "corridor"]

SEEDS = 1_000_000_000
"""Number of seeds of a split; split number n has those from n * SEEDS to (n + 1) * SEEDS - 1."""


@dataclass(frozen=True)
class Recipe:
    """Recipe of a split's scenes: layout, textures, paths of cameras, overlap and sky.

    Attributes:
        families: of textures, see `materials`.
        paths: how cameras move; a scene draws one.
        arc: angle from the first camera of an orbit to the last, in radians: low and high.
        reach: length of a walk in the unit of the world: low and high.
        overlap: smallest share of what a view sees that the next one sees as well.
        gaze: how far below the middle of the room cameras look, in its half heights: low and high.
        open_top: whether rooms have the sky in place of a ceiling.
        sky: smallest and largest share of a view that is sky.
        layout: a furnished room, things that float in a void, or a corridor.
        photographs: those that surfaces of the family "photograph" carry.
    """

    families: tuple[str, ...] = materials.ORDINARY
    paths: tuple[CameraPath, ...] = ("orbit", "orbit", "walk", "look_around")
    arc: tuple[float, float] = (0.7, 1.7)
    reach: tuple[float, float] = (1.3, 3.0)
    overlap: float = 0.3
    gaze: tuple[float, float] = (0.1, 0.5)
    open_top: bool = False
    sky: tuple[float, float] = (0.0, 0.0)
    layout: Layout = "room"
    photographs: tuple[str, ...] = ()


_FLOATING = Recipe(
    layout="floating", paths=("sphere",), arc=(0.4, 1.4), overlap=0.25, sky=(0.0, 0.55)
)
_CORRIDOR = Recipe(layout="corridor", paths=("along",), reach=(1.0, 3.0), gaze=(-0.1, 0.3))

RECIPES: dict[Split, Recipe] = {
    "train": Recipe(),
    "validation": Recipe(),
    "test": Recipe(),
    "new_textures": Recipe(families=materials.UNSEEN),
    "wide_baseline": Recipe(paths=("orbit",), arc=(2.0, 3.0), overlap=0.1),
    "low_texture": Recipe(families=materials.BARE),
    "repetitive": Recipe(families=materials.REPEATED),
    "sky": Recipe(gaze=(-0.7, 0.1), open_top=True, sky=(0.05, 0.6)),
    "train_floating": _FLOATING,
    "floating": _FLOATING,
    "train_corridor": _CORRIDOR,
    "corridor": _CORRIDOR,
    "train_photographs": Recipe(families=materials.PHOTOGRAPHS, photographs=TRAINING),
    "photographs": Recipe(families=materials.PHOTOGRAPHS, photographs=HELD_OUT),
}


def seeds_of(split: Split) -> range:
    """Returns all seeds of a split as a range.

    Raises:
        InputError: there is no such split.
    """
    if split not in get_args(Split):
        raise InputError(f"split: expected one of {', '.join(get_args(Split))}, got {split!r}")
    first = get_args(Split).index(split) * SEEDS
    return range(first, first + SEEDS)


def split_of(seed: int) -> Split:
    """Returns the split that a seed belongs to.

    Raises:
        InputError: the seed belongs to none.
    """
    names = get_args(Split)
    if not 0 <= seed < len(names) * SEEDS:
        raise InputError(f"seed: expected 0 to {len(names) * SEEDS - 1}, got {seed}")
    return names[seed // SEEDS]
