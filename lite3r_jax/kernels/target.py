"""The device that is computed on."""

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
