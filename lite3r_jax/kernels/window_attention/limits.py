"""Sizes and dtypes that the GPU kernels of window attention support; imports no kernel."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from lite3r_jax.kernels.target import Device

HEAD_DIMS = (64, 128)
PLACES = (16, 64)
DTYPES = ("bfloat16", "float16", "float32")
# Bytes in a block by bytes of the dtype and head dim, of the largest kernel (tests/gpu_compile); in
# float32 that of Sparse Linear Attention's, whose loops these are.
_SHARED_MEMORY = {(2, 64): 66_560, (2, 128): 132_104, (4, 64): 131_328, (4, 128): 229_632}


@dataclass(frozen=True)
class WindowCall:
    """Properties of an `api.window_attention` call that decide which implementations can run it.

    Attributes:
        places: tokens of a whole window.
        head_dim: D.
        dtype: of q, k and v.
    """

    places: int
    head_dim: int
    dtype: Any


def unsupported(call: WindowCall) -> str | None:
    """Returns why the Triton kernels do not support this call, or None; on any device."""
    if call.head_dim not in HEAD_DIMS:
        return f"head dim {call.head_dim} is not one of {HEAD_DIMS}"
    if call.places not in PLACES:
        return f"windows of {call.places} tokens are not of {PLACES[0]} or {PLACES[1]}"
    if jnp.dtype(call.dtype) not in DTYPES:
        return f"{jnp.dtype(call.dtype)} is not one of {', '.join(DTYPES)}"
    return None


def scope(call: WindowCall) -> str:
    """Returns the kind of a call: the properties for which the kernels are compiled anew."""
    return f"{jnp.dtype(call.dtype)}, head dim {call.head_dim}, windows of {call.places}"


def too_little_shared_memory(device: Device, call: WindowCall) -> str | None:
    """Returns why the kernels do not fit into a thread block's shared memory, or None."""
    least = _SHARED_MEMORY[jnp.dtype(call.dtype).itemsize, call.head_dim]
    if least <= device.shared_memory:
        return None
    return (
        f"its kernels for {jnp.dtype(call.dtype)} and head dim {call.head_dim} need"
        f" {-(-least // 1024)} KiB of shared memory in a block and {device.kind} has"
        f" {device.shared_memory // 1024}"
    )
