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
from lite3r_jax.data.known_cameras import KnownCameras, network_intrinsics, read_known_cameras
from lite3r_jax.data.photos import PhotoSet, find_scenes, load_photos
from lite3r_jax.data.video import VideoOptions
from lite3r_jax.errors import InputError
from lite3r_jax.infer.alignment import World, align, misfit
from lite3r_jax.infer.cameras import CameraOptions
from lite3r_jax.infer.memory import GIB, Forward, MemoryPlan
from lite3r_jax.infer.progress import Progress
from lite3r_jax.scene import Scene, check_names

if TYPE_CHECKING:
    from lite3r_jax.data.images import Source

    Cameras = tuple[np.ndarray, np.ndarray]  # extrinsics, intrinsics
    Photos = str | os.PathLike[str] | np.ndarray | Sequence[Source]


@dataclass(frozen=True)
class ImageOptions:
    """How photos become network images.

    Attributes:
        mode: crop, pad, square, or the ways of Depth Anything 3, upper_bound_resize and so on; see
            `data.images.fit_image`.
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
    cameras: CameraOptions | None = None,
    known: KnownCameras | None = None,
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
        cameras: known cameras by their file, and choices of how others are found; None: the
            model's own.
        known: known cameras, for instance of `data.known_cameras.known_cameras`; None: those of
            `cameras`, if it names some.
        compute: `frame_chunk` and `memory_limit`; the dtype is the model's.
        progress: whether to draw progress bars.

    Returns:
        The scene; conventions and units are in the docstring of `Scene`.

    Raises:
        InputError: a photo or video cannot be read, the source holds several scenes, memory does
            not suffice, known cameras are none or do not fit the photos, the model cannot do what
            was asked for, or it gives cameras that are not finite.
    """
    scenes = find_photos(source, images=images, video=video)
    if len(scenes) != 1:
        names = ", ".join(scene.name for scene in scenes[:5])
        raise InputError(
            f"{source}: holds {len(scenes)} scenes ({names}); reconstruct them one by one"
        )
    if known is None and cameras is not None:
        known = cameras.read(scenes)
    reconstructor = Reconstructor(
        model, images=images, cameras=cameras, known=known, compute=compute
    )
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
        alignment: with known cameras, how the prediction of the last scene fits them: what their
            unit is in the model's, the median angle between their axes and the median distance
            of their centres (in their unit) after alignment; None without.
    """

    def __init__(
        self,
        model: nnx.Module,
        *,
        images: ImageOptions = ImageOptions(),
        cameras: CameraOptions | None = None,
        known: KnownCameras | None = None,
        compute: ComputeOptions = ComputeOptions(),
    ):
        """See `reconstruct`.

        Args:
            model: likewise.
            images: likewise.
            cameras: likewise; what it says about known cameras counts for those in `known`.
            known: cameras of the photos of every scene that will come; None: those of `cameras`,
                if it names some.
            compute: likewise.

        Raises:
            InputError: the model has no camera or no depth head, or cannot do what was asked for.
        """
        missing = sorted({"camera", "depth"} - set(getattr(model, "heads", ())))
        if missing:
            raise InputError(
                "heads: a scene needs camera and depth, this model is without"
                f" {' and '.join(missing)}; load it with them"
            )
        cameras = cameras or CameraOptions()
        if known is None and cameras.known:
            known = read_known_cameras(cameras.known)
        self.plan: MemoryPlan | None = None
        self.alignment: dict[str, Any] | None = None
        self._images = images
        self._known = known
        self._world: World = cameras.world
        self._chunk = compute.frame_chunk or None
        # what the model wants of known cameras, which differs from model to model
        self._normalise = getattr(model, "normalise_cameras", None)
        arguments = cameras.arguments(model, known is not None)
        side = "width"
        if images.mode.startswith(("upper", "lower")):
            side = "longer" if images.mode.startswith("upper") else "shorter"
        self._forward = Forward(
            model,
            compute.limit,
            known=known is not None,
            arguments=arguments,
            side=side,
        )

    def __call__(self, photos: PhotoSet, progress: Progress | None = None) -> Scene:
        """Reconstruct one scene.

        Args:
            photos: from `data.photos.find_scenes`.
            progress: takes the time of every stage; None: nothing is shown.

        Raises:
            InputError: as `reconstruct`.
        """
        options, count = self._images, len(photos.photos)
        known = None if self._known is None else self._known.of(photos.photos)
        progress = progress or Progress(show=False)
        with progress.stage("load photos", count, "photo") as tick:
            images, boxes = load_photos(
                photos.photos,
                options.mode,
                options.size,
                progress=tick,
            )
        views, height, width = images.shape[:3]
        if known is None:
            given = None
        else:
            extrinsics, intrinsics = known.matrices(photos.photos, boxes[:, 4:].astype(int))
            given = extrinsics, network_intrinsics(intrinsics, boxes, (height, width))
        with progress.stage("compile"):
            self.plan = self._forward.plan(views, height, width, self._chunk)
        with progress.stage("run"):
            prediction = self._forward(images[None], self.plan, self._prepared(given))
        if given is not None:
            prediction = self._aligned(prediction, given, photos)
        return to_scene(prediction, images, boxes, photos)

    def _prepared(self, given: "Cameras | None") -> tuple[np.ndarray, ...]:
        """Known cameras as the model takes them."""
        if given is None:
            return ()
        extrinsics, intrinsics = given
        if self._normalise is not None:
            extrinsics = self._normalise(extrinsics)
        return extrinsics[None].astype(np.float32), intrinsics[None].astype(np.float32)

    def _aligned(self, prediction: Prediction, given: "Cameras", photos: PhotoSet) -> Prediction:
        _check_finite(prediction, photos)
        extrinsics, intrinsics = given
        aligned, (fit,) = align(prediction, extrinsics[None], intrinsics[None], self._world)
        degrees, distances = misfit(extrinsics, np.asarray(prediction.extrinsics)[0], fit)
        assert self._known is not None
        self.alignment = {
            "known": self._known.source,
            "world": self._world,
            "scale": float(fit.scale),
            "median_rotation_degrees": float(np.median(degrees)),
            "median_distance": float(np.median(distances)),
        }
        return aligned


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
    _check_finite(host, photos)
    names = tuple(photo.name for photo in photos.photos)
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


def _check_finite(prediction: Prediction, photos: PhotoSet) -> None:
    cameras = jax.device_get((prediction.extrinsics, prediction.intrinsics))
    good = [np.isfinite(each[0]).all((-1, -2)) for each in cameras]
    for photo, finite in zip(photos.photos, good[0] & good[1], strict=True):
        if not finite:
            raise InputError(
                f"{photo.name}: the model gave a camera that is not finite; check the weights, or"
                " leave the photo out"
            )
