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
"""What devices can have parts of, see `AttentionStrategy.apart`."""


@dataclass(frozen=True, eq=False)
class LayerFunctions:
    """What a strategy may compute with the weights of its layer. All of them are pure.

    Attributes:
        project: x [B, T, C] -> queries, keys and values [B, T, N, D], before norm and rotation; T
            may be any tokens.
        norm: (queries, keys) [B, T, N, D] -> likewise, float32; what is given if there is no norm.
        rotate: (queries or keys [B, T, N, D], positions [T, 2] (y, x)) -> likewise, float32; what
            is given if the layer rotates nothing. Positions may be of any sequence of tokens; where
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
    """All that a strategy gets in one layer. What it does not ask for is not computed.

    Attributes:
        q: [B, Tq, N, D] queries, normed and rotated.
        k: [B, Tk, N, D] keys, normed and rotated.
        v: [B, Tk, N, D] values.
        layouts: layouts of queries and keys.
        shared: what `AttentionStrategy.context` gave for this forward pass, or None.
        layer: functions of the layer; None where attention is called without one.
        of_queries: gives the layer's normed input at the queries; see `x`.
        of_keys: likewise at the keys; see `key_x`.
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
        """[B, Tq, C] the layer's normed input, of the tokens that are the queries.

        Raises:
            ValueError: queries are no tokens of the layer any more, or there is no layer.
        """
        return _called(self.of_queries, "queries")

    @property
    def key_x(self) -> jax.Array:
        """[B, Tk, C] likewise, of the tokens that are the keys.

        Raises:
            ValueError: keys are no tokens of the layer any more, or there is no layer.
        """
        return _called(self.of_keys, "keys")

    @property
    def functions(self) -> LayerFunctions:
        """The pure functions of the layer: project, norm and rotate.

        Raises:
            ValueError: there is none.
        """
        if self.layer is None:
            raise ValueError("this attention strategy needs the functions of its layer")
        return self.layer

    def keep_key_views(
        self, views: Sequence[int], chosen: jax.Array | None = None
    ) -> "AttentionInputs":
        """The same with the keys of some views only, which stay regular.

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
        """The same with the keys of every `step`-th row and column of patches, and special tokens.

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
        """Every view as a sequence of its own, [B * S, P, N, D]; `shared` once for each of them.

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
        """The same with other queries [B, any number, N, D], which are irregular from then on."""
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
    """What stands between q, k, v and o: the parameters of one site. Subclasses are called.

    Attributes:
        spec: settings of the strategy. A core inside of another one has the name of the setting
            that it is made of, so that a schedule reaches it.
    """

    spec: "AttentionStrategy"

    def adopt(self, spec: "AttentionStrategy") -> None:
        """Go on with settings that `AttentionStrategy.resolve` gave.

        Raises:
            TypeError: of another strategy.
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
        """What is left of the keys, and the core that attends to them: by default all, and this.

        Asked where the views of a scene lie on several devices, so that no other keys are sent.
        """
        return self, inputs

    def agree(self, inputs: AttentionInputs) -> AttentionInputs:
        """The same with what takes all heads, before the devices attend with some each.

        Asked where the views of a scene lie on several devices, after `reduced` and while every
        device has all heads of its own views; what is found out goes into `agreed`, `query_side`
        and `key_side`. By default nothing.
        """
        return inputs

    def __call__(self, inputs: AttentionInputs) -> jax.Array:
        """Attend.

        Args:
            inputs: queries, keys, values and what else there is.

        Returns:
            [B, Tq, N, D] in the dtype of `v`.
        """
        raise TypeError(f"{type(self).__name__} does not define __call__")


