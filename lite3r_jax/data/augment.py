"""Random augmentation of training samples: color, blur, crops, mirroring and order of views.

Images are changed as 8-bit pictures by Pillow, so that values stay multiples of 1/255 as they are
in photos; cameras, where they are known, follow every change of geometry exactly. Each function
returns a new sample, and takes views without cameras as well.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from lite3r_jax.data.sampling import Uniform
from lite3r_jax.data.transforms import Box, fit_depth, fit_image, fit_intrinsics
from lite3r_jax.data.views import Sample, V
from lite3r_jax.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

Place = Literal["center", "random"]

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
# NTSC's two axes of color (FCC 47 CFR 73.682) under the luma above
_YIQ = np.array([_LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_YIQ[1:] -= _YIQ[1:].mean(-1, keepdims=True)  # so that gray has exactly no color


@dataclass(frozen=True)
class Augmentation:
    """Options of the random augmentation of samples; the defaults change nothing, bit for bit.

    Attributes:
        jitter: probability that brightness, contrast, saturation and hue of a view are changed.
        brightness: values are multiplied by 1 - this to 1 + this; 0 to 1.
        contrast: the same for the distance of values from the view's mean luma; 0 to 1.
        saturation: the same for the distance of values from their own luma; 0 to 1.
        hue: colors are turned by up to this part of the color circle, either way; 0 to 0.5.
        gray: probability that a view loses its color.
        blur: probability that a view is blurred.
        sigma: largest standard deviation of the blur in pixels.
        shared: probability that all views of a sample get the same colors and blur.
        channels: probability that red, green and blue are permuted, alike in all views.
        crop: smallest box that is cut out of a view and brought to the size of the sample, as a
            part of its sides; 1 cuts nothing. Views are read larger by 1 / `crop`, see `read_size`,
            so that pixels are not magnified.
        aspect: largest stretch of one axis of the box against the other; 1 for none.
        place: where the box is. "center" keeps the principal point where it was, relative to the
            image; models whose cameras have it in the middle (VGGT) cannot learn from "random".
        mirror: probability that the scene is mirrored, left to right in every view.
        shuffle: whether the order of the views is random, and so the reference view.
    """

    jitter: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    gray: float = 0.0
    blur: float = 0.0
    sigma: float = 2.0
    shared: float = 0.0
    channels: float = 0.0
    crop: float = 1.0
    aspect: float = 1.0
    place: Place = "center"
    mirror: float = 0.0
    shuffle: bool = False

    def __post_init__(self):
        limits = {"hue": (0, 0.5), "sigma": (0, 100), "crop": (0.1, 1), "aspect": (1, 4)}
        for field in fields(self):
            value, (low, high) = getattr(self, field.name), limits.get(field.name, (0, 1))
            if field.type is float and not low <= value <= high:
                raise InputError(
                    f"augmentation.{field.name}: expected {low} to {high}, got {value}"
                )
        if self.place not in get_args(Place):
            raise InputError(
                f"augmentation.place: expected {' or '.join(get_args(Place))}, got {self.place!r}"
            )

    def read_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the (height, width) at which views are read to give samples of `size`."""
        return math.ceil(size[0] / self.crop), math.ceil(size[1] / self.crop)

    @property
    def crops(self) -> bool:
        """Whether the options crop or stretch views."""
        return self.crop < 1 or self.aspect > 1

    @property
    def recolors(self) -> bool:
        """Whether the options change the colors of images or blur them."""
        moved = max(self.brightness, self.contrast, self.saturation, self.hue)
        return bool(self.jitter and moved) or max(self.gray, self.blur, self.channels) > 0


@dataclass(frozen=True)
class Look:
    """Changes of color and blur of one view; the defaults change nothing.

    Attributes:
        brightness: factor of the values, see `Augmentation`.
        contrast: factor of their distance from the view's mean luma.
        saturation: factor of their distance from their own luma; 0 is gray.
        hue: rotation of colors, as a part of a full turn.
        sigma: standard deviation of the blur in pixels; 0 for none.
        channels: which channel is put first, second and third.
    """

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    sigma: float = 0.0
    channels: tuple[int, ...] = (0, 1, 2)


def augment(
    sample: V, options: Augmentation, uniform: Uniform, size: tuple[int, int] | None = None
) -> V:
    """Returns the sample with random changes drawn from `uniform`.

    The result is a function of the sample, the options and where `uniform` starts.

    Args:
        sample: read at `options.read_size(size)`.
        options: what may happen.
        uniform: random numbers.
        size: (height, width) of the result; None: that of the sample.
    """
    size = size or sample.size
    if options.shuffle:
        sample = take_views(sample, uniform.shuffled(range(sample.views)))
    if options.crops or size != sample.size:
        boxes = [_draw_box(options, sample.size, uniform) for _ in sample.frames]
        sample = crop_views(sample, boxes, size)
    if uniform() < options.mirror:
        sample = mirror(sample)
    if options.recolors:
        sample = recolor(sample, _draw_looks(options, sample.views, uniform))
    return sample


def take_views(sample: V, order: Sequence[int]) -> V:
    """Returns the sample with its views at the indices `order`, in that order."""
    at, truth = list(order), {}
    if isinstance(sample, Sample):
        truth = {
            "extrinsics": sample.extrinsics[at],
            "intrinsics": sample.intrinsics[at],
            "depth": None if sample.depth is None else sample.depth[at],
            "mask": None if sample.mask is None else sample.mask[at],
        }
    frames = tuple(sample.frames[i] for i in at)
    return replace(sample, frames=frames, images=sample.images[at], **truth)


