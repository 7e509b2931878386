"""The seam between projected tokens and attended tokens, and the plan that says who uses what.

Every attention site of every backbone builds its core from an `AttentionSpec`. A core maps
queries, keys and values [B, T, N, D] (already normed and rotated) to outputs of the same layout;
qkv, qk-norm, RoPE and the output projection belong to the layer around it
(`lite3r_jax.layers.attention`), so a new strategy touches one file and works in every backbone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import jax
from flax import nnx

Role = Literal["patch", "frame", "global", "camera"]
ROLES: tuple[Role, ...] = ("patch", "frame", "global", "camera")


@dataclass(frozen=True)
class TokenLayout:
    """Where the tokens of one side (queries or keys) come from. Static.

    Tokens are ordered view by view; within a view the special tokens come first, then the patches
    row by row.

    Attributes:
        views: number of views S that share one sequence (1 when each view attends to itself).
        special: special tokens per view (camera and register tokens).
        grid: patch grid (h, w) of a view; (0, 0) where a view has no patches.
        scope: "frame" when a sequence is one view, "global" when it spans all views of a scene.
    """

    views: int
    special: int
    grid: tuple[int, int]
    scope: Literal["frame", "global"]

    @property
    def tokens_per_view(self) -> int:
        """P, tokens per view."""
        return self.special + self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """T, tokens of one sequence."""
        return self.views * self.tokens_per_view


@dataclass(frozen=True)
class Layouts:
    """The layouts of the query side and of the key side.

    They are equal unless a strategy reduces one of the sides.
    """

    query: TokenLayout
    key: TokenLayout

    @classmethod
    def both(cls, layout: TokenLayout) -> "Layouts":
        """Queries and keys are the same tokens."""
        return cls(layout, layout)


class AttentionCore(nnx.Module):
    """What stands between q, k, v and o. Subclasses implement `__call__`."""

    def prepare(self, x: jax.Array, attn: Any, layouts: Layouts) -> Any:
        """Look at the block's normed input before projection.

        Args:
            x: [B, T, C] input of the attention layer.
            attn: the layer, whose `project` is pure and may be called on other tokens.
            layouts: layouts of queries and keys.

        Returns:
            Whatever `__call__` wants as `aux`; None by default.
        """
        del x, attn, layouts
        return None

    def __call__(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        layouts: Layouts,
        *,
        aux: Any = None,
        shared: Any = None,
    ) -> jax.Array:
        """Attend.

        Args:
            q: [B, Tq, N, D] queries, normed and rotated.
            k: [B, Tk, N, D] keys, normed and rotated.
            v: [B, Tk, N, D] values.
            layouts: layouts of queries and keys.
            aux: result of `prepare`.
            shared: per-forward context that the backbone hands to all its layers, or None.

        Returns:
            [B, Tq, N, D] in the dtype of `v`.
        """
        raise TypeError(f"{type(self).__name__} does not define __call__")


class AttentionSpec(Protocol):
    """Frozen, hashable settings of one strategy."""

    def build(
        self, *, heads: int, head_dim: int, param_dtype: Any, rngs: nnx.Rngs
    ) -> AttentionCore:
        """The core for one attention site."""
        ...

    def describe(self, dtype: Any, head_dim: int) -> str:
        """Strategy and kernel that run here for that compute dtype and head size, for reports."""
        ...

    def flops(self, layouts: Layouts, head_dim: int) -> Mapping[str, int]:
        """Floating-point operations of one head over one sequence, two per multiply-add.

        Args:
            layouts: layouts of queries and keys.
            head_dim: size of the head.

        Returns:
            Of the matrix products between q, k and v: `softmax`; `selection`, which keys it sees;
            `linear`, the linear part. Those that a strategy does not have may be absent.
        """
        ...


@dataclass(frozen=True)
class Rule:
    """Which sites get `spec`.

    Attributes:
        role: role of the sites.
        spec: their strategy.
        layers: layer indices within the role; None means all of them.
    """

    role: Role
    spec: AttentionSpec
    layers: tuple[int, ...] | None = None

    def matches(self, role: Role, layer: int) -> bool:
        """Whether this rule speaks about that site."""
        return role == self.role and (self.layers is None or layer in self.layers)


def _dense() -> AttentionSpec:
    from lite3r_jax.attention.dense import Dense

    return Dense()


@dataclass(frozen=True)
class Plan:
    """Strategy of every attention site of a backbone: the first matching rule wins."""

    rules: tuple[Rule, ...] = ()
    default: AttentionSpec = field(default_factory=_dense)

    def at(self, role: Role, layer: int) -> AttentionSpec:
        """The strategy of one site."""
        for rule in self.rules:
            if rule.matches(role, layer):
                return rule.spec
        return self.default

    def specs(self, role: Role, depth: int) -> tuple[AttentionSpec, ...]:
        """The strategies of all `depth` layers of a role."""
        return tuple(self.at(role, layer) for layer in range(depth))

    def describe(
        self,
        sites: Mapping[Role, int],
        dtypes: Mapping[Role, Any],
        head_dims: Mapping[Role, int],
    ) -> dict[str, str]:
        """What runs where, for reports.

        Args:
            sites: number of layers of each role.
            dtypes: compute dtype of each role.
            head_dims: size of a head of each role.

        Returns:
            {role: "strategy and kernel x layers, ..."}.
        """
        found = {}
        for role, depth in sites.items():
            parts = [
                f"{run.specs[0].describe(dtypes[role], head_dims[role])} x {run.stop - run.start}"
                for run in runs(self.specs(role, depth))
            ]
            found[role] = ", ".join(parts)
        return found

    def check(self, sites: dict[Role, int]) -> None:
        """Refuse rules that match nothing.

        Args:
            sites: number of layers of each role that the backbone has.

        Raises:
            ValueError: a rule matches no site, or names a layer that does not exist.
        """
        for rule in self.rules:
            depth = sites.get(rule.role, 0)
            wrong = [i for i in rule.layers or () if not 0 <= i < depth]
            if depth == 0 or wrong or rule.layers == ():
                have = ", ".join(f"{role}: {n}" for role, n in sites.items())
                what = f"layers {wrong} of" if wrong else "any site of"
                raise ValueError(f"plan rule {rule} does not match {what} this backbone ({have})")


@dataclass(frozen=True)
class Run:
    """Consecutive layers [start, stop) with the same strategies."""

    start: int
    stop: int
    specs: tuple[AttentionSpec, ...]


def runs(*specs: Sequence[AttentionSpec]) -> tuple[Run, ...]:
    """Split layers into runs over which every given role keeps its strategy.

    Args:
        *specs: for each role executed side by side, the strategies of its layers.

    Returns:
        Runs in order; their `specs` hold one strategy per role.
    """
    per_layer = list(zip(*specs, strict=True))
    found: list[Run] = []
    for i, here in enumerate(per_layer):
        if found and found[-1].specs == here:
            found[-1] = Run(found[-1].start, i + 1, here)
        else:
            found.append(Run(i, i + 1, here))
    return tuple(found)


def build_cores(
    plan_runs: Sequence[Run],
    role: int,
    heads: int,
    head_dim: int,
    param_dtype: Any,
    rngs: nnx.Rngs,
) -> nnx.List:
    """One stacked core per run, its parameters on a leading axis of length stop - start.

    Args:
        plan_runs: result of `runs`.
        role: position of the role in `Run.specs`.
        heads: N of these sites.
        head_dim: D of these sites.
        param_dtype: dtype of the strategies' own parameters.
        rngs: random streams; each layer gets its own.
    """

    def stacked(run: Run) -> AttentionCore:
        def make(layer_rngs: nnx.Rngs) -> AttentionCore:
            return run.specs[role].build(
                heads=heads, head_dim=head_dim, param_dtype=param_dtype, rngs=layer_rngs
            )

        return nnx.vmap(make)(rngs.split(run.stop - run.start))

    return nnx.List([stacked(run) for run in plan_runs])
