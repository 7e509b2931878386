"""Attention of fewer queries, without training: merges similar ones within groups of views."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.matching import best_match, best_match_shared, merge, padded, unmerge
from lite3r_jax.attention.strategy import (
    Apart,
    AttentionCore,
    AttentionInputs,
    AttentionStrategy,
    IrregularTokens,
    Layouts,
    Role,
    TokenLayout,
)

MOST = 4
"""Largest merging factor for which there is a pattern of patches that stay."""
_TURNS = (0, 3, 1, 2)  # which patch of 2 x 2 is kept, in views one after the other


@dataclass(frozen=True)
class MergeQueries(AttentionStrategy):
    """Merges similar queries: one of `factor` attends to all keys, as the mean of those merged.

    The query side of Spark3R (arXiv 2605.06270). Views are cut into groups of `group` that follow
    one another. In each of them a fixed pattern says which patches stay, other ones from view to
    view; every other patch of the group is merged into the one whose query has the largest cosine,
    all heads together, and gets its output. Special tokens and the reference view are never merged
    into others. The paper leaves the pattern open: `kept_patches` is ours.

    Attributes:
        factor: of how many queries one stays, 1 to 4; 1 merges none.
        group: views of a group.
        protect_reference: whether all queries of the reference view stay.
        inner: how the merged queries attend; it must take queries without a grid, as dense does.
    """

    name: ClassVar[str] = "merge_queries"
    headline: ClassVar[frozenset[str]] = frozenset({"factor"})
    roles: ClassVar[tuple[Role, ...]] = ("global",)

    factor: int = 2
    group: int = 20
    protect_reference: bool = True
    inner: AttentionStrategy = Dense()  # noqa: RUF009  (frozen)

    def __post_init__(self):
        check_merging(self.factor, self.group)
        if self.factor > 1 and not self.inner.takes_merged_queries:
            raise ValueError(
                f"inner={self.inner.name} needs queries with a grid of patches, which merged ones"
                " do not have; choose dense, or merge none with factor=1"
            )

    @property
    def takes_some_views(self) -> bool:
        """Implements `AttentionStrategy.takes_some_views`."""
        return self.inner.takes_some_views

    @property
    def views_in_order(self) -> bool:
        """Implements `AttentionStrategy.views_in_order`."""
        return self.factor > 1 or super().views_in_order

    @property
    def apart(self) -> tuple[Apart, ...]:
        """Implements `AttentionStrategy.apart`; which queries are merged depends on all heads."""
        return merged_apart(self.factor, self.inner)

    def keys_left(self, key: TokenLayout) -> TokenLayout:
        """Implements `AttentionStrategy.keys_left`."""
        return self.inner.keys_left(key)

    def agreed_tokens(self, query: TokenLayout) -> float:
        """Implements `AttentionStrategy.agreed_tokens`."""
        return merged_agreed_tokens(self.factor, self.inner, query)

    def context(self, x: jax.Array, layout: TokenLayout) -> Any:
        """Implements `AttentionStrategy.context`."""
        return self.inner.context(x, layout)

    def build(self, *, heads: int, head_dim: int, param_dtype: Any, rngs: nnx.Rngs) -> "MergedCore":
        """Implements `AttentionStrategy.build`: its parameters are those of the inner core."""
        inner = self.inner.build(heads=heads, head_dim=head_dim, param_dtype=param_dtype, rngs=rngs)
        return MergedCore(self, inner)

    def describe(self, dtype: Any, head_dim: int) -> str:
        """Implements `AttentionStrategy.describe`."""
        return f"queries merged by {self.factor}, {self.inner.describe(dtype, head_dim)}"

    def flops(self, layouts: Layouts, head_dim: int) -> Mapping[str, int]:
        """Implements `AttentionStrategy.flops`; `selection` counts the comparison of queries."""
        return merged_flops(
            layouts, head_dim, self.inner, self.factor, self.group, self.protect_reference
        )


class MergedCore(AttentionCore):
    """Attention core of `MergeQueries`: merges queries for the core of the inner strategy.

    Attributes:
        inner: core of the inner strategy.
    """

    spec: MergeQueries

    def __init__(self, spec: MergeQueries, inner: AttentionCore):
        self.spec = spec
        self.inner = inner

    def __call__(self, inputs: AttentionInputs) -> jax.Array:
        """Implements `AttentionCore.__call__`."""
        spec = self.spec
        return with_merged_queries(
            inputs, self.inner, spec.factor, spec.group, spec.protect_reference
        )

    def reduced(self, inputs: AttentionInputs) -> tuple[AttentionCore, AttentionInputs]:
        """Implements `AttentionCore.reduced`."""
        inner, inputs = self.inner.reduced(inputs)
        return MergedCore(replace(self.spec, inner=inner.spec), inner), inputs

    def agree(self, inputs: AttentionInputs) -> AttentionInputs:
        """Implements `AttentionCore.agree`: finds the query that each other one is merged into."""
        spec = self.spec
        if spec.factor == 1:
            return self.inner.agree(inputs)
        layout, _ = inputs.layouts.regular(spec.name)
        of = groups(layout.whole, spec.factor, spec.group, spec.protect_reference)
        return replace(inputs, agreed=[shared_matches(inputs.q, some, layout) for some in of])


def with_merged_queries(
    inputs: AttentionInputs,
    attend: Callable[[AttentionInputs], jax.Array],
    factor: int,
    group: int,
    protect_reference: bool,
) -> jax.Array:
    """Calls `attend` with merged queries, and returns the outputs of all tokens.

    Args:
        inputs: inputs of a layer.
        attend: attention of irregular queries.
        factor: see `MergeQueries`, likewise the others.
        group: views.
        protect_reference: whether the reference view stays as it is.

    Returns:
        [B, Tq, N, D].
    """
    if factor == 1:
        return attend(inputs)
    layout, _ = inputs.layouts.regular(MergeQueries.name)
    of = groups(layout, factor, group, protect_reference)
    q, rows = merge_queries(inputs.q, of, inputs.agreed)
    return unmerge(attend(inputs.with_queries(q)), rows)


def merge_queries(
    q: jax.Array, of: Sequence["Groups"], matches: Sequence[jax.Array] | None = None
) -> tuple[jax.Array, jax.Array]:
    """Merges queries, and returns the row of every token among the merged ones.

    Args:
        q: [B, T, N, D].
        of: groups that have every token once.
        matches: for each of them [groups, B, n] int32, below m, where this was found out before,
            see `shared_matches`; None: by the queries here.

    Returns:
        (q [B, T', N, D], rows [B, T] int32 below T').
    """
    b, _, heads, d = q.shape
    flat = q.reshape(b, -1, heads * d)
    merged, tokens, rows, first = [], [], [], 0
    for i, some in enumerate(of):
        count, m = some.destinations.shape
        known = () if matches is None else (matches[i],)

        def one(group: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            # Taken in here, so that the queries of one group are copied and not those of all.
            ids, before = group[:2], group[2:]
            stay, go = (flat[:, each] for each in ids)
            match = before[0] if before else best_match(go, stay)[0]
            return merge(stay, go, match), match

        ids = jnp.asarray(some.destinations), jnp.asarray(some.sources)
        kept, match = lax.map(one, (*ids, *known))
        merged.append(jnp.moveaxis(kept, 0, 1).reshape(b, count * m, heads, d))
        start = first + m * np.arange(count, dtype=np.int32)
        own = (start[:, None] + np.arange(m, dtype=np.int32)).reshape(-1)
        rows.append(jnp.broadcast_to(own, (b, count * m)))
        rows.append(jnp.moveaxis(match + start[:, None, None], 0, 1).reshape(b, -1))
        tokens += [some.destinations.reshape(-1), some.sources.reshape(-1)]
        first += count * m
    place = np.argsort(np.concatenate(tokens))
    return jnp.concatenate(merged, axis=1), jnp.concatenate(rows, axis=1)[:, place]


def shared_matches(q: jax.Array, of: "Groups", layout: TokenLayout) -> jax.Array:
    """Finds the queries that others are merged into, for views that lie on several devices.

    The queries of one group at a time are on every device, which compares a share of them.

    Args:
        q: [B, each * P, N, D] of this device, all heads.
        of: groups of the whole scene.
        layout: of the tokens of this device, in parts.

    Returns:
        [groups, B, n] int32, below m.
    """
    parts, p = layout.parts, layout.tokens_per_view
    assert parts is not None
    by_view = q.reshape(q.shape[0], layout.views, p, -1)
    first = np.minimum(of.destinations.min(1), of.sources.min(1)) // p
    count = (of.destinations.shape[1] + of.sources.shape[1]) // p
    views = first[:, None] + np.arange(count, dtype=np.int32)
    local = [(ids - first[:, None] * p).astype(np.int32) for ids in (of.destinations, of.sources)]

    def one(group: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        views, stay, go = group
        some = parts.choose(by_view, views[None])
        some = some.reshape(len(some), count * p, -1)
        return best_match_shared(some[:, go], some[:, stay], parts)[0]

    return lax.map(one, (jnp.asarray(views), *map(jnp.asarray, local)))


def merged_apart(factor: int | None, inner: AttentionStrategy) -> tuple[Apart, ...]:
    """Returns `AttentionStrategy.apart` for queries merged by a factor (None: not known yet)."""
    if factor == 1:
        return inner.apart
    return ("heads",) if "heads" in inner.apart else ()


def merged_agreed_tokens(factor: int | None, inner: AttentionStrategy, query: TokenLayout) -> float:
    """Returns `AttentionStrategy.agreed_tokens` for queries merged by a factor.

    The queries of all views are counted twice: parts of the sums over devices, then the sums.
    """
    if factor == 1 or query.parts is None:
        return inner.agreed_tokens(query)
    return 2 * query.whole.tokens * (query.parts.devices - 1) / query.parts.devices


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of views with one pattern of merging, as indices of tokens in the sequence.

    Attributes:
        destinations: [groups, m] int32, tokens that stay.
        sources: [groups, n] int32, tokens that are merged into these.
    """

    destinations: np.ndarray
    sources: np.ndarray


@functools.lru_cache(maxsize=64)
def groups(
    layout: TokenLayout, factor: int, group: int, protect_reference: bool
) -> tuple[Groups, ...]:
    """Returns the groups of views of a scene, those with one pattern of merging together.

    They are known from the layout alone, without the data.

    Args:
        layout: layout of the queries.
        factor: see `MergeQueries`, likewise the others.
        group: views; the last group has the rest.
        protect_reference: whether the reference view stays as it is.
    """
    p, special = layout.tokens_per_view, layout.special
    alike: dict[tuple[int, int], list[np.ndarray]] = {}
    for first in range(0, layout.views, group):
        views = range(first, min(first + group, layout.views))
        stays = np.ones((len(views), p), bool)
        for i, view in enumerate(views):
            if not (protect_reference and view == layout.reference):
                stays[i, special:] = kept_patches(layout.grid, factor, i).reshape(-1)
        where = np.arange(first * p, (first + len(views)) * p, dtype=np.int32)
        split = np.concatenate([where[stays.reshape(-1)], where[~stays.reshape(-1)]])
        alike.setdefault((int(stays.sum()), len(views)), []).append(split)
    result = []
    for (kept, _), splits in alike.items():
        together = np.stack(splits)
        result.append(Groups(together[:, :kept], together[:, kept:]))
    return tuple(result)


def kept_patches(grid: tuple[int, int], factor: int, view: int) -> np.ndarray:
    """Returns which patches of a view stay, one of `factor`, others from view to view.

    Args:
        grid: rows and columns.
        factor: 1 to 4; 2 is a chessboard, 3 diagonals, 4 one patch of 2 x 2.
        view: number of the view within its group.

    Returns:
        [h, w] bool.
    """
    y, x = np.mgrid[: grid[0], : grid[1]]
    if factor == MOST:
        return 2 * (y % 2) + x % 2 == _TURNS[view % 4]
    return (y + x + view) % factor == 0


def merged_flops(
    layouts: Layouts,
    head_dim: int,
    inner: AttentionStrategy,
    factor: int,
    group: int,
    protect_reference: bool,
) -> dict[str, int]:
    """Returns the operations of one head with merged queries, comparison of queries included.

    Args:
        layouts: as they are without merging.
        head_dim: D.
        inner: attention of the merged queries.
        factor: see `MergeQueries`, likewise the others.
        group: views.
        protect_reference: whether the reference view stays as it is.
    """
    if factor == 1:
        return dict(inner.flops(layouts, head_dim))
    layout, _ = layouts.regular(MergeQueries.name)
    of = groups(layout, factor, group, protect_reference)
    tokens = sum(some.destinations.size for some in of)
    work = dict(inner.flops(replace(layouts, query=IrregularTokens(tokens)), head_dim))
    pairs = sum(
        len(some.sources) * padded(some.sources.shape[1]) * some.destinations.shape[1]
        for some in of
    )
    work["selection"] = work.get("selection", 0) + 2 * pairs * head_dim
    return work


def check_merging(factor: int, group: int, setting: str = "factor") -> None:
    """Refuses a merging factor that has no pattern, and groups without a view.

    Raises:
        ValueError: with the setting and what it may be.
    """
    if not 1 <= factor <= MOST:
        raise ValueError(f"{setting} must be 1 to {MOST}, got {factor}")
    if group < 1:
        raise ValueError(f"group must be at least 1, got {group}")
