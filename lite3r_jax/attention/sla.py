"""Sparse Linear Attention as a strategy: blocks, protected tokens, routing and sharding."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec

from lite3r_jax.attention.head_groups import heads_at_a_time, map_head_groups
from lite3r_jax.attention.strategy import (
    Apart,
    AttentionCore,
    AttentionInputs,
    AttentionStrategy,
    Layouts,
    Preset,
    TokenLayout,
)
from lite3r_jax.attention.windows import SPECIAL, Blocks, blocks
from lite3r_jax.kernels.block_map.api import OPERATOR as SELECTION_OPERATOR
from lite3r_jax.kernels.block_map.api import (
    SelectionCall,
    ViewChoice,
    block_map,
    budgets,
    pooled_dtype,
)
from lite3r_jax.kernels.block_map.table import BlockMap
from lite3r_jax.kernels.sla.api import OPERATOR, selection, sla
from lite3r_jax.kernels.sla.limits import SlaCall
from lite3r_jax.kernels.sla.linear import linear
from lite3r_jax.kernels.sla.reference import PHI, Phi, Routing
from lite3r_jax.kernels.tokens import inverse, take
from lite3r_jax.mesh import SCENES, VIEWS, axes, with_lone

_ROUTINGS = ("token", "block", "block3")


@dataclass(frozen=True)
class SLA(AttentionStrategy):
    """Softmax over the keys that matter most, plus projected linear attention.

    `kernels.sla.reference` has the formulas (Lite3R, arXiv 2605.11354; SLA, arXiv 2509.24006).
    With "block" and "block3", blocks are windows of one image (`attention.windows`), and a block of
    queries chooses among the blocks of keys by mean query and mean key. With keep 1 this is dense
    attention, plus the linear part for "block" and "token".

    The one parameter is `proj_lin` [D, D], shared by the heads of a layer, applied from the right
    and without bias (lite3r_kit/sla.py).

    Attributes:
        routing: "block" (linear part over all keys; the default), "block3" (linear part over what
            is neither critical nor negligible: SLA's three classes) or "token" (Lite3R as coded,
            the best keys of every single query; time and memory grow with T^2, for parity).
        keep: fraction that is critical, in (0, 1], rounded down but at least one: of the key
            blocks that are not protected, or of the keys for "token".
        negligible_fraction: fraction of those blocks that nothing is computed of, in [0, 1), for
            "block3"; the SLA paper has 0.1.
        keep_blocks: for "block" and "block3", at most so many of the key blocks that are not
            protected, whatever their fraction; None for no such limit. With it the softmax of one
            query costs the same from some number of views on. It may be another one than in
            training.
        keep_views: for "block" with `keep_special`, critical blocks are chosen in two levels: the
            view of the queries first chooses so many views, by the largest score of any of its
            query blocks with the mean key of a view, and each query block then among the blocks of
            these (and no more than they have). The cost of choosing grows with the square of the
            number of views only by a view's mean. None, or as many as there are: one level.
        block: keys per block; "token" has none.
        q_block: queries per block; None for twice as many as keys, for which every device loads
            half as many keys as for equal blocks. thu-ml/SLA has 64 or 128, for 64 keys.
        keep_special: for "block" and "block3", keys of special tokens (camera, registers) and,
            where views attend to each other, all keys of the reference view are critical in every
            row, and queries of special tokens attend to all keys by softmax. Methods without this
            lose accuracy (FastVGGT arXiv 2509.02560; Block-Sparse VGGT arXiv 2509.07120).
        phi: feature map of the linear part: "elu1", "softmax" or "relu".
        eps: added to its denominator.
        linear_over: keys of the linear part where a strategy around this one drops some: "kept",
            those that are left, or "all", for "block": what is dropped stays in it, at little cost.
        init: standard deviation of the initial proj_lin; 0 for zeros.
        implementation: name in `kernels.sla.api.OPERATOR`, or "auto": the best that this device,
            dtype and head dimension allow and that is proven on this kind of device
            (`kernels.registry`), for the choice of blocks as well. A name that cannot be honoured
            raises, and blocks are chosen by the selection that goes with it.
        batch_axis: axis of the mesh over which sequences are split, or None.
        heads_axis: axis of the mesh over which heads are split, or None. With one of the two named,
            the call must be inside of `jax.set_mesh(mesh)`. With neither, sequences are split over
            the axes of `mesh` that scenes are split over, and heads over those of
            views, as far as the mesh in use has them and they divide. Every device computes its own
            sequences and heads; XLA by itself would gather q, k and v.
    """

    name: ClassVar[str] = "sla"
    runtime: ClassVar[frozenset[str]] = frozenset({"implementation", "batch_axis", "heads_axis"})
    headline: ClassVar[frozenset[str]] = frozenset({"keep"})
    adjustable: ClassVar[frozenset[str]] = frozenset({"keep_blocks", "keep_views"})
    presets: ClassVar[Mapping[str, Preset]] = {
        "sla_paper": Preset(settings={"routing": "token", "keep_special": False})
    }

    routing: Routing = "block"
    keep: float = 0.3
    negligible_fraction: float = 0.0
    keep_blocks: int | None = None
    keep_views: int | None = None
    block: int = 64
    q_block: int | None = None
    keep_special: bool = True
    phi: Phi = "elu1"
    eps: float = 1e-6
    linear_over: Literal["kept", "all"] = "kept"
    init: float = 1e-3
    implementation: str = "auto"
    batch_axis: str | None = None
    heads_axis: str | None = None

    def __post_init__(self):
        for name, known in (
            ("routing", _ROUTINGS),
            ("phi", tuple(PHI)),
            ("implementation", ("auto", *OPERATOR.names)),
            ("linear_over", ("kept", "all")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        limit, views = self.keep_blocks, self.keep_views
        for name, ok, wanted in (
            ("keep", 0 < self.keep <= 1, "in (0, 1]"),
            ("keep_blocks", limit is None or limit >= 1, "at least 1, or None"),
            ("keep_views", views is None or views >= 1, "at least 1, or None"),
            ("negligible_fraction", 0 <= self.negligible_fraction < 1, "in [0, 1)"),
            ("block", self.block >= 1, "at least 1"),
            ("q_block", self.q_block is None or self.q_block >= 1, "at least 1, or None"),
            ("eps", self.eps >= 0, "at least 0"),
            ("init", self.init >= 0, "at least 0"),
        ):
            if not ok:
                raise ValueError(f"{name} must be {wanted}, got {getattr(self, name)}")
        if self.negligible_fraction and self.routing != "block3":
            raise ValueError(
                f"negligible_fraction is for routing 'block3', got {self.negligible_fraction} for"
                f" {self.routing!r}"
            )
        if self.linear_over == "all" and self.routing != "block":
            raise ValueError(
                f"linear_over 'all' is for routing 'block', got {self.routing!r}, whose linear part"
                " depends on the choice of keys; leave it out"
            )
        if self.keep_blocks is not None and self.routing == "token":
            raise ValueError(
                f"keep_blocks is for routing 'block' and 'block3', got {self.keep_blocks} for"
                " 'token', which has no blocks"
            )
        if views is not None and not (self.routing == "block" and self.keep_special):
            raise ValueError(
                f"keep_views is for routing 'block' with keep_special, got {views} for"
                f" {self.routing!r} and keep_special {self.keep_special}"
            )
        if self.keep_special and self.routing == "token":
            raise ValueError("routing 'token' protects no tokens: set keep_special=False")

    def build(self, *, heads: int, head_dim: int, param_dtype: Any, rngs: nnx.Rngs) -> "SLACore":
        """Implements `AttentionStrategy.build`."""
        del heads
        return SLACore(self, head_dim, param_dtype, rngs)

    @property
    def apart(self) -> tuple[Apart, ...]:
        """Implements `AttentionStrategy.apart`.

        Blocks of patches are of one view, so that they are the same on the device of that view.
        Blocks of special tokens are of several views; where these choose keys, by their mean, they
        cannot be split. Dropped keys that the linear part needs are sent by heads only.
        """
        special_choose = self.routing != "token" and not self.keep_special
        return ("heads",) if special_choose or self.linear_over == "all" else ("heads", "queries")

    @property
    def rows(self) -> int:
        """Number of queries in a block."""
        return self.q_block or 2 * self.block

    def describe(self, dtype: Any, head_dim: int) -> str:
        """Implements `AttentionStrategy.describe`."""
        name = self.choose(jax.ShapeDtypeStruct((1, 1, 1, head_dim), dtype))
        if self.routing != "token":  # for those who watch what is chosen
            selected = SelectionCall(head_dim, pooled_dtype(dtype))
            SELECTION_OPERATOR.choose(selection(self.implementation), selected)
        limit = "" if self.keep_blocks is None else f", at most {self.keep_blocks} blocks"
        if self.keep_views is not None:
            limit += f" of {self.keep_views} views"
        return f"sla {self.routing}, keep {self.keep:g}{limit} ({name})"

    def budgets(self, free: int) -> tuple[int, int]:
        """Returns how many of `free` key blocks are critical, and how many are negligible."""
        top, bottom = budgets(free, self.keep, self.negligible_fraction)
        return min(top, self.keep_blocks or top), bottom

    def among(self, of_queries: TokenLayout, of_keys: TokenLayout) -> ViewChoice | None:
        """Returns the choice of key views (`keep_views`), or None where none is left out."""
        free = of_keys.views - (of_keys.reference is not None)
        if self.keep_views is None or self.keep_views >= free:
            return None
        return ViewChoice(of_queries.views, free, self.keep_views)

    def flops(self, layouts: Layouts, head_dim: int) -> dict[str, int]:
        """Implements `AttentionStrategy.flops`.

        Blocks count with all their places, those without a token too: kernels compute them, and
        which blocks are chosen depends on the data. Routing "token" counts as it is computed, by
        whole matrices: all scores, all values, and the linear part from all pairs.
        """
        d = head_dim
        if self.routing == "token":
            pairs = layouts.query.tokens * layouts.key.tokens
            return {
                "softmax": 4 * pairs * d,
                "linear": 4 * pairs * d + 2 * layouts.query.tokens * d**2,
            }
        of_queries, of_keys = layouts.regular(self.name)
        keys, queries = blocks(of_keys, self.block), blocks(of_queries, self.rows)
        always, dense = _protected(self, of_keys, keys, queries)
        top, _ = self.budgets(int((~always).sum()))
        candidates = len(always)
        if (among := self.among(of_queries, of_keys)) is not None:
            of_view = int((~always).sum()) // among.keys
            top = min(top, among.chosen * of_view)
            candidates = among.keys + among.chosen * of_view
        columns, places = len(always), len(always) * self.block
        operations = {"softmax": 0, "selection": 0, "linear": 0}
        for rows, kept in ((dense.sum(), columns), ((~dense).sum(), always.sum() + top)):
            if not rows:
                continue
            count = int(rows) * self.rows
            operations["softmax"] += 4 * count * int(kept) * self.block * d
            if self.routing == "block":  # one state of all keys, the projection in it
                operations["linear"] += 2 * places * d**2 + 2 * d**3 + 2 * count * (d**2 + d)
            else:  # a state per block of keys, summed up for every block of queries
                operations["linear"] += 2 * places * d**2 + 2 * int(rows) * columns * (d**2 + d)
                operations["linear"] += 2 * count * (2 * d**2 + d)
        operations["selection"] = 2 * int((~dense).sum()) * candidates * d
        if self.linear_over == "all" and layouts.all_keys is not None:  # besides that of the rest
            operations["linear"] += 2 * layouts.all_keys.tokens * d**2
            operations["linear"] += 2 * of_queries.tokens * (2 * d**2 + d)
        return operations

    def choose(self, q: jax.Array | jax.ShapeDtypeStruct) -> str:
        """Returns the implementation for queries [B, T, N, D] of this head dimension and dtype.

        Raises:
            ValueError: the one that was asked for by name cannot run.
        """
        sizes = (None, None) if self.routing == "token" else (self.rows, self.block)
        call = SlaCall(self.routing, q.shape[-1], q.dtype, *sizes)
        return OPERATOR.choose(self.implementation, call)

    def run(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        proj_lin: jax.Array,
        maps: BlockMap | None,
        **settings: Any,
    ) -> jax.Array:
        """Calls `kernels.sla.api.sla` with the settings of this strategy."""
        return sla(
            q,
            k,
            v,
            proj_lin,
            maps,
            routing=self.routing,
            phi=self.phi,
            eps=self.eps,
            implementation=self.implementation,
            **settings,
        )


class SLACore(AttentionCore):
    """Attention core of `SLA`, with the projection of the linear part as its parameter.

    Attributes:
        proj_lin: [D, D] projection of the linear part.
        matrices: parameters that are the matrix of a product, for precision rules.
        dot_general: in the place of `lax.dot_general` for the product of the linear part
            [B, T, N, D], float32, with `proj_lin`, like that of an `nnx.Linear`; None: the plain
            product, with the matrix in the state and no such input in memory.
    """

    spec: SLA
    matrices: ClassVar[tuple[str, ...]] = ("proj_lin",)
    dot_general: Callable[..., jax.Array] | None = None

    def __init__(self, spec: SLA, head_dim: int, param_dtype: Any, rngs: nnx.Rngs):
        if head_dim < 1:
            raise ValueError(f"head_dim must be at least 1, got {head_dim}")
        self.spec = spec
        draw = nnx.initializers.normal(spec.init)
        self.proj_lin = nnx.Param(draw(rngs.params(), (head_dim, head_dim), param_dtype))

    def __call__(self, inputs: AttentionInputs) -> jax.Array:
        """Implements `AttentionCore.__call__`.

        Raises:
            ValueError: shapes that do not fit the layouts, no tokens, an implementation that
                cannot run here, or mesh axes that do not exist or do not divide.
        """
        q, k, v, layouts, spec = inputs.q, inputs.k, inputs.v, inputs.layouts, self.spec
        _check(q, k, v, layouts)
        by = _by_token if spec.routing == "token" else _by_block
        project = self.dot_general and partial(_project, self.dot_general)
        attend = partial(by, spec, layouts, project)

        def here(q: jax.Array, k: jax.Array, v: jax.Array, proj_lin: jax.Array) -> jax.Array:
            # The plain form goes through the heads in any case.
            size = 1 if spec.choose(q) == "blocked" else heads_at_a_time(q)
            return map_head_groups(attend, q, k, v, proj_lin, size=size)

        over = _mesh_axes(spec, q.shape)

        def run(attend: Callable[..., jax.Array], *qkv: jax.Array) -> jax.Array:
            attend = _split(attend, *over) if any(over) else attend
            return attend(*qkv)

        weight = self.proj_lin[...]
        if spec.linear_over == "kept" or inputs.all_keys is None:
            return run(here, q, k, v, weight)
        sparse = run(here, q, k, v, jnp.zeros_like(weight))
        return sparse + run(partial(_linear_part, spec, project), q, *inputs.all_keys, weight)


def _check(q: jax.Array, k: jax.Array, v: jax.Array, layouts: Layouts) -> None:
    if q.ndim != 4 or k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:]:
        raise ValueError(f"expected q, k, v as [B, T, N, D], got {q.shape}, {k.shape}, {v.shape}")
    for name, x, layout in (("queries", q, layouts.query), ("keys", k, layouts.key)):
        if x.shape[1] != layout.tokens or layout.tokens == 0:
            raise ValueError(
                f"{name}: need at least one token and as many as the layout has, got {x.shape[1]} "
                f"for {layout}"
            )


def _mesh_axes(spec: SLA, shape: tuple[int, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the axes of the mesh in use over which sequences and heads are split."""
    if spec.batch_axis is None and spec.heads_axis is None:
        return axes(SCENES, shape[0])[0], axes(VIEWS, shape[2])[0]
    mesh = jax.sharding.get_abstract_mesh()
    over = []
    for name, size in (("batch_axis", shape[0]), ("heads_axis", shape[2])):
        axis = getattr(spec, name)
        if axis is None:
            over.append(())
            continue
        if axis not in mesh.shape:
            have = ", ".join(f"{axis}: {count}" for axis, count in mesh.shape.items())
            raise ValueError(
                f"{name} {axis!r} is not an axis of the mesh in use ({have or 'none'}): call "
                "inside of jax.set_mesh(mesh) with a mesh that has it"
            )
        if size % mesh.shape[axis]:
            raise ValueError(
                f"{name} {axis!r}: {size} do not split into {mesh.shape[axis]} equal parts"
            )
        over.append((axis,))
    return over[0], over[1]


