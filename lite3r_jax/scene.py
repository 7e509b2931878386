"""One reconstructed scene on the host: cameras, depth and points, to be saved and exported."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Protocol

import jax
import numpy as np

from lite3r_jax import geometry
from lite3r_jax.errors import InputError, unknown_name

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

PointSource = Literal["depth", "head"]


class Photo(Protocol):
    """The photo behind a view, at its own size."""

    def read(self) -> "PILImage":
        """Returns the upright RGB image."""
        ...

    def upright_file(self) -> Path | None:
        """Returns a JPEG or PNG file with just these pixels, which may be copied, or None."""
        ...


@dataclass(frozen=True, eq=False)
class StillPhoto:
    """A photo in memory; see `Photo`.

    Attributes:
        pixels: uint8 [H, W, 3] RGB.
    """

    pixels: np.ndarray

    def read(self) -> "PILImage":
        """Implements `Photo.read`: returns the pixels as an image."""
        from PIL import Image

        return Image.fromarray(self.pixels)

    def upright_file(self) -> Path | None:
        """Implements `Photo.upright_file`: returns None, since a photo in memory has no file."""
        return None


UNITS: Mapping[str, str] = MappingProxyType(
    {
        "model": "the model's own, not meters",
        "meter": "meters, as the model estimates them",
        "known cameras": "that of the known cameras",
    }
)
"""Units of length of a scene -> the words that files have for them."""


@dataclass(frozen=True, eq=False)
class TrackedPoints:
    """N 3D points that several views see, with M observations in the views, ordered by point.

    Attributes:
        points: float32 [N, 3] in the world of the scene.
        colors: uint8 [N, 3] RGB.
        errors: float32 [N], mean distance from observations to the point in pixels of the photos.
        track: int32 [M], the point of each observation; each point has two or more.
        view: int32 [M], the view, at most once for a point.
        pixel: float32 [M, 2], (u, v) in `Scene.images`, centers at integers.
    """

    points: np.ndarray
    colors: np.ndarray
    errors: np.ndarray
    track: np.ndarray
    view: np.ndarray
    pixel: np.ndarray

    def __len__(self) -> int:
        return len(self.points)

    @property
    def mean_length(self) -> float:
        """Mean number of observations of a point."""
        return len(self.track) / max(len(self), 1)


@dataclass(frozen=True, eq=False)
class PredictedGeometry:
    """Cameras and depth of a scene as a model predicted them, before they were refined.

    Attributes:
        extrinsics: as in `Scene`.
        intrinsics: as in `Scene`.
        depth: as in `Scene`.
    """

    extrinsics: np.ndarray
    intrinsics: np.ndarray
    depth: np.ndarray


@dataclass(frozen=True, eq=False)
class PhotoLenses:
    """Lenses of the original photos of a scene that holds undistorted (pinhole) images.

    Attributes:
        intrinsics: float64 [S, 3, 3] in pixels of the photos, centers at integers; fx is fy.
        radial: float64 [S], k of COLMAP's SIMPLE_RADIAL; 0 for a pinhole.
    """

    intrinsics: np.ndarray
    radial: np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class Scene:
    """Cameras, depth and points of S views as NumPy arrays.

    The world frame is the camera frame of the first view, as far as the model learned it; `unit`
    says which length is 1. With known cameras both are theirs. Cameras follow OpenCV: x right, y
    down, z forward. A pixel (u, v) has its center at integers: (0, 0) is the center of the first
    pixel, so an image reaches from -0.5 to W - 0.5.

    Attributes:
        names: of the views: relative file names with "/" between folders, each different.
        images: uint8 [S, H, W, 3] RGB, at the size that the network saw.
        depth: float32 [S, H, W], z in the camera frame.
        depth_conf: float32 [S, H, W], larger is surer; VGGT's is 1 and more,
            that of pi^3 from 0 to 1.
        extrinsics: float32 [S, 3, 4] world-to-camera [R | t].
        intrinsics: float32 [S, 3, 3] in pixels of `images`.
        boxes: float32 [S, 4], edges (x1, y1, x2, y2) of the whole upright photo in `images`,
            measured from the outer corner of the first pixel (which covers 0..1); what is cropped
            away lies outside of the image.
        source_sizes: int [S, 2], (width, height) of the upright photos in pixels.
        world_points: float32 [S, H, W, 3] of the model's point head; None without one.
        world_points_conf: float32 [S, H, W]; None without one.
        unit: of all lengths, one of `UNITS`.
        photos: the photos themselves, or empty where they are not at hand.
        tracks: points that several views see, of a refined scene; None without.
        predicted: cameras and depth before they were refined; None where they are as predicted.
        lenses: of the photos before radial distortion was taken out of them, which images, depth
            and `photos` are without; None where it was not. `predicted` is of the images before.
    """

    names: tuple[str, ...]
    images: np.ndarray
    depth: np.ndarray
    depth_conf: np.ndarray
    extrinsics: np.ndarray
    intrinsics: np.ndarray
    boxes: np.ndarray
    source_sizes: np.ndarray
    world_points: np.ndarray | None = None
    world_points_conf: np.ndarray | None = None
    unit: str = "model"
    photos: tuple[Photo, ...] = ()
    tracks: TrackedPoints | None = None
    predicted: PredictedGeometry | None = None
    lenses: PhotoLenses | None = None

    def __post_init__(self):
        check_names(self.names)
        if self.unit not in UNITS:
            raise unknown_name("scene: unit", str(self.unit), UNITS)
        s = len(self.names)
        h, w = self.images.shape[1:3] if self.images.ndim == 4 else (0, 0)
        maps = (s, h, w)
        wanted = {
            "images": ((*maps, 3), np.uint8),
            "depth": (maps, np.float32),
            "depth_conf": (maps, np.float32),
            "extrinsics": ((s, 3, 4), np.float32),
            "intrinsics": ((s, 3, 3), np.float32),
            "boxes": ((s, 4), np.float32),
            "source_sizes": ((s, 2), np.integer),
            "world_points": ((*maps, 3), np.float32),
            "world_points_conf": (maps, np.float32),
        }
        for name, (shape, kind) in wanted.items():
            array: np.ndarray | None = getattr(self, name)
            if array is not None or not name.startswith("world_points"):
                _check(name, array, shape, kind, f" for {s} views")
        if 0 in self.images.shape:
            raise InputError("scene: there is no view; at least one is needed")
        if self.predicted is not None:
            for name in ("extrinsics", "intrinsics", "depth"):
                _check(f"predicted {name}", getattr(self.predicted, name), *wanted[name])
        if self.tracks is not None:
            _check_tracks(self.tracks, s)
        if self.lenses is not None:
            _check("lenses.intrinsics", self.lenses.intrinsics, (s, 3, 3), np.float64)
            _check("lenses.radial", self.lenses.radial, (s,), np.float64)
        if (self.tracks is None) != (self.predicted is None):
            raise InputError("scene: tracks and predicted go together; give both or neither")
        if self.photos and len(self.photos) != s:
            raise InputError(f"scene: {len(self.photos)} photos for {s} views")

    def __repr__(self) -> str:
        """Returns five lines for people: views, depth, confidence, cameras, points."""
        (h, w), inside = self.size, self.inside()
        names = ", ".join(self.names[:3]) + (", ..." if self.views > 3 else "")
        focal = self.intrinsics[:, 0, 0].astype(np.float64)
        with np.errstate(all="ignore"):
            fields = np.degrees(2 * np.arctan(w / 2 / focal))
            steps = np.linalg.norm(np.diff(self.camera_to_world[..., 3], axis=0), axis=-1)
        of_head = "" if self.world_points is None else ", and of the point head"
        return "\n".join(
            [
                f"Scene of {self.views} views, {w} x {h} pixels: {names}",
                f"  depth       {_spread(self.depth[inside])}",
                f"  confidence  {_spread(self.depth_conf[inside])}",
                f"  cameras     {_spread(fields)} degrees wide; {steps.sum():.4g} end to end",
                f"  points      {int(inside.sum()):,} of the depth maps{of_head}",
            ]
        )

    @property
    def views(self) -> int:
        """Number of views."""
        return len(self.names)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of `images` in pixels."""
        return self.images.shape[1], self.images.shape[2]

    @cached_property
    def source_intrinsics(self) -> np.ndarray:
        """float64 [S, 3, 3]: intrinsics in pixels of the upright photos, centers at integers."""
        x1, y1, x2, y2 = np.moveaxis(self.boxes.astype(np.float64), -1, 0)
        scale = self.source_sizes / np.stack([x2 - x1, y2 - y1], -1)
        origin = np.stack([x1, y1], -1)
        k = self.intrinsics.astype(np.float64)
        k[:, :2, :2] *= scale[..., None]
        k[:, :2, 2] = (k[:, :2, 2] + 0.5 - origin) * scale - 0.5
        return k

    @cached_property
    def camera_to_world(self) -> np.ndarray:
        """float64 [S, 3, 4]: camera-to-world [R | c]; c is the center of the camera."""
        rotation = self.extrinsics[..., :3].astype(np.float64).swapaxes(-1, -2)
        center = -rotation @ self.extrinsics[..., 3:].astype(np.float64)
        return np.concatenate([rotation, center], -1)

    def inside(self) -> np.ndarray:
        """Returns bool [S, H, W]: pixels whose center lies on the photo, not on added borders."""
        h, w = self.size
        x, y = np.arange(w) + 0.5, np.arange(h) + 0.5
        x1, y1, x2, y2 = (edge[:, None] for edge in np.moveaxis(self.boxes, -1, 0))
        columns, rows = (x > x1) & (x < x2), (y > y1) & (y < y2)
        return rows[:, :, None] & columns[:, None, :]

    def points(self, source: PointSource = "depth") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns a world point for every pixel, with its confidence and validity.

        Args:
            source: "depth": the depth maps unprojected with the cameras, which VGGT's authors
                found to be the more accurate; "head": the point head's own.

        Returns:
            (points float32 [S, H, W, 3], confidence float32 [S, H, W], valid bool [S, H, W]:
            on the photo, finite, and in front of the camera).

        Raises:
            InputError: there is no point head.
        """
        if source == "head":
            if self.world_points is None or self.world_points_conf is None:
                raise InputError(
                    "points: this scene has none of a point head; use those of the depth maps"
                    " (points.source=depth)"
                )
            points, conf, valid = self.world_points, self.world_points_conf, self.inside()
        elif source == "depth":
            points = np.empty((*self.depth.shape, 3), np.float32)
            valid = self.inside()
            for s in range(self.views):  # view by view: memory
                world, _, mask = _unproject(self.depth[s], self.extrinsics[s], self.intrinsics[s])
                points[s] = world
                valid[s] &= np.asarray(mask)
            conf = self.depth_conf
        else:
            raise InputError(f"points.source: expected depth or head, got {source!r}")
        return points, conf, valid & np.isfinite(points).all(-1) & np.isfinite(conf)


def _check(
    name: str, array: np.ndarray | None, shape: tuple[int, ...], kind: type, whose: str = ""
) -> None:
    if array is None or array.shape != shape or not np.issubdtype(array.dtype, kind):
        actual = "missing" if array is None else f"{array.dtype} {list(array.shape)}"
        raise InputError(
            f"scene: {name} is {actual}, expected {kind.__name__} {list(shape)}{whose}"
        )


def _check_tracks(tracks: TrackedPoints, views: int) -> None:
    n, m = len(tracks.points), len(tracks.track)
    wanted = {
        "points": ((n, 3), np.float32),
        "colors": ((n, 3), np.uint8),
        "errors": ((n,), np.float32),
        "track": ((m,), np.integer),
        "view": ((m,), np.integer),
        "pixel": ((m, 2), np.float32),
    }
    for name, (shape, kind) in wanted.items():
        _check(f"tracks.{name}", getattr(tracks, name), shape, kind)
    track, view = tracks.track.astype(np.int64), tracks.view.astype(np.int64)
    if n and m and not (track.min() >= 0 and track.max() < n):
        raise InputError(f"scene: tracks.track names points beyond the {n} that there are")
    if m and not (view.min() >= 0 and view.max() < views):
        raise InputError(f"scene: tracks.view names views beyond the {views} that there are")
    order = track * views + view
    if (np.diff(order) <= 0).any() or (np.bincount(track, minlength=n) < 2).any():
        raise InputError(
            "scene: tracks are not ordered by point, then view, with two or more views for each"
            " point and none twice; write the file again"
        )


_unproject = jax.jit(geometry.unproject_to_world)  # operation by operation it compiles for seconds


def _spread(values: np.ndarray) -> str:
    """Describes finite values in words: least, largest and median."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return "nothing finite"
    return f"{finite.min():.4g} to {finite.max():.4g}, median {np.median(finite):.4g}"


# What file systems reserve, and halves of characters, which no file format can hold.
_RESERVED = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\\ud800-\udfff]')


def check_names(names: tuple[str, ...]) -> None:
    """Refuse names of views that could not all be files inside one folder.

    Raises:
        InputError: a name that is empty, absolute, leads out of the folder, has characters that
            file systems reserve, or equals another one up to case.
    """
    seen: dict[str, str] = {}
    for name in names:
        path = PurePosixPath(name)
        if (
            not name
            or path.is_absolute()
            or str(path) != name
            or not path.parts
            or ".." in path.parts
            or _RESERVED.search(name)
        ):
            raise InputError(
                f"{name!r}: is not a usable name of a view; expected a relative file name that"
                ' stays inside its folder, without < > : " | ? * \\ and characters that cannot be'
                " printed; rename the photo"
            )
        key = name.casefold()
        if key in seen:
            raise InputError(
                f"{seen[key]!r} and {name!r}: two views have the same name; rename one photo"
            )
        seen[key] = name
