"""Splits batches, parameters and optimizer state over a device mesh (axes data, fsdp, view).

data   scenes of a batch are split over it, parameters are copied;
fsdp   scenes are split over it as well, and so are parameters and their optimizer state;
view   the views of every scene are split over it.

XLA inserts the communication (GSPMD). Values do not depend on the mesh but for the order in which
floating-point sums are taken.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lite3r_jax.errors import InputError
from lite3r_jax.mesh import SCENES, VIEWS
from lite3r_jax.training.parameters import matching

AXES = (*SCENES, *VIEWS)


@dataclass(frozen=True)
class MeshOptions:
    """Number of devices on each axis of the device mesh.

    Attributes:
        data: devices over which scenes are split and parameters copied; 0 takes all that the other
            axes leave.
        fsdp: devices over which scenes, parameters and their optimizer state are split.
        view: devices over which the views of every scene are split.
    """

    data: int = 0
    fsdp: int = 1
    view: int = 1


@dataclass(frozen=True)
class ShardingRule:
    """Mesh axes over which parameters with a matching path are split; the first match counts.

    Attributes:
        path: regular expression that is found in the path of a parameter.
        axes: for each dimension the mesh axis or None; missing ones at the end are None. ()
            means a copy on every device.
    """

    path: str
    axes: tuple[str | None, ...]


def make_mesh(options: MeshOptions, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the device mesh with the axes data, fsdp and view.

    Args:
        options: sizes of the axes.
        devices: that the mesh is made of; all devices of every process when None.

    Raises:
        InputError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    rest = options.fsdp * options.view
    if min(options.fsdp, options.view) < 1 or options.data < 0:
        raise InputError(
            f"mesh: sizes have to be positive (data 0: the rest), got {_sizes(options)}"
        )
    data = options.data or len(devices) // rest
    if data * rest != len(devices):
        raise InputError(
            f"mesh: {_sizes(options)} does not divide {len(devices)} devices; choose sizes whose"
            f" product is {len(devices)}"
        )
    shape = (data, options.fsdp, options.view)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def _sizes(options: MeshOptions) -> str:
    return ", ".join(f"{axis} {getattr(options, axis)}" for axis in AXES)


def parameter_shardings(
    arrays: Mapping[str, Any], mesh: Mesh, rules: Sequence[ShardingRule] = ()
) -> dict[str, NamedSharding]:
    """Returns a sharding for every parameter: by a rule, or else split over the axis fsdp.

    Without a rule a kernel [..., in, out] is split along its inputs: XLA then sends weights between
    devices, where a split along the outputs can make it send tokens and bring back features. Other
    parameters, and kernels whose inputs do not divide by the size of fsdp, are split along the
    largest dimension that does, the last of equals. If no dimension does, every device has a copy.

    Args:
        arrays: path -> anything with a shape.
        mesh: from `make_mesh`.
        rules: exceptions to the split over fsdp.

    Raises:
        InputError: a rule fits no path, names an axis that the mesh does not have, has too many
            dimensions, or does not divide a dimension.
    """
    for rule in rules:
        matching(rule.path, list(arrays), "sharding rule")
        if unknown := set(rule.axes) - {None, *mesh.axis_names}:
            raise InputError(
                f"sharding rule {rule.path!r}: axes {sorted(map(str, unknown))} are not in the"
                f" mesh; choose from {', '.join(mesh.axis_names)}"
            )
    shardings = {}
    for path, x in arrays.items():
        shape = np.shape(x)
        rule = next((rule for rule in rules if re.search(rule.path, path)), None)
        axes = _split(path, shape, mesh.shape["fsdp"]) if rule is None else rule.axes
        parts = [1 if axis is None else mesh.shape[axis] for axis in axes]
        if len(axes) > len(shape) or any(n % p for n, p in zip(shape, parts, strict=False)):
            raise InputError(
                f"sharding rule {rule.path if rule else ''!r}: {axes} does not fit {path}"
                f" {shape} on the mesh {dict(mesh.shape)}"
            )
        shardings[path] = NamedSharding(mesh, PartitionSpec(*axes))
    return shardings


def _split(path: str, shape: tuple[int, ...], parts: int) -> tuple[str | None, ...]:
    fitting = [(n, i) for i, n in enumerate(shape) if parts > 1 and n % parts == 0 and n > 0]
    if not fitting:
        return ()
    _, where = max(fitting)
    inputs = len(shape) - 2
    if path.endswith("kernel") and inputs in (i for _, i in fitting):
        where = inputs
    return (None,) * where + ("fsdp",)


def follow_parameters(tree: Any, arrays: Mapping[str, Any], shardings: Mapping[str, Any]) -> Any:
    """Returns shardings for a tree with dictionaries by parameter path, such as optimizer state.

    Args:
        tree: arrays or shapes.
        arrays: path -> parameter.
        shardings: path -> sharding of the parameter.

    Returns:
        A tree of shardings: a leaf under a parameter's path and of its shape lies where the
        parameter does, everything else is copied.
    """
    mesh = next(iter(shardings.values())).mesh

    def one(where: tuple[Any, ...], leaf: Any) -> NamedSharding:
        path = str(getattr(where[-1], "key", "")) if where else ""
        if path in arrays and np.shape(arrays[path]) == np.shape(leaf):
            return shardings[path]
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(one, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that puts a whole copy on every device of the mesh."""
    return NamedSharding(mesh, PartitionSpec())


