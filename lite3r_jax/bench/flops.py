"""Floating-point operations of a forward pass, counted from sizes alone.

Matrix products and convolutions, two operations per multiply-add, as papers count them. Not
counted: everything that goes by element (norms, softmax, activations, RoPE, resizing of maps and
position tables, quantisation), the choice of a reference view, and what turns encodings into
cameras; together below 1 % of VGGT-1B. Attention strategies count themselves
(`AttentionSpec.flops`), so a sparse one counts the blocks that it keeps, with protected ones.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from lite3r_jax.attention.core import AttentionSpec, Layouts, TokenLayout
from lite3r_jax.backbones.da3.config import DA3Config
from lite3r_jax.backbones.heads import POSE_DIM
from lite3r_jax.backbones.vggt import VGGTConfig

KINDS = ("layers", "softmax", "selection", "linear")


@dataclass(frozen=True)
class Work:
    """Operations of one forward pass of one scene.

    Attributes:
        parts: encoder, frame, global, camera, depth, point (heads that the model is without are
            absent) -> kind -> operations. Kinds: `layers`, products with weights; the others are
            those of `AttentionSpec.flops`.
    """

    parts: Mapping[str, Mapping[str, int]]

    @property
    def total(self) -> int:
        """Of everything."""
        return sum(sum(kinds.values()) for kinds in self.parts.values())

    def to_json(self) -> dict[str, Any]:
        """Total and parts."""
        return {"total": self.total, "parts": {part: dict(k) for part, k in self.parts.items()}}


def count(model: Any, views: int, height: int, width: int) -> Work:
    """Operations of `model(images)` for one scene, with no arguments but `frame_chunk`.

    So VGGT tracks nothing, and Depth Anything 3 predicts no rays and takes no known cameras.

    Args:
        model: a backbone; it may be abstract, or deployed with float8 weights, which changes no
            count.
        views: S.
        height: of the network images in pixels.
        width: likewise.

    Raises:
        ValueError: views below 1, sizes that are no multiple of the patch, an unknown backbone.
    """
    patch = model.config.patch_size
    if views < 1 or min(height, width) < patch or height % patch or width % patch:
        raise ValueError(
            f"expected views and an image in multiples of {patch}, got {views}, {height} x {width}"
        )
    grid = (height // patch, width // patch)
    for config, counter in _COUNTERS.items():
        if isinstance(model.config, config):
            return Work(MappingProxyType(counter(model, views, grid)))
    raise ValueError(f"no count for models with {type(model.config).__name__}")


def stack(
    specs: Sequence[AttentionSpec],
    layout: TokenLayout,
    sequences: int,
    dim: int,
    heads: int,
    mlp_ratio: float = 4.0,
    swiglu: bool = False,
) -> Counter[str]:
    """Transformer blocks (`layers.block.Block`), one for every strategy.

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
    found: Counter[str] = Counter()
    for spec in specs:
        found["layers"] += 2 * sequences * layout.tokens * weights
        for kind, number in spec.flops(Layouts.both(layout), dim // heads).items():
            found[kind] += sequences * heads * number
    return found


def dpt(
    grid: tuple[int, int],
    *,
    dim: int,
    features: int,
    out_channels: Sequence[int],
    outputs: int,
    patch: int,
) -> int:
    """A dense head (`layers.dpt.DPT`) on one frame; arguments as there."""
    h, w = grid
    c, f = out_channels, features
    # pixels of the four levels, finest first; the last one is half a grid, rounded up
    pixels = [16 * h * w, 4 * h * w, h * w, -(-h // 2) * -(-w // 2)]
    found = sum(2 * h * w * dim * n for n in c)
    found += 2 * h * w * (16 * c[0] ** 2 + 4 * c[1] ** 2)
    found += _conv(pixels[3], c[3], c[3])
    found += sum(_conv(area, n, f) for area, n in zip(pixels, c, strict=True))
    for level, area in enumerate(pixels):  # the coarsest has nothing to fuse with
        found += (4 if level < 3 else 2) * _conv(area, f, f) + 2 * area * f**2
    found += _conv(64 * h * w, f, f // 2)
    image = h * w * patch**2
    return found + _conv(image, f // 2, 32) + 2 * image * 32 * outputs


def _conv(pixels: int, inputs: int, outputs: int) -> int:
    """3 x 3."""
    return 18 * pixels * inputs * outputs


def _embed(model: Any, views: int, grid: tuple[int, int]) -> Counter[str]:
    config = model.config
    weights = 3 * config.patch_size**2 * config.embed_dim
    return Counter(layers=2 * views * grid[0] * grid[1] * weights)


def _dense_heads(model: Any, views: int, grid: tuple[int, int], sizes: Any) -> dict[str, Counter]:
    outputs = {"depth": 2, "point": 4}
    config = model.config
    return {
        head: Counter(
            layers=views
            * dpt(
                grid,
                dim=2 * config.embed_dim,
                features=sizes.features,
                out_channels=sizes.out_channels,
                outputs=outputs[head],
                patch=config.patch_size,
            )
        )
        for head in model.heads
        if head in outputs
    }


def _vggt(model: Any, views: int, grid: tuple[int, int]) -> dict[str, Counter[str]]:
    config: VGGTConfig = model.config
    c, plan, sites = config.embed_dim, model.plan, model.sites
    special = 1 + config.num_register_tokens
    frame = TokenLayout(1, special, grid, "frame")
    scene = TokenLayout(views, special, grid, "global")
    vit, trunk, camera = config.vit, config.aggregator, config.camera_head
    parts = {
        "encoder": _embed(model, views, grid)
        + stack(plan.specs("patch", sites["patch"]), frame, views, c, vit.num_heads, vit.mlp_ratio),
        "frame": stack(
            plan.specs("frame", trunk.depth), frame, views, c, trunk.num_heads, trunk.mlp_ratio
        ),
        "global": stack(
            plan.specs("global", trunk.depth), scene, 1, c, trunk.num_heads, trunk.mlp_ratio
        ),
    }
    if "camera" in model.heads:
        d = 2 * c
        once = stack(
            plan.specs("camera", camera.trunk_depth),
            TokenLayout(views, 1, (0, 0), "global"),
            1,
            d,
            camera.num_heads,
        )
        once["layers"] += 2 * views * (POSE_DIM * d + 3 * d**2 + d // 2 * (d + POSE_DIM))
        parts["camera"] = Counter({k: camera.num_iterations * n for k, n in once.items()})
    return parts | _dense_heads(model, views, grid, config.dpt)


def _da3(model: Any, views: int, grid: tuple[int, int]) -> dict[str, Counter[str]]:
    config: DA3Config = model.config
    c, plan, sites = config.embed_dim, model.plan, model.sites
    frame = TokenLayout(1, 1, grid, "frame")
    scene = TokenLayout(views, 1, grid, "global")
    block = (c, config.num_heads, config.mlp_ratio, config.swiglu)
    specs = plan.specs("frame", sites["frame"])
    early = len(config.early_blocks)
    parts = {
        "encoder": _embed(model, views, grid) + stack(specs[:early], frame, views, *block),
        "frame": stack(specs[early:], frame, views, *block),
        "global": stack(plan.specs("global", sites["global"]), scene, 1, *block),
    }
    if "camera" in model.heads:
        d = 2 * c
        parts["camera"] = Counter(layers=2 * views * (2 * d**2 + POSE_DIM * d))
    return parts | _dense_heads(model, views, grid, config)


_COUNTERS: Mapping[type, Callable[..., dict[str, Counter[str]]]] = {
    VGGTConfig: _vggt,
    DA3Config: _da3,
}
