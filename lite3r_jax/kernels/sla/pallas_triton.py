"""Sparse Linear Attention on NVIDIA GPUs: Pallas kernels through the Triton lowering."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from lite3r_jax.errors import InputError
from lite3r_jax.kernels import softmax, target
from lite3r_jax.kernels import triton_call as at
from lite3r_jax.kernels.block_map.table import BlockMap, BlockTable, block_count
from lite3r_jax.kernels.order import LongFirst
from lite3r_jax.kernels.sla import triton_kernels as kernels
from lite3r_jax.kernels.sla.blocks import to_blocks
from lite3r_jax.kernels.sla.limits import K_BLOCK, SlaCall, unsupported_triton
from lite3r_jax.kernels.sla.linear import linear_marginal
from lite3r_jax.kernels.sla.reference import Phi, Routing
from lite3r_jax.kernels.sla.softmax_part import SoftmaxKernels
from lite3r_jax.kernels.sla.tiles import TritonTiles, tiles
from lite3r_jax.kernels.tokens import inverse, take

# Rows of a head's state of one program: four programs for 64 channels.
_STATE_ROWS = 16


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
    places: np.ndarray | None = None,
    launch: TritonTiles | None = None,
    softmax_part: SoftmaxKernels | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Computes `api.sla` by kernels through Pallas' Triton lowering; not for routing "token".

    The arguments are those of `api.sla`. For routing "block" a state of all keys is made first;
    what queries take of it is added where their softmax part ends. For "block3" the state differs
    by query block, and `linear.linear_marginal` computes it in plain JAX. Query blocks that attend
    to all key blocks are in the same launch as others, and come first.

    Every sum has a fixed order, so that two runs give the same bits. `launch` has warps, stages
    and slices, by default those of `tiles`; `softmax_part` computes that part in place of these
    kernels, for maps without full rows; `interpret` runs the kernels' code as plain JAX on any
    device, slowly.

    Raises:
        ValueError: a head dim, block or dtype that the kernels are not made for.
    """
    del keep  # which is in the map
    if reason := unsupported_triton(SlaCall.of(routing, q, block_map)):
        raise ValueError(f"the Triton kernels cannot run this: {reason}")
    if block_map.critical.ids.shape[2] == 0:  # there is no row for a kernel to look at
        block_map = block_map.split()[0]
    table = block_map.critical
    rows = block_map.full_rows + table.ids.shape[2]
    q_pad, q_valid = _pad(q, q_valid, rows * block_map.q_block)
    (k_pad, k_valid), (v_pad, _) = (_pad(x, k_valid, table.columns * K_BLOCK) for x in (k, v))
    bias = jnp.where(k_valid, 0, softmax.MASKED).astype(jnp.float32)
    if launch is None:
        launch = tiles(q.shape[-1], q.dtype, block_map.q_block, target.device().shared_memory)
    plan = _Plan(
        launch, block_map.q_block, block_map.full_rows, block_map.full_columns, phi,
        eps / k_pad.shape[1], None if places is None else len(places), softmax_part, interpret,
    )  # fmt: skip
    masks = q_valid.astype(jnp.int32), bias
    if routing == "block":
        to = None
        if places is not None:
            to = jnp.asarray(inverse(places, q_pad.shape[1]))
        o = _attend(q_pad, k_pad, v_pad, proj_lin, *masks, table, to, plan)
        return o if places is not None else o[:, : q.shape[1]]
    o = _attend(q_pad, k_pad, v_pad, None, *masks, table, None, plan).astype(jnp.float32)
    edge = block_map.full_rows * block_map.q_block
    marginal = _marginal(q_pad[:, edge:], k_pad, v_pad, k_valid, block_map, proj_lin, phi, eps)
    o += jnp.pad(marginal, ((0, 0), (edge, 0), (0, 0), (0, 0)))
    o = jnp.where(q_valid[..., None, None], o, 0).astype(v.dtype)[:, : q.shape[1]]
    return o if places is None else take(o, places)


def _marginal(q, k, v, k_valid, block_map, proj_lin, phi, eps):
    """Computes `linear_marginal` for whole blocks of [B, T, N, D]."""
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