def _split(
    attend: Callable[..., jax.Array], sequences: tuple[str, ...], heads: tuple[str, ...]
) -> Callable[..., jax.Array]:
    """Returns `attend` as run by every device for its own sequences and heads."""
    here = PartitionSpec(sequences or None, None, heads or None, None)
    # Manual in the used axes only: over others the gradients of q, k and v would be summed, though
    # equal. Kernels do not say over which axes their outputs vary, hence no check_vma.
    return jax.shard_map(
        attend,
        in_specs=(here, here, here, PartitionSpec()),
        out_specs=here,
        axis_names=with_lone((*sequences, *heads)),
        check_vma=False,
    )


def _project(dot_general: Callable[..., jax.Array], x: jax.Array, w: jax.Array) -> jax.Array:
    """Multiplies x [..., D] by w [D, D] in full float32."""
    return dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())), precision="highest")


_Project = Callable[[jax.Array, jax.Array], jax.Array] | None


def _linear_part(
    spec: SLA, project: _Project, q: jax.Array, k: jax.Array, v: jax.Array, proj_lin: jax.Array
) -> jax.Array:
    """Computes projected linear attention to all given keys, [B, Tq, N, D] in the dtype of v."""
    valid = {"q_valid": jnp.ones(q.shape[:2], bool), "k_valid": jnp.ones(k.shape[:2], bool)}
    o = linear(q, k, v, None, routing="block", phi=spec.phi, eps=spec.eps, **valid)
    project = project or partial(_project, lax.dot_general)
    return project(o, proj_lin.astype(o.dtype)).astype(v.dtype)


