"""Named matrix products for tests and kernel compilation, with odd sizes and with VGGT's."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """Sizes of a product of x [batch..., K] and w [K, N].

    Attributes:
        name: says what is special about it.
        batch: leading axes of x.
        inputs: K.
        outputs: N.
    """

    name: str
    batch: tuple[int, ...]
    inputs: int
    outputs: int


ODD = (
    Case("one of each", (1,), 1, 1),
    Case("odd sizes", (2, 7), 13, 5),
    Case("no batch", (), 16, 8),
    Case("three leading axes", (2, 1, 3), 9, 64),
    Case("one token", (1, 1), 64, 32),
)


def vggt_linears(views: int) -> tuple[Case, ...]:
    """Returns the four Linears of a VGGT-1B block at 518 x 518; tokens as in a global layer."""
    tokens = views * (37 * 37 + 5)
    sizes = {"qkv": (1024, 3072), "proj": (1024, 1024), "fc1": (1024, 4096), "fc2": (4096, 1024)}
    return tuple(
        Case(f"VGGT {name}, {views} views", (1, tokens), *size) for name, size in sizes.items()
    )
