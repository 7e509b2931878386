"""The device that is traced for: an attached one, or one that is only described."""

import re
from dataclasses import dataclass, replace

import jax


@dataclass(frozen=True)
class Device:
    """What implementations of an operator are chosen by.

    Attributes:
        platform: "cpu", "gpu" or "tpu".
        kind: its name, as "NVIDIA H200".
        compute_capability: of an NVIDIA GPU, as 9.0; None where there is none, and for a described
            GPU that is not a Hopper: a description has no more than a name.
        described: it is not the one that is here: programs are compiled for it and not run.
    """

    platform: str
    kind: str
    compute_capability: float | None = None
    described: bool = False

    @property
    def is_hopper(self) -> bool:
        """An H100, H200, GH200 or their like."""
        return re.search(r"\bG?H\d+", self.kind) is not None


def device() -> Device:
    """Where what is traced now will run.

    The device of the mesh in use where that names one (`jax.set_mesh`, or
    `jax.sharding.use_abstract_mesh` to compile for a device that is not there), otherwise the
    default device.
    """
    here = jax.devices()[0]
    platform = jax.default_backend()
    named = jax.sharding.get_abstract_mesh().abstract_device
    if named is not None:
        named_platform = "gpu" if named.platform == "cuda" else named.platform
        if (named_platform, named.device_kind) != (platform, here.device_kind):
            other = Device(named_platform, named.device_kind, described=True)
            return replace(other, compute_capability=9.0) if other.is_hopper else other
    capability = getattr(here, "compute_capability", None)
    return Device(platform, here.device_kind, None if capability is None else float(capability))


def without_triton() -> str | None:
    """Why Pallas' Triton lowering cannot be used with this jax, or None.

    It has been deprecated since jax 0.11, which says that it will be removed.
    """
    try:
        from jax.experimental.pallas import triton
    except ImportError:
        return (
            f"jax {jax.__version__} has no Triton lowering of Pallas "
            "(jax.experimental.pallas.triton), which its kernels go through"
        )
    del triton
    return None


def split_over_devices() -> bool:
    """Whether arrays may be split over several devices here, which XLA then sees to.

    It cannot do so for kernels. Inside of a `jax.shard_map` over all axes nothing is split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.size > 1 and set(mesh.manual_axes) != set(mesh.axis_names)
