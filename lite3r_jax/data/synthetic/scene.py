"""Makes the synthetic scene of a seed: a world, and cameras that see enough of it."""

import functools
from dataclasses import dataclass, replace

import numpy as np

from lite3r_jax.data.synthetic import oracle
from lite3r_jax.data.synthetic.cameras import Cameras, draw_cameras
from lite3r_jax.data.synthetic.other_layouts import place_corridor, place_floating
from lite3r_jax.data.synthetic.photographs import pyramids
from lite3r_jax.data.synthetic.place_objects import place_objects, place_on_table
from lite3r_jax.data.synthetic.rng import Rng
from lite3r_jax.data.synthetic.splits import RECIPES, Recipe, split_of
from lite3r_jax.data.synthetic.world import ROOM, World

PROBE = (9, 12)
"""Rows and columns of the grid of rays by which views are judged and compared."""
TABLE_SCALE = 260.0
"""Millimeters per unit of the world: cameras are 600 mm from the table, as in DTU."""
_NEAREST, _NEAR = 0.35, 0.8  # no ray may end before the first, few before the second
_NEAR_SHARE, _WALL_SHARE = 0.2, 0.8  # at most, of the rays of each view
_THINGS, _THINGS_SHARE = 3, 0.15  # at least: how many, and of the rays of all views together
_PATHS_A_ROOM, _ROOMS = 4, 250


@dataclass(frozen=True, eq=False)
class Scene:
    """A synthetic world and V cameras in it."""

    world: World
    cameras: Cameras

    @functools.cached_property
    def overlap(self) -> np.ndarray:
        """Overlap, float64 [V, V]: share of what the row's view sees that the column's sees too.

        It is counted on a coarse grid of rays, but for these it is exact.
        """
        probed = oracle.probe(self.world, self.cameras, PROBE)
        views = range(len(self.cameras.center))
        return np.stack(
            [oracle.shared(self.world, self.cameras, probed, view, views) for view in views], -1
        )


@functools.lru_cache(maxsize=64)  # a scene is asked for once for each of its frames
def make_scene(seed: int, frames: int) -> Scene:
    """Makes the scene of a seed, the same on every machine up to rounding.

    Rooms and paths are drawn until the cameras stand free, and each sees enough of what the one
    before it sees.

    Args:
        seed: of one of the splits; it decides what the scene is like.
        frames: how many cameras, at least 2; other counts have other cameras.

    Raises:
        InputError: no split has this seed.
    """
    recipe = RECIPES[split_of(seed)]
    for trial in range(_ROOMS):
        rng = Rng(seed, frames, trial)
        world = _world(rng, recipe)
        for _ in range(_PATHS_A_ROOM):
            cameras = draw_cameras(rng, recipe, world.half[ROOM], frames)
            if _suits(world, cameras, recipe):
                return Scene(world, cameras)
    raise AssertionError(f"seed {seed} with {frames} frames has no scene in {_ROOMS} rooms")


def _world(rng: Rng, recipe: Recipe) -> World:
    return _with_photographs(_layout(rng, recipe), recipe)


def _with_photographs(world: World, recipe: Recipe) -> World:
    return replace(world, photos=pyramids(recipe.photographs)) if recipe.photographs else world


def _layout(rng: Rng, recipe: Recipe) -> World:
    if recipe.layout == "floating":
        return place_floating(rng, recipe.families)
    if recipe.layout == "corridor":
        return place_corridor(rng, recipe.families)
    return place_objects(rng, recipe.families, open_top=recipe.open_top, scale=None)


def make_table(seed: int, cameras: Cameras) -> Scene:
    """Makes the scene of a table with things on it, with the textures of the seed's split.

    Args:
        seed: of one of the splits.
        cameras: of `cameras.table_cameras`, which suit all such rooms.

    Raises:
        InputError: no split has this seed.
    """
    recipe = RECIPES[split_of(seed)]
    world = place_on_table(Rng(seed), recipe.families, scale=TABLE_SCALE)
    return Scene(_with_photographs(world, recipe), cameras)


def _suits(world: World, cameras: Cameras, recipe: Recipe) -> bool:
    """Returns whether cameras stand free, see things and not just a wall, and overlap enough."""
    if _inside(world, cameras.center).any():
        return False
    probed = oracle.probe(world, cameras, PROBE)
    t = probed.t
    stares = (t.min(1) < _NEAREST) | ((t < _NEAR).mean(1) > _NEAR_SHARE)
    sky = np.isinf(t).mean(1)
    if (stares | (sky < recipe.sky[0]) | (sky > recipe.sky[1])).any():
        return False
    on_things = probed.primitive > ROOM
    if on_things.mean() < _THINGS_SHARE or len(set(probed.primitive[on_things])) < _THINGS:
        return False
    if world.void:
        return _overlaps(world, cameras, probed, recipe)
    at_wall = probed.points / world.half[ROOM][:, None]
    for side in (-1, 1):
        if ((at_wall * side > 1 - 1e-9).mean(-1) > _WALL_SHARE).any():
            return False
    return _overlaps(world, cameras, probed, recipe)


def _overlaps(world: World, cameras: Cameras, probed: oracle.Probe, recipe: Recipe) -> bool:
    """Returns whether enough of what each view sees is seen by the next view as well."""
    return all(
        oracle.shared(world, cameras, probed, view, [view - 1])[0] >= recipe.overlap
        for view in range(1, len(probed.t))
    )


def _inside(world: World, center: np.ndarray) -> np.ndarray:
    """Returns bool [V], whether each of the points [V, 3] is in a thing or near one."""
    things = np.flatnonzero(world.active)[1:]
    affine = world.affine[things]
    unit = np.einsum("pij,vj->vpi", affine[..., :3], center) + affine[..., 3]
    clear = 1 + 0.15 / world.half[things]
    return (np.abs(unit) < clear).all(-1).any(-1)
