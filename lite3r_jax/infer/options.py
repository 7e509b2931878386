"""Options for how photos become network images and for how the model runs."""

from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import jax.numpy as jnp

from lite3r_jax.backbones.base import ImageInput
from lite3r_jax.data.images import MAX_PIXELS, Mode
from lite3r_jax.infer.memory import GIB, Rest
from lite3r_jax.models import auto_dtype


@dataclass(frozen=True)
class ImageOptions:
    """Options for how photos become network images.

    Attributes:
        mode: crop, pad, square, pixel_limit (of pi^3), or the ways of Depth Anything 3,
            upper_bound_resize and so on; see `data.images.fit_image`. "auto": that of the weights.
        size: network size in pixels, a multiple of 14; of pixel_limit the most pixels of an image.
            0: that of the weights.
        max_pixels: photos with more are refused before they are decoded.
        min_views: scenes with fewer photos are refused.
    """

    mode: Literal["auto", Mode] = "auto"
    size: int = 0
    max_pixels: int = MAX_PIXELS
    min_views: int = 1

    def of(self, model: Any) -> "ImageOptions":
        """Returns these options, with the model's own mode and size where they are left to it."""
        own = model.images_for(model.config)
        mode = own.mode if self.mode == "auto" else self.mode
        size = self.size or own.size_in(mode, model.patch_size)
        return replace(self, mode=cast(Mode, mode), size=size)

    def unlike(self, model: Any) -> str:
        """Returns a note if images differ from what the model was made for, else an empty text."""
        own, mine = model.images_for(model.config), self.of(model)
        if (mine.mode, mine.size) == (own.mode, own.size):
            return ""
        return (
            f"note: images of {ImageInput(mine.mode, mine.size)}; these weights were made for"
            f" {own} and may do worse"
        )


@dataclass(frozen=True)
class ComputeOptions:
    """Options for how the model runs: dtype, memory and devices.

    Attributes:
        dtype: of weights, encoder and trunk; auto: bfloat16 on a GPU, float32 on a CPU.
        frame_chunk: frames that the dense heads handle at a time; 0: chosen by memory.
        memory_limit: in GiB; 0: what the device has.
        mesh: "view:8": the views of a scene are split over 8 devices, in reconstructions,
            evaluations and benchmarks; "": one device, or in evaluations all of them for as many
            scenes. See docs/reconstruct.md.
        rest: where tokens rest that dense heads read later, in reconstructions, evaluations and
            benchmarks: in the memory of the device, of the host, or (auto) of the host of a GPU
            that has no room, in evaluations of the device.
        weights: what each device of `mesh` has of the weights: "copied" all of them, "split" a part
            of the encoder's and trunk's, which come together layer by layer, in reconstructions:
            less memory against more that is sent.
    """

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    frame_chunk: int = 0
    memory_limit: float = 0.0
    mesh: str = ""
    rest: Rest = "auto"
    weights: Literal["copied", "split"] = "copied"

    @property
    def jax_dtype(self) -> Any:
        """The dtype of weights, encoder and trunk, with `auto` resolved for this device."""
        if self.dtype == "auto":
            return auto_dtype()
        return jnp.dtype(self.dtype)

    @property
    def limit(self) -> int | None:
        """Memory that may be used, in bytes; None for what the device has."""
        return int(self.memory_limit * GIB) or None