def _pad(x: jax.Array, valid: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """Pads x to [B, length, N, D], with 0 for what is not valid, and `valid` to [B, length]."""
    x = jnp.where(valid[..., None, None], x, 0)
    more = (0, length - x.shape[1])
    return jnp.pad(x, ((0, 0), more, (0, 0), (0, 0))), jnp.pad(valid, ((0, 0), more))


@dataclass(frozen=True)
class _Plan:
    """Settings that are fixed when a call is traced.

    `eps` is that of means over keys, `outputs` the number of outputs where they have places.
    """

    tiles: TritonTiles
    q_block: int
    full_rows: int
    full_columns: int
    phi: Phi
    eps: float
    outputs: int | None
    softmax_part: SoftmaxKernels | None
    interpret: bool

    @property
    def rows(self) -> int:
        """Number of queries of one program over the table."""
        return min(self.tiles.rows, self.q_block)

    @property
    def programs(self) -> int:
        """Number of programs that a query block is split into."""
        return self.q_block // self.rows

    def place(self, table: BlockTable) -> kernels.OverTable:
        """Returns how a program over query blocks finds its block and that block's keys."""
        _, n, rows, width = table.ids.shape
        order = LongFirst(n, self.full_rows * self.programs, rows * self.programs)
        return kernels.OverTable(order, self.full_rows, self.programs, width, table.columns)


def _attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    proj_lin: jax.Array | None,
    q_valid: jax.Array,
    bias: jax.Array,
    table: BlockTable,
    places: jax.Array | None,
    plan: _Plan,
) -> jax.Array:
    """Computes softmax attention of every query block to its key blocks, and linear attention.

    The linear part, to all keys, is that of `linear.linear_all`, but with means over keys for sums.

    Args:
        q: [B, Mq * q_block, N, D], 0 where it is padding.
        k: [B, Mk * K_BLOCK, N, D].
        v: [B, Mk * K_BLOCK, N, D].
        proj_lin: [D, D], or None for the softmax part alone.
        q_valid: [B, Mq * q_block] int32, 0 for padding.
        bias: [B, Mk * K_BLOCK] float32, 0 for valid keys and `MASKED` for others.
        table: the key blocks of each query block behind the full ones.
        places: [Mq * q_block] int32, where the outputs of the queries go; as many as there are
            outputs for those without one. None for their order.
        plan: settings that are fixed.

    Returns:
        [B, Mq * q_block, N, D], or as many tokens as places, in the dtype of v; 0 where a query is
        padding, and where no valid key is listed but for the linear part.
    """
    return _attend_vjp(q, k, v, proj_lin, q_valid, bias, table, places, plan)


def _attend_value(*args):
    return _run(*args, residuals=False)[0]


def _attend_forward(q, k, v, proj_lin, q_valid, bias, table, places, plan):
    o, *kept = _run(q, k, v, proj_lin, q_valid, bias, table, places, plan, residuals=True)
    return o, (q, k, v, proj_lin, q_valid, bias, table, places, *kept)


def _run(q, k, v, proj_lin, q_valid, bias, table, places, plan, *, residuals):
    """Returns the output and what the gradient needs.

    These are the softmax part's output, its log-sum-exp and the states.
    """
    b, tokens, n, d = q.shape
    states = None if proj_lin is None else _states(k, v, bias, proj_lin, plan)
    if (given := plan.softmax_part) is not None:
        wide = residuals and given.keeps_float32
        soft, lse = given.forward(q, k, v, bias, table, jnp.float32 if wide else v.dtype)
        o = soft.astype(jnp.float32)
        if states is not None:
            o += _linear_forward(q, states, plan)
        return jnp.where(q_valid[..., None, None] > 0, o, 0).astype(v.dtype), soft, lse, states
    place, q_rows = plan.place(table), at.rows(plan.rows, d)
    inputs = [*_over_table(q, k, v, bias, table, plan), (q_valid, at.mask(plan.rows))]
    if states is not None:
        inputs += _inputs(states)
    outputs = [(q.shape, v.dtype, q_rows)]
    if places is not None:
        inputs.append((places, pl.BlockSpec((plan.rows,), lambda i, n, b: (i,))))
        shape = b, plan.outputs, n, d
        outputs = [(shape, v.dtype, at.all_rows(jax.ShapeDtypeStruct(shape, v.dtype)))]
    if residuals:
        # The gradient subtracts do * o from do * v, which are equal where one key has all the
        # weight: there o that is rounded to half precision is not exact enough.
        outputs += [
            (q.shape, jnp.float32, q_rows),
            ((b, n, tokens), jnp.float32, at.row(plan.rows)),
        ]
    kernel = functools.partial(
        kernels.sla_forward,
        k_block=K_BLOCK,
        place=place,
        linear=None if states is None else (plan.phi, plan.eps),
        scatter=places is not None,
        residuals=residuals,
    )
    results = at.call(
        kernel, plan.tiles.forward, (place.order, b), inputs, outputs, interpret=plan.interpret
    )
    return *results, states


