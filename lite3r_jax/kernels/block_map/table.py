"""Tables of block ids: which key blocks belong to a query block, and the other way round.

Tokens are cut into blocks in their order: block i of the queries holds tokens
[i * q_block, (i + 1) * q_block), the last one may be short. Mq and Mk are the numbers of blocks.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import lax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Transposed:
    """A `BlockTable` seen from the key blocks, in compressed rows (CSR).

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
        """[B, N, Mq] int32, how many entries of each list are used."""
        return (self.ids < self.columns).sum(axis=-1, dtype=jnp.int32)

    def mask(self) -> jax.Array:
        """[B, N, Mq, Mk] bool, whether the key block is listed. For definitions and tests."""
        b, n, rows, _ = self.ids.shape
        at = jnp.ix_(*(jnp.arange(size) for size in (b, n, rows)))
        empty = jnp.zeros((b, n, rows, self.columns), bool)
        return empty.at[(*(index[..., None] for index in at), self.ids)].set(True, mode="drop")

    def transpose(self) -> Transposed:
        """The query blocks of every key block. Sorts the table, once, in its own memory."""
        b, n, rows, k = self.ids.shape
        flat = (b, n, rows * k)
        row = lax.broadcasted_iota(jnp.int32, self.ids.shape, 2).reshape(flat)
        # Rows ascend already, and the sort is stable, so they ascend for every column.
        column, row = lax.sort((self.ids.reshape(flat), row), num_keys=1, is_stable=True)
        first = jax.vmap(jax.vmap(lambda c: jnp.searchsorted(c, jnp.arange(self.columns + 1))))
        return Transposed(row, first(column).astype(jnp.int32))


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
    """

    critical: BlockTable
    negligible: BlockTable
    q_block: int = field(metadata={"static": True})
    k_block: int = field(metadata={"static": True})


def block_count(tokens: int, block: int) -> int:
    """Blocks that cover `tokens`."""
    return -(-tokens // block)
