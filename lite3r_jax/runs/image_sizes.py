"""Checks whether images have the size that weights were made for."""

from collections.abc import Iterable

from lite3r_jax.backbones.base import AREA, get_backbone
from lite3r_jax.data.bounds import pixel_limit_size
from lite3r_jax.models import CheckedModel


def size_note(model: CheckedModel, sizes: Iterable[tuple[int, int]]) -> str:
    """Returns a note on images of another size than the weights were made for; "" if none.

    Args:
        model: whose weights.
        sizes: (height, width) of images.
    """
    own = get_backbone(model.manifest.backbone).model.images_for(model.config)

    def fits(height: int, width: int) -> bool:
        if own.mode == AREA:
            return pixel_limit_size(width, height, own.size) == (width, height)
        return max(height, width) == own.size

    other = {size for size in sizes if not fits(*size)}
    if not other:
        return ""
    said = ", ".join(f"{width}x{height}" for height, width in sorted(other))
    return f"note: images of {said} pixels; these weights were made for {own} and may do worse"