def mirror(sample: V) -> V:
    """Mirrors a scene left to right: x becomes -x in the world and in every camera.

    With M = diag(-1, 1, 1), a point M p is seen by the camera M [R | t] diag(M, 1) at the pixel
    (W - 1 - u, v) where [R | t] sees p at (u, v). Depth stays what it is.
    """

    def turned(maps: np.ndarray | None) -> Any:
        return None if maps is None else np.ascontiguousarray(maps[:, :, ::-1])

    truth = {}
    if isinstance(sample, Sample):
        extrinsics, intrinsics = sample.extrinsics.copy(), sample.intrinsics.copy()
        extrinsics[:, 0] *= -1
        extrinsics[:, :, 0] *= -1
        intrinsics[:, 0, 2] = sample.size[1] - 1 - intrinsics[:, 0, 2]
        truth = {
            "extrinsics": extrinsics,
            "intrinsics": intrinsics,
            "depth": turned(sample.depth),
            "mask": turned(sample.mask),
        }
    return replace(sample, images=turned(sample.images), **truth)


def crop_views(sample: V, boxes: Sequence[Box], size: tuple[int, int]) -> V:
    """Crops a box from each view and resizes all views to one size; cameras and depth follow.

    Args:
        sample: any.
        boxes: one for each view, inside of its image; see `data.transforms`.
        size: (height, width).
    """
    images = [_picture(image) for image in sample.images]
    images = np.stack([fit_image(i, b, size) for i, b in zip(images, boxes, strict=True)])
    truth = {}
    if isinstance(sample, Sample):
        cameras = zip(sample.intrinsics, boxes, strict=True)
        fitted = np.stack([fit_intrinsics(k, b, size) for k, b in cameras]).astype(np.float32)
        truth: dict[str, Any] = {"intrinsics": fitted}
        if sample.depth is not None:
            maps = zip(sample.depth, boxes, strict=True)
            depth = np.stack([fit_depth(view, box, size) for view, box in maps])
            truth |= {"depth": depth, "mask": depth > 0}
    return replace(sample, images=images, **truth)


def recolor(sample: V, looks: Sequence[Look]) -> V:
    """Changes the colors of each view by its `Look`; `Look()` leaves a view as is, bit for bit."""
    images = sample.images.copy()
    for view, look in enumerate(looks):
        if look != Look():
            picture = _recolored(_picture(images[view]), look)
            np.divide(np.asarray(picture), np.float32(255), out=images[view])
    return replace(sample, images=images)


def _draw_box(options: Augmentation, size: tuple[int, int], uniform: Uniform) -> Box:
    part = uniform.between(options.crop, 1)
    stretch = options.aspect ** uniform.between(-1, 1)
    height, width = size[0] * part * min(1, 1 / stretch), size[1] * part * min(1, stretch)
    down, right = uniform(), uniform()
    if options.place == "center":
        down = right = 0.5
    y, x = down * (size[0] - height), right * (size[1] - width)
    return x, y, min(x + width, size[1]), min(y + height, size[0])  # min: sums may round up


def _draw_looks(options: Augmentation, views: int, uniform: Uniform) -> list[Look]:
    channels = uniform.shuffled(range(3)) if uniform() < options.channels else (0, 1, 2)
    shared = uniform() < options.shared
    looks = [_draw_look(options, channels, uniform) for _ in range(1 if shared else views)]
    return looks * views if shared else looks


def _draw_look(options: Augmentation, channels: tuple[int, ...], uniform: Uniform) -> Look:
    jitter = uniform() < options.jitter
    reaches = options.brightness, options.contrast, options.saturation, options.hue
    moves = [uniform.between(-reach, reach) * jitter for reach in reaches]
    gray, blurred, part = uniform() < options.gray, uniform() < options.blur, uniform()
    return Look(
        brightness=1 + moves[0],
        contrast=1 + moves[1],
        saturation=0.0 if gray else 1 + moves[2],
        hue=moves[3],
        sigma=options.sigma * part if blurred else 0.0,
        channels=channels,
    )


def _picture(image: np.ndarray) -> "PILImage":
    from PIL import Image

    return Image.fromarray(np.rint(image * np.float32(255)).astype(np.uint8))


def _recolored(picture: "PILImage", look: Look) -> "PILImage":
    """Blurs, then applies all color changes as one affine map (each is one), clipping only once."""
    from PIL import ImageFilter

    if look.sigma:
        picture = picture.filter(ImageFilter.GaussianBlur(look.sigma))
    turn = 2 * math.pi * look.hue
    rotation = np.eye(3)
    rotation[1:, 1:] = [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
    color = look.saturation * np.eye(3) + (1 - look.saturation) * _LUMA
    color = np.linalg.solve(_YIQ, rotation @ _YIQ) @ color
    # gray is a fixed point of both, so the offset of the contrast passes through unchanged
    matrix = np.empty((3, 4))
    matrix[:, :3] = look.brightness * look.contrast * color
    matrix[:, 3] = look.brightness * (1 - look.contrast) * _mean_luma(picture)
    return picture.convert("RGB", tuple(matrix[list(look.channels)].ravel().tolist()))


def _mean_luma(picture: "PILImage") -> float:
    """Returns the mean luma of an RGB picture, 0 to 255."""
    counts = np.reshape(picture.histogram(), (3, 256))
    return float(_LUMA @ (counts @ np.arange(256)) / (picture.width * picture.height))