def _attend_backward(plan, residuals, do):
    q, k, v, proj_lin, q_valid, bias, table, places, o, lse, states = residuals
    if places is not None:
        do = do.at[:, places].get(mode="fill", fill_value=0)
    do = jnp.where(q_valid[..., None, None] > 0, do, 0)
    dq, dk, dv = _softmax_backward(q, k, v, bias, table, plan, o, lse, do)
    dproj = None
    if states is not None:
        *linear, dproj = _linear_backward(q, k, v, proj_lin, states, plan, do)
        dq, dk, dv = (x + y for x, y in zip((dq, dk, dv), linear, strict=True))
    return dq, dk, dv, dproj, None, None, None, None


_attend_vjp = jax.custom_vjp(_attend_value, nondiff_argnums=(8,))
_attend_vjp.defvjp(_attend_forward, _attend_backward)


def _softmax_backward(q, k, v, bias, table, plan, o, lse, do):
    if (given := plan.softmax_part) is not None:
        dq, delta = given.query_gradient(q, k, v, bias, table, do, o, lse)
        return dq, *given.key_gradient(q, k, v, bias, table.transpose(), do, lse, delta)
    b, tokens, n, d = q.shape
    q_rows, k_rows, column = at.rows(plan.rows, d), at.rows(K_BLOCK, d), at.row(plan.rows)
    place = plan.place(table)
    dq, delta = at.call(
        functools.partial(kernels.sla_query_gradient, k_block=K_BLOCK, place=place),
        plan.tiles.query_gradient,
        (place.order, b),
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
    order = LongFirst(n, plan.full_columns, table.columns - plan.full_columns)
    dk, dv = at.call(
        functools.partial(
            kernels.sla_key_gradient,
            q_block=plan.q_block,
            size=plan.tiles.slice,
            order=order,
            full=plan.full_rows,
        ),
        plan.tiles.key_gradient,
        (order, b),
        [
            (q, at.all_rows(q)),
            (k, k_rows),
            (v, k_rows),
            (bias, at.mask(K_BLOCK)),
            (transposed.rows, at.head(transposed.rows.shape[-1])),
            (transposed.offsets, at.head(table.columns + 1)),
            (do, at.all_rows(do)),
            (lse, at.head(tokens)),
            (delta, at.head(tokens)),
        ],
        [(k.shape, k.dtype, k_rows), (v.shape, v.dtype, k_rows)],
        interpret=plan.interpret,
    )
    return dq, dk, dv


def _over_table(q, k, v, bias, table, plan):
    """Returns a kernel's inputs with block specs; programs have a query block, or part of one.

    Raises:
        InputError: a head has more ids than the kernels can count.
    """
    b, n, rows, width = table.ids.shape
    if (entries := table.columns + rows * width) >= 2**31:
        raise InputError(
            f"sparse attention: {rows} query blocks with {width} key blocks each need {entries:,}"
            " ids of blocks for a head, and the kernels count to 2^31 - 1; set keep lower, or put"
            " key_views around it"
        )
    ids = table.ids.reshape(b, n, -1)
    if plan.full_rows:
        every = jnp.arange(table.columns, dtype=jnp.int32)
        ids = jnp.concatenate([jnp.broadcast_to(every, (b, n, table.columns)), ids], axis=-1)
    return [
        (q, at.rows(plan.rows, q.shape[-1])),
        (k, at.all_rows(k)),
        (v, at.all_rows(v)),
        (bias, at.all_mask(bias)),
        (ids, at.head(ids.shape[-1])),
    ]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _States:
    """States of the linear part over all keys: S, z and H of `triton_kernels`.

    S and H are [B, N, D, D], z is [B, N, D].
    """

    state: jax.Array
    total: jax.Array
    mean: jax.Array


def _states(k, v, bias, proj_lin, plan) -> _States:
    kernel = functools.partial(kernels.sla_linear_state, phi=plan.phi)
    inputs = [(k, at.all_rows(k)), (v, at.all_rows(v)), (bias, at.all_mask(bias))]
    sums, totals = _sums(kernel, k, inputs, plan)
    b, n, parts, d, _ = sums.shape
    if d > 64:  # whose product in float32 would spill in a kernel
        mean, total = sums.sum(axis=2) / k.shape[1], totals.sum(axis=2) / k.shape[1]
        state = _product("bnij,jk->bnik", mean, proj_lin.astype(jnp.float32))
        return _States(state.astype(kernels.linear_dtype(k.dtype)), total, mean)
    some = (None, None, _STATE_ROWS, d)

    def at_rows(i, n, b):
        return b, n, i, 0

    projected = at.call(
        functools.partial(kernels.sla_linear_project, keys=k.shape[1]),
        plan.tiles.linear,
        (d // _STATE_ROWS, n, b),
        [
            (
                sums,
                pl.BlockSpec((None, None, parts, _STATE_ROWS, d), lambda i, n, b: (b, n, 0, i, 0)),
            ),
            (totals, pl.BlockSpec((None, None, parts, _STATE_ROWS), lambda i, n, b: (b, n, 0, i))),
            (proj_lin.astype(jnp.float32), pl.BlockSpec((d, d), lambda i, n, b: (0, 0))),
        ],
        [
            ((b, n, d, d), kernels.linear_dtype(k.dtype), pl.BlockSpec(some, at_rows)),
            (
                (b, n, d),
                jnp.float32,
                pl.BlockSpec((None, None, _STATE_ROWS), lambda i, n, b: (b, n, i)),
            ),
            ((b, n, d, d), jnp.float32, pl.BlockSpec(some, at_rows)),
        ],
        interpret=plan.interpret,
    )
    return _States(*projected)


def _linear_forward(q, states, plan):
    """Computes the linear part alone, in float32."""
    b, tokens, n, d = q.shape
    size = plan.tiles.slice
    [o] = at.call(
        functools.partial(kernels.sla_linear_forward, phi=plan.phi, eps=plan.eps),
        plan.tiles.linear,
        (tokens // size, n, b),
        [(q, at.rows(size, d)), *_inputs(states)],
        [(q.shape, jnp.float32, at.rows(size, d))],
        interpret=plan.interpret,
    )
    return o


def _linear_backward(q, k, v, proj_lin, kept, plan, do):
    """Computes the gradients of q, k, v and proj_lin through the linear part."""
    b, tokens, n, d = q.shape
    phi, eps, size = plan.phi, plan.eps, plan.tiles.slice
    some, states = at.rows(size, d), _inputs(kept)
    [dq] = at.call(
        functools.partial(kernels.sla_linear_query_gradient, phi=phi, eps=eps),
        plan.tiles.linear,
        (tokens // size, n, b),
        [(q, some), *states, (do, some)],
        [(q.shape, q.dtype, some)],
        interpret=plan.interpret,
    )
    kernel = functools.partial(kernels.sla_linear_state_gradient, phi=phi, eps=eps)
    inputs = [(q, at.all_rows(q)), *states, (do, at.all_rows(do))]
    dstate, dtotal = (x.sum(axis=2) for x in _sums(kernel, q, inputs, plan))
    dproj = _product("bnij,bnik->jk", kept.mean, dstate)
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
    return dq, dk, dv, dproj.astype(proj_lin.dtype)


def _sums(kernel, x, inputs, plan):
    """Computes two sums over each part of x's rows, [B, N, parts, D, D] and [B, N, parts, D]."""
    b, tokens, n, d = x.shape
    size, chunk = plan.tiles.slice, plan.tiles.chunk
    parts = block_count(tokens // size, chunk)
    return at.call(
        functools.partial(kernel, size=size, chunk=chunk),
        plan.tiles.linear,
        (parts, n, b),
        inputs,
        [((b, n, parts, *rest), jnp.float32, at.part(*rest)) for rest in ((d, d), (d,))],
        interpret=plan.interpret,
    )


def _inputs(states: _States) -> list[tuple[jax.Array, pl.BlockSpec]]:
    """Returns S and z as inputs of a kernel, with block specs."""
    d = states.state.shape[-1]
    return [(states.state, at.head(d, d)), (states.total, at.head(d))]


def _product(formula: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(formula, x, y, precision="highest")
