"""Spark3R: fewer queries and fewer keys by layer and number of views, without training."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import jax
from flax import nnx

from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.key_views import (
    check_layers,
    check_takes_views,
    diverse_views,
    keep_views,
    split_context,
    view_context,
)
from lite3r_jax.attention.query_merging import (
    MergedCore,
    MergeQueries,
    check_merging,
    merged_agreed_tokens,
    merged_apart,
    merged_flops,
)
from lite3r_jax.attention.strategy import (
    Apart,
    AttentionCore,
    AttentionInputs,
    AttentionStrategy,
    Layouts,
    Role,
    TokenLayout,
)

PROBED: Mapping[int, tuple[int, ...]] = MappingProxyType(
    {
        24: tuple(range(11, 17)),  # VGGT
        18: tuple(range(11, 17)),  # pi^3
        14: tuple(range(3, 13)),  # Depth Anything 3 giant
    }
)
"""Maps the number of global layers to the layers that lose much when keys are dropped.

The number of layers is all that a strategy knows of a backbone (arXiv 2605.06270, section IV). Of
other backbones all layers count as sensitive."""


@dataclass(frozen=True)
class Spark3R(AttentionStrategy):
    """Merges queries within groups of views, and takes the keys of only some views.

    Asymmetric token reduction as published (arXiv 2605.06270), of which there is no public code;
    `attention.query_merging` and `attention.key_views` have the two sides. Of S views, queries are
    merged by 1 up to 100, 2 up to 300, 3 up to 500 and 4 above. One of r views gives keys: r is 1
    up to 100 and S / 40 above, rounded up, in sensitive layers, and `others` times as large in the
    rest. Not in the paper: r is at most S / 10, rounded up, since the rule would leave one view of
    three; from 21 views on that changes nothing.

    Attributes:
        query_factor: of how many queries one attends, 1 to 4; none for the published schedule.
        key_factor: of how many views one gives keys, in sensitive layers; none for the published
            schedule. A number holds for all numbers of views, with no bound by S.
        others: factor of the number of dropped views in layers that are not sensitive.
        sensitive: layers of the role; none for the published ones (`PROBED`), and all where
            nobody has looked.
        choose: "stride" (every r-th view, as published; for videos) or "diverse" (as many views by
            farthest-point sampling; for photos in no order, with query_factor=1).
        group: views within which queries are merged.
        protect_reference: whether queries of the reference view, if there is one, are never merged.
        inner: how the rest attends. Where queries are merged, it must take them without a grid.
    """

    name: ClassVar[str] = "spark3r"
    roles: ClassVar[tuple[Role, ...]] = ("global",)

    query_factor: int | None = None
    key_factor: int | None = None
    others: int = 3
    sensitive: tuple[int, ...] | None = None
    choose: Literal["stride", "diverse"] = "stride"
    group: int = 20
    protect_reference: bool = True
    inner: AttentionStrategy = Dense()  # noqa: RUF009  (frozen)

    def __post_init__(self):
        for name in ("key_factor", "others"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        factor = 1 if self.query_factor is None else self.query_factor
        check_merging(factor, self.group, "query_factor")
        check_takes_views(self.inner)
        if self.query_factor != 1 and not self.inner.takes_merged_queries:
            raise ValueError(
                f"inner={self.inner.name} needs queries with a grid of patches, which merged ones"
                " do not have; set query_factor=1, or choose dense"
            )

    @property
    def takes_some_views(self) -> bool:
        """Implements `AttentionStrategy.takes_some_views`."""
        return False

    @property
    def views_in_order(self) -> bool:
        """Implements `AttentionStrategy.views_in_order`."""
        return (self.query_factor or 1) > 1 or (
            self.choose == "stride" and (self.key_factor or 1) > 1
        )

    @property
    def apart(self) -> tuple[Apart, ...]:
        """Implements `AttentionStrategy.apart`."""
        return merged_apart(self.query_factor, self.inner)

    def keys_left(self, key: TokenLayout) -> TokenLayout:
        """Implements `AttentionStrategy.keys_left`."""
        views = self.kept(key.whole)
        return key if len(views) == key.whole.views else key.whole.keep(views)

    def agreed_tokens(self, query: TokenLayout) -> float:
        """Implements `AttentionStrategy.agreed_tokens`."""
        return merged_agreed_tokens(self.query_factor, self.inner, query)

    def check(self, depth: int) -> None:
        """Implements `AttentionStrategy.check`."""
        super().check(depth)
        check_layers("sensitive", self.sensitive or (), depth)

    def resolve(self, role: Role, layer: int, depth: int, views: int) -> "Spark3R":
        """Implements `AttentionStrategy.resolve`."""
        here = super().resolve(role, layer, depth, views)
        probed = PROBED.get(depth, tuple(range(depth)))
        sensitive = probed if self.sensitive is None else self.sensitive
        keys = self._keys(1 if layer in sensitive else self.others, views)
        return replace(
            here,
            query_factor=self.query_factor or published_query_factor(views),
            key_factor=keys,
            others=1,
            sensitive=(),
        )

    def context(self, x: jax.Array, layout: TokenLayout) -> Any:
        """Implements `AttentionStrategy.context`: the order in which diverse views are chosen."""
        views = layout.whole.views
        factors = {self._keys(times, views) for times in (1, self.others)} - {1}
        if self.choose == "stride" or not factors:
            return view_context(x, layout, views, self.inner)
        return view_context(x, layout, -(-views // min(factors)), self.inner)

    def build(
        self, *, heads: int, head_dim: int, param_dtype: Any, rngs: nnx.Rngs
    ) -> "Spark3RCore":
        """Implements `AttentionStrategy.build`: its parameters are those of the inner core."""
        inner = self.inner.build(heads=heads, head_dim=head_dim, param_dtype=param_dtype, rngs=rngs)
        return Spark3RCore(self, inner)

    def describe(self, dtype: Any, head_dim: int) -> str:
        """Implements `AttentionStrategy.describe`."""
        factors = (("queries", self.query_factor), ("keys", self.key_factor))
        told = [f"{side} / {factor or 'by views'}" for side, factor in factors]
        return f"spark3r {' and '.join(told)}, {self.inner.describe(dtype, head_dim)}"

    def flops(self, layouts: Layouts, head_dim: int) -> Mapping[str, int]:
        """Implements `AttentionStrategy.flops`, for settings of `resolve`."""
        return merged_flops(
            self._kept(layouts),
            head_dim,
            self.inner,
            _resolved(self.query_factor),
            self.group,
            self.protect_reference,
        )

    def layer_flops(self, layouts: Layouts, heads: int, head_dim: int) -> int:
        """Implements `AttentionStrategy.layer_flops`.

        Merging is left out: strategies that take merged queries have no such operations.
        """
        return self.inner.layer_flops(self._kept(layouts), heads, head_dim)

    def _kept(self, layouts: Layouts) -> Layouts:
        """Returns the layouts with the keys of only those views that give keys."""
        key = layouts.regular_keys(self.name)
        if _resolved(self.key_factor) == 1:
            return layouts
        return layouts.with_keys(key.keep(self.kept(key)))

    def kept(self, layout: TokenLayout) -> tuple[int, ...]:
        """Returns the positions of the views that give keys; -1 where the data decides."""
        factor = _resolved(self.key_factor)
        if self.choose == "diverse" and factor > 1:
            return diverse_views(layout, -(-layout.views // factor))
        return tuple(range(0, layout.views, factor))

    def _keys(self, times: int, views: int) -> int:
        """Returns of how many views one gives keys, in layers with the factor `times`."""
        if self.key_factor is None:
            return min(times * published_key_factor(views), -(-views // 10))
        return times * self.key_factor


class Spark3RCore(AttentionCore):
    """Attention core of `Spark3R`: drops keys and merges queries for the inner strategy's core.

    Attributes:
        inner: core of the inner strategy.
    """

    spec: Spark3R

    def __init__(self, spec: Spark3R, inner: AttentionCore):
        self.spec = spec
        self.inner = inner

    def __call__(self, inputs: AttentionInputs) -> jax.Array:
        """Implements `AttentionCore.__call__`, for settings of `resolve`."""
        core, inputs = self.reduced(inputs)
        return core(inputs)

    def reduced(self, inputs: AttentionInputs) -> tuple[AttentionCore, AttentionInputs]:
        """Implements `AttentionCore.reduced`: the core that is left merges queries, if any."""
        spec, factor = self.spec, _resolved(self.spec.query_factor)
        order, inputs = split_context(inputs)
        layout = inputs.layouts.regular_keys(spec.name).whole
        inputs = keep_views(inputs, spec.kept(layout), order)
        if factor == 1:
            return self.inner, inputs
        merging = MergeQueries(factor, spec.group, spec.protect_reference, spec.inner)
        return MergedCore(merging, self.inner), inputs


def published_query_factor(views: int) -> int:
    """Returns of how many queries one attends in a scene of `views` views (arXiv 2605.06270)."""
    return 1 + sum(views > limit for limit in (100, 300, 500))


def published_key_factor(views: int) -> int:
    """Returns of how many views one gives keys in sensitive layers (arXiv 2605.06270)."""
    return 1 if views <= 100 else -(-views // 40)


def _resolved(setting: int | None) -> int:
    if setting is None:
        raise ValueError("spark3r: its schedule is known in a model only; call resolve first")
    return setting
