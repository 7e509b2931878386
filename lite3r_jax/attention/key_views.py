"""Attention to the keys of some views only, without training: every r-th view, or diverse views."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.strategy import (
    Apart,
    AttentionCore,
    AttentionInputs,
    AttentionStrategy,
    Layouts,
    Preset,
    Role,
    TokenLayout,
)

Choose = Literal["diverse", "stride", "own"]


@dataclass(frozen=True)
class KeyViews(AttentionStrategy):
    """All queries attend to the tokens of some views, the reference view always among them.

    "diverse" is the view selection of Good Token Hunting (arXiv 2605.23892; zsh2000/gotohunt), with
    the model's own tokens in place of its place recognition network. "stride" is the key side of
    Spark3R (arXiv 2605.06270). The cost of a layer grows with the number of views instead of its
    square. The plan `gotohunt` has the published settings for VGGT.

    In models without a reference view, where all views are equal, "diverse" begins with the view
    that is most like all others, so that the choice does not depend on the order of the views.

    Attributes:
        choose: "diverse" (`count` views that differ most, by farthest-point sampling; views may
            come in any order), "stride" (every `every`-th view; for videos) or "own" (each view
            attends to itself alone).
        count: views that "diverse" keeps; all of them where there are no more.
        every: "stride" keeps the views 0, `every`, 2 `every` and so on.
        patch_step: of the views that are kept, every `patch_step`-th row and column of patches is,
            from the first ones on; special tokens are in any case.
        patch_step_layers: layers of the role that `patch_step` is for; none for all of them.
        own_layers: layers of the role that have "own" instead of `choose`.
        inner: how the queries attend to these keys.
    """

    name: ClassVar[str] = "key_views"
    headline: ClassVar[frozenset[str]] = frozenset({"choose"})
    roles: ClassVar[tuple[Role, ...]] = ("global",)
    presets: ClassVar[Mapping[str, Preset]] = {
        "gotohunt": Preset(
            "global",
            {"patch_step": 3, "patch_step_layers": (2, 3, 4, 5, 6, 7, 8), "own_layers": (0, 1)},
        )
    }

    choose: Choose = "diverse"
    count: int = 25
    every: int = 4
    patch_step: int = 1
    patch_step_layers: tuple[int, ...] | None = None
    own_layers: tuple[int, ...] = ()
    inner: AttentionStrategy = Dense()  # noqa: RUF009  (frozen)

    def __post_init__(self):
        for name in ("count", "every", "patch_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_takes_views(self.inner)
        if self.patch_step > 1 and not self.inner.takes_some_patches:
            raise ValueError(
                f"inner={self.inner.name} needs all patches of the views that are kept; set"
                " patch_step=1"
            )

    @property
    def takes_merged_queries(self) -> bool:
        """Implements `AttentionStrategy.takes_merged_queries`.

        Not where a view attends to itself: the view of a merged query is not known.
        """
        own = self.choose == "own" or self.own_layers
        return self.inner.takes_merged_queries and not own

    @property
    def takes_some_views(self) -> bool:
        """Implements `AttentionStrategy.takes_some_views`."""
        return False

    @property
    def apart(self) -> tuple[Apart, ...]:
        """Implements `AttentionStrategy.apart`."""
        return self.inner.apart

    def agreed_tokens(self, query: TokenLayout) -> float:
        """Implements `AttentionStrategy.agreed_tokens`."""
        return self.inner.agreed_tokens(query)

    def keys_left(self, key: TokenLayout) -> TokenLayout:
        """Implements `AttentionStrategy.keys_left`."""
        views, key = self.kept(key.whole), key.keep_patches(self.patch_step)
        return key if len(views) == key.whole.views else key.whole.keep(views)

    @property
    def own_view_only(self) -> bool:
        """Implements `AttentionStrategy.own_view_only`."""
        return self.choose == "own"

    @property
    def views_in_order(self) -> bool:
        """Implements `AttentionStrategy.views_in_order`."""
        return self.choose == "stride" and self.every > 1

    def check(self, depth: int) -> None:
        """Implements `AttentionStrategy.check`."""
        super().check(depth)
        check_layers("patch_step_layers", self.patch_step_layers or (), depth)
        check_layers("own_layers", self.own_layers, depth)

    def resolve(self, role: Role, layer: int, depth: int, views: int) -> "KeyViews":
        """Implements `AttentionStrategy.resolve`."""
        here = super().resolve(role, layer, depth, views)
        stepped = self.patch_step_layers is None or layer in self.patch_step_layers
        return replace(
            here,
            choose="own" if layer in self.own_layers else self.choose,
            own_layers=(),
            patch_step=self.patch_step if stepped else 1,
            patch_step_layers=None,
        )

    def context(self, x: jax.Array, layout: TokenLayout) -> Any:
        """Implements `AttentionStrategy.context`: the order in which diverse views are chosen."""
        count = self.count if self.choose == "diverse" else layout.whole.views
        return view_context(x, layout, count, self.inner)

    def build(self, *, heads: int, head_dim: int, param_dtype: Any, rngs: nnx.Rngs) -> "ViewsCore":
        """Implements `AttentionStrategy.build`: its parameters are those of the inner core."""
        inner = self.inner.build(heads=heads, head_dim=head_dim, param_dtype=param_dtype, rngs=rngs)
        return ViewsCore(self, inner)

    def describe(self, dtype: Any, head_dim: int) -> str:
        """Implements `AttentionStrategy.describe`."""
        number = {"diverse": f" {self.count}", "stride": f" {self.every}"}.get(self.choose, "")
        return f"key views {self.choose}{number}, {self.inner.describe(dtype, head_dim)}"

    def flops(self, layouts: Layouts, head_dim: int) -> dict[str, int]:
        """Implements `AttentionStrategy.flops`; the choice of the views is not counted."""
        cut, times = self._cut(layouts)
        return {k: times * n for k, n in self.inner.flops(cut, head_dim).items()}

    def layer_flops(self, layouts: Layouts, heads: int, head_dim: int) -> int:
        """Implements `AttentionStrategy.layer_flops`."""
        cut, times = self._cut(layouts)
        return times * self.inner.layer_flops(cut, heads, head_dim)

    def _cut(self, layouts: Layouts) -> tuple[Layouts, int]:
        """Returns the layouts that the inner strategy gets, and how many times it runs."""
        key = layouts.regular_keys(self.name)
        if self.choose == "own":
            own = TokenLayout(1, key.special, key.grid, "frame")
            cut = Layouts.both(own)
            if self.patch_step > 1:
                cut = cut.with_keys(own.keep_patches(self.patch_step))
            return cut, key.views
        kept = key.keep(self.kept(key)).keep_patches(self.patch_step)
        return layouts.with_keys(kept) if kept.tokens < key.tokens else layouts, 1

    def kept(self, layout: TokenLayout) -> tuple[int, ...]:
        """Returns the positions of the views that give keys; -1 where the data decides."""
        if self.choose == "stride":
            return tuple(range(0, layout.views, self.every))
        if self.choose == "own" or self.count >= layout.views:
            return tuple(range(layout.views))
        return diverse_views(layout, self.count)


class ViewsCore(AttentionCore):
    """Attention core of `KeyViews`: drops keys and calls the core of the inner strategy.

    Attributes:
        inner: core of the inner strategy.
    """

    spec: KeyViews

    def __init__(self, spec: KeyViews, inner: AttentionCore):
        self.spec = spec
        self.inner = inner

    def __call__(self, inputs: AttentionInputs) -> jax.Array:
        """Implements `AttentionCore.__call__`."""
        spec = self.spec
        if spec.choose == "own":
            _, inputs = split_context(inputs)
            shape = inputs.q.shape
            inputs = inputs.within_views()
            if spec.patch_step > 1:
                inputs = inputs.keep_key_patches(spec.patch_step)
            return self.inner(inputs).reshape(shape)
        inner, inputs = self.reduced(inputs)
        return inner(inputs)

    def reduced(self, inputs: AttentionInputs) -> tuple[AttentionCore, AttentionInputs]:
        """Implements `AttentionCore.reduced`."""
        spec = self.spec
        order, inputs = split_context(inputs)
        views = spec.kept(inputs.layouts.regular_keys(spec.name).whole)
        if spec.patch_step > 1:  # before views are sent to other devices
            inputs = inputs.keep_key_patches(spec.patch_step)
        return self.inner, keep_views(inputs, views, order)


def diverse_views(layout: TokenLayout, count: int) -> tuple[int, ...]:
    """Returns the positions of `count` diverse views, as far as they are known without the data.

    Returns:
        Positions in order: that of the reference view, if there is one, and -1 for each view that
        only the data decides.
    """
    first = () if layout.reference is None else (layout.reference,)
    return (*first, *[-1] * (count - len(first)))


def keep_views(
    inputs: AttentionInputs, views: tuple[int, ...], order: jax.Array | None
) -> AttentionInputs:
    """Returns the inputs with the keys of some views only, in the order of the scene.

    Args:
        inputs: inputs of a layer.
        views: positions of these views; -1 for one that only the data decides.
        order: [B, at least as many] int32, views in the order in which they are chosen.

    Raises:
        ValueError: the data decide, and there is no order.
    """
    layout = inputs.layouts.regular_keys("key_views").whole
    if views == tuple(range(layout.views)):
        return inputs
    if -1 not in views:
        return inputs.keep_key_views(views)
    if order is None:
        raise ValueError("key_views: diverse views need the context of the strategy")
    return inputs.keep_key_views(views, jnp.sort(order[:, : len(views)], axis=1))


def view_context(
    x: jax.Array, layout: TokenLayout, count: int, inner: AttentionStrategy
) -> dict[str, Any] | None:
    """Computes the order in which diverse views are chosen, and the context of `inner`.

    Layers that attend to `count` diverse views share both. A view is described by the mean
    of its patch tokens.

    Args:
        x: [B, T, C] tokens that enter the stack.
        layout: layout of these tokens.
        count: views that the data decide about; nothing is chosen where there are no more.
        inner: strategy of the layers that attend to the chosen views.
    """
    shared = {}
    if count < layout.whole.views:
        by_view = x.reshape(x.shape[0], layout.views, layout.tokens_per_view, -1)
        described = by_view[:, :, layout.special :].mean(axis=2)
        if layout.parts is not None:
            described = layout.parts.gather(described)
        shared["order"] = farthest_views(described, count, layout.reference)
    if (of_inner := inner.context(x, layout)) is not None:
        shared["inner"] = of_inner
    return shared or None


def split_context(inputs: AttentionInputs) -> tuple[jax.Array | None, AttentionInputs]:
    """Splits the order of `view_context` off the inputs; the rest are the inner strategy's."""
    shared = inputs.shared or {}
    return shared.get("order"), replace(inputs, shared=shared.get("inner"))


