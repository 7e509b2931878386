"""Sparse Linear Attention on Hopper GPUs, its softmax part's forward pass through Mosaic GPU.

Everything else is `pallas_triton`, whose kernels the residuals of this one fit.
"""

import re

import jax

from lite3r_jax.kernels.block_map.table import BlockMap
from lite3r_jax.kernels.sla import pallas_triton
from lite3r_jax.kernels.sla.pallas_triton import sla_triton
from lite3r_jax.kernels.sla.reference import Phi, Routing
from lite3r_jax.kernels.target import device_kind, platform

Q_BLOCK = 128
DTYPES = ("bfloat16", "float16")


def unsupported(routing: Routing, q: jax.Array, block_map: BlockMap | None) -> str | None:
    """Why the kernel is not made for this call, or None; whatever the device."""
    if reason := pallas_triton.unsupported(routing, q, block_map):
        return reason
    if block_map is not None and block_map.q_block != Q_BLOCK:
        return f"query blocks of {block_map.q_block} are not {Q_BLOCK}"
    if q.dtype not in DTYPES:
        return f"{q.dtype} is not one of {', '.join(DTYPES)}"
    return None


def refuses(routing: Routing, q: jax.Array, block_map: BlockMap | None) -> str | None:
    """Why the kernel cannot run this call on the device that is computed on, or None."""
    if platform() != "gpu":
        return f"its kernels are for NVIDIA GPUs and this is {platform()}"
    if not re.search(r"\bG?H\d+", device_kind()):
        return f"its kernel is for Hopper GPUs (H100, H200, ...) and this is {device_kind()}"
    return unsupported(routing, q, block_map)


def sla_mosaic(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    proj_lin: jax.Array,
    block_map: BlockMap,
    *,
    routing: Routing,
    phi: Phi,
    keep: float | None,
    eps: float,
    q_valid: jax.Array,
    k_valid: jax.Array,
    interpret: bool = False,
) -> jax.Array:
    """See `api.sla`, whose arguments these are; not for routing "token".

    `pallas_triton.sla_triton` with another kernel for the softmax part's forward pass. `interpret`
    runs all kernels' code on any device, slowly.

    Raises:
        ValueError: a head dim, block or dtype that the kernel is not made for, or `interpret` with
            a jax before 0.11, whose interpreter lacks a transposed operand.
    """
    if reason := unsupported(routing, q, block_map):
        raise ValueError(f"the Mosaic kernel cannot run this: {reason}")
    from lite3r_jax.kernels.sla import mosaic_kernels  # a third of a second that few calls need

    if interpret and jax.__version_info__ < (0, 11):
        raise ValueError(f"jax {jax.__version__} cannot interpret the Mosaic kernel, 0.11 can")
    return sla_triton(
        q,
        k,
        v,
        proj_lin,
        block_map,
        routing=routing,
        phi=phi,
        keep=keep,
        eps=eps,
        q_valid=q_valid,
        k_valid=k_valid,
        forward=mosaic_kernels.interpreted if interpret else mosaic_kernels.forward,
        interpret=interpret,
    )
