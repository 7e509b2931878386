"""Head dims and dtypes that the kernels of the block selection support; imports no kernel."""

from typing import Any

import jax.numpy as jnp

HEAD_DIMS = (64, 128)
DTYPES = ("float32", "bfloat16", "float16")
TPU_DTYPES = ("float32", "bfloat16")


def unsupported(head_dim: int, dtype: Any) -> str | None:
    """Returns why the GPU kernel does not support such pooled tokens, or None; on any device."""
    if head_dim not in HEAD_DIMS:
        return f"head dim {head_dim} is not one of {HEAD_DIMS}"
    if jnp.dtype(dtype) not in DTYPES:
        return f"{jnp.dtype(dtype)} is not one of {', '.join(DTYPES)}"
    return None


def unsupported_tpu(dtype: Any) -> str | None:
    """Returns why the TPU kernel does not support pooled tokens of this dtype, or None.

    The answer holds on any device. Scores are float32, of tokens in any of the dtypes.
    """
    if jnp.dtype(dtype) not in TPU_DTYPES:
        return f"{jnp.dtype(dtype)} is not one of {', '.join(TPU_DTYPES)}"
    return None
