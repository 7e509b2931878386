"""FastVGGT: queries, keys and values of similar tokens merged over all views, without training."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lite3r_jax.attention.dense import dense_attention
from lite3r_jax.attention.matching import best_match, best_match_shared, merge, padded, unmerge
from lite3r_jax.attention.strategy import (
    Apart,
    AttentionCore,
    AttentionInputs,
    AttentionStrategy,
    Layouts,
    Role,
    TokenLayout,
)


@dataclass(frozen=True)
class FastVGGT(AttentionStrategy):
    """Dense attention among merged tokens, whose outputs go back to all tokens merged into them.

    FastVGGT (arXiv 2509.02560; merging/merge.py). The tokens of the reference view, if there is
    one, special tokens and one patch of 2 x 2 in every other view take up the rest: each other
    token joins the one with the most similar layer input, the most similar ones first, until
    `ratio` of all tokens are merged. A share of the tokens, at equal distances in the sequence, is
    protected and attends in addition. As upstream, where such a token takes up others, it is twice
    among the keys. Which patches take up others is drawn once for all layers, by another generator
    than upstream's.

    At most three of four patches can be merged, so with the published ratio all are, and about
    0.25 + 0.1 + 1 / S of the tokens of S views attend.

    Attributes:
        ratio: share of all tokens that are merged, at most, in [0, 1].
        protect: share of all tokens that are protected, in [0, 1).
        seed: of the patches that take up others.
    """

    name: ClassVar[str] = "fastvggt"
    headline: ClassVar[frozenset[str]] = frozenset({"ratio"})
    roles: ClassVar[tuple[Role, ...]] = ("global",)

    ratio: float = 0.9
    protect: float = 0.1
    seed: int = 33

    def __post_init__(self):
        for name, ok, wanted in (
            ("ratio", 0 <= self.ratio <= 1, "in [0, 1]"),
            ("protect", 0 <= self.protect < 1, "in [0, 1)"),
            ("seed", self.seed >= 0, "at least 0"),
        ):
            if not ok:
                raise ValueError(f"{name} must be {wanted}, got {getattr(self, name)}")

    @property
    def takes_some_views(self) -> bool:
        """Implements `AttentionStrategy.takes_some_views`."""
        return False

    @property
    def apart(self) -> tuple[Apart, ...]:
        """Implements `AttentionStrategy.apart`."""
        return ("heads",)

    def agreed_tokens(self, query: TokenLayout) -> float:
        """Implements `AttentionStrategy.agreed_tokens`: the layer's input of all views."""
        assert query.parts is not None
        others = (query.parts.devices - 1) / query.parts.devices
        return others * query.parts.filled * query.tokens_per_view

    def build(
        self, *, heads: int, head_dim: int, param_dtype: Any, rngs: nnx.Rngs
    ) -> "FastVGGTCore":
        """Implements `AttentionStrategy.build`: the core has no parameters."""
        del heads, head_dim, param_dtype, rngs
        return FastVGGTCore(self)

    def flops(self, layouts: Layouts, head_dim: int) -> Mapping[str, int]:
        """Implements `AttentionStrategy.flops`; `selection` counts the comparison of tokens."""
        layout, _ = layouts.regular(self.name)
        of = self.tokens(layout)
        rest = of.sources.size - self.merged(of, layout)
        attending = rest + of.destinations.size + of.protected.size
        pairs = padded(of.sources.size) * of.destinations.size
        return {"softmax": 4 * attending**2 * head_dim, "selection": 2 * pairs * head_dim}

    def tokens(self, layout: TokenLayout) -> "MergedTokens":
        """Returns which tokens of a scene are merged, take up others, or are protected."""
        return merged_tokens(layout, self.protect, self.seed)

    def merged(self, of: "MergedTokens", layout: TokenLayout) -> int:
        """Returns how many tokens of a scene are merged into others."""
        return min(of.sources.size, int(self.ratio * layout.tokens))


