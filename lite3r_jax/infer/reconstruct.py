"""Photos to a scene: `reconstruct`, and `Reconstructor` for many scenes with one model."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lite3r_jax.backbones.base import Prediction
from lite3r_jax.data.images import MAX_PIXELS, Mode
from lite3r_jax.data.photos import PhotoSet, find_scenes, load_photos
from lite3r_jax.data.video import VideoOptions
from lite3r_jax.errors import InputError
from lite3r_jax.infer.memory import GIB, Forward, MemoryPlan
from lite3r_jax.infer.progress import Progress
from lite3r_jax.scene import Scene, check_names

if TYPE_CHECKING:
    from lite3r_jax.data.images import Source

    Photos = str | os.PathLike[str] | np.ndarray | Sequence[Source]


@dataclass(frozen=True)
class ImageOptions:
    """How photos become network images.

    Attributes:
        mode: crop, pad or square, see `data.images.fit_image`.
        size: network size in pixels, a multiple of 14.
        max_pixels: photos with more are refused before they are decoded.
        min_views: scenes with fewer photos are refused.
    """

    mode: Mode = "crop"
    size: int = 518
    max_pixels: int = MAX_PIXELS
    min_views: int = 1


@dataclass(frozen=True)
class ComputeOptions:
    """How the model runs.

    Attributes:
        dtype: of weights, encoder and trunk; auto: bfloat16 on a GPU, float32 on a CPU.
        frame_chunk: frames that the dense heads handle at a time; 0: chosen by memory.
        memory_limit: in GiB; 0: what the device has.
    """

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    frame_chunk: int = 0
    memory_limit: float = 0.0

    @property
    def jax_dtype(self) -> Any:
        """The dtype that was chosen."""
        if self.dtype == "auto":
            return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
        return jnp.dtype(self.dtype)

    @property
    def limit(self) -> int | None:
        """`memory_limit` in bytes; None for what the device has."""
        return int(self.memory_limit * GIB) or None


def reconstruct(
    model: nnx.Module,
    source: "Photos",
    *,
    images: ImageOptions = ImageOptions(),
    video: VideoOptions | None = None,
    compute: ComputeOptions = ComputeOptions(),
    progress: bool = False,
) -> Scene:
    """Cameras, depth and points of one scene.

    Every call compiles; use `Reconstructor` for many scenes of one size.

    Args:
        model: from `lite3r_jax.load`, with camera and depth head.
        source: a folder, a glob pattern, a video, or a list of paths, Pillow images or arrays; the
            first photo is the reference view. See `data.photos.find_scenes`.
        images: how photos become network images.
        video: which frames of a video count; None: one per second.
        compute: `frame_chunk` and `memory_limit`; the dtype is the model's.
        progress: whether to draw progress bars.

    Returns:
        The scene; conventions and units are in the docstring of `Scene`.

    Raises:
        InputError: a photo or video cannot be read, the source holds several scenes, memory does
            not suffice, or the model gives cameras that are not finite.
    """
    scenes = find_photos(source, images=images, video=video)
    if len(scenes) != 1:
        names = ", ".join(scene.name for scene in scenes[:5])
        raise InputError(
            f"{source}: holds {len(scenes)} scenes ({names}); reconstruct them one by one"
        )
    reconstructor = Reconstructor(model, images=images, compute=compute)
    return reconstructor(scenes[0], Progress(progress))


def find_photos(
    source: "Photos",
    *,
    images: ImageOptions = ImageOptions(),
    video: VideoOptions | None = None,
    progress: Callable[[], object] | None = None,
) -> list[PhotoSet]:
    """The scenes that a user means, see `data.photos.find_scenes`.

    Raises:
        InputError: as there; a file name that results cannot have.
    """
    scenes = find_scenes(
        source,
        video=video,
        max_pixels=images.max_pixels,
        min_views=images.min_views,
        progress=progress,
    )
    for scene in scenes:
        check_names(tuple(photo.name for photo in scene.photos))
    return scenes


class Reconstructor:
    """A model that reconstructs scene after scene; what was compiled for a shape is kept.

    Attributes:
        plan: memory plan of the last scene; None before it.
    """

    def __init__(
        self,
        model: nnx.Module,
        *,
        images: ImageOptions = ImageOptions(),
        compute: ComputeOptions = ComputeOptions(),
    ):
        """See `reconstruct`.

        Raises:
            InputError: the model has no camera or no depth head.
        """
        missing = sorted({"camera", "depth"} - set(getattr(model, "heads", ())))
        if missing:
            raise InputError(
                "heads: a scene needs camera and depth, this model is without"
                f" {' and '.join(missing)}; load it with them"
            )
        self.plan: MemoryPlan | None = None
        self._images = images
        self._chunk = compute.frame_chunk or None
        self._forward = Forward(model, compute.limit)

    def __call__(self, photos: PhotoSet, progress: Progress | None = None) -> Scene:
        """Reconstruct one scene.

        Args:
            photos: from `data.photos.find_scenes`.
            progress: takes the time of every stage; None: nothing is shown.

        Raises:
            InputError: as `reconstruct`.
        """
        options, count = self._images, len(photos.photos)
        progress = progress or Progress(show=False)
        with progress.stage("load photos", count, "photo") as tick:
            images, boxes = load_photos(
                photos.photos,
                options.mode,
                options.size,
                progress=tick,
            )
        views, height, width = images.shape[:3]
        with progress.stage("compile"):
            self.plan = self._forward.plan(views, height, width, self._chunk)
        with progress.stage("run"):
            prediction = self._forward(images[None], self.plan)
        return to_scene(prediction, images, boxes, photos)


def to_scene(
    prediction: Prediction, images: np.ndarray, boxes: np.ndarray, photos: PhotoSet
) -> Scene:
    """Bring the prediction of one scene to the host.

    Args:
        prediction: of a batch of one, with cameras and depth.
        images: float32 [S, H, W, 3], multiples of 1/255.
        boxes: float32 [S, 6], see `data.images.load_images_with_boxes`.
        photos: the photos, for their names.

    Raises:
        InputError: a camera is not finite.
    """
    host = jax.device_get(prediction)
    names = tuple(photo.name for photo in photos.photos)
    for name, extrinsics, intrinsics in zip(
        names, host.extrinsics[0], host.intrinsics[0], strict=True
    ):
        if not (np.isfinite(extrinsics).all() and np.isfinite(intrinsics).all()):
            raise InputError(
                f"{name}: the model gave a camera that is not finite; check the weights, or leave"
                " the photo out"
            )
    points = host.world_points is not None
    return Scene(
        names=names,
        images=np.rint(images * 255).astype(np.uint8),
        depth=host.depth[0, ..., 0],
        depth_conf=host.depth_conf[0],
        extrinsics=host.extrinsics[0],
        intrinsics=host.intrinsics[0],
        boxes=boxes[:, :4],
        source_sizes=boxes[:, 4:].astype(np.int64),
        world_points=host.world_points[0] if points else None,
        world_points_conf=host.world_points_conf[0] if points else None,
        photos=photos.photos,
    )
