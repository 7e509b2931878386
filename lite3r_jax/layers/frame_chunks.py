"""Runs a block over chunks of frames one after the other, where a scene has too many tokens.

Outside of attention every token is by itself, and attention within a view is by itself in every
view. So a block that works through the frames in place needs the residual stream, the queries, keys
and values where views attend to each other, and what it holds of a few frames.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from lite3r_jax.attention.strategy import AttentionCore, Layouts
from lite3r_jax.layers.block import Block
from lite3r_jax.layers.rope import RopeTable
from lite3r_jax.mesh import split_ways

T = TypeVar("T")

_TOKENS = 2**15
"""Number of tokens in a chunk, enough for matrix products at full speed."""


def chunked(block: nnx.Module, tokens: int) -> bool:
    """Returns whether a block is run by `map_frame_chunks` instead of being called.

    Not where a mesh splits scenes or views, where a device has its own frames only; nor where
    tokens have something in common outside of attention.

    Args:
        block: a `Block`, or what stands in its place.
        tokens: number of tokens of all frames.
    """
    return (
        tokens > 2 * _TOKENS
        and split_ways() == 1
        and isinstance(block, Block)
        and not any(joins_tokens(module) for _, module in nnx.iter_modules(block))
    )


def joins_tokens(module: nnx.Module) -> bool:
    """Returns whether a module's output for a token depends on others, as by a common scale."""
    product = getattr(module, "dot_general", None)
    return any(getattr(x, "joins_tokens", False) for x in (module, product))


def map_frame_chunks(
    block: Block,
    x: jax.Array,
    core: AttentionCore,
    layouts: Layouts,
    rope: RopeTable | None = None,
    shared: Any = None,
    kept: Any = (),
    keep: Callable[[Any, jax.Array, Any], Any] = lambda kept, frames, first: kept,
) -> tuple[jax.Array, Any]:
    """Runs a block over chunks of frames, and returns its output and what `keep` made of it.

    Args:
        block: where `chunked` says so.
        x: [F, P, C] float32, all frames; those of a scene stand together.
        core: attention strategy of this site.
        layouts: token layouts of queries and keys; `views` of them share a sequence.
        rope: table of `rope_table` or None.
        shared: context of the strategy, arrays with the sequences first.
        kept: arrays, handed on to `keep`.
        keep: (kept, [n, P, C] of the block's output, number of the first frame) -> kept.

    Returns:
        (output [F, P, C] float32, kept).
    """
    count, tokens, _ = x.shape
    layout, _ = layouts.regular("of a block")
    views = layout.views

    def within(carry: tuple[jax.Array, Any], first: Any, size: int) -> tuple[jax.Array, Any]:
        x, kept = carry
        of_these = jax.tree.map(lambda a: _cut(a, first, size), shared)
        frames, _ = block(_cut(x, first, size), core, layouts, rope, of_these)
        return _put(x, frames, first), keep(kept, frames, first)

    if views == 1 and layout.parts is None:
        return _over(within, (x, kept), count, tokens)

    def project(qkv: tuple[jax.Array, ...], first: Any, size: int) -> tuple[jax.Array, ...]:
        projected = block.project(_cut(x, first, size), rope)
        return tuple(_put(whole, part, first) for whole, part in zip(qkv, projected, strict=True))

    attn = block.attn
    empty = jnp.zeros((count, tokens, attn.heads, attn.head_dim), attn.dtype)
    q, k, v = (
        a.reshape(-1, views * tokens, *a.shape[2:])
        for a in _over(project, (empty, empty, empty), count, tokens)
    )

    def normed() -> jax.Array:
        """Computes the layer's normed input, for a strategy that asks for it only."""
        like = jax.eval_shape(block.norm1, x)

        def put(whole: jax.Array, first: Any, size: int) -> jax.Array:
            return _put(whole, block.norm1(_cut(x, first, size)), first)

        whole = _over(put, jnp.zeros(like.shape, like.dtype), count, tokens)
        return whole.reshape(-1, views * tokens, whole.shape[-1])

    o = attn.attend(core, (q, k, v), layouts, rope, shared, normed).reshape(empty.shape)

    def finish(carry: tuple[jax.Array, Any], first: Any, size: int) -> tuple[jax.Array, Any]:
        x, kept = carry
        attended = attn.unpack(_cut(o, first, size))
        frames = block.finish(_cut(x, first, size), attended)
        return _put(x, frames, first), keep(kept, frames, first)

    return _over(finish, (x, kept), count, tokens)


def _over(turn: Callable[[T, Any, int], T], carry: T, count: int, tokens: int) -> T:
    """Calls `turn(carry, first frame, number of frames)` for chunk after chunk of all frames."""
    most = max(1, _TOKENS // tokens)
    # Equal chunks spare the program a second copy of the block.
    size = next((n for n in range(most, most // 2, -1) if count % n == 0), min(most, count))
    turns = count // size
    carry = lax.fori_loop(0, turns, lambda i, carry: turn(carry, i * size, size), carry)
    return turn(carry, turns * size, count % size) if count % size else carry


def _cut(x: jax.Array, first: Any, size: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, first, size)


def _put(x: jax.Array, part: jax.Array, first: Any) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(x, part, first, 0)
