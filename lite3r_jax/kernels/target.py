"""The device that is computed on."""

import re

import jax


def platform() -> str:
    """Where what is traced now will run: "cpu", "gpu", "tpu".

    That of the mesh in use where it names its device (`jax.set_mesh`, or
    `jax.sharding.use_abstract_mesh` to compile for a device that is not there), otherwise that of
    the default device.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name == "cuda" else name


def device_kind() -> str:
    """Its name, as "NVIDIA H200"; chosen as in `platform`."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.devices()[0].device_kind if device is None else device.device_kind


def compute_capability() -> float | None:
    """Of the NVIDIA GPU that is computed on, as 9.0; chosen as in `platform`.

    None where there is none, and for a described one that is not a Hopper: a description has no
    more than a name.
    """
    if platform() != "gpu":
        return None
    if jax.sharding.get_abstract_mesh().abstract_device is None:
        found = getattr(jax.devices()[0], "compute_capability", None)
        return None if found is None else float(found)
    return 9.0 if re.search(r"\bG?H\d+", device_kind()) else None


def split_over_devices() -> bool:
    """Whether arrays may be split over several devices here, which XLA then sees to.

    It cannot do so for kernels. Inside of a `jax.shard_map` over all axes nothing is split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.size > 1 and set(mesh.manual_axes) != set(mesh.axis_names)
