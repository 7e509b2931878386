"""Reconstructs scenes from photos: `reconstruct` once, `Reconstructor` for many scenes."""

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jax
import numpy as np

from lite3r_jax.backbones.base import Prediction
from lite3r_jax.data.images import Mode
from lite3r_jax.data.known_cameras import KnownCameras, network_intrinsics, read_known_cameras
from lite3r_jax.data.photos import PhotoSet, find_scenes, load_photos
from lite3r_jax.data.video import VideoOptions
from lite3r_jax.errors import InputError
from lite3r_jax.exports.masks import left_out, parse_masks
from lite3r_jax.exports.points import PointOptions
from lite3r_jax.infer.alignment import World, align, misfit
from lite3r_jax.infer.cameras import CameraOptions
from lite3r_jax.infer.expected_time import ExpectedTime
from lite3r_jax.infer.kept_prediction import kept_prediction
from lite3r_jax.infer.memory import Forward, MemoryPlan
from lite3r_jax.infer.options import ComputeOptions, ImageOptions
from lite3r_jax.infer.point_tracker import ModelTracker, check_track_head
from lite3r_jax.infer.sharing import without_values
from lite3r_jax.mesh import fetch_views, make_view_mesh
from lite3r_jax.processes import all_ready
from lite3r_jax.progress import Progress
from lite3r_jax.refine import RefineOptions, check_extra
from lite3r_jax.refine import refine as refine_scene
from lite3r_jax.scene import Scene, check_names

if TYPE_CHECKING:
    from lite3r_jax.data.images import Source

    Cameras = tuple[np.ndarray, np.ndarray]  # extrinsics, intrinsics
    Photos = str | os.PathLike[str] | np.ndarray | Sequence[Source]

_log = logging.getLogger(__name__)


def reconstruct(
    model: Any,
    source: "Photos",
    *,
    images: ImageOptions = ImageOptions(),
    video: VideoOptions | None = None,
    cameras: CameraOptions | None = None,
    known: KnownCameras | None = None,
    compute: ComputeOptions = ComputeOptions(),
    refine: RefineOptions | None = None,
    masks: PointOptions | None = None,
    progress: bool = True,
) -> Scene:
    """Reconstructs cameras, depth and points of one scene.

    Every call compiles; use `Reconstructor` for many scenes of one size.

    Args:
        model: from `lite3r_jax.load`, with camera and depth head.
        source: a folder, a glob pattern, a video, or a list of paths, Pillow images or arrays; the
            first photo is the reference view. See `data.photos.find_scenes`.
        images: how photos become network images; the default is what the model was made for, and
            other images get a note on stderr.
        video: which frames of a video count; None: one per second.
        cameras: known cameras by their file, and choices of how others are found; None: the
            model's own.
        known: known cameras, for instance of `data.known_cameras.known_cameras`; None: those of
            `cameras`, if it names some.
        compute: `frame_chunk`, `memory_limit`, `mesh` and `rest`; the dtype is the model's.
        refine: how cameras are adjusted to matches between the photos, see `refine.refine`; None:
            they stay as predicted.
        masks: whose `mask` and `mask_folder` say what gives no matches; None: nothing.
        progress: whether stages are shown on stderr: bars on a terminal, elsewhere a line every
            half minute.

    Returns:
        The scene; conventions and units are in the docstring of `Scene`.

    Raises:
        InputError: a photo or video cannot be read, the source holds several scenes, memory does
            not suffice, known cameras are none or do not fit the photos, the model cannot do what
            was asked for, or it gives cameras that are not finite.
    """
    if video is not None and video.chunk:
        raise InputError(
            f"video.chunk={video.chunk}: a scene in memory has one pass; use reconstruct_files,"
            " which writes chunks as they are done"
        )
    shown = Progress(progress)
    with shown.stage("find photos") as tick:
        scenes = find_photos(source, images=images, video=video, progress=tick)
    if len(scenes) != 1:
        names = ", ".join(scene.name for scene in scenes[:5])
        raise InputError(
            f"{source}: holds {len(scenes)} scenes ({names}); reconstruct them one by one"
        )
    if known is None and cameras is not None:
        known = cameras.read(scenes)
    reconstructor = Reconstructor(
        model, images=images, cameras=cameras, known=known, compute=compute, refine=refine
    )
    return reconstructor(scenes[0], shown, masks)