def farthest_views(descriptors: jax.Array, count: int, reference: int | None = 0) -> jax.Array:
    """Selects views by farthest-point sampling: a first one, then the least like those chosen.

    Distances are largest cosine minus cosine, as in zsh2000/gotohunt. Without a reference view the
    first is the one with the least distance to all others together. Of equally distant views the
    first is taken; without such ties the choice does not depend on the order of the views, but
    which is the reference. Not differentiable.

    Args:
        descriptors: [B, S, d].
        count: K, at most S.
        reference: the first view of every scene; None where no view is the reference.

    Returns:
        [B, K] int32, in the order of choice; the first K' of them are the choice of K' views.
    """
    f = lax.stop_gradient(descriptors).astype(jnp.float32)
    f = f / jnp.maximum(jnp.linalg.norm(f, axis=-1, keepdims=True), 1e-12)
    cosine = jnp.einsum("bsd,btd->bst", f, f, precision="highest")
    distance = cosine.max(axis=(1, 2), keepdims=True) - cosine
    scenes = jnp.arange(f.shape[0])
    if reference is None:
        first = jnp.argmin(distance.sum(axis=2), axis=1).astype(jnp.int32)
    else:
        first = jnp.full(len(f), reference, jnp.int32)

    def choose(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        order, nearest = carry
        here = jnp.argmax(nearest, axis=1).astype(jnp.int32)
        nearest = jnp.minimum(nearest, distance[scenes, here])
        return order.at[:, i].set(here), nearest.at[scenes, here].set(-jnp.inf)

    order = jnp.zeros((f.shape[0], count), jnp.int32).at[:, 0].set(first)
    start = distance[scenes, first].at[scenes, first].set(-jnp.inf)
    return lax.fori_loop(1, count, choose, (order, start))[0]


def check_layers(setting: str, layers: tuple[int, ...], depth: int) -> None:
    """Refuses layers that a backbone does not have.

    Raises:
        ValueError: with the first that is not there.
    """
    for layer in layers:
        if not 0 <= layer < depth:
            raise ValueError(
                f"{setting} has {layer}, but the layers of this backbone are 0 to {depth - 1}; a"
                " plan fits the backbone that it was made for, give the layers of this one"
            )


def check_takes_views(inner: AttentionStrategy) -> None:
    """Refuses an inner strategy that cannot attend to the keys of only some views.

    Raises:
        ValueError: with the name of the strategy and those that can.
    """
    if not inner.takes_some_views:
        raise ValueError(
            f"inner={inner.name} reduces the tokens of all views itself and cannot take those of"
            " some views; choose dense or sla"
        )
