"""Sparse Linear Attention on NVIDIA GPUs by kernels in Triton's language, through jax-triton."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lite3r_jax.kernels import target
from lite3r_jax.kernels.block_map.table import BlockMap, BlockTable, Transposed
from lite3r_jax.kernels.jax_triton_call import call
from lite3r_jax.kernels.sla.launches import Launches, launches
from lite3r_jax.kernels.sla.limits import K_BLOCK, SlaCall, unsupported_triton
from lite3r_jax.kernels.sla.reference import Phi, Routing
from lite3r_jax.kernels.sla.softmax_part import Pair, SoftmaxKernels, sla_by_kernels


def sla_jax_triton(
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
    launch: Launches | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Computes `api.sla` by Triton kernels through jax-triton; not for routing "token".

    The arguments are those of `api.sla`. The linear part is `linear`'s, plain JAX. Every sum has a
    fixed order, so that two runs give the same bits. `launch` has rows, warps and stages, by
    default those of `launches`; `interpret` runs the kernels by Triton's interpreter, see
    `jax_triton_call.call`.

    Raises:
        ValueError: a head dim, block or dtype that the kernels are not made for, or packages
            that are missing or do not fit together here.
    """
    del keep  # which is in the map
    wanted = SlaCall.of(routing, q, block_map)
    if reason := unsupported_triton(wanted):
        raise ValueError(f"the Triton kernels cannot run this: {reason}")
    launch = launch or launches(target.device(), wanted)
    return sla_by_kernels(
        softmax_kernels(block_map.q_block, launch, interpret),
        q,
        k,
        v,
        proj_lin,
        block_map,
        routing=routing,
        phi=phi,
        eps=eps,
        q_valid=q_valid,
        k_valid=k_valid,
    )


@functools.cache  # so that traces of equal calls are equal
def softmax_kernels(q_block: int, launch: Launches, interpret: bool) -> SoftmaxKernels:
    """Returns the three kernels of the softmax part with fixed launch parameters.

    Args:
        q_block: queries per block.
        launch: launch parameters of each kernel.
        interpret: run the kernels by Triton's interpreter.
    """
    from lite3r_jax.kernels.sla import jax_triton_kernels as kernels

    run = functools.partial(call, interpret=interpret)

    def constants(q: jax.Array) -> dict[str, Any]:
        d = q.shape[3]
        blocks = {"Q_BLOCK": q_block, "K_BLOCK": K_BLOCK}
        return {"HEADS": q.shape[2], "D": d, **blocks, "SCALE": d**-0.5}

    def over_table(launched, kernel, arrays, table, outputs):
        q, k = arrays[:2]
        b, tokens, n, _ = q.shape
        rows = min(launched.rows, q_block)
        counts = [table.ids.shape[2], k.shape[1] // K_BLOCK, table.ids.shape[3]]
        settings = {**constants(q), "ROWS": rows}
        grid = (tokens // rows, n, b)
        first, second = run(kernel, launched, grid, [*arrays, *counts], outputs, **settings)
        return first, second

    def forward(q, k, v, bias, table: BlockTable, dtype) -> Pair:
        b, tokens, n, _ = q.shape
        arrays = [q, k, v, bias, table.ids, table.counts]
        outputs = [(q.shape, dtype), ((b, n, tokens), jnp.float32)]
        return over_table(launch.forward, kernels.sla_forward, arrays, table, outputs)

    def query_gradient(q, k, v, bias, table: BlockTable, do, o, lse) -> Pair:
        arrays = [q, k, v, bias, table.ids, table.counts, do, o, lse]
        outputs = [(q.shape, q.dtype), (lse.shape, jnp.float32)]
        return over_table(launch.query_gradient, kernels.sla_query_gradient, arrays, table, outputs)

    def key_gradient(q, k, v, bias, transposed: Transposed, do, lse, delta) -> Pair:
        b, tokens, n, _ = k.shape
        columns = tokens // K_BLOCK
        arrays = [q, k, v, bias, transposed.rows, transposed.offsets, do, lse, delta]
        counts = [q.shape[1] // q_block, columns, transposed.rows.shape[-1]]
        size = min(launch.key_gradient.rows, q_block)
        dk, dv = run(
            kernels.sla_key_gradient,
            launch.key_gradient,
            (columns, n, b),
            [*arrays, *counts],
            [(k.shape, k.dtype), (v.shape, v.dtype)],
            **constants(q),
            SIZE=size,
        )
        return dk, dv

    return SoftmaxKernels(forward, query_gradient, key_gradient)
