"""Floating-point operations of a forward pass, counted from sizes alone.

Matrix products and convolutions, two operations per multiply-add, as papers count them. Not
counted: everything that goes by element (norms, softmax, activations, RoPE, resizing of maps and
position tables, quantization), the choice of a reference view, and what turns encodings into
cameras; together below 1 % of VGGT-1B. Backbones count themselves (`Backbone.operations`), and so
do attention strategies (`AttentionStrategy.flops`): a sparse one counts the blocks that it keeps,
with protected ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from lite3r_jax.backbones.base import Backbone

KINDS = ("layers", "softmax", "selection", "linear")


@dataclass(frozen=True)
class Work:
    """Operations of one forward pass of one scene.

    Attributes:
        parts: encoder, frame, global, camera, depth, point (heads that the model is without are
            absent) -> kind -> operations. Kinds: `layers`, products with weights; the others are
            those of `AttentionStrategy.flops`.
    """

    parts: Mapping[str, Mapping[str, int]]

    @property
    def total(self) -> int:
        """Number of operations of all parts together."""
        return sum(sum(kinds.values()) for kinds in self.parts.values())

    def to_json(self) -> dict[str, Any]:
        """Returns the total and the parts as plain data for JSON."""
        return {"total": self.total, "parts": {part: dict(k) for part, k in self.parts.items()}}


def count(model: Backbone, views: int, height: int, width: int) -> Work:
    """Counts the operations of `model(images)` for one scene, without arguments but `frame_chunk`.

    So VGGT tracks nothing, and Depth Anything 3 predicts no rays and takes no known cameras.

    Args:
        model: a backbone; it may be abstract, or deployed with float8 weights, which changes no
            count.
        views: S.
        height: of the network images in pixels.
        width: likewise.

    Raises:
        ValueError: views below 1, sizes that are no multiple of the patch.
    """
    patch = model.patch_size
    if views < 1 or min(height, width) < patch or height % patch or width % patch:
        raise ValueError(
            f"expected views and an image in multiples of {patch}, got {views}, {height} x {width}"
        )
    grid = (height // patch, width // patch)
    return Work(MappingProxyType(dict(model.operations(views, grid))))
