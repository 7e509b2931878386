"""Rotary position embedding in two dimensions (vggt/layers/rope.py)."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lite3r_jax.attention.strategy import TokenLayout


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["cos", "sin", "positions"],
    meta_fields=["base"],
)
@dataclass(frozen=True, eq=False)
class RopeTable:
    """Cosines and sines of the angles by which RoPE rotates the tokens of a view.

    Attributes:
        cos: [P, D] float32.
        sin: [P, D] float32.
        positions: [P, 2] integers (y, x) that it was made for.
        base: base of the frequencies.
    """

    cos: Any
    sin: Any
    positions: Any
    base: float


def view_positions(layout: TokenLayout, *, spatial: bool = True) -> np.ndarray:
    """Returns the integer positions of the tokens of one view.

    Args:
        layout: layout of the tokens.
        spatial: whether patches have places; otherwise all are at (1, 1), apart from the special
            tokens only (`pos_nodiff` in depth_anything_3/model/dinov2/vision_transformer.py).

    Returns:
        [P, 2] int32 (y, x): patches at (row + 1, column + 1), special tokens at (0, 0), which
        rotates nothing.
    """
    h, w = layout.grid
    patches = (
        np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), -1).reshape(-1, 2) + 1
    )
    if not spatial:
        patches = np.ones_like(patches)
    special = np.zeros((layout.special, 2), patches.dtype)
    return np.concatenate([special, patches]).astype(np.int32)


def rope_table(positions: Any, head_dim: int, base: float = 100.0) -> RopeTable:
    """Computes cosines and sines of RoPE, always in float32 whatever the model computes in.

    The first half of the head dimension turns with y, the second with x; within a half of size m
    the frequencies are base^(-2k/m), k = 0 .. m/2 - 1, repeated twice.

    Args:
        positions: [..., 2] integers (y, x); a table of a JAX array is traced.
        head_dim: D, a multiple of 4.
        base: RoPE base.

    Returns:
        Cosines and sines, each [..., D] float32.

    Raises:
        ValueError: head_dim is not a multiple of 4.
    """
    if head_dim % 4:
        raise ValueError(f"2-D RoPE needs a head dimension divisible by 4, got {head_dim}")
    half = head_dim // 2
    frequency = 1 / np.float32(base) ** (np.arange(0, half, 2, dtype=np.float32) / half)
    xp: Any = jnp if isinstance(positions, jax.Array) else np
    angle = xp.asarray(positions, np.float32)[..., None] * frequency.astype(np.float32)
    angle = xp.concatenate([angle, angle], axis=-1).reshape(*positions.shape[:-1], head_dim)
    return RopeTable(xp.cos(angle), xp.sin(angle), positions, base)


def rotate(x: jax.Array, table: RopeTable) -> jax.Array:
    """Rotates queries or keys by the positions of their tokens (RoPE).

    Per half (a | b) of quarters a and b: (a, b) cos + (-b, a) sin.

    Args:
        x: [B, T, N, D]; T may hold several views that share the table one after the other.
        table: table of P positions, with T a multiple of P.

    Returns:
        [B, T, N, D] float32.
    """
    b, t, n, d = x.shape
    cos, sin = (jnp.asarray(a)[:, None, :] for a in (table.cos, table.sin))
    x = x.astype(jnp.float32).reshape(b, -1, cos.shape[0], n, d)
    a1, b1, a2, b2 = jnp.split(x, 4, axis=-1)
    turned = jnp.concatenate([-b1, a1, -b2, a2], axis=-1)
    return (x * cos + turned * sin).reshape(b, t, n, d)