def place(tree: Any, shardings: Any) -> Any:
    """Puts arrays, which every process holds whole and equal, onto devices by their shardings.

    A `jax.ShapeDtypeStruct` stays one and gets its sharding.
    """

    def one(x: Any, sharding: NamedSharding) -> Any:
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(one, tree, shardings)


def batch_shardings(batch: Any, mesh: Mesh) -> Any:
    """Returns shardings of a batch: scenes B over data and fsdp, views S over view.

    Arrays are [B, ...] or [B, S, ...].
    """

    def one(x: Any) -> NamedSharding:
        axes = (SCENES, "view")[: np.ndim(x)]
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map(one, batch)


def place_batch(batch: Any, mesh: Mesh, accumulate: int = 1) -> Any:
    """Put this process's part of a batch onto its devices.

    Args:
        batch: tree of NumPy arrays [b, ...] or [b, S, ...] with b of the B scenes and all views;
            every process brings equally many, in the order of processes.
        mesh: from `make_mesh`.
        accumulate: into how many parts the step will cut the batch.

    Returns:
        The same tree of global arrays, sharded over the mesh.

    Raises:
        InputError: the mesh does not divide the batch.
    """
    check_batch(batch, mesh, accumulate)
    shardings = batch_shardings(batch, mesh)
    if mesh.is_multi_process:
        return jax.tree.map(jax.make_array_from_process_local_data, shardings, batch)
    return jax.device_put(batch, shardings)


def check_batch(batch: Any, mesh: Mesh, accumulate: int = 1) -> None:
    """Refuse a batch whose scenes or views the mesh does not divide evenly.

    Args:
        batch: as for `place_batch`.
        mesh: from `make_mesh`.
        accumulate: into how many parts the step will cut the batch.

    Raises:
        InputError: the mesh does not divide the batch; the message names both sizes.
    """
    processes = len({device.process_index for device in mesh.devices.flat})
    ways = math.prod(mesh.shape[axis] for axis in SCENES)
    views = mesh.shape["view"]
    for x in jax.tree.leaves(batch):
        shape = np.shape(x)
        scenes = shape[0] * processes
        if scenes % (ways * accumulate):
            raise InputError(
                f"batch of {scenes} scenes: does not divide by {ways} devices (data x fsdp) times"
                f" {accumulate} accumulation steps; choose a multiple of {ways * accumulate}"
            )
        if len(shape) > 1 and shape[1] % views:
            raise InputError(
                f"scenes of {shape[1]} views: do not divide by {views} devices of the mesh axis"
                " view; choose another number of views or another mesh"
            )
