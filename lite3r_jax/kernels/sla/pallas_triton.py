"""Sparse Linear Attention on NVIDIA GPUs: Pallas kernels through the Triton lowering."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lite3r_jax.kernels import softmax, target
from lite3r_jax.kernels import triton_call as at
from lite3r_jax.kernels.block_map.table import BlockMap, BlockTable, block_count
from lite3r_jax.kernels.sla import triton_kernels as kernels
from lite3r_jax.kernels.sla.blocks import to_blocks
from lite3r_jax.kernels.sla.limits import K_BLOCK, SlaCall, unsupported_triton
from lite3r_jax.kernels.sla.linear import linear_marginal
from lite3r_jax.kernels.sla.reference import Phi, Routing
from lite3r_jax.kernels.sla.tiles import TritonTiles, tiles


def sla_triton(
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
    launch: TritonTiles | None = None,
    forward: Callable[..., tuple[jax.Array, jax.Array]] | None = None,
    interpret: bool = False,
) -> jax.Array:
    """See `api.sla`, whose arguments these are; not for routing "token".

    For routing "block" the linear part has kernels of its own; in those of the softmax part it
    costs registers that their loops need (see README.md). For "block3" its state differs by query
    block, and `linear.linear_marginal` computes it in plain JAX.

    Every sum has a fixed order, so that two runs give the same bits. `launch` has warps, stages
    and slices, by default those of `tiles`; `forward` computes the softmax part's forward pass in
    place of its kernel, as `mosaic_kernels.forward`; `interpret` runs the kernels' code as plain
    JAX on any device, slowly.

    Raises:
        ValueError: a head dim, block or dtype that the kernels are not made for.
    """
    del keep  # which is in the map
    if reason := unsupported_triton(SlaCall.of(routing, q, block_map)):
        raise ValueError(f"the Triton kernels cannot run this: {reason}")
    table = block_map.critical
    q_pad = _pad(q, q_valid, table.ids.shape[2] * block_map.q_block)
    k_pad, v_pad = (_pad(x, k_valid, table.columns * K_BLOCK) for x in (k, v))
    k_valid_pad = jnp.pad(k_valid, ((0, 0), (0, k_pad.shape[1] - k.shape[1])))
    bias = jnp.where(k_valid_pad, 0, softmax.MASKED).astype(jnp.float32)
    if launch is None:
        launch = tiles(q.shape[-1], q.dtype, block_map.q_block, target.device().shared_memory)
    plan = _Plan(launch, block_map.q_block, forward, interpret)
    if routing == "block":
        mean_eps = eps / k_pad.shape[1]
        o = _linear(q_pad, k_pad, v_pad, proj_lin, bias, phi, mean_eps, plan)
    else:
        o = _marginal(q_pad, k_pad, v_pad, k_valid_pad, block_map, proj_lin, phi, eps)
    o = _sparse(q_pad, k_pad, v_pad, bias, table, plan).astype(jnp.float32) + o
    return jnp.where(q_valid[..., None, None], o[:, : q.shape[1]], 0).astype(v.dtype)


def _marginal(q, k, v, k_valid, block_map, proj_lin, phi, eps):
    """`linear_marginal` for whole blocks of [B, T, N, D]."""
    b, tokens, n, d = q.shape

    def blocks(x, size):
        return to_blocks(x, jnp.ones(x.shape[:2], bool), size)

    critical, negligible = (
        t.ids.reshape(b * n, *t.ids.shape[2:]) for t in (block_map.critical, block_map.negligible)
    )
    o = linear_marginal(
        blocks(q, block_map.q_block),
        blocks(k, K_BLOCK),
        blocks(v, K_BLOCK),
        jnp.repeat(k_valid.reshape(b, -1, K_BLOCK), n, axis=0),
        critical,
        negligible,
        proj_lin,
        phi,
        eps,
    )
    return o.reshape(b, n, tokens, d).transpose(0, 2, 1, 3)


def _pad(x: jax.Array, valid: jax.Array, length: int) -> jax.Array:
    """[B, T, N, D] -> [B, length, N, D], with 0 for what is not valid."""
    x = jnp.where(valid[..., None, None], x, 0)
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0)))


@dataclass(frozen=True)
class _Plan:
    """What is fixed when a call is traced."""

    tiles: TritonTiles
    q_block: int
    forward: Callable[..., tuple[jax.Array, jax.Array]] | None
    interpret: bool

    @property
    def rows(self) -> int:
        """Queries of one program over the table."""
        return min(self.tiles.rows, self.q_block)

    @property
    def programs(self) -> int:
        """How many programs a query block is split into."""
        return self.q_block // self.rows


def _sparse(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, table: BlockTable, plan: _Plan
) -> jax.Array:
    """Softmax attention of every query block to its listed key blocks.

    Args:
        q: [B, Mq * q_block, N, D], 0 where it is padding.
        k: [B, Mk * K_BLOCK, N, D].
        v: [B, Mk * K_BLOCK, N, D].
        bias: [B, Mk * K_BLOCK] float32, 0 for valid keys and `MASKED` for others.
        table: the key blocks of each query block.
        plan: what is fixed.

    Returns:
        [B, Mq * q_block, N, D] in the dtype of v; 0 where no valid key is listed.
    """
    return _sparse_vjp(q, k, v, bias, table, plan)


def _sparse_value(q, k, v, bias, table, plan):
    if plan.forward is not None:
        return plan.forward(q, k, v, bias, table)[0]
    return _triton_forward(q, k, v, bias, table, plan, v.dtype)[0]


def _sparse_forward(q, k, v, bias, table, plan):
    if plan.forward is None:
        # The gradient subtracts do * o from do * v, which are equal where one key has all the
        # weight: there o that is rounded to half precision is not exact enough.
        o, lse = _triton_forward(q, k, v, bias, table, plan, jnp.float32)
    else:
        o, lse = plan.forward(q, k, v, bias, table)
    return o.astype(v.dtype), (q, k, v, bias, table, o, lse)


def _triton_forward(q, k, v, bias, table, plan, dtype):
    b, tokens, n, d = q.shape
    return at.call(
        functools.partial(kernels.sla_forward, k_block=K_BLOCK, programs=plan.programs),
        plan.tiles.forward,
        (table.ids.shape[2] * plan.programs, n, b),
        _over_table(q, k, v, bias, table, plan),
        [
            (q.shape, dtype, at.rows(plan.rows, d)),
            ((b, n, tokens), jnp.float32, at.row(plan.rows)),
        ],
        interpret=plan.interpret,
    )


def _sparse_backward(plan, residuals, do):
    q, k, v, bias, table, o, lse = residuals
    b, tokens, n, d = q.shape
    q_rows, k_rows, column = at.rows(plan.rows, d), at.rows(K_BLOCK, d), at.row(plan.rows)
    dq, delta = at.call(
        functools.partial(kernels.sla_query_gradient, k_block=K_BLOCK, programs=plan.programs),
        plan.tiles.query_gradient,
        (table.ids.shape[2] * plan.programs, n, b),
        [
            *_over_table(q, k, v, bias, table, plan),
            (do, q_rows),
            (o, q_rows),
            (lse, column),
        ],
        [(q.shape, q.dtype, q_rows), (lse.shape, jnp.float32, column)],
        interpret=plan.interpret,
    )
    transposed = table.transpose()
    dk, dv = at.call(
        functools.partial(kernels.sla_key_gradient, q_block=plan.q_block, size=plan.tiles.slice),
        plan.tiles.key_gradient,
        (table.columns, n, b),
        [
            (q, at.all_variants(q)),
            (k, k_rows),
            (v, k_rows),
            (bias, at.mask(K_BLOCK)),
            (transposed.rows, at.head(transposed.rows.shape[-1])),
            (transposed.offsets, at.head(table.columns + 1)),
            (do, at.all_variants(do)),
            (lse, at.head(tokens)),
            (delta, at.head(tokens)),
        ],
        [(k.shape, k.dtype, k_rows), (v.shape, v.dtype, k_rows)],
        interpret=plan.interpret,
    )
    return dq, dk, dv, None, None


_sparse_vjp = jax.custom_vjp(_sparse_value, nondiff_argnums=(5,))
_sparse_vjp.defvjp(_sparse_forward, _sparse_backward)


def _over_table(q, k, v, bias, table, plan):
    """Inputs of a kernel whose programs have one query block each, or a part of it."""
    return [
        (q, at.rows(plan.rows, q.shape[-1])),
        (k, at.all_variants(k)),
        (v, at.all_variants(v)),
        (bias, at.all_mask(bias)),
        (table.ids, at.part(table.ids.shape[-1], programs=plan.programs)),
        (table.counts, at.head(table.ids.shape[2])),
    ]


def _linear(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    proj_lin: jax.Array,
    bias: jax.Array,
    phi: Phi,
    eps: float,
    plan: _Plan,
) -> jax.Array:
    """Linear attention to all valid keys, projected; arguments as in `_sparse`.

    As `linear.linear_all`, but with means over keys for sums: eps is that of the means.

    Returns:
        [B, Mq * q_block, N, D] in the dtype of v.
    """
    return _linear_vjp(q, k, v, proj_lin, bias, phi, eps, plan)


def _linear_forward(q, k, v, proj_lin, bias, phi, eps, plan):
    b, tokens, n, d = q.shape
    size = plan.tiles.slice
    kernel = functools.partial(kernels.sla_linear_state, phi=phi)
    inputs = [(k, at.all_variants(k)), (v, at.all_variants(v)), (bias, at.all_mask(bias))]
    means = [x / k.shape[1] for x in _sums(kernel, k, inputs, plan)]
    [o] = at.call(
        functools.partial(kernels.sla_linear_forward, phi=phi, eps=eps),
        plan.tiles.linear,
        (tokens // size, n, b),
        [(q, at.rows(size, d)), *_states(means, proj_lin, q.dtype)],
        [(q.shape, v.dtype, at.rows(size, d))],
        interpret=plan.interpret,
    )
    return o, (q, k, v, proj_lin, means)


def _linear_backward(phi, eps, plan, residuals, do):
    q, k, v, proj_lin, means = residuals
    b, tokens, n, d = q.shape
    size = plan.tiles.slice
    some = at.rows(size, d)
    states = _states(means, proj_lin, q.dtype)
    [dq] = at.call(
        functools.partial(kernels.sla_linear_query_gradient, phi=phi, eps=eps),
        plan.tiles.linear,
        (tokens // size, n, b),
        [(q, some), *states, (do, some)],
        [(q.shape, q.dtype, some)],
        interpret=plan.interpret,
    )
    kernel = functools.partial(kernels.sla_linear_state_gradient, phi=phi, eps=eps)
    inputs = [(q, at.all_variants(q)), *states, (do, at.all_variants(do))]
    dstate, dtotal = _sums(kernel, q, inputs, plan)
    dproj = _product("bnij,bnik->jk", means[0], dstate)
    dmean = _product("bnik,jk->bnij", dstate, proj_lin.astype(jnp.float32)) / k.shape[1]
    dk, dv = at.call(
        functools.partial(kernels.sla_linear_key_gradient, phi=phi),
        plan.tiles.linear,
        (k.shape[1] // size, n, b),
        [
            (k, some),
            (v, some),
            (dmean.astype(kernels.linear_dtype(q.dtype)), at.head(d, d)),
            (dtotal / k.shape[1], at.head(d)),
        ],
        [(k.shape, k.dtype, some), (v.shape, v.dtype, some)],
        interpret=plan.interpret,
    )
    return dq, dk, dv, dproj.astype(proj_lin.dtype), None


_linear_vjp = jax.custom_vjp(lambda *x: _linear_forward(*x)[0], nondiff_argnums=(5, 6, 7))
_linear_vjp.defvjp(_linear_forward, _linear_backward)


def _sums(kernel, x, inputs, plan):
    """Two sums over the rows of x, [B, N, D, D] and [B, N, D], by chunks of slices."""
    b, tokens, n, d = x.shape
    size, chunk = plan.tiles.slice, plan.tiles.chunk
    parts = block_count(tokens // size, chunk)
    sums = at.call(
        functools.partial(kernel, size=size, chunk=chunk),
        plan.tiles.linear,
        (parts, n, b),
        inputs,
        [((b, n, parts, *rest), jnp.float32, at.part(*rest)) for rest in ((d, d), (d,))],
        interpret=plan.interpret,
    )
    return [x.sum(axis=2) for x in sums]


def _states(means, proj_lin, dtype):
    """Inputs S = H W and z of a kernel."""
    state, total = means
    d = state.shape[-1]
    state = _product("bnij,jk->bnik", state, proj_lin.astype(jnp.float32))
    return [(state.astype(kernels.linear_dtype(dtype)), at.head(d, d)), (total, at.head(d))]


def _product(formula: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(formula, x, y, precision="highest")
