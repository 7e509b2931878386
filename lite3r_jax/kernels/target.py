"""The device that programs are compiled for: an attached one, or one that is only described."""

import contextlib
import ctypes
import functools
import importlib.metadata
import re
from dataclasses import dataclass
from typing import Any

import jax

# Compute capabilities by the names of GPUs, for descriptions, which have no more than a name.
# Source: developer.nvidia.com/cuda-gpus.
_CAPABILITIES = (
    (7.0, r"V100|TITAN V"),
    (7.5, r"T4|RTX 20\d\d|GTX 16\d\d|TITAN RTX"),
    (8.0, r"A100|A800|A30"),
    (8.9, r"L4|L40S?|RTX 40\d\d|RTX \d000 Ada"),
    (8.6, r"A10G?|A16|A2|A40|RTX 30\d\d|RTX A\d000"),
    (9.0, r"G?H\d+"),
    (10.0, r"G?B[12]00"),
    (10.3, r"G?B300"),
    (12.0, r"RTX 50\d\d|RTX PRO \d000"),
)
# KiB of shared memory that a block may have, by compute capability (CUDA C++ Programming Guide,
# table "Technical Specifications per Compute Capability").
_SHARED_MEMORY = {
    7.0: 96, 7.2: 96, 7.5: 64, 8.0: 163, 8.6: 99, 8.7: 163, 8.9: 99, 9.0: 227, 10.0: 227,
    10.3: 227, 11.0: 227, 12.0: 99, 12.1: 99,
}  # fmt: skip
# Of a capability that is not listed: the least of all from 8.0 on.
_LEAST = 99
LEAST_CAPABILITY = 8.0
"""Compute capability below which neither Triton nor cuDNN's flash attention compiles."""


@dataclass(frozen=True)
class Device:
    """A device, with what the choice of an operator's implementation depends on.

    Attributes:
        platform: "cpu", "gpu" or "tpu".
        kind: its name, as "NVIDIA H200" or "TPU v5 lite"; "cpu" for a CPU.
        compute_capability: of an NVIDIA GPU, as 9.0; None where there is none, and for a described
            GPU whose name is not known here: a description has no more than a name.
        described: whether it is not attached: programs are compiled for it and not run.
        driver: version of NVIDIA's driver, or of libtpu, which compiles for TPUs and drives them;
            None where there is none or the device is only described.
    """

    platform: str
    kind: str
    compute_capability: float | None = None
    described: bool = False
    driver: str | None = None

    @property
    def shared_memory(self) -> int:
        """Bytes of shared memory that one thread block of a kernel may have."""
        return 1024 * _SHARED_MEMORY.get(self.compute_capability or 0.0, _LEAST)

    @property
    def is_hopper(self) -> bool:
        """Whether the device is a Hopper GPU: an H100, H200, GH200 or the like."""
        return self.compute_capability == 9.0

    def __str__(self) -> str:
        """Returns the device's name for reports, with its compute capability and driver."""
        if self.platform == "gpu":
            capability = self.compute_capability
            return f"{self.kind}, compute capability {capability}, driver {self.driver}"
        return f"{self.kind}, libtpu {self.driver}" if self.platform == "tpu" else self.kind

    @property
    def is_old_tpu(self) -> bool:
        """Whether the device is a TPU before v5e, with at most 16 MiB of vector memory a core."""
        return re.search(r"\bTPU v[234]\b", self.kind) is not None

    @property
    def multiplies_no_float8(self) -> bool:
        """Whether the device is a TPU before v6e, without a float8 rate in jax's TPU table."""
        return re.search(r"\bTPU v[2345]", self.kind) is not None


