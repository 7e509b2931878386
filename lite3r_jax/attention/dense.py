"""Dense softmax attention over all keys, without a T x T array for more than a few views."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import jax
from flax import nnx

from lite3r_jax.attention.head_groups import heads_at_a_time, map_head_groups
from lite3r_jax.attention.strategy import (
    Apart,
    AttentionCore,
    AttentionInputs,
    AttentionStrategy,
    Layouts,
)
from lite3r_jax.kernels.dense.api import OPERATOR, DenseCall

Implementation = Literal["auto", "cudnn", "tpu", "blocked", "reference"]


@dataclass(frozen=True)
class Dense(AttentionStrategy):
    """Dense softmax attention over all keys, softmax(q k^T / sqrt(D)) v.

    Attributes:
        implementation: "cudnn" (flash attention of cuDNN; NVIDIA GPU, bfloat16 or float16), "tpu"
            (jax's flash attention for TPUs, bfloat16), "blocked" (plain JAX, any device and dtype,
            memory of one query block times one key block), "reference" (one T x T array; for
            tests), or "auto": the best that can run and, where it needs that, was proven on this
            kind of device (`kernels.registry`). An explicit choice that cannot be honoured raises.
        q_block: queries handled at a time by "blocked".
        k_block: keys handled at a time by "blocked".
    """

    name: ClassVar[str] = "dense"
    runtime: ClassVar[frozenset[str]] = frozenset({"implementation", "q_block", "k_block"})

    implementation: Implementation = "auto"
    q_block: int = 1024
    k_block: int = 4096

    @property
    def takes_merged_queries(self) -> bool:
        """Implements `AttentionStrategy.takes_merged_queries`."""
        return True

    @property
    def apart(self) -> tuple[Apart, ...]:
        """Implements `AttentionStrategy.apart`."""
        return "heads", "queries"

    def build(self, *, heads: int, head_dim: int, param_dtype: Any, rngs: nnx.Rngs) -> "DenseCore":
        """Implements `AttentionStrategy.build`: the core has no parameters."""
        del heads, head_dim, param_dtype, rngs
        return DenseCore(self)

    def describe(self, dtype: Any, head_dim: int) -> str:
        """Implements `AttentionStrategy.describe`."""
        return f"dense ({OPERATOR.choose(self.implementation, DenseCall(head_dim, dtype))})"

    def flops(self, layouts: Layouts, head_dim: int) -> dict[str, int]:
        """Implements `AttentionStrategy.flops`: scores and weighted values of all pairs."""
        return {"softmax": 4 * layouts.query.tokens * layouts.key.tokens * head_dim}


class DenseCore(AttentionCore):
    """Attention core of `Dense`, without parameters."""

    spec: Dense

    def __init__(self, spec: Dense):
        self.spec = spec

    def __call__(self, inputs: AttentionInputs) -> jax.Array:
        """Implements `AttentionCore.__call__`."""
        spec = self.spec
        return dense_attention(
            inputs.q, inputs.k, inputs.v, spec.implementation, spec.q_block, spec.k_block
        )


def dense_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    implementation: Implementation = "auto",
    q_block: int = 1024,
    k_block: int = 4096,
) -> jax.Array:
    """Computes softmax(q k^T / sqrt(D)) v with logits and sums in float32.

    Args:
        q: [B, Tq, N, D].
        k: [B, Tk, N, D].
        v: [B, Tk, N, D].
        implementation: see `Dense`.
        q_block: queries at a time ("blocked").
        k_block: keys at a time ("blocked").

    Returns:
        [B, Tq, N, D] in the dtype of `v`.

    Raises:
        ValueError: shapes disagree, or what was asked for by name cannot run here.
    """
    if q.ndim != 4 or k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:]:
        raise ValueError(f"expected q, k, v as [B, T, N, D], got {q.shape}, {k.shape}, {v.shape}")
    chosen = OPERATOR.choose(implementation, DenseCall(q.shape[-1], v.dtype))
    attend = partial(OPERATOR[chosen].run, q_block=q_block, k_block=k_block)
    if chosen != "blocked":
        return attend(q, k, v)
    # One by one in any case, so that nothing is lost where memory counts.
    every = heads_at_a_time(q) == q.shape[2]
    return map_head_groups(attend, q, k, v, size=q.shape[2] if every else 1)
