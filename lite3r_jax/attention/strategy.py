"""The contract of an attention strategy: what a layer gives it, and what it gives back.

Every attention site of every backbone builds its core from an `AttentionStrategy`. A core maps
queries, keys and values [B, T, N, D] (already normed and rotated) to outputs of the same layout;
qkv, qk-norm, RoPE and the output projection belong to the layer around it
(`lite3r_jax.layers.attention`), so a new strategy touches one file and works in every backbone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lite3r_jax.attention.layouts import IrregularTokens, Layouts, TokenLayout

Role = Literal["patch", "frame", "global", "camera", "head"]
ROLES: tuple[Role, ...] = get_args(Role)
Apart = Literal["heads", "queries"]
"""Ways to split the work of one layer over devices, see `AttentionStrategy.apart`."""


@dataclass(frozen=True, eq=False)
class LayerFunctions:
    """Pure functions of the weights of an attention layer, for its strategy to call.

    Attributes:
        project: x [B, T, C] -> queries, keys and values [B, T, N, D], before norm and rotation; T
            may be any tokens.
        norm: (queries, keys) [B, T, N, D] -> likewise, float32; its arguments if the layer has no
            norm.
        rotate: (queries or keys [B, T, N, D], positions [T, 2] (y, x)) -> likewise, float32; its
            argument if the layer rotates nothing. Positions may be of any sequence of tokens; where
            T is a multiple of their number they repeat.
        positions: [P, 2] int32 (y, x) of the tokens of one view, alike in all views; None if the
            layer rotates nothing.
    """

    project: Callable[[jax.Array], tuple[jax.Array, jax.Array, jax.Array]]
    norm: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    rotate: Callable[[jax.Array, Any], jax.Array]
    positions: np.ndarray | None


@dataclass(frozen=True, eq=False)
class AttentionInputs:
    """Inputs of a strategy in one layer; inputs that it does not ask for are not computed.

    Attributes:
        q: [B, Tq, N, D] queries, normed and rotated.
        k: [B, Tk, N, D] keys, normed and rotated.
        v: [B, Tk, N, D] values.
        layouts: layouts of queries and keys.
        shared: what `AttentionStrategy.context` gave for this forward pass, or None.
        layer: functions of the layer; None where attention is called without one.
        of_queries: returns the layer's normed input at the queries; see `x`.
        of_keys: returns the layer's normed input at the keys; see `key_x`.
        all_keys: keys and values [B, Ta, N, D] of `layouts.all_keys`, before strategies dropped
            some; None where none did.
        agreed: with views on several devices, what `AttentionCore.agree` found out from all heads
            and views; equal on all devices. None elsewhere.
        query_side: likewise, further arrays [B, views x any number, N, ...] that `agree` made,
            which go to the devices of their heads as queries do.
        key_side: likewise, as keys and values do.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    layouts: Layouts
    shared: Any = None
    layer: LayerFunctions | None = None
    of_queries: Callable[[], jax.Array] | None = None
    of_keys: Callable[[], jax.Array] | None = None
    all_keys: tuple[jax.Array, jax.Array] | None = None
    agreed: Any = None
    query_side: tuple[jax.Array, ...] = ()
    key_side: tuple[jax.Array, ...] = ()

    @property
    def x(self) -> jax.Array:
        """The layer's normed input [B, Tq, C] at the tokens that are the queries.

        Raises:
            ValueError: queries are no tokens of the layer any more, or there is no layer.
        """
        return _called(self.of_queries, "queries")

    @property
    def key_x(self) -> jax.Array:
        """The layer's normed input [B, Tk, C] at the tokens that are the keys.

        Raises:
            ValueError: keys are no tokens of the layer any more, or there is no layer.
        """
        return _called(self.of_keys, "keys")

    @property
    def functions(self) -> LayerFunctions:
        """The pure functions of the layer: project, norm and rotate.

        Raises:
            ValueError: attention was called without a layer.
        """
        if self.layer is None:
            raise ValueError("this attention strategy needs the functions of its layer")
        return self.layer

    def keep_key_views(
        self, views: Sequence[int], chosen: jax.Array | None = None
    ) -> "AttentionInputs":
        """Returns the inputs with the keys and values of some views only.

        The keys stay regular: their layout still has views and grids of patches.

        Args:
            views: their positions among the views of the keys, static; with `chosen`, -1 for one
                that only the data decides. Of views in parts, positions among those of all devices,
                each of which then has these keys whole.
            chosen: [B, K] int32, the positions for every scene, where the data decides.

        Raises:
            ValueError: keys are irregular.
        """
        layout = self.layouts.regular_keys("keep_key_views")
        at = np.asarray(views)

        def cut(x: jax.Array) -> jax.Array:
            by_view = x.reshape(x.shape[0], layout.views, -1, *x.shape[2:])
            if layout.parts is not None:
                wanted = at[None] if chosen is None else chosen
                some = layout.parts.choose(by_view, jnp.asarray(wanted))
            elif chosen is None:
                some = by_view[:, at]
            else:
                where = chosen.reshape(*chosen.shape, *[1] * (by_view.ndim - 2))
                some = jnp.take_along_axis(by_view, where, axis=1)
            return some.reshape(x.shape[0], -1, *x.shape[2:])

        return self._cut_keys(cut, layout.whole.keep(views))

    def keep_key_patches(self, step: int) -> "AttentionInputs":
        """Returns the inputs with the keys and values of every `step`-th row and column of patches.

        Those of special tokens are kept.

        Raises:
            ValueError: keys are irregular.
        """
        layout = self.layouts.regular_keys("keep_key_patches")
        h, w = layout.grid
        patches = layout.special + np.arange(h * w).reshape(h, w)[::step, ::step]
        kept = np.concatenate([np.arange(layout.special), patches.reshape(-1)])

        def cut(x: jax.Array) -> jax.Array:
            by_view = x.reshape(x.shape[0], layout.views, -1, *x.shape[2:])
            return by_view[:, :, kept].reshape(x.shape[0], -1, *x.shape[2:])

        return self._cut_keys(cut, layout.keep_patches(step))

    def within_views(self) -> "AttentionInputs":
        """Returns the inputs with every view as a sequence of its own, [B * S, P, N, D].

        What is in `shared` is repeated for each view.

        Raises:
            ValueError: queries and keys are not the tokens of the same views.
        """
        query, key = self.layouts.regular("within_views")
        if query != key:
            raise ValueError("within_views: queries and keys must be the same tokens")
        layout = TokenLayout(1, key.special, key.grid, "frame")

        def split(x: jax.Array) -> jax.Array:
            return x.reshape(-1, layout.tokens, *x.shape[2:])

        q_x, k_x = self.of_queries, self.of_keys
        return replace(
            self,
            q=split(self.q),
            k=split(self.k),
            v=split(self.v),
            layouts=Layouts.both(layout),
            shared=jax.tree.map(lambda x: jnp.repeat(x, key.views, axis=0), self.shared),
            of_queries=None if q_x is None else lambda: split(q_x()),
            of_keys=None if k_x is None else lambda: split(k_x()),
            all_keys=None,
        )

    def _cut_keys(
        self, cut: Callable[[jax.Array], jax.Array], layout: TokenLayout
    ) -> "AttentionInputs":
        of_keys = self.of_keys
        return replace(
            self,
            k=cut(self.k),
            v=cut(self.v),
            layouts=self.layouts.with_keys(layout),
            of_keys=None if of_keys is None else lambda: cut(of_keys()),
            all_keys=self.all_keys or (self.k, self.v),
        )

    def with_queries(self, q: jax.Array) -> "AttentionInputs":
        """Returns the inputs with other queries [B, any number, N, D], as irregular tokens."""
        layouts = replace(self.layouts, query=IrregularTokens(q.shape[1]))
        return replace(self, q=q, layouts=layouts, of_queries=None)


