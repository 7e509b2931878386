"""How scenes, views and weights are sharded over a device mesh, and loops over sharded axes.

XLA splits computations on sharded arrays. A loop over a sharded dimension is the exception: every
device would get all of the dimension and take every turn. Such loops go over the shard of a device
instead, with the devices side by side in every turn.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lite3r_jax.errors import InputError, did_you_mean

SCENES = ("data", "fsdp")
"""Axes of a mesh that scenes are split over."""
VIEWS = ("view",)
"""Axes of a mesh that the views of a scene are split over."""
_WORTH_SPLITTING = 2**14  # scalars


def split_ways() -> int:
    """Returns over how many devices the mesh in use splits scenes and views; 1 without a mesh."""
    return math.prod(_sizes((*SCENES, *VIEWS)).values())


def _sizes(names: tuple[str, ...]) -> dict[str, int]:
    """Returns name -> size of the named axes of the mesh in use that have several devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return {
        name: size
        for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
        if name in names and size > 1 and kind == AxisType.Auto
    }


def axes(names: tuple[str, ...], count: int) -> tuple[tuple[str, ...], int]:
    """Returns the named axes that the mesh in use splits over, and the number of their devices.

    Args:
        names: of the axes.
        count: size of the dimension that they split; if their devices do not divide it, the result
            is no axes and 1 device.
    """
    sizes = _sizes(names)
    ways = math.prod(sizes.values())
    return (tuple(sizes), ways) if count % ways == 0 else ((), 1)


def with_lone(used: tuple[str, ...]) -> set[str]:
    """Returns the given axes and the mesh's axes of one device, for `jax.shard_map`.

    Over one device nothing is split, and kernels for TPUs run only where no axis is left to XLA.

    Args:
        used: axes that something is split over.
    """
    mesh = jax.sharding.get_abstract_mesh()
    every = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    return {*used, *(name for name, size, kind in every if size == 1 and kind == AxisType.Auto)}


def everywhere(tree: Any) -> Any:
    """Replicates arrays on all devices once, so that no turn of a loop has to gather them.

    Args:
        tree: of arrays; without a mesh that has the axes of this module it is returned as it is.
    """
    if split_ways() == 1:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), tree)