@dataclass(frozen=True)
class Preset:
    """What the name of a plan stands for, besides the strategy.

    Attributes:
        role: the sites that get the strategy, others being dense; None for all of them.
        settings: other than the strategy's defaults.
    """

    role: Role | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AttentionStrategy:
    """Frozen, hashable settings of one strategy; a subclass is a frozen dataclass.

    It is made known by `attention.registry`, which has the rules for its settings.

    Attributes:
        name: in plans, in files and on the command line.
        runtime: settings that say how it is computed and not what: kernels, mesh axes. They are no
            part of a model and stand in no file.
        headline: settings that the text of a plan says in any case, since figures depend on them.
        adjustable: settings that may be others than those of the training.
        needs_training: whether first values of its parameters are of no use.
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
        """Whether its queries may be tokens without a grid, as merging leaves them."""
        return False

    @property
    def takes_some_views(self) -> bool:
        """Whether its keys may be those of some of the views."""
        return True

    @property
    def takes_some_patches(self) -> bool:
        """Whether its keys may be those of some patches of a view."""
        return True

    @property
    def apart(self) -> tuple[Apart, ...]:
        """What several devices may each compute a part of, with the numbers of one device.

        "heads": outputs of a head follow from its queries, keys and values, the context, and what
        `AttentionCore.agree` gives.
        "queries": outputs of a view follow from its queries and all keys. For what its core is
        after `AttentionCore.reduced`. By default nothing, and views in parts are refused.
        """
        return ()

    def keys_left(self, key: TokenLayout) -> TokenLayout:
        """The layout of the keys that `AttentionCore.reduced` leaves, for settings of `resolve`.

        Not in parts any more where views were dropped.
        """
        return key

    def agreed_tokens(self, query: TokenLayout) -> float:
        """What a device gets from the others by `AttentionCore.agree`, in tokens of all heads.

        Args:
            query: of the tokens of a device, in parts.
        """
        del query
        return 0.0

    @property
    def own_view_only(self) -> bool:
        """Whether each view attends to itself alone, though the sequence has all of them."""
        return False

    @property
    def views_in_order(self) -> bool:
        """Whether settings of `resolve` take views that follow one another for similar ones.

        Photos in no order are then reconstructed worse, which entrances say.
        """
        inner = (getattr(self, f.name) for f in fields(self))
        return any(x.views_in_order for x in inner if isinstance(x, AttentionStrategy))

    def check(self, depth: int) -> None:
        """Refuse settings that do not fit a backbone.

        Args:
            depth: number of layers of the role.

        Raises:
            ValueError: settings name a layer that is not there.
        """
        for inner in (getattr(self, f.name) for f in fields(self)):
            if isinstance(inner, AttentionStrategy):
                inner.check(depth)

    def model(self) -> Self:
        """The same strategy with the defaults of `runtime`, here and in strategies inside of it.

        Equal ones compute the same.
        """
        usual: dict[str, Any] = {f.name: f.default for f in fields(self) if f.name in self.runtime}
        inner = {f.name: getattr(self, f.name) for f in fields(self)}
        inner = {k: v.model() for k, v in inner.items() if isinstance(v, AttentionStrategy)}
        return replace(self, **usual | inner)

    def resolve(self, role: Role, layer: int, depth: int, views: int) -> Self:
        """The settings at one site, for schedules; strategies inside of this one are asked, too.

        Args:
            role: of the site.
            layer: its number among the layers of the role.
            depth: number of these.
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
        """What all layers of a stack share in one forward pass, computed before the first of them.

        Args:
            x: [B, T, C] float32, tokens that enter the stack.
            layout: of these.

        Returns:
            Arrays with B first, in any pytree, which layers get as `AttentionInputs.shared`; None
            for none. A strategy around another one hands on what that one wants.
        """
        del x, layout
        return None

    def build(
        self, *, heads: int, head_dim: int, param_dtype: Any, rngs: nnx.Rngs
    ) -> AttentionCore:
        """The core for one attention site, whose layer has C = heads x head_dim channels."""
        raise NotImplementedError(f"attention strategy {self.name} does not define build")

    def describe(self, dtype: Any, head_dim: int) -> str:
        """Strategy and kernel that run here for that compute dtype and head size, for reports."""
        del dtype, head_dim
        told = [
            f"{f.name} {getattr(self, f.name)}" for f in fields(self) if f.name in self.headline
        ]
        return ", ".join([self.name, *told])

    def flops(self, layouts: Layouts, head_dim: int) -> Mapping[str, int]:
        """Floating-point operations of one head over one sequence, two per multiply-add.

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
        """Operations of all heads over one sequence of products with weights, beside the layer's.

        Those of the strategy's own weights that `flops` does not count, and of the layer's with
        what are no tokens. Arguments as there; by default those of strategies inside of this one.
        """
        inner = (getattr(self, f.name) for f in fields(self))
        return sum(
            x.layer_flops(layouts, heads, head_dim)
            for x in inner
            if isinstance(x, AttentionStrategy)
        )
