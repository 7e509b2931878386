"""Tables of block ids: which key blocks belong to a query block, and the other way round.

Tokens are cut into blocks in their order: block i of the queries holds tokens
[i * q_block, (i + 1) * q_block), the last one may be short. Mq and Mk are the numbers of blocks.
"""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from jax import lax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Transposed:
    """The query blocks that list each key block of a `BlockTable`, in compressed rows (CSR).

    The query blocks that list key block j are `rows[..., offsets[..., j] : offsets[..., j + 1]]`.

    Attributes:
        rows: [B, N, Mq * K] int32 query blocks, ordered by key block and ascending within one;
            behind `offsets[..., Mk]` stands nothing of meaning.
        offsets: [B, N, Mk + 1] int32.
    """

    rows: jax.Array
    offsets: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlockTable:
    """A list of key blocks for every query block.

    Attributes:
        ids: [B, N, Mq, K] int32 key blocks, ascending; entries that are not used hold `columns`
            and so stand last. K may be 0.
        columns: Mk, the number of key blocks.
    """

    ids: jax.Array
    columns: int = field(metadata={"static": True})

    @property
    def counts(self) -> jax.Array:
        """Number of used entries of each list, [B, N, Mq] int32."""
        return (self.ids < self.columns).sum(axis=-1, dtype=jnp.int32)

    def mask(self) -> jax.Array:
        """Returns whether a key block is listed, [B, N, Mq, Mk] bool. For definitions and tests."""
        b, n, rows, _ = self.ids.shape
        at = jnp.ix_(*(jnp.arange(size) for size in (b, n, rows)))
        empty = jnp.zeros((b, n, rows, self.columns), bool)
        return empty.at[(*(index[..., None] for index in at), self.ids)].set(True, mode="drop")

    def transpose(self) -> Transposed:
        """Returns the query blocks that list each key block.

        Sorts the table's entries as one int32 each, key block and query block in one number. Takes
        memory of a few tables: at 1,000 views of 1,374 tokens and keep 0.1 one has 4e8 entries.

        Raises:
            ValueError: (columns + 1) * Mq is not below 2^31. For 1,000 views it is 5e8.
        """
        b, n, rows, k = self.ids.shape
        if (self.columns + 1) * rows >= 2**31:
            raise ValueError(
                f"a table of {rows} x {self.columns} blocks is too large to be transposed for the "
                "backward pass: take larger blocks or fewer views"
            )
        row = lax.broadcasted_iota(jnp.int32, self.ids.shape, 2)
        pairs = lax.sort((self.ids * rows + row).reshape(b, n, rows * k), is_stable=False)
        first = jax.vmap(jax.vmap(jnp.searchsorted, (0, None)), (0, None))
        offsets = first(pairs, rows * jnp.arange(self.columns + 1, dtype=jnp.int32))
        return Transposed(pairs % rows, offsets.astype(jnp.int32))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlockMap:
    """The three classes of key blocks of each query block (SLA, arXiv 2509.24006, Eq. 2-6).

    Key blocks that are in neither table are marginal.

    Attributes:
        critical: blocks attended by softmax; M_c = 1 in the paper.
        negligible: blocks left out altogether; M_c = -1. K is 0 where there are none.
        q_block: queries per block.
        k_block: keys per block.
        full_rows: so many query blocks come first for which all key blocks are critical. They are
            in neither table, whose first rows are those of the query blocks behind them.
        full_columns: so many key blocks come first that every query block lists, so that kernels
            can begin with what takes longest. Says nothing that the tables do not.
    """

    critical: BlockTable
    negligible: BlockTable
    q_block: int = field(metadata={"static": True})
    k_block: int = field(metadata={"static": True})
    full_rows: int = field(default=0, metadata={"static": True})
    full_columns: int = field(default=0, metadata={"static": True})

    def split(self) -> tuple["BlockMap", "BlockMap"]:
        """Returns the map of the query blocks that attend to all keys, and that of the others.

        The table of the first map lists all key blocks in every row.
        """
        b, n = self.critical.ids.shape[:2]
        columns = self.critical.columns
        ids = jnp.broadcast_to(
            jnp.arange(columns, dtype=jnp.int32), (b, n, self.full_rows, columns)
        )
        none = BlockTable(ids[..., :0], columns)
        full = BlockMap(BlockTable(ids, columns), none, self.q_block, self.k_block)
        return full, replace(self, full_rows=0)


def block_count(tokens: int, block: int) -> int:
    """Returns the number of blocks that cover `tokens` tokens."""
    return -(-tokens // block)