def find_photos(
    source: "Photos",
    *,
    images: ImageOptions = ImageOptions(),
    video: VideoOptions | None = None,
    progress: Callable[[], object] | None = None,
) -> list[PhotoSet]:
    """Finds the scenes of a source and checks their file names, see `data.photos.find_scenes`.

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
    """Reconstructs scene after scene with one model; programs compiled for a shape are kept.

    Attributes:
        plan: memory plan of the last scene; None before it, and where its prediction was kept.
        alignment: with known cameras, how the prediction of the last scene fits them: what their
            unit is in the model's, the median angle between their axes and the median distance
            of their centers (in their unit) after alignment; None without.
        refinement: what refining the last scene did, see `refine.Refined`; None without.
        descriptors: float32 [S, D] of the views of the last scene, made of the model's tokens, if
            these were asked for and the model says which (`Backbone.view_tokens`); else None.
    """

    def __init__(
        self,
        model: Any,
        *,
        images: ImageOptions = ImageOptions(),
        cameras: CameraOptions | None = None,
        known: KnownCameras | None = None,
        compute: ComputeOptions = ComputeOptions(),
        refine: RefineOptions | None = None,
        descriptors: bool = False,
    ):
        """Takes the model and the options of all scenes, with the meanings of `reconstruct`.

        Args:
            model: likewise.
            images: likewise.
            cameras: likewise; what it says about known cameras counts for those in `known`.
            known: cameras of the photos of every scene that will come; None: those of `cameras`,
                if it names some.
            compute: likewise.
            refine: likewise.
            descriptors: whether views are described as well.

        Raises:
            InputError: the model has no camera or no depth head, or cannot do what was asked for.
        """
        missing = sorted({"camera", "depth"} - set(model.heads))
        if missing:
            raise InputError(
                "heads: a scene needs camera and depth, this model is without"
                f" {' and '.join(missing)}; load it with them"
            )
        if refine is not None:
            check_extra()
            check_track_head(refine, model.heads)
        self._refine = refine
        self._tracker: ModelTracker | None = None
        if refine is not None and refine.matches == "track":
            self._tracker = ModelTracker(model)
        self.refinement: Mapping[str, Any] | None = None
        cameras = cameras or CameraOptions()
        if known is None and cameras.known:
            known = read_known_cameras(cameras.known)
        self.plan: MemoryPlan | None = None
        self._attention = model.plan, model.sites
        self.alignment: dict[str, Any] | None = None
        self.descriptors: np.ndarray | None = None
        self._tokens = model.view_tokens if descriptors else ""
        self._images = images.of(model)
        self._note = images.unlike(model)  # for the first scene that fits
        self._known = known
        self._world: World = cameras.world
        self._chunk = compute.frame_chunk or None
        self._normalize = model.normalize_cameras
        self._expected = ExpectedTime(without_values(model))
        self._compiling: float | None = None  # seconds that it took at most
        arguments = cameras.arguments(model, known is not None)
        mode = self._images.mode
        side = "area" if mode == "pixel_limit" else "width"
        if mode.startswith(("upper", "lower")):
            side = "longer" if mode.startswith("upper") else "shorter"
        self._forward = Forward(
            model,
            compute.limit,
            known=known is not None,
            arguments=arguments,
            side=side,
            tokens=self._tokens,
            mesh=make_view_mesh(compute.mesh),
            rest=compute.rest,
            split_weights=compute.weights == "split",
        )

    def __call__(
        self,
        photos: PhotoSet,
        progress: Progress | None = None,
        masks: PointOptions | None = None,
        work: Path | None = None,
    ) -> Scene:
        """Reconstruct one scene.

        Args:
            photos: from `data.photos.find_scenes`.
            progress: takes the time of every stage; None: nothing is shown.
            masks: see `reconstruct`.
            work: see `refine.refine`; for one scene, model and settings. The prediction is kept
                there as well, and one that is there is taken in place of a pass of the model.

        Raises:
            InputError: as `reconstruct`; a kept prediction is damaged.
        """
        progress = progress or Progress(show=False)
        with all_ready():
            images, boxes, photos, known = self._load(photos, progress)
        self._warn_of_order(photos)
        scene = self.of_images(images, boxes, photos, progress, known, work)
        if self._refine is None:
            return scene
        return self._refined(scene, photos.name, progress, masks, work)

    def take_part(self, photos: Callable[[], PhotoSet]) -> None:
        """Computes a scene together with the process that reconstructs it, and keeps no result.

        Args:
            photos: opens the scene.

        Raises:
            InputError: this process or another could not prepare it.
        """
        progress = Progress(show=False)
        with all_ready():
            loaded = self._load(photos(), progress)
        self._predicted(loaded[0], self._given(*loaded), progress)

    def _load(
        self, photos: PhotoSet, progress: Progress
    ) -> tuple[np.ndarray, np.ndarray, PhotoSet, KnownCameras | None]:
        """Loads network images and their boxes, with the photos and their known cameras."""
        known = None if self._known is None else self._known.of(photos.photos)
        if known is not None:
            photos = replace(photos, photos=known.photographed(photos.photos))
        with progress.stage("load photos", len(photos.photos), "photo") as tick:
            images, boxes = load_photos(
                photos.photos,
                cast(Mode, self._images.mode),
                self._images.size,
                progress=tick,
            )
        return images, boxes, photos, known

    def of_images(
        self,
        images: np.ndarray,
        boxes: np.ndarray,
        photos: PhotoSet,
        progress: Progress | None = None,
        known: KnownCameras | None = None,
        work: Path | None = None,
    ) -> Scene:
        """Reconstructs a scene from photos that were read before, without refinement.

        Args:
            images: float32 [S, H, W, 3] in [0, 1], of `data.photos.load_photos`.
            boxes: float32 [S, 6], likewise.
            photos: the S photos; they are not read.
            progress: as for the call.
            known: cameras of these photos.
            work: folder in which the prediction is kept, see `kept_prediction`; None: nowhere.

        Raises:
            InputError: as `reconstruct`; a kept prediction is damaged.
        """
        progress = progress or Progress(show=False)
        given = self._given(images, boxes, photos, known)
        self.plan = None
        prediction = kept_prediction(work, lambda: self._predicted(images, given, progress))
        if given is not None:
            prediction = self._aligned(prediction, given, photos)
        return to_scene(prediction, images, boxes, photos)

    def _given(
        self,
        images: np.ndarray,
        boxes: np.ndarray,
        photos: PhotoSet,
        known: KnownCameras | None,
    ) -> "Cameras | None":
        """Returns extrinsics and intrinsics of the network images' known cameras, None without."""
        if known is None:
            return None
        extrinsics, intrinsics = known.matrices(photos.photos, boxes[:, 4:].astype(int))
        return extrinsics, network_intrinsics(intrinsics, boxes, images.shape[1:3])

    def _predicted(
        self, images: np.ndarray, given: "Cameras | None", progress: Progress
    ) -> Prediction:
        """Plans and runs the pass of a scene and returns the prediction on the host."""
        views, height, width = images.shape[:3]
        shape = views, height, width
        start = time.perf_counter()
        with all_ready(), progress.stage("compile", expected=self._compiling):
            self.plan = self._forward.plan(*shape, self._chunk)
        assert self.plan is not None
        self._compiling = max(self._compiling or 0.0, time.perf_counter() - start)
        if self._note:
            print(self._note, file=sys.stderr, flush=True)
            self._note = ""
        expected = self._expected.seconds(*shape) if progress.show else None
        start = time.perf_counter()
        with progress.stage("run", expected=expected):
            prediction = self._forward(images[None], self.plan, self._prepared(given))
        if self._tokens:
            prediction, described = prediction
            self.descriptors = np.asarray(described)[0]
        prediction = fetch_views(prediction, views)
        if progress.show:
            self._expected.took(time.perf_counter() - start, *shape)
        return prediction

    def _refined(
        self,
        scene: Scene,
        name: str,
        progress: Progress,
        masks: PointOptions | None,
        work: Path | None,
    ) -> Scene:
        """Refines a scene's cameras by matches; logs a warning where the prediction stays."""
        assert self._refine is not None
        steps = self._refine.rounds * scene.views
        with progress.stage("refine", steps, "view") as tick:
            refined = refine_scene(
                scene,
                self._refine,
                masked=None if masks is None else _masked(scene, masks),
                known=self._known is not None,
                progress=tick,
                tracker=None if self._tracker is None else self._tracker.of(scene.images),
                work=work,
            )
        self.refinement = refined.report
        if not refined.report["refined"]:
            reason = refined.report["reason"]
            _log.warning("%s: not refined, the prediction stays: %s", name, reason)
        return refined.scene

    def _warn_of_order(self, photos: PhotoSet) -> None:
        """Warns if attention takes neighboring photos for similar ones and no order is known."""
        plan, sites = self._attention
        specs = [plan.specs(role, n, len(photos.photos)) for role, n in sites.items()]
        names = sorted({spec.name for of in specs for spec in of if spec.views_in_order})
        if names and not photos.in_order:
            _log.warning(
                "%s: attention %s takes photos that follow one another for similar ones, and these"
                " names (%s, ...) tell no order; number the files in the order of capture, or use"
                " key_views or spark3r(choose=diverse,query_factor=1)",
                photos.name,
                " and ".join(names),
                photos.photos[0].name,
            )

    def _prepared(self, given: "Cameras | None") -> tuple[np.ndarray, ...]:
        """Converts known cameras to what the model takes: normalized, float32, a batch of one."""
        if given is None:
            return ()
        extrinsics, intrinsics = given
        extrinsics = np.asarray(self._normalize(extrinsics), np.float32)
        return extrinsics[None], intrinsics[None].astype(np.float32)

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
    """Makes a `Scene` on the host from the prediction of one scene.

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
        unit=host.unit,
        photos=photos.photos,
    )


def _masked(scene: Scene, masks: PointOptions) -> np.ndarray | None:
    """Returns the pixels that masks leave out, bool [S, H, W]; None where there are no masks."""
    kinds = parse_masks(masks.mask)
    if not (kinds or masks.mask_folder):
        return None
    points, _, valid = scene.points()
    return left_out(scene, kinds, masks.mask_folder, points, valid, "depth", {})


def _check_finite(prediction: Prediction, photos: PhotoSet) -> None:
    cameras = jax.device_get((prediction.extrinsics, prediction.intrinsics))
    good = [np.isfinite(each[0]).all((-1, -2)) for each in cameras]
    for photo, finite in zip(photos.photos, good[0] & good[1], strict=True):
        if not finite:
            raise InputError(
                f"{photo.name}: the model gave a camera that is not finite; check the weights, or"
                " leave the photo out"
            )