def _called(of: Callable[[], jax.Array] | None, side: str) -> jax.Array:
    if of is None:
        raise ValueError(
            f"this attention strategy looks at the layer's input at its {side}, which are no tokens"
            " of a layer here"
        )
    return of()


class AttentionCore(nnx.Module):
    """Module of one attention site that maps q, k, v to outputs; subclasses define `__call__`.

    Attributes:
        spec: settings of the strategy. A core inside of another one has the name of the setting
            that it is made of, so that a schedule reaches it.
    """

    spec: "AttentionStrategy"

    def adopt(self, spec: "AttentionStrategy") -> None:
        """Replaces the settings of this core by others that `AttentionStrategy.resolve` returned.

        Raises:
            TypeError: the settings are those of another strategy.
        """
        if type(spec) is not type(self.spec):
            raise TypeError(
                f"attention strategy {self.spec.name}: its schedule gave settings of {spec.name};"
                " resolve must give its own"
            )
        for entry in fields(spec):
            if isinstance(inner := getattr(self, entry.name, None), AttentionCore):
                inner.adopt(getattr(spec, entry.name))
        self.spec = spec

    def reduced(self, inputs: AttentionInputs) -> tuple["AttentionCore", AttentionInputs]:
        """Drops the keys that are not attended to, and returns the core that attends to the rest.

        By default all keys are left, and this core attends to them. It is called where the views of
        a scene lie on several devices, so that no other keys are sent.
        """
        return self, inputs

    def agree(self, inputs: AttentionInputs) -> AttentionInputs:
        """Computes what depends on all heads, before each device attends with some of the heads.

        It is called where the views of a scene lie on several devices, after `reduced` and while
        every device has all heads of its own views. The result is the inputs with what was computed
        in `agreed`, `query_side` and `key_side`; by default they are unchanged.
        """
        return inputs

    def __call__(self, inputs: AttentionInputs) -> jax.Array:
        """Computes the attention outputs of all queries.

        Args:
            inputs: queries, keys, values and what else there is.

        Returns:
            [B, Tq, N, D] in the dtype of `v`.
        """
        raise TypeError(f"{type(self).__name__} does not define __call__")


