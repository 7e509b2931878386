"""Sparse Linear Attention on Hopper GPUs, its softmax part's forward pass through Mosaic GPU.

Everything else is `pallas_triton`, whose kernels the residuals of this one fit.
"""

import jax

from lite3r_jax.kernels.block_map.table import BlockMap
from lite3r_jax.kernels.sla import mosaic_kernels
from lite3r_jax.kernels.sla.limits import SlaCall, unsupported_mosaic
from lite3r_jax.kernels.sla.pallas_triton import sla_triton
from lite3r_jax.kernels.sla.reference import Phi, Routing


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
    if reason := unsupported_mosaic(SlaCall.of(routing, q, block_map)):
        raise ValueError(f"the Mosaic kernel cannot run this: {reason}")
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
