"""Named SLA calls for tests, benchmarks and kernel compilation, with odd sizes and VGGT's."""

from dataclasses import dataclass

from lite3r_jax.kernels.block_map.api import budgets
from lite3r_jax.kernels.block_map.table import block_count
from lite3r_jax.kernels.sla.reference import Phi, Routing


@dataclass(frozen=True)
class Case:
    """Shapes, blocks and budgets of one call of Sparse Linear Attention.

    Attributes:
        name: says what is special about it.
        q_tokens: Tq.
        k_tokens: Tk.
        batch: B.
        heads: N.
        head_dim: D.
        q_block: queries per block.
        k_block: keys per block.
        keep: fraction of the free key blocks that is critical.
        low: fraction of them that is negligible ("block3").
        always: how many key blocks at the start are always kept.
        routing: "block" or "block3".
        phi: feature map.
        full: query blocks at the start that attend to all key blocks; with some, outputs are put
            into another order.
    """

    name: str
    q_tokens: int
    k_tokens: int
    batch: int = 1
    heads: int = 1
    head_dim: int = 64
    q_block: int = 64
    k_block: int = 64
    keep: float = 0.25
    low: float = 0.0
    always: int = 0
    routing: Routing = "block"
    phi: Phi = "elu1"
    full: int = 0

    @property
    def q_blocks(self) -> int:
        """Number of query blocks, Mq."""
        return block_count(self.q_tokens, self.q_block)

    @property
    def k_blocks(self) -> int:
        """Number of key blocks, Mk."""
        return block_count(self.k_tokens, self.k_block)

    @property
    def budgets(self) -> tuple[int, int]:
        """Numbers (top, bottom) of critical and negligible key blocks for `block_map`."""
        return budgets(self.k_blocks - self.always, self.keep, self.low)

    @property
    def table_shape(self) -> tuple[int, int, int, int]:
        """Shape [B, N, Mq, K] of the critical table."""
        return self.batch, self.heads, self.q_blocks, self.always + self.budgets[0]


ODD = (
    Case("short last blocks", 150, 170, 2, 2, 64, 32, 16),
    Case("head dim 128", 150, 150, head_dim=128, phi="softmax"),
    Case("one block", 64, 64, phi="relu"),
    Case("one token", 1, 1),
    Case("one token more than a block", 65, 65, heads=3),
    Case("wide query blocks", 330, 330, heads=3, q_block=128, low=0.2, routing="block3"),
    Case("fewer queries than keys", 20, 300, 2, phi="softmax", low=0.5, routing="block3"),
    Case("small head", 97, 101, head_dim=16, q_block=8, k_block=16, low=0.3, routing="block3"),
    Case("protected blocks", 200, 260, 2, 2, always=2, keep=0.5),
    Case("everything kept", 200, 200, keep=1.0),
    Case("no marginal block", 250, 250, keep=0.5, low=0.5, routing="block3"),
)


def vggt_global(views: int, keep: float, *, q_block: int = 64, low: float = 0.0) -> Case:
    """Returns the case of a global layer of VGGT-1B at 518 x 518.

    A view has 37 x 37 patches and 5 special tokens. Patches are the queries; special tokens
    stand first among the keys, in blocks of their own, and those and the first view's patches are
    always kept.

    Args:
        views: number of views S.
        keep: fraction of the other key blocks that is critical.
        q_block: queries per block.
        low: fraction of them that is negligible; above 0 for "block3".
    """
    patches = 37 * 37
    special = 64 * block_count(5 * views, 64)
    return Case(
        f"VGGT global layer, {views} views, keep {keep}",
        views * patches,
        special + views * patches,
        heads=16,
        q_block=q_block,
        keep=keep,
        low=low,
        always=block_count(special + patches, 64),
        routing="block3" if low else "block",
    )


REAL = tuple(vggt_global(views, keep) for views in (2, 8, 32, 100) for keep in (0.1, 0.3))