@dataclass(frozen=True)
class Preset:
    """Sites and settings that the name of a plan stands for, besides the strategy.

    Attributes:
        role: the sites that get the strategy, others being dense; None for all of them.
        settings: other than the strategy's defaults.
    """

    role: Role | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AttentionStrategy:
    """Frozen, hashable settings of one attention strategy; a subclass is a frozen dataclass.

    It is made known by `attention.registry`, which has the rules for its settings.

    Attributes:
        name: in plans, in files and on the command line.
        runtime: settings that say how it is computed and not what: kernels, mesh axes. They are no
            part of a model and stand in no file.
        headline: settings that the text of a plan says in any case, since figures depend on them.
        adjustable: settings that may be others than those of the training.
        needs_training: whether the strategy is of no use with the initial values of its parameters.
        presets: further names of plans with this strategy; one of them may be `name` itself, which
            stands for the strategy at all of its sites otherwise.
        roles: the sites where it makes sense; a plan with others is refused.
    """

    name: ClassVar[str] = ""
    runtime: ClassVar[frozenset[str]] = frozenset()
    headline: ClassVar[frozenset[str]] = frozenset()
    adjustable: ClassVar[frozenset[str]] = frozenset()
    needs_training: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Preset]] = MappingProxyType({})
    roles: ClassVar[tuple[Role, ...]] = ROLES

    @property
    def takes_merged_queries(self) -> bool:
        """Whether the queries may be tokens without a grid of patches, as merging leaves them."""
        return False

    @property
    def takes_some_views(self) -> bool:
        """Whether the keys may be those of only some of the views."""
        return True

    @property
    def takes_some_patches(self) -> bool:
        """Whether the keys may be those of only some patches of a view."""
        return True

    @property
    def apart(self) -> tuple[Apart, ...]:
        """Ways to split the work over devices that keep the results of a single device.

        "heads": outputs of a head follow from its queries, keys and values, the context, and what
        `AttentionCore.agree` gives.
        "queries": outputs of a view follow from its queries and all keys. Both are said of the core
        after `AttentionCore.reduced`. By default neither, and views in parts are refused.
        """
        return ()

    def keys_left(self, key: TokenLayout) -> TokenLayout:
        """Returns the layout of the keys that `AttentionCore.reduced` leaves.

        It is not in parts any more where views were dropped. Settings are those of `resolve`.
        """
        return key

    def agreed_tokens(self, query: TokenLayout) -> float:
        """Returns how much a device receives in `AttentionCore.agree`, in tokens of all heads.

        Args:
            query: layout of the tokens of a device, in parts.
        """
        del query
        return 0.0

    @property
    def own_view_only(self) -> bool:
        """Whether each view attends to itself alone, though the sequence has all views."""
        return False

    @property
    def views_in_order(self) -> bool:
        """Whether the strategy assumes that consecutive views are similar.

        For settings of `resolve`. Photos in no order are then reconstructed worse, which entry
        points say.
        """
        inner = (getattr(self, f.name) for f in fields(self))
        return any(x.views_in_order for x in inner if isinstance(x, AttentionStrategy))

    def check(self, depth: int) -> None:
        """Refuses settings that do not fit a backbone.

        Args:
            depth: number of layers of the role.

        Raises:
            ValueError: settings name a layer that is not there.
        """
        for inner in (getattr(self, f.name) for f in fields(self)):
            if isinstance(inner, AttentionStrategy):
                inner.check(depth)

    def model(self) -> Self:
        """Returns the strategy with default runtime settings, in nested strategies as well.

        Strategies whose results are equal compute the same.
        """
        usual: dict[str, Any] = {f.name: f.default for f in fields(self) if f.name in self.runtime}
        inner = {f.name: getattr(self, f.name) for f in fields(self)}
        inner = {k: v.model() for k, v in inner.items() if isinstance(v, AttentionStrategy)}
        return replace(self, **usual | inner)

    def resolve(self, role: Role, layer: int, depth: int, views: int) -> Self:
        """Returns the settings for one layer and number of views, for strategies with schedules.

        Nested strategies are resolved as well.

        Args:
            role: role of the layer.
            layer: number of the layer among those of the role.
            depth: number of layers of the role.
            views: S of the scene, or 1 where that is not known (encoders of single images).

        Returns:
            Settings of the same strategy with parameters of the same shapes.
        """
        inner = {f.name: getattr(self, f.name) for f in fields(self)}
        inner = {
            name: value.resolve(role, layer, depth, views)
            for name, value in inner.items()
            if isinstance(value, AttentionStrategy)
        }
        return replace(self, **inner) if inner else self

    def context(self, x: jax.Array, layout: TokenLayout) -> Any:
        """Computes what all layers of a stack share in one forward pass, before the first layer.

        Args:
            x: [B, T, C] float32, tokens that enter the stack.
            layout: layout of these tokens.

        Returns:
            Arrays with B first, in any pytree, which layers get as `AttentionInputs.shared`; None
            for none. A strategy around another one hands on what that one wants.
        """
        del x, layout
        return None

    def build(
        self, *, heads: int, head_dim: int, param_dtype: Any, rngs: nnx.Rngs
    ) -> AttentionCore:
        """Builds the core of one attention site, whose layer has C = heads x head_dim channels."""
        raise NotImplementedError(f"attention strategy {self.name} does not define build")

    def describe(self, dtype: Any, head_dim: int) -> str:
        """Names the strategy and its kernel here for a compute dtype and head size, for reports."""
        del dtype, head_dim
        told = [
            f"{f.name} {getattr(self, f.name)}" for f in fields(self) if f.name in self.headline
        ]
        return ", ".join([self.name, *told])

    def flops(self, layouts: Layouts, head_dim: int) -> Mapping[str, int]:
        """Returns the floating-point operations of one head on one sequence, two per multiply-add.

        Args:
            layouts: layouts of queries and keys.
            head_dim: size of the head.

        Returns:
            Of the matrix products between q, k and v: `softmax`; `selection`, which keys it sees;
            `linear`, the linear part; and `layers`, with own weights. Those that a strategy does
            not have may be absent.
        """
        raise NotImplementedError(f"attention strategy {self.name} does not define flops")

    def layer_flops(self, layouts: Layouts, heads: int, head_dim: int) -> int:
        """Returns the operations of products with weights that come on top of the layer's own.

        Those of all heads over one sequence: products with the strategy's own weights that `flops`
        does not count, and products of the layer's weights with inputs that are no tokens.
        Arguments are those of `flops`. By default it is the sum over nested strategies.
        """
        inner = (getattr(self, f.name) for f in fields(self))
        return sum(
            x.layer_flops(layouts, heads, head_dim)
            for x in inner
            if isinstance(x, AttentionStrategy)
        )
