"""Layouts of the tokens of an attention site: views, special tokens and grids of patches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lite3r_jax.mesh import ViewParts


@dataclass(frozen=True)
class TokenLayout:
    """Views, special tokens and patch grid of the tokens of one side (queries or keys). Static.

    Tokens are ordered view by view; within a view the special tokens come first, then the patches
    row by row.

    Attributes:
        views: number of views S that share one sequence (1 when each view attends to itself).
        special: special tokens per view (camera and register tokens).
        grid: patch grid (h, w) of a view; (0, 0) where a view has no patches.
        scope: "frame" when a sequence is one view, "global" when it spans all views of a scene.
        kept: which views of the scene these are, where a strategy has dropped others: their numbers
            in this order, -1 for one that only the data decides. None: all of them.
        has_reference: whether the first view of a scene is its reference view, which strategies may
            treat apart; False for models in which all views are equal.
        parts: division of the views among devices, where `views` counts those of one device only;
            None where `views` counts all of them.
    """

    views: int
    special: int
    grid: tuple[int, int]
    scope: Literal["frame", "global"]
    kept: tuple[int, ...] | None = None
    has_reference: bool = True
    parts: ViewParts | None = None

    @property
    def tokens_per_view(self) -> int:
        """Number P of tokens in a view."""
        return self.special + self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """Number T of tokens in a sequence."""
        return self.views * self.tokens_per_view

    @property
    def reference(self) -> int | None:
        """Position of the scene's reference view in the sequence; None where there is none.

        That is so where a sequence is one view, where the model has no reference view, and where a
        strategy has dropped it.
        """
        if self.scope == "frame" or not self.has_reference:
            return None
        if self.kept is None:
            return 0
        return self.kept.index(0) if 0 in self.kept else None

    @property
    def whole(self) -> "TokenLayout":
        """Layout of the whole sequence, the parts of all devices together."""
        if self.parts is None:
            return self
        return replace(self, views=self.parts.views, parts=None)

    def keep(self, views: Sequence[int]) -> "TokenLayout":
        """Returns the layout of the tokens of some of the views.

        Args:
            views: their positions here, -1 for one that only the data decides.
        """
        here = range(self.views) if self.kept is None else self.kept
        kept = tuple(-1 if view < 0 else here[view] for view in views)
        return replace(self, views=len(kept), kept=kept)

    def keep_patches(self, step: int) -> "TokenLayout":
        """Returns the layout with every `step`-th row and column of patches, from the first on."""
        h, w = self.grid
        return replace(self, grid=(-(-h // step), -(-w // step)))


@dataclass(frozen=True)
class IrregularTokens:
    """Tokens without a grid, as merging leaves them: their number is all that is known. Static."""

    tokens: int


@dataclass(frozen=True)
class Layouts:
    """Token layouts of the queries and of the keys of an attention site.

    They are equal unless a strategy reduces one of the sides.

    Attributes:
        query: layout of the queries.
        key: layout of the keys.
        all_keys: layout of the keys before strategies dropped some of them; None where none did.
    """

    query: TokenLayout | IrregularTokens
    key: TokenLayout | IrregularTokens
    all_keys: TokenLayout | None = None

    @classmethod
    def both(cls, layout: TokenLayout) -> "Layouts":
        """Returns the layouts of queries and keys that are the same tokens."""
        return cls(layout, layout)

    def with_keys(self, layout: TokenLayout) -> "Layouts":
        """Returns the layouts with some of the keys, those of `layout`, in place of all.

        Raises:
            ValueError: keys are irregular.
        """
        before = self.all_keys or self.regular_keys("with_keys")
        return replace(self, key=layout, all_keys=before)

    def regular(self, who: str) -> tuple[TokenLayout, TokenLayout]:
        """Returns the layouts of queries and keys, which both must have views and grids of patches.

        Args:
            who: name of the strategy, for the message.

        Raises:
            ValueError: queries or keys are irregular.
        """
        return _regular(self.query, "queries", who), _regular(self.key, "keys", who)

    def regular_keys(self, who: str) -> TokenLayout:
        """Returns the layout of the keys, which must be regular; see `regular`."""
        return _regular(self.key, "keys", who)


def _regular(layout: TokenLayout | IrregularTokens, side: str, who: str) -> TokenLayout:
    if isinstance(layout, IrregularTokens):
        raise ValueError(
            f"attention strategy {who} needs views with a grid of patches, but its {side} are"
            f" {layout.tokens} tokens without one; use dense inside of a strategy that merges"
            " tokens"
        )
    return layout
