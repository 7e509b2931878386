"""Speed3R: attention to pooled windows and to the best windows' tokens, mixed by learned gates."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from lite3r_jax.attention.head_groups import heads_at_a_time, map_head_groups
from lite3r_jax.attention.strategy import (
    Apart,
    AttentionCore,
    AttentionInputs,
    AttentionStrategy,
    Layouts,
    Role,
    TokenLayout,
)
from lite3r_jax.attention.window_selection import (
    Pools,
    Selection,
    expanded,
    pooled,
    window_positions,
    windows_of,
)
from lite3r_jax.errors import InputError
from lite3r_jax.kernels.block_map.api import OPERATOR as BLOCK_MAP
from lite3r_jax.kernels.block_map.api import SelectionCall
from lite3r_jax.kernels.window_attention.api import CHOICE, OPERATOR
from lite3r_jax.kernels.window_attention.limits import WindowCall
from lite3r_jax.mesh import SCENES, VIEWS, axes, with_lone

COMPRESSION, SELECTION = 0, 1
"""Numbers of the two branches, in the order of the gates of a head."""

_Pair = tuple[jax.Array, jax.Array]
"""An array of tokens [B, T, N, D], and that of their windows [B, n, N, D]."""


@dataclass(frozen=True)
class Speed3R(AttentionStrategy):
    """Patches attend to means of windows, and to all tokens of the windows that fit them best.

    Global sparse attention as published (arXiv 2603.08055; Visual-AI/speed3r for pi^3). Patches are
    cut into windows of one view. Queries, keys and values of a window are the means of its raw
    ones, then normed, and turned by the mean position, rounded down. A window of queries attends to
    those of all windows (compression). Its tokens attend to the tokens of the `top` windows with
    the largest products of mean query and mean key, per head (selection); of equal ones the first
    is taken, and no window twice. Two gates per token and head, sigmoids of a Linear of the layer's
    normed input, weigh the two outputs.

    Special tokens (camera, registers) attend to all tokens, without gates, and are attended to by
    all, besides whole views (`always`), in the same softmax as the selected windows. The paper says
    so of VGGT, without code; the released pi^3 has no special tokens and no such views.

    The parameters are `gate/kernel` [C, 2 N], zeros at first, and `gate/bias` [2 N], with heads
    before branches, compression first.

    Attributes:
        window: patches along a side of a window. The released checkpoint has 4; the paper finds 8
            equally good.
        top: windows that a window of queries selects; all of them where there are no more. As
            published 32, and 8 to 128 without training again.
        always: where there is a reference view: it and every `always`-th view from it on are
            attended to by all; 1 for all views, 0 for none. As published 100.
        gate: first values of the gates before the sigmoid, of compression and of selection.
        pad: whether a grid of patches that windows do not divide is filled up, with places that
            count nowhere; otherwise it is refused.
        implementation: name in `kernels.window_attention.api.OPERATOR`: "blocked" (plain JAX, any
            device, time and memory of what is attended to), "triton" (kernels for NVIDIA GPUs,
            windows of 4 or 8), "reference" (all pairs at once, means after the projection; for
            tests); or "auto": the best that this device, dtype and head dimension allow and that is
            proven on this kind of device (`kernels.registry`), for the choice of windows as well.
            A name that cannot be honoured raises.
    """

    name: ClassVar[str] = "speed3r"
    runtime: ClassVar[frozenset[str]] = frozenset({"implementation"})
    headline: ClassVar[frozenset[str]] = frozenset({"window", "top"})
    adjustable: ClassVar[frozenset[str]] = frozenset({"top"})
    needs_training: ClassVar[bool] = True
    roles: ClassVar[tuple[Role, ...]] = ("global",)

    window: int = 4
    top: int = 32
    always: int = 100
    gate: tuple[float, ...] = (-1.0, 1.0)
    pad: bool = True
    implementation: str = "auto"

    def __post_init__(self):
        for name, least in (("window", 1), ("top", 1), ("always", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        OPERATOR.check_name(self.implementation)
        if len(self.gate) != 2:
            raise ValueError(
                f"gate must be two numbers, for compression and selection, got {list(self.gate)}"
            )

    @property
    def takes_some_patches(self) -> bool:
        """Implements `AttentionStrategy.takes_some_patches`."""
        return False

    @property
    def apart(self) -> tuple[Apart, ...]:
        """Implements `AttentionStrategy.apart`: by heads, as each window lies in one view."""
        return ("heads",)

    def agreed_tokens(self, query: TokenLayout) -> float:
        """Implements `AttentionStrategy.agreed_tokens`: means of windows, not the few gates."""
        parts = query.parts
        assert parts is not None
        windows = parts.filled * len(windows_of(query, self.window).tokens) / query.views
        return 3 * windows * (parts.devices - 1) / parts.devices**2

    def build(
        self, *, heads: int, head_dim: int, param_dtype: Any, rngs: nnx.Rngs
    ) -> "Speed3RCore":
        """Implements `AttentionStrategy.build`: the parameters are those of the gates."""
        return Speed3RCore(self, heads, head_dim, param_dtype, rngs)

    def describe(self, dtype: Any, head_dim: int) -> str:
        """Implements `AttentionStrategy.describe`."""
        form = self.choose(head_dim, dtype)
        if self.implementation in CHOICE:  # for those who watch what is chosen
            BLOCK_MAP.choose(CHOICE[self.implementation], SelectionCall(head_dim, dtype))
        return f"speed3r, window {self.window}, top {self.top} ({form})"

    def choose(self, head_dim: int, dtype: Any) -> str:
        """Returns the implementation that runs for a head dimension and compute dtype.

        Raises:
            ValueError: the one that was asked for by name cannot run.
        """
        return OPERATOR.choose(self.implementation, WindowCall(self.window**2, head_dim, dtype))

    def flops(self, layouts: Layouts, head_dim: int) -> dict[str, int]:
        """Implements `AttentionStrategy.flops`; windows count with all their places."""
        query, key = layouts.regular(self.name)
        of = self.selection(query, key)
        pairs = len(of.query.tokens) * len(of.key.tokens)
        kept = (len(of.always) + of.chosen + len(of.key.special)) * of.key.places
        attended = pairs + of.query.tokens.size * kept + query.views * query.special * key.tokens
        candidates = len(of.query.tokens) * (len(of.key.tokens) - len(of.always))
        return {"softmax": 4 * attended * head_dim, "selection": 2 * candidates * head_dim}

    def layer_flops(self, layouts: Layouts, heads: int, head_dim: int) -> int:
        """Implements `AttentionStrategy.layer_flops`: the projection of means, and the gates."""
        query, key = layouts.regular(self.name)
        of, c = self.selection(query, key), heads * head_dim
        means = len(of.query.tokens) + (0 if query == key else len(of.key.tokens))
        return 2 * means * c * 3 * c + 2 * query.tokens * c * 2 * heads

    def selection(self, query: TokenLayout, key: TokenLayout) -> Selection:
        """Returns the windows of queries and keys, and which windows every query attends to.

        Raises:
            InputError: windows do not divide the grid of patches, and `pad` is off.
        """
        for layout in (query, key):
            if not self.pad and any(side % self.window for side in layout.grid):
                h, w = layout.grid
                raise InputError(
                    f"attention strategy {self.name}: windows of {self.window} x {self.window} do"
                    f" not divide a grid of {h} x {w} patches; choose images whose sides are"
                    f" multiples of {self.window} patches, or pad=true"
                )
        windows = windows_of(key, self.window)
        return Selection(
            windows_of(query, self.window),
            windows,
            np.flatnonzero(np.isin(windows.views, self._views(key))).astype(np.int32),
            self.top,
        )

    def _views(self, key: TokenLayout) -> list[int]:
        """Returns the positions of the views that every query attends to."""
        if key.scope == "frame" or not key.has_reference or not self.always:
            return []
        kept = range(key.views) if key.kept is None else key.kept
        return [at for at, view in enumerate(kept) if view >= 0 and view % self.always == 0]


class Speed3RCore(AttentionCore):
    """Attention core of `Speed3R`, with a Linear for the gates as its only parameters.

    Attributes:
        gate: Linear [.., C] -> [.., 2 N], the gates before the sigmoid.
    """

    spec: Speed3R

    def __init__(self, spec: Speed3R, heads: int, head_dim: int, param_dtype: Any, rngs: nnx.Rngs):
        self.spec = spec
        first = np.tile(np.asarray(spec.gate, np.float32), heads)
        self.gate = nnx.Linear(
            heads * head_dim,
            2 * heads,
            param_dtype=param_dtype,
            kernel_init=nnx.initializers.zeros,
            bias_init=lambda key, shape, dtype: jnp.asarray(first, dtype).reshape(shape),
            rngs=rngs,
        )

    def __call__(self, inputs: AttentionInputs) -> jax.Array:
        """Implements `AttentionCore.__call__`.

        Raises:
            ValueError: queries or keys without a grid, or with some patches of it only.
            InputError: see `Speed3R.selection`.
        """
        spec, (query, key) = self.spec, inputs.layouts.regular(self.spec.name)
        of = spec.selection(query, key)
        sides = (inputs.q, inputs.k, inputs.v)
        if not inputs.query_side:
            inputs = self._projected(inputs)
        pooled_q, gates = inputs.query_side
        pools = (pooled_q, *inputs.key_side)

        def attend(*pairs: _Pair) -> _Pair:
            (q, qc), (k, kc), (v, vc) = pairs
            return of.attend(q, k, v, (qc, kc, vc), spec.implementation)

        # The plain form goes through the heads in any case.
        kernels = spec.choose(inputs.q.shape[-1], inputs.q.dtype) == "triton"

        def by_head(q: _Pair, k: _Pair, v: _Pair) -> _Pair:
            return map_head_groups(attend, q, k, v, size=heads_at_a_time(q[0]) if kernels else 1)

        pairs = [(a, p.astype(a.dtype)) for a, p in zip(sides, pools, strict=True)]
        selected, compressed = _split(by_head, inputs.q.shape)(*pairs)
        gates = gates[..., None]
        patch = np.arange(query.tokens) % query.tokens_per_view >= query.special
        weight = jnp.where(patch[:, None, None], gates[..., SELECTION, :], 1)
        o = gates[..., COMPRESSION, :] * expanded(compressed, of.query, query.tokens)
        return (o + weight * selected).astype(inputs.v.dtype)

    def agree(self, inputs: AttentionInputs) -> AttentionInputs:
        """Implements `AttentionCore.agree`: projects means of windows and gates from the input."""
        return self._projected(inputs)

    def _projected(self, inputs: AttentionInputs) -> AttentionInputs:
        """Returns the inputs with queries, keys and values of windows, and gates [B, T, N, 2]."""
        query, key = inputs.layouts.regular(self.spec.name)
        x = inputs.x
        q, *kv = self._pools(inputs, x, x if query == key else inputs.key_x, query, key)
        gates = nnx.sigmoid(self.gate(x).astype(jnp.float32)).reshape(*x.shape[:2], -1, 2)
        return replace(inputs, query_side=(q, gates), key_side=tuple(kv))

    def _pools(
        self,
        inputs: AttentionInputs,
        x: jax.Array,
        key_x: jax.Array,
        query: TokenLayout,
        key: TokenLayout,
    ) -> Pools:
        """Computes the queries, keys and values of windows, normed and rotated."""
        layer, edge = inputs.functions, self.spec.window
        after = self.spec.implementation == "reference"

        def raw(x: jax.Array, layout: TokenLayout) -> list[jax.Array]:
            if after:
                return [pooled(a, layout, edge) for a in layer.project(x)]
            return list(layer.project(pooled(x, layout, edge)))

        q, k, v = raw(x, query)
        if key_x is not x:
            _, k, v = raw(key_x, key)
        q, k = layer.norm(q, k)
        if layer.positions is not None:
            q, k = (
                layer.rotate(a, self._positions(layer.positions, layout))
                for a, layout in ((q, query), (k, key))
            )
        return q, k, v

    def _positions(self, positions: Any, layout: TokenLayout) -> np.ndarray:
        positions = np.asarray(positions)
        if len(positions) != layout.tokens_per_view:
            raise ValueError(
                f"attention strategy {self.spec.name} needs all patches of a view, but"
                f" {layout.tokens_per_view} of {len(positions)} tokens are left; leave out what"
                " drops patches"
            )
        return window_positions(positions, layout, self.spec.window)


def _split(attend: Any, shape: tuple[int, ...]) -> Any:
    """Returns `attend`, run by every device for its own scenes and heads if a mesh splits these."""
    scenes, heads = axes(SCENES, shape[0])[0], axes(VIEWS, shape[2])[0]
    if not scenes and not heads:
        return attend
    here = PartitionSpec(scenes or None, None, heads or None, None)
    # Kernels do not say over which axes their outputs vary, hence no check_vma.
    return jax.shard_map(
        attend,
        in_specs=(here, here, here),
        out_specs=here,
        axis_names=with_lone((*scenes, *heads)),
        check_vma=False,
    )