class FastVGGTCore(AttentionCore):
    """Attention core of `FastVGGT`, without parameters."""

    spec: FastVGGT

    def __init__(self, spec: FastVGGT):
        self.spec = spec

    def __call__(self, inputs: AttentionInputs) -> jax.Array:
        """Implements `AttentionCore.__call__`.

        Raises:
            ValueError: queries and keys are not the tokens of the same views.
        """
        spec = self.spec
        layout, key = inputs.layouts.regular(spec.name)
        if layout != key:
            raise ValueError(f"{spec.name}: queries and keys must be the same tokens")
        of = spec.tokens(layout)
        matched = inputs.agreed
        if matched is None:
            matched = best_match(inputs.x[:, of.sources], inputs.x[:, of.destinations])
        (q, k, v), rows = merge_tokens(
            matched, (inputs.q, inputs.k, inputs.v), of, spec.merged(of, layout)
        )
        return unmerge(dense_attention(q, k, v), rows)

    def agree(self, inputs: AttentionInputs) -> AttentionInputs:
        """Implements `AttentionCore.agree`: finds the token that each one may be merged into."""
        layout, _ = inputs.layouts.regular(self.spec.name)
        of, parts = self.spec.tokens(layout.whole), layout.parts
        assert parts is not None
        x = parts.gather(inputs.x, layout.tokens_per_view)
        matched = best_match_shared(x[:, of.sources], x[:, of.destinations], parts)
        return replace(inputs, agreed=matched)


@dataclass(frozen=True, eq=False)
class MergedTokens:
    """Roles of the tokens of a sequence in merging, as int32 indices of tokens.

    Attributes:
        destinations: [m] tokens that take up others.
        sources: [n] tokens that are merged into these; none of them is protected.
        protected: [p] tokens that attend in addition.
    """

    destinations: np.ndarray
    sources: np.ndarray
    protected: np.ndarray


@functools.lru_cache(maxsize=64)
def merged_tokens(layout: TokenLayout, protect: float, seed: int) -> MergedTokens:
    """Returns which tokens are merged, take up others, or are protected.

    This is known from the layout alone, without the data. Arguments are as in `FastVGGT`.
    """
    (h, w), p = layout.grid, layout.tokens_per_view
    number = np.random.default_rng(seed).integers(0, 4, (layout.views, h // 2, w // 2))
    view, row, column = np.indices(number.shape)
    patch = (2 * row + number // 2) * w + 2 * column + number % 2
    takes = np.zeros((layout.views, p), bool)
    takes[view, layout.special + patch] = True
    takes[:, : layout.special] = True
    if layout.reference is not None:
        takes[layout.reference] = True
    count = int(protect * layout.tokens)
    protected = np.arange(0, layout.tokens, layout.tokens // count)[:count] if count else []
    merged = ~takes.reshape(-1)
    merged[protected] = False
    arrays = (np.flatnonzero(takes), np.flatnonzero(merged), np.asarray(protected))
    return MergedTokens(*(a.astype(np.int32) for a in arrays))


def merge_tokens(
    matched: tuple[jax.Array, jax.Array],
    arrays: Sequence[jax.Array],
    of: MergedTokens,
    count: int,
) -> tuple[list[jax.Array], jax.Array]:
    """Merges tokens, and returns the row of every token among the merged ones.

    Args:
        matched: result of `best_match` of the sources among the destinations, whose cosine says how
            similar tokens are.
        arrays: each [B, T, N, D].
        of: what becomes of every token.
        count: how many sources are merged, those with the largest cosines.

    Returns:
        (for every array [B, T', N, D]: sources that are not merged, destinations, protected
        tokens; rows [B, T] int32 below T').
    """
    b, t = arrays[0].shape[:2]
    match, cosine = matched
    rest = of.sources.size - count
    order = jnp.argsort(-cosine, axis=1) if rest else jnp.arange(count)[None]
    rank = jnp.argsort(order, axis=1) if rest else order

    def merged(x: jax.Array) -> jax.Array:
        flat = x.reshape(b, t, -1)
        sources = flat[:, of.sources]
        taken = merge(flat[:, of.destinations], sources, match, rank < count)
        parts = [taken, flat[:, of.protected]]
        if rest:
            parts.insert(0, jnp.take_along_axis(sources, order[:, count:, None], axis=1))
        return jnp.concatenate(parts, axis=1).reshape(b, -1, *x.shape[2:])

    own = rest + np.arange(of.destinations.size + of.protected.size, dtype=np.int32)
    rows = jnp.zeros((b, t), jnp.int32).at[:, of.destinations].set(own[: of.destinations.size])
    rows = rows.at[:, of.sources].set(jnp.where(rank < count, match + rest, rank - count))
    rows = rows.at[:, of.protected].set(own[of.destinations.size :])
    return [merged(x) for x in arrays], rows