def shard_major(x: jax.Array) -> jax.Array:
    """Reorders frames by the device that they are on, with the devices as the first axis.

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
    """Inverts `shard_major`: [D, B * S / D, ...] -> [B, S, ...]."""
    (_, scenes), (_, views) = axes(SCENES, b), axes(VIEWS, s)
    x = x.reshape(scenes, views, b // scenes, s // views, *x.shape[2:])
    return x.swapaxes(1, 2).reshape(b, s, *x.shape[4:])


def to_host(x: jax.Array) -> jax.Array:
    """Moves an array to pinned host memory; for use inside of a loop, where XLA keeps it there."""
    return jax.device_put(x, jax.memory.Space.Host)


def to_device(x: jax.Array) -> jax.Array:
    """Moves an array, or a part of one, from host memory back to the device; inverts `to_host`."""
    return jax.device_put(x, jax.memory.Space.Device)


@dataclass(frozen=True)
class ViewParts:
    """The views of one scene in equal parts, one for each device of the axis `view`; static.

    Device i has the views i * each .. (i + 1) * each - 1. Where the parts do not come out even,
    padding behind the last view fills them up: it is computed and means nothing, and no other view
    may attend to it.

    Attributes:
        devices: number of parts.
        views: S, the number of views without padding.
        split_weights: whether the weights are sharded over the devices as well (`split_axis`), and
            each layer's are gathered when it runs.
    """

    devices: int
    views: int
    split_weights: bool = False

    @property
    def each(self) -> int:
        """Number of views in a part, padding included."""
        return -(-self.views // self.devices)

    @property
    def filled(self) -> int:
        """Number of views of all parts together, padding included."""
        return self.each * self.devices

    def first(self) -> jax.Array:
        """Returns the number of the first view on this device; inside of `on_each` only."""
        return lax.axis_index(VIEWS[0]) * self.each

    def gather(self, x: jax.Array, tokens: int = 1) -> jax.Array:
        """Gathers the views of all devices on every device; inside of `on_each` only.

        Args:
            x: [B, each * tokens, ...] of this device.
            tokens: number of tokens of a view, side by side.

        Returns:
            [B, S * tokens, ...].
        """
        every = lax.all_gather(x, VIEWS[0], axis=1, tiled=True)
        return every[:, : self.views * tokens]

    def choose(self, x: jax.Array, views: jax.Array) -> jax.Array:
        """Gathers some views by their numbers on every device; inside of `on_each` only.

        Args:
            x: [B, each, ...] of this device.
            views: [B, K] numbers of views, each below S.

        Returns:
            [B, K, ...].
        """
        at = views - self.first()
        mine = ((at >= 0) & (at < self.each)).reshape(*at.shape, *[1] * (x.ndim - 2))
        at = jnp.clip(at, 0, self.each - 1).reshape(mine.shape)
        # One device has the view and the others add zeros to it, which is exact.
        part = jnp.where(mine, jnp.take_along_axis(x, at, axis=1), 0)
        return lax.psum(part, VIEWS[0])

    def on_each(self, function: Callable[..., Any], axes: Any, out: Any) -> Callable[..., Any]:
        """Wraps a function to run on every device for its own views, with `jax.shard_map`.

        Inside of the function arrays are those of one device, and code that looks for a mesh finds
        none.

        Args:
            function: of arrays. It may close over no array: each has to be an argument.
            axes: for each argument the number of its axis that has the views, or None for what all
                devices get whole; or a tree of these.
            out: the same for what it returns; None for what is equal on all devices.
        """
        mesh = jax.sharding.get_abstract_mesh()

        def spec(axis: int | None) -> PartitionSpec:
            return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, VIEWS)

        def specs(tree: Any) -> Any:
            return jax.tree.map(spec, tree, is_leaf=lambda x: x is None)

        # Nothing is differentiated through it, and kernels do not say over which axes they vary.
        return jax.shard_map(
            function,
            in_specs=specs(axes),
            out_specs=specs(out),
            axis_names=set(mesh.axis_names),
            check_vma=False,
        )


def split_axis(shape: Sequence[int], devices: int) -> int | None:
    """Returns the axis along which a parameter is sharded: the last divisible one, never the first.

    Args:
        shape: of the parameter; the first axis of stacked layers is the layer.
        devices: how many.

    Returns:
        The axis; None for a parameter that every device has whole, as it is small or no axis
        is divisible.
    """
    if len(shape) < 2 or math.prod(shape) < _WORTH_SPLITTING:
        return None
    fitting = [axis for axis in range(1, len(shape)) if shape[axis] % devices == 0]
    return fitting[-1] if fitting else None


def join_weights(here: Any, whole: Any) -> Any:
    """Gathers sharded parameters whole on this device; inside of `ViewParts.on_each` only.

    Args:
        here: arrays of this device.
        whole: shapes of the whole parameters, in the same tree.
    """

    def join(x: jax.Array, shape: Any) -> jax.Array:
        axes = [i for i, (a, b) in enumerate(zip(x.shape, shape.shape, strict=True)) if a != b]
        for axis in axes:
            x = lax.all_gather(x, VIEWS[0], axis=axis, tiled=True)
        return x

    return jax.tree.map(join, here, whole)


def view_parts(filled: int, views: int | None, split_weights: bool = False) -> ViewParts | None:
    """Returns how the mesh in use splits the views of a scene into parts; None if it does not.

    Args:
        filled: number of views on all devices together, padding included.
        views: number of views without padding; None where views are not handled in parts, as in
            training, whose mesh may split scenes as well.
        split_weights: see `ViewParts`.

    Raises:
        ValueError: the mesh does not split views alone, or into parts of another size.
    """
    if views is None:
        return None
    if _sizes(SCENES):
        raise ValueError(f"views in parts: the mesh splits scenes as well, {_sizes(SCENES)}")
    devices = math.prod(_sizes(VIEWS).values())
    parts = ViewParts(devices, views, split_weights)
    if parts.filled != filled:
        raise ValueError(f"{filled} views: expected {parts.filled}, {views} filled up in {devices}")
    return None if devices == 1 else parts


def views_of_all(x: jax.Array, parts: ViewParts | None) -> jax.Array:
    """Replicates a small array of views on every device: [B, filled, ...] to [B, S, ...]."""
    if parts is None:
        return x
    return lax.with_sharding_constraint(x, PartitionSpec())[:, : parts.views]


def devices_of(text: str) -> int:
    """Returns the number of devices of a setting such as "view:8" of `compute.mesh`; 0 for "".

    Raises:
        InputError: another axis, or no number.
    """
    if not text:
        return 0
    axis, colon, number = text.partition(":")
    wanted = "compute.mesh: expected view:N for N devices, such as view:8"
    if axis not in VIEWS:
        hint = did_you_mean(axis, VIEWS)
        raise InputError(f"{wanted}; here is no axis {axis!r}{hint}")
    if not colon or not (number.isascii() and number.isdecimal()) or int(number) < 1:
        raise InputError(f"{wanted}; got {text!r}")
    return int(number)


def make_view_mesh(text: str, devices: Sequence[Any] | None = None) -> Mesh | None:
    """Makes the mesh of a setting such as "view:8", over whose devices views are split.

    Args:
        text: of the setting `compute.mesh`; "" for none.
        devices: to choose from; None: all of this process, or of all processes that were joined.

    Raises:
        InputError: the setting is not of that form, or its number does not divide the number of
            devices; of several processes, any other number than that of all their devices.
    """
    count = devices_of(text)
    if not count:
        return None
    devices = jax.devices() if devices is None else devices
    processes = len({device.process_index for device in devices})
    if processes > 1 and len(devices) != count:
        raise InputError(
            f"compute.mesh: {text}, but {processes} processes have {len(devices)}"
            f" {devices[0].platform} devices together, all of which take part; use"
            f" view:{len(devices)}"
        )
    if len(devices) % count:
        fitting = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise InputError(
            f"compute.mesh: {text} does not divide the {len(devices)}"
            f" {devices[0].platform} device{'s'[: len(devices) > 1]} here; choose from"
            f" {', '.join(f'view:{n}' for n in fitting)}"
        )
    return jax.make_mesh((count,), VIEWS, axis_types=(AxisType.Auto,), devices=devices[:count])


def check_split_weights(split: bool, several: bool) -> None:
    """Raises if weights are to be sharded without a mesh that they could be sharded over.

    Args:
        split: whether each device is to have a part of the weights (`compute.weights`).
        several: whether there is a mesh (`compute.mesh`).

    Raises:
        InputError: there is no mesh.
    """
    if split and not several:
        raise InputError("compute.weights=split: needs devices; set compute.mesh=view:N")


def local_size(mesh: Mesh) -> int:
    """Returns the number of devices of a mesh that belong to this process."""
    return len(mesh.local_devices)


def put_weights(tree: Any, mesh: Mesh, split: bool = False) -> Any:
    """Puts parameters on this process's devices of a mesh; sends nothing between processes.

    Args:
        tree: of arrays, equal in all processes.
        mesh: of `make_view_mesh`.
        split: whether each device gets its part only, see `split_axis`.
    """

    def placed(x: jax.Array) -> jax.Array:
        where = NamedSharding(mesh, weight_spec(x.shape, mesh.size if split else 0))
        if local_size(mesh) == mesh.size:
            return jax.device_put(x, where)
        index = where.addressable_devices_indices_map(x.shape)
        here = [jax.device_put(x[index[device]], device) for device in mesh.local_devices]
        return jax.make_array_from_single_device_arrays(x.shape, where, here)

    return jax.tree.map(placed, tree)


def weight_spec(shape: Sequence[int], devices: int) -> PartitionSpec:
    """Returns the `PartitionSpec` of a parameter over a number of devices; 0: not sharded."""
    axis = split_axis(shape, devices) if devices else None
    return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, VIEWS)


def check_views(mesh: Mesh, views: int) -> ViewParts:
    """Returns how a number of views is split into parts on a mesh of `make_view_mesh`.

    Raises:
        InputError: there are more devices than views.
    """
    if views < mesh.size:
        raise InputError(
            f"compute.mesh: {mesh.size} devices for {views} view{'s'[: views > 1]}; use at most"
            f" view:{views}, or leave it out"
        )
    return ViewParts(mesh.size, views)


def put_views(x: Any, mesh: Mesh, parts: ViewParts) -> jax.Array:
    """Puts an array of all views [1, S, ...] from the host on the devices, each view on its own.

    Returns:
        [1, filled, ...], padded with copies of the last view.
    """
    where = NamedSharding(mesh, PartitionSpec(None, VIEWS))
    if isinstance(x, jax.Array) and x.sharding == where:
        return x
    x = np.asarray(x)
    shape = (len(x), parts.filled, *x.shape[2:])

    def of_device(index: Any) -> np.ndarray:
        start, stop, _ = index[1].indices(parts.filled)
        at = np.minimum(np.arange(start, stop), parts.views - 1)
        return x[:, at] if stop > parts.views else x[:, start:stop]

    return jax.make_array_from_callback(shape, where, of_device)


def fetch_views(arrays: Any, views: int) -> Any:
    """Fetches arrays [1, views or more, ...] from the devices to the host, without padding.

    Sharded arrays are joined on the host only, and never whole on a device. With several processes
    every one of them has to call this and gets all views.
    """
    if all(x.is_fully_addressable for x in jax.tree.leaves(arrays)):
        return jax.tree.map(lambda x: x[:, :views], jax.device_get(arrays))
    return jax.tree.map(lambda x: _fetched(x)[:, :views], arrays)


def _fetched(x: jax.Array) -> np.ndarray:
    if x.is_fully_replicated:
        return np.asarray(x)
    mesh = x.sharding.mesh  # pyright: ignore[reportAttributeAccessIssue]
    x = jax.device_put(x, x.sharding.with_memory_kind("device"))  # may be on the host of a GPU
    each = x.shape[1] // mesh.size
    whole = np.empty((len(x), mesh.size, each, *x.shape[2:]), x.dtype)
    with jax.set_mesh(mesh):
        for i in range(each):
            turn = _one_of_each(x, i, mesh.size, NamedSharding(mesh, PartitionSpec()))
            whole[:, :, i] = np.asarray(turn)
    return whole.reshape(x.shape)


@partial(jax.jit, static_argnums=(2, 3))
def _one_of_each(x: jax.Array, i: jax.Array, devices: int, where: NamedSharding) -> jax.Array:
    """Replicates the i-th view of every device, no more, on all devices: [B, devices, ...]."""
    by_device = x.reshape(len(x), devices, -1, *x.shape[2:])
    one = lax.dynamic_index_in_dim(by_device, i, 2, keepdims=False)
    return lax.with_sharding_constraint(one, where)
