"""Sparse Linear Attention on Hopper GPUs, its softmax part through Mosaic GPU."""

import functools

import jax

from lite3r_jax.kernels.block_map.table import BlockMap
from lite3r_jax.kernels.sla import mosaic_gradients, mosaic_kernels
from lite3r_jax.kernels.sla.limits import SlaCall, unsupported_mosaic
from lite3r_jax.kernels.sla.reference import Phi, Routing
from lite3r_jax.kernels.sla.softmax_part import SoftmaxKernels, sla_by_kernels
from lite3r_jax.kernels.target import without_triton


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
    plain_linear: bool | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Computes `api.sla` on Hopper GPUs through Mosaic GPU; not for routing "token".

    The arguments are those of `api.sla`. The linear part is that of `pallas_triton.sla_triton`, and
    where jax has no Triton lowering, or with `plain_linear`, it is `linear`'s, plain JAX. Every sum
    has a fixed order, so that two runs give the same bits. `interpret` runs all kernels' code on
    any device, slowly.

    Raises:
        ValueError: a head dim, block or dtype that the kernels are not made for, or `interpret`
            with a jax before 0.11, whose interpreter lacks a transposed operand.
    """
    if reason := unsupported_mosaic(SlaCall.of(routing, q, block_map)):
        raise ValueError(f"the Mosaic kernels cannot run this: {reason}")
    if interpret and jax.__version_info__ < (0, 11):
        raise ValueError(f"jax {jax.__version__} cannot interpret the Mosaic kernels, 0.11 can")
    if plain_linear is None:
        plain_linear = without_triton() is not None
    kernels = softmax_kernels(block_map.full_columns, interpret)
    if plain_linear:
        return sla_by_kernels(
            kernels, q, k, v, proj_lin, block_map,
            routing=routing, phi=phi, eps=eps, q_valid=q_valid, k_valid=k_valid,
        )  # fmt: skip
    from lite3r_jax.kernels.sla.pallas_triton import sla_triton

    return sla_triton(
        q, k, v, proj_lin, block_map,
        routing=routing, phi=phi, keep=keep, eps=eps, q_valid=q_valid, k_valid=k_valid,
        softmax_part=kernels, interpret=interpret,
    )  # fmt: skip


@functools.cache  # so that traces of equal calls are equal
def softmax_kernels(full_columns: int, interpret: bool) -> SoftmaxKernels:
    """Returns the three kernels; programs of the first `full_columns` key blocks start first.

    `full_columns` is that of `BlockMap`. `interpret` runs the kernels on any device, slowly.
    """
    run = functools.partial
    return SoftmaxKernels(
        forward=run(mosaic_kernels.forward, interpret=interpret),
        query_gradient=run(mosaic_gradients.query_gradient, interpret=interpret),
        key_gradient=run(
            mosaic_gradients.key_gradient, full_columns=full_columns, interpret=interpret
        ),
    )
