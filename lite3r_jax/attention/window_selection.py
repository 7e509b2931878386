"""Attention to pooled windows, and to the tokens of the windows that match best.

Tables, pooling and both branches: the mathematics of Speed3R's global sparse attention
(arXiv 2603.08055; pi3/models/layers/sparse_attention.py of Visual-AI/speed3r), without gates. A
window is a square of patches of one view. There are Nq windows of queries and Nk windows of keys; n
is either number.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lite3r_jax.attention.dense import Implementation, dense_attention
from lite3r_jax.attention.strategy import TokenLayout
from lite3r_jax.kernels.block_map.api import block_map
from lite3r_jax.kernels.tokens import inverse, take
from lite3r_jax.kernels.window_attention.api import CHOICE, window_attention

Pools = tuple[jax.Array, jax.Array, jax.Array]
"""Queries [B, Nq, N, D], keys and values [B, Nk, N, D] of windows."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Static tables of the tokens in the windows of one sequence.

    Attributes:
        edge: s, patches along a side.
        tokens: [n, s * s] int32, the token at every place, view by view, windows and places within
            row by row; T, one past the last token, where the grid ends before the window does.
        views: [n] int32, the view of every window.
        special: [m, s * s] int32, the special tokens of all views in blocks of the same size.
    """

    edge: int
    tokens: np.ndarray
    views: np.ndarray
    special: np.ndarray

    @property
    def places(self) -> int:
        """Number of tokens in a whole window."""
        return self.edge**2


@functools.lru_cache(maxsize=64)
def windows_of(layout: TokenLayout, edge: int) -> Windows:
    """Cuts the patches of every view into windows of `edge` x `edge`, from the first patch on.

    Args:
        layout: of the tokens.
        edge: s.
    """
    (h, w), p, t = layout.grid, layout.tokens_per_view, layout.tokens
    patches = np.full((-(-h // edge) * edge, -(-w // edge) * edge), -1)
    patches[:h, :w] = layout.special + np.arange(h * w).reshape(h, w)
    rows, columns = (side // edge for side in patches.shape)
    one = patches.reshape(rows, edge, columns, edge).swapaxes(1, 2).reshape(-1, edge**2)
    first = p * np.arange(layout.views)[:, None, None]
    tokens = np.where(one < 0, t, first + one).reshape(-1, edge**2)
    special = (first[..., 0] + np.arange(layout.special)).reshape(-1)
    special = np.pad(special, (0, -len(special) % edge**2), constant_values=t)
    result = Windows(
        edge,
        tokens.astype(np.int32),
        np.repeat(np.arange(layout.views, dtype=np.int32), len(one)),
        special.reshape(-1, edge**2).astype(np.int32),
    )
    for array in (result.tokens, result.views, result.special):
        array.flags.writeable = False  # the result is cached
    return result


def pooled(x: jax.Array, layout: TokenLayout, edge: int) -> jax.Array:
    """Returns the mean of every window's tokens; places without a token do not count.

    Args:
        x: [B, T, ...].
        layout: of these tokens.
        edge: s.

    Returns:
        [B, n, ...] in the dtype of x, summed up in float32.
    """
    (h, w), more = layout.grid, x.shape[2:]
    x = x.reshape(x.shape[0], layout.views, -1, *more)[:, :, layout.special :]
    x = x.reshape(*x.shape[:2], h, w, *more)
    x = jnp.pad(x, [(0, 0), (0, 0), (0, -h % edge), (0, -w % edge), *[(0, 0)] * len(more)])
    rows, columns = (side // edge for side in x.shape[2:4])
    x = x.reshape(*x.shape[:2], rows, edge, columns, edge, *more)
    total = x.sum(axis=(3, 5), dtype=jnp.promote_types(x.dtype, jnp.float32))
    total = total.reshape(x.shape[0], -1, *more)
    count = (windows_of(layout, edge).tokens < layout.tokens).sum(axis=1)
    return (total / count.reshape(-1, *[1] * len(more))).astype(x.dtype)


def window_positions(positions: np.ndarray, layout: TokenLayout, edge: int) -> np.ndarray:
    """Returns the positions of the windows of one view: means over their tokens, rounded down.

    Args:
        positions: [P, 2] integers (y, x) of the tokens of one view.
        layout: of the tokens.
        edge: s.

    Returns:
        [windows of a view, 2] int32.
    """
    tokens = windows_of(layout, edge).tokens
    tokens = tokens[: len(tokens) // layout.views]
    there = tokens < layout.tokens
    total = np.where(there[..., None], positions[np.where(there, tokens, 0)], 0).sum(axis=1)
    return (total // there.sum(axis=1)[:, None]).astype(np.int32)


def expanded(of_windows: jax.Array, windows: Windows, tokens: int) -> jax.Array:
    """Copies arrays of windows [B, n, N, D] to each of their tokens, [B, tokens, N, D].

    Tokens in no window, the special ones, have zeros.
    """
    b, n, *more = of_windows.shape
    slots = jnp.broadcast_to(of_windows[:, :, None], (b, n, windows.places, *more))
    return take(slots.reshape(b, -1, *more), inverse(windows.tokens, tokens))


@dataclass(frozen=True, eq=False)
class Selection:
    """Static rule for the windows that are attended to, by all queries or by choice.

    Attributes:
        query: windows of the queries.
        key: windows of the keys.
        always: [A] int32 windows of keys that every query attends to, ascending; special tokens
            are attended to in any case.
        top: windows that a window of queries chooses among the others, at most.
    """

    query: Windows
    key: Windows
    always: np.ndarray
    top: int

    @property
    def chosen(self) -> int:
        """Number of windows that a window of queries chooses: `top`, or as many as there are."""
        return min(self.top, len(self.key.tokens) - len(self.always))

    def ids(self, q: jax.Array, k: jax.Array, implementation: str = "sorted") -> jax.Array:
        """Returns the windows of keys that every window of queries chooses.

        They have the largest products of pooled queries [B, Nq, N, D] and keys [B, Nk, N, D], in
        float32; of equal ones the lower window is chosen. No gradient flows through the choice.

        Args:
            q: pooled queries.
            k: pooled keys.
            implementation: of `block_map`; "reference" sorts all products.

        Returns:
            [B, N, Nq, chosen] int32, ascending, none of them in `always`.
        """
        b, nq, n, _ = q.shape
        free = np.setdiff1d(np.arange(k.shape[1], dtype=np.int32), self.always)
        if not self.chosen:
            return jnp.zeros((b, n, nq, 0), jnp.int32)
        k = k if len(free) == k.shape[1] else k[:, free]
        if implementation == "reference":
            scores = jnp.einsum("bqnd,bknd->bnqk", q, k, preferred_element_type=jnp.float32)
            # A stable sort: of equal scores the lower window comes first.
            order = jnp.argsort(-lax.stop_gradient(scores), axis=-1)
            ids = jnp.sort(order[..., : self.chosen], axis=-1)
        else:
            chosen = block_map(
                q, k, q_block=1, k_block=1, top=self.chosen, implementation=implementation
            )
            ids = chosen.critical.ids
        return jnp.asarray(free)[ids]

    def attend(
        self, q: jax.Array, k: jax.Array, v: jax.Array, pools: Pools, implementation: str = "auto"
    ) -> tuple[jax.Array, jax.Array]:
        """Computes the outputs of the selection and compression branches, without gates.

        Args:
            q: [B, Tq, N, D] queries, normed and rotated.
            k: [B, Tk, N, D] keys.
            v: [B, Tk, N, D] values.
            pools: queries [B, Nq, N, D], keys and values [B, Nk, N, D] of windows, likewise.
            implementation: of `window_attention`, with the choice of windows that goes with it;
                "reference" has all pairs in memory, of windows and of tokens.

        Returns:
            (output of the tokens [B, Tq, N, D]: of patches, softmax over the tokens of their
            window's choice, those of `always` and special ones; of special tokens, over all keys;
            output of the windows [B, Nq, N, D]: softmax over pooled keys).
        """
        plain: Implementation = "reference" if implementation == "reference" else "auto"
        of_windows = dense_attention(*pools, plain)
        ids = self.ids(*pools[:2], CHOICE.get(implementation, implementation))
        selected = window_attention(
            q,
            k,
            v,
            ids,
            q_windows=self.query.tokens,
            k_windows=self.key.tokens,
            always=self.always,
            implementation=implementation,
        )
        rows = self.query.special[self.query.special < q.shape[1]]
        if rows.size:
            of_special = dense_attention(take(q, rows), k, v, plain)
            selected = selected + take(of_special, inverse(rows, q.shape[1]))
        return selected, of_windows