def device() -> Device:
    """Returns the device on which the computation that is traced now will run.

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
            return described(named_platform, named.device_kind)
    if platform == "tpu":
        return Device(platform, here.device_kind, driver=libtpu_version(here))
    # That of an AMD GPU is no number: "gfx942".
    capability = re.fullmatch(r"\d+\.\d+", str(getattr(here, "compute_capability", "")))
    if platform != "gpu" or capability is None:
        return Device(platform, here.device_kind)
    return Device(platform, here.device_kind, float(capability[0]), driver=driver_version())


def described(platform: str, kind: str) -> Device:
    """Returns a device that is not attached, with what is known of NVIDIA GPUs of its name."""
    capabilities = [c for c, names in _CAPABILITIES if re.search(rf"\b(?:{names})\b", kind)]
    return Device(platform, kind, capabilities[0] if capabilities else None, described=True)


@functools.cache
def driver_version() -> str | None:
    """Returns the version of NVIDIA's driver here, from its management library, or None."""
    text = ctypes.create_string_buffer(96)
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        known = library.nvmlInit_v2() == 0 and not library.nvmlSystemGetDriverVersion(text, 96)
    except (OSError, AttributeError):
        return None
    return text.value.decode("ascii", "replace") if known else None


def libtpu_version(tpu: Any) -> str | None:
    """Returns the version or build date of the libtpu that drives a device; None if unknown."""
    for name in ("libtpu", "libtpu-nightly"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    # Where it is no package, its own words: several lines, one of which says when it was built.
    built = re.search(r"Built on .*", str(getattr(tpu.client, "platform_version", "")))
    return " ".join(built[0].split()) if built else None


def unfit_for_triton(device: Device) -> str | None:
    """Returns why no Triton kernel runs on a device, or None; whatever is installed."""
    if device.platform != "gpu":
        return f"its kernels are for NVIDIA GPUs and this is {device.kind}"
    if device.compute_capability is None:
        return (
            f"its kernels are for NVIDIA GPUs of compute capability {LEAST_CAPABILITY} or more and"
            f" that of {device.kind} is not known"
        )
    if device.compute_capability < LEAST_CAPABILITY:
        return (
            f"its kernels are for compute capability {LEAST_CAPABILITY} or more and {device.kind}"
            f" has {device.compute_capability}"
        )
    return None


def unfit_for_tpu_kernels(device: Device) -> str | None:
    """Returns why no kernel for TPUs runs on a device, or None."""
    if device.platform != "tpu":
        return f"its kernels are for TPUs and this is {device.kind}"
    if device.is_old_tpu:
        return f"its kernels are for TPU v5e, v5p, v6e or later and this is {device.kind}"
    return None


def mesh_unfit_for_tpu_kernels() -> str | None:
    """Returns why no kernel for TPUs can run on the mesh in use, or None.

    XLA does not split kernels for TPUs, nor does it gather their inputs as it does on GPUs.
    """
    if not split_over_devices():
        return None
    mesh = jax.sharding.get_abstract_mesh()
    left = (f"{name}={size}" for name, size in mesh.shape.items() if name not in mesh.manual_axes)
    return (
        f"XLA would have to split it over {', '.join(left)} of the mesh, and splits no kernel for"
        " TPUs"
    )


def without_triton() -> str | None:
    """Returns why Pallas' Triton lowering cannot be used with this jax, or None.

    The lowering has been deprecated since jax 0.11, which says that it will be removed.
    """
    try:
        from jax.experimental.pallas import triton
    except ImportError:
        return (
            f"jax {jax.__version__} has no Triton lowering of Pallas "
            "(jax.experimental.pallas.triton), which its kernels go through; jax 0.10 to 0.12 have"
            " one"
        )
    del triton
    return None


def without_mosaic() -> str | None:
    """Returns why Pallas' Mosaic GPU lowering cannot be used with this jax, or None."""
    try:
        from jax.experimental.pallas import mosaic_gpu
    except ImportError as error:
        return (
            f"jax {jax.__version__} has no Mosaic GPU lowering of Pallas "
            f"(jax.experimental.pallas.mosaic_gpu: {error}), which its kernels go through; jax 0.10"
            " to 0.12 have one"
        )
    del mosaic_gpu
    return None


def split_over_devices() -> bool:
    """Returns whether XLA may split arrays over several devices at this place of the program.

    XLA cannot split kernels. Inside of a `jax.shard_map` over all axes nothing is split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.size > 1 and set(mesh.manual_axes) != set(mesh.axis_names)
