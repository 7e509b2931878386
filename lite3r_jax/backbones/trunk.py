"""Frame blocks and global blocks in turn, the trunk that the backbones share."""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from lite3r_jax.attention.core import AttentionCore, Layouts, Run, TokenLayout
from lite3r_jax.layers.block import scan_stacks
from lite3r_jax.layers.chunks import chunked, in_chunks
from lite3r_jax.layers.rope import RopeTable

BLOCK_TAPS = ("frame/blocks", "frame/attn", "global/blocks", "global/attn")


def alternate(
    x: jax.Array,
    blocks: tuple[nnx.Module, nnx.Module],
    cores: tuple[Sequence[AttentionCore], Sequence[AttentionCore]],
    plan_runs: Sequence[Run],
    layouts: tuple[TokenLayout, TokenLayout],
    ropes: tuple[RopeTable, RopeTable],
    *,
    read: Sequence[int],
    dtype: Any,
    taps: Collection[str] = (),
    remat: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Pairs of a frame block and a global block; the residual stream passes through both.

    Only the pairs that heads read are kept: every pair writes into the slot of the next one that is
    read, so that after the scan each slot holds just that pair.

    Args:
        x: [B, S, P, C] float32.
        blocks: stacks of frame and of global blocks, of one depth.
        cores: their attention strategies.
        plan_runs: runs of the pairs.
        layouts: of the tokens in frame and in global blocks.
        ropes: tables for frame and for global blocks.
        read: indices of the pairs that are kept, ascending, the last pair among them.
        dtype: of what is kept.
        taps: names of intermediates to return.
        remat: see `scan_stacks`; a pair is one layer.

    Returns:
        (tokens [B, S, K, P, 2C] in `dtype`: output of the frame block and of the global block, side
        by side, of the K pairs in `read`; taps: `frame/blocks`, `frame/attn`, `global/blocks`,
        `global/attn` [L, B, S, P, C], outputs of the blocks and of their attention layers).
    """
    b, s, p, c = x.shape
    frame, scene = (Layouts.both(layout) for layout in layouts)
    depth = plan_runs[-1].stop
    taken = [name for name in BLOCK_TAPS if name in taps]
    slots = jnp.asarray([sum(layer < i for layer in read[:-1]) for i in range(depth)])

    def in_place(carry, slot, modules, cores):
        """A pair in chunks; its halves are kept as they come, after which nobody needs them."""

        def keep(half):
            def write(kept, frames, first):
                part = frames.astype(dtype)[:, None]
                return lax.dynamic_update_slice(kept, part, (first, slot, 0, half * c))

            return write

        x, kept = carry
        x, kept = x.reshape(b * s, p, c), kept.reshape(b * s, len(read), p, 2 * c)
        x, kept = in_chunks(modules[0], x, cores[0], frame, ropes[0], kept, keep(0))
        x, kept = in_chunks(modules[1], x, cores[1], scene, ropes[1], kept, keep(1))
        return x.reshape(b, s, p, c), kept.reshape(b, s, len(read), p, 2 * c)

    def body(carry, index, modules, cores):
        sites = zip(modules, cores, strict=True)
        if not taken and all(chunked(*site, b * s * p) for site in sites):
            return in_place(carry, slots[index], modules, cores), {}
        x, kept = carry
        x, frame_attn = modules[0](x.reshape(b * s, p, c), cores[0], frame, ropes[0])
        y, global_attn = modules[1](x.reshape(b, s * p, c), cores[1], scene, ropes[1])
        x, y = x.reshape(b, s, p, c), y.reshape(b, s, p, c)
        pair = jnp.concatenate([x, y], axis=-1).astype(dtype)
        kept = lax.dynamic_update_index_in_dim(kept, pair, slots[index], 2)
        every = {
            "frame/blocks": x,
            "global/blocks": y,
            "frame/attn": frame_attn.reshape(b, s, p, c),
            "global/attn": global_attn.reshape(b, s, p, c),
        }
        return (y, kept), {name: every[name] for name in taken}

    kept = jnp.zeros((b, s, len(read), p, 2 * c), dtype)
    (_, kept), ys = scan_stacks(body, (x, kept), blocks, cores, plan_runs, remat)
    return kept, ys
