"""Scenes and views that are spread over the devices of a mesh, as loops have to know.

XLA splits what is computed on arrays that are split. A loop over a dimension that is split is the
exception: every device would get all of it and take every turn. Such loops go over the part of a
device instead, with the devices side by side in every turn.
"""

import math
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

SCENES = ("data", "fsdp")
"""Axes of a mesh that scenes are split over."""
VIEWS = ("view",)
"""Axes that the views of a scene are split over."""


def split_ways() -> int:
    """Over how many devices the mesh in use splits scenes and views; 1 without one."""
    return math.prod(_sizes((*SCENES, *VIEWS)).values())


def _sizes(names: tuple[str, ...]) -> dict[str, int]:
    """Those of the axes that the mesh in use has, with more than one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return {
        name: size
        for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
        if name in names and size > 1 and kind == AxisType.Auto
    }


def axes(names: tuple[str, ...], count: int) -> tuple[tuple[str, ...], int]:
    """Those of the axes that the mesh in use has, and over how many devices they split.

    Args:
        names: of axes.
        count: what they split; if they do not divide it, there are none.
    """
    sizes = _sizes(names)
    ways = math.prod(sizes.values())
    return (tuple(sizes), ways) if count % ways == 0 else ((), 1)


def everywhere(tree: Any) -> Any:
    """All of the arrays on every device, from here on: sent once, and not in every turn of a loop.

    Args:
        tree: of arrays; without a mesh that has the axes of this module it is returned as it is.
    """
    if split_ways() == 1:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), tree)


def shard_major(x: jax.Array) -> jax.Array:
    """Frames in the order of the devices that they are on.

    Args:
        x: [B, S, ...].

    Returns:
        [D, B * S / D, ...], D the number of devices that scenes and views are split over; 1 without
        a mesh that has the axes of this module.
    """
    b, s, *rest = x.shape
    (over_scenes, scenes), (over_views, views) = axes(SCENES, b), axes(VIEWS, s)
    x = x.reshape(scenes, b // scenes, views, s // views, *rest).swapaxes(1, 2)
    x = x.reshape(scenes * views, -1, *rest)
    if scenes * views == 1:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec((*over_scenes, *over_views)))


def unshard(x: jax.Array, b: int, s: int) -> jax.Array:
    """The inverse of `shard_major`: [D, B * S / D, ...] -> [B, S, ...]."""
    (_, scenes), (_, views) = axes(SCENES, b), axes(VIEWS, s)
    x = x.reshape(scenes, views, b // scenes, s // views, *x.shape[2:])
    return x.swapaxes(1, 2).reshape(b, s, *x.shape[4:])
