"""Floating-point operations of the parts of models, counted from sizes alone.

Two operations per multiply-add of matrix products and convolutions; see `benchmarking.flops`. Kinds
are `layers`, products with weights, and those of `AttentionStrategy.flops`.
"""

from collections import Counter
from collections.abc import Sequence

from lite3r_jax.attention.strategy import AttentionStrategy, Layouts, TokenLayout


def patch_embed(views: int, grid: tuple[int, int], patch: int, dim: int) -> Counter[str]:
    """Counts the operations that embed the patches of all views in C = `dim` channels."""
    return Counter(layers=2 * views * grid[0] * grid[1] * 3 * patch**2 * dim)


def blocks(
    specs: Sequence[AttentionStrategy],
    layout: TokenLayout,
    sequences: int,
    dim: int,
    heads: int,
    mlp_ratio: float = 4.0,
    swiglu: bool = False,
) -> Counter[str]:
    """Counts the operations of transformer blocks (`layers.block.Block`), one for every strategy.

    Args:
        specs: strategies of the layers.
        layout: tokens of a sequence.
        sequences: how many of them.
        dim: C.
        heads: N.
        mlp_ratio: hidden size of the feed-forward layers over C.
        swiglu: whether these are gated (`layers.mlp.SwiGlu`).
    """
    hidden = int(dim * mlp_ratio)
    gated = -(-int(hidden * 2 / 3) // 8) * 8
    weights = 4 * dim**2 + (3 * dim * gated if swiglu else 2 * dim * hidden)
    count: Counter[str] = Counter()
    for spec in specs:
        count["layers"] += 2 * sequences * layout.tokens * weights
        layouts = Layouts.both(layout)
        for kind, number in spec.flops(layouts, dim // heads).items():
            count[kind] += sequences * heads * number
        count["layers"] += sequences * spec.layer_flops(layouts, heads, dim // heads)
    return count


def dpt(
    views: int,
    grid: tuple[int, int],
    *,
    dim: int,
    features: int,
    out_channels: Sequence[int],
    outputs: int,
    patch: int,
) -> Counter[str]:
    """Counts the operations of a dense head (`layers.dpt.DPT`) that runs on every view.

    `dim` and the arguments behind it are those of `DPT`.
    """
    h, w = grid
    c, f = out_channels, features
    # pixels of the four levels, finest first; the last one is half a grid, rounded up
    pixels = [16 * h * w, 4 * h * w, h * w, -(-h // 2) * -(-w // 2)]
    count = sum(2 * h * w * dim * n for n in c)
    count += 2 * h * w * (16 * c[0] ** 2 + 4 * c[1] ** 2)
    count += _conv(pixels[3], c[3], c[3])
    count += sum(_conv(area, n, f) for area, n in zip(pixels, c, strict=True))
    for level, area in enumerate(pixels):  # the coarsest has nothing to fuse with
        count += (4 if level < 3 else 2) * _conv(area, f, f) + 2 * area * f**2
    count += _conv(64 * h * w, f, f // 2)
    image = h * w * patch**2
    count += _conv(image, f // 2, 32) + 2 * image * 32 * outputs
    return Counter(layers=views * count)


def _conv(pixels: int, inputs: int, outputs: int) -> int:
    """Counts the operations of a 3 x 3 convolution over `pixels` pixels."""
    return 18 * pixels * inputs * outputs