def _by_token(
    spec: SLA,
    layouts: Layouts,
    project: _Project,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    proj_lin: jax.Array,
) -> jax.Array:
    """Computes attention with routing "token", which treats all tokens alike."""
    del layouts
    return spec.run(q, k, v, proj_lin, None, keep=spec.keep, project=project)


def _by_block(
    spec: SLA,
    layouts: Layouts,
    project: _Project,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    proj_lin: jax.Array,
) -> jax.Array:
    """Computes attention with routing "block" or "block3", with tokens put into blocks and back."""
    of_queries, of_keys = layouts.regular(spec.name)
    keys = blocks(of_keys, spec.block)
    queries = blocks(of_queries, spec.rows)
    always, dense = _protected(spec, of_keys, keys, queries)
    # What is always critical comes first, so that kernels begin with what takes longest.
    key_order, rows = _first(always), queries.tokens[_first(dense)]
    tokens = keys.tokens[key_order]
    q, k, v = take(q, rows), take(k, tokens), take(v, tokens)
    q_valid = _valid(rows, layouts.query.tokens, q)
    k_valid = _valid(tokens, layouts.key.tokens, k)
    free = int((~always).sum())
    top, bottom = spec.budgets(free)
    if (among := spec.among(of_queries, of_keys)) is not None:
        top = min(top, among.chosen * (free // among.keys))
    maps = block_map(
        q,
        k,
        q_block=spec.rows,
        k_block=spec.block,
        top=top,
        bottom=bottom,
        always=range(int(always.sum())),
        q_valid=q_valid,
        k_valid=k_valid,
        full_rows=int(dense.sum()),
        among=among,
        implementation=selection(spec.implementation),
    )
    validity = {"q_valid": q_valid, "k_valid": k_valid}
    places = inverse(rows, layouts.query.tokens)
    return spec.run(q, k, v, proj_lin, maps, project=project, places=places, **validity)


def _first(blocks: np.ndarray) -> np.ndarray:
    """Returns the numbers of all blocks, the marked ones first."""
    return np.argsort(~blocks, kind="stable")


def _protected(
    spec: SLA, layout: TokenLayout, keys: Blocks, queries: Blocks
) -> tuple[np.ndarray, np.ndarray]:
    """Returns which key blocks are always critical, and which query blocks see all keys."""
    always = np.zeros(len(keys.views), bool)
    dense = np.zeros(len(queries.views), bool)
    if spec.keep_special:
        always |= keys.views == SPECIAL
        if layout.reference is not None:
            always |= keys.views == layout.reference
        dense |= queries.views == SPECIAL
    return always, dense


def _valid(tokens: np.ndarray, count: int, x: jax.Array) -> jax.Array:
    """Returns which places of the blocks hold a token, [B, places] bool."""
    return jnp.broadcast_to(tokens.reshape(-1) < count, x.shape[:2])
