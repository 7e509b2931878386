"""What the GPU kernel of the block selection is made for; importing this needs no kernel."""

from typing import Any

import jax.numpy as jnp

HEAD_DIMS = (64, 128)


def unsupported(head_dim: int, dtype: Any) -> str | None:
    """Why the kernel is not made for pooled tokens of this kind, or None; whatever the device."""
    if head_dim not in HEAD_DIMS:
        return f"head dim {head_dim} is not one of {HEAD_DIMS}"
    if dtype != jnp.float32:
        return f"its scores are float32 and not {jnp.dtype(dtype)}"
    return None
