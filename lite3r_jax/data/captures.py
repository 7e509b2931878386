"""Reader of a user's captures: photos with cameras from COLMAP or a transforms.json.

    ROOT/images/...  and  ROOT/sparse/0/{cameras,images}.{bin,txt}   (also ROOT/sparse or ROOT)
    ROOT/transforms.json, which names its photos and depth maps

Depth maps beside a COLMAP model are a folder of their own, in the form of `lite3r_jax.exports`:
NAME.pfm, or NAME.png with 16 bits and a depth.json. Cameras are for the photos as they are stored,
so photos that EXIF turns are refused. Photos and depth of lenses with distortion are undistorted as
they are read. Lengths are in a unit of the scene's own.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from lite3r_jax.data.colmap_model import read_colmap
from lite3r_jax.data.folders import Inventory
from lite3r_jax.data.image_file import DECODE_ERRORS
from lite3r_jax.data.images import MAX_PIXELS, read_image
from lite3r_jax.data.pfm import read_depth_pfm
from lite3r_jax.data.photos import PHOTO_SUFFIXES
from lite3r_jax.data.posed import PosedPhoto, check_upright
from lite3r_jax.data.text_file import read_text
from lite3r_jax.data.transforms import Box, Frame, check_frame, fit_frames
from lite3r_jax.data.transforms_json import read_transforms
from lite3r_jax.data.views import Sample
from lite3r_jax.errors import InputError

_DEPTH_KINDS = (".pfm", ".png")
_MODEL_PLACES = ("sparse/0", "sparse", "")


@dataclass(frozen=True)
class _DepthFile:
    path: Path
    step: float = 1.0
    box: Box | None = None  # of the photo in the map


class Capture:
    """One scene of photos with cameras and perhaps depth; implements `data.views.SceneSource`.

    Frames are numbered from 0: those of a transforms.json in its order, those of a COLMAP model by
    name, img2 before img10.

    Attributes:
        scenes: one name, that of the folder.
        model: what the cameras were read from.
        photos: the photos that have cameras.
        unposed: names of photos in the same folders without cameras; COLMAP leaves some out.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        model: str | os.PathLike[str] | None = None,
        images: str | os.PathLike[str] | None = None,
        depth: str | os.PathLike[str] | None = None,
    ):
        """Reads the cameras; photos and depth are read only on demand.

        Args:
            root: the folder.
            model: folder of a COLMAP model, or a transforms.json; None: the one below `root`.
            images: folder that the names of a COLMAP model belong to; None: `root`/images, or
                `root` if there is none.
            depth: folder of depth maps for a COLMAP model; None: without depth.

        Raises:
            InputError: no folder, no model or several, and whatever is wrong with it.
        """
        self.root = Path(root)
        if not os.path.isdir(self.root):
            raise InputError(f"{self.root}: is no folder; expected photos and their cameras")
        self.scenes = (self.root.resolve().name or "capture",)
        self.model = find_model(self.root) if model is None else Path(model)
        if self.model.is_dir():
            photos = sorted(read_colmap(self.model), key=lambda photo: _natural(photo.name))
            inside = self.root / "images" if (self.root / "images").is_dir() else self.root
            self._images = Path(images) if images is not None else inside
            self._depth = [None] * len(photos) if depth is None else _depth_files(depth, photos)
        elif images is not None or depth is not None:
            raise InputError(f"{self.model}: names photos and depth itself; leave out the folders")
        else:
            photos = read_transforms(self.model)
            self._images = self.model.parent
            self._depth = [p.depth and _DepthFile(p.depth, p.depth_step) for p in photos]
        self.photos = tuple(photos)
        self.unposed = _unposed(self._images, self.photos)

    def inventory(self, scene: str) -> Inventory:
        """Returns the frames, and which photos and depth maps are missing."""
        del scene
        frames, partial, faults = [], [], []
        for i, (photo, depth) in enumerate(zip(self.photos, self._depth, strict=True)):
            files = [self._images / photo.name] + ([depth.path] if depth else [])
            missing = [
                f"{path}: is missing; {self.model} has its camera"
                for path in files
                if not os.path.isfile(path)
            ]
            if depth is None and any(self._depth):
                missing.append(f"{files[0]}: has no depth map, other photos have one")
            (partial if missing else frames).append(i)
            faults += missing
        return Inventory(tuple(frames), tuple(faults), tuple(partial))

    def frames(self, scene: str) -> tuple[int, ...]:
        """Returns the numbers of all frames of the capture.

        Raises:
            InputError: a photo or depth map is missing.
        """
        return self.inventory(scene).complete()

    def pairs(self, scene: str) -> None:
        """Returns None: no scores are stored; `sampling.overlap_scores` finds them from depth."""
        del scene

    def read_frame(self, scene: str, frame: int) -> Frame:
        """Reads a photo with its camera and depth at full size, with lens distortion removed.

        Raises:
            InputError: naming the file that is missing, damaged, turned by EXIF, or of another size
                than its camera is for.
        """
        from PIL import Image

        del scene
        if not 0 <= frame < len(self.photos):
            raise InputError(
                f"{self.root}: has frames 0 to {len(self.photos) - 1}, {frame} was asked for"
            )
        photo, depth = self.photos[frame], self._depth[frame]
        path = self._images / photo.name
        image = read_image(path, str(path))
        check_upright(path, str(path))
        if photo.size is not None and image.size != photo.size:
            raise InputError(
                f"{path}: is {image.width}x{image.height}, its camera is for"
                f" {photo.size[0]}x{photo.size[1]}; use the photos that the cameras were made with"
            )
        size = image.size
        if photo.distortion is not None:
            image = Image.fromarray(photo.undistort(np.asarray(image), size))
        whole = Frame(photo.name, image, photo.extrinsics, photo.intrinsics(size))
        if depth is not None:
            values = _read_depth(depth)
            if depth.box is None:
                _check_aspect(values, size, depth.path)
                values = photo.undistort(values, size, nearest=True)
            elif photo.distortion is not None:
                raise InputError(
                    f"{depth.path}: is for a part of a photo whose lens distorts; expected a map"
                    " of the whole photo"
                )
            whole = replace(whole, depth=values, depth_box=depth.box)
        return check_frame(whole, str(path))

    def read(self, scene: str, frames: Sequence[int], size: tuple[int, int]) -> Sample:
        """Reads frames as one sample, center-cropped and resized.

        Args:
            scene: the one in `scenes`.
            frames: some of `frames(scene)`, in the order of the sample.
            size: (height, width).

        Raises:
            InputError: as `read_frame`.
        """
        read = [self.read_frame(scene, frame) for frame in frames]
        return fit_frames(read, size, dataset="capture", scene=scene)


def find_model(root: Path) -> Path:
    """Returns the path of the only COLMAP model or transforms.json in a folder.

    Raises:
        InputError: there are none, or several.
    """
    places = [root / place for place in _MODEL_PLACES]
    models = [p for p in places if any((p / f"images.{kind}").exists() for kind in ("bin", "txt"))]
    if (root / "sparse" / "1").is_dir() and root / "sparse" / "0" in models:
        raise InputError(f"{root / 'sparse'}: has several models; choose one by its path")
    if (root / "transforms.json").exists():
        models.append(root / "transforms.json")
    if len(models) != 1:
        what = f"has {' and '.join(map(str, models))}" if models else "has no cameras"
        raise InputError(
            f"{root}: {what}; expected one COLMAP model (sparse/0) or transforms.json, choose by"
            " its path"
        )
    return models[0]


def _unposed(folder: Path, photos: Sequence[PosedPhoto]) -> tuple[str, ...]:
    """Returns the photos that have no camera, in the folders of those that have one."""
    known = {photo.name for photo in photos}
    folders = {str(PurePosixPath(name).parent) for name in known}
    photos_there = []
    for inside in sorted(folders):
        place = folder / inside
        names = sorted(os.listdir(place)) if place.is_dir() else []
        photos_there += [str(PurePosixPath(inside) / n) for n in names if _is_photo(place / n)]
    return tuple(sorted(set(photos_there) - known, key=_natural))


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in PHOTO_SUFFIXES and os.path.isfile(path)


# -- depth -----------------------------------------------------------------------------------------


def _depth_files(
    folder: str | os.PathLike[str], photos: Sequence[PosedPhoto]
) -> list[_DepthFile | None]:
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: is no folder; expected depth maps")
    step, boxes = _depth_notes(folder / "depth.json")
    there: dict[str, Path] = {}  # without blanks, which names in COLMAP models do not have
    for path in sorted(folder.rglob("*.p[fn][mg]")):
        key = path.relative_to(folder).as_posix().replace(" ", "_")
        if key in there:
            raise InputError(f"{path}: cannot be told from {there[key].name}; rename one")
        there[key] = path
    files: list[_DepthFile | None] = []
    for photo in photos:
        name = PurePosixPath(photo.name.replace(" ", "_"))
        keys = [f"{stem}{kind}" for stem in (name.with_suffix(""), name) for kind in _DEPTH_KINDS]
        maps = [there[key] for key in dict.fromkeys(keys) if key in there]
        if len(maps) > 1:
            raise InputError(f"{maps[0]}: stands beside {maps[1].name}; expected one of them")
        files.append(_depth_file(maps[0], folder, step, boxes) if maps else None)
    if not any(files):
        raise InputError(f"{folder}: has no depth map of any photo; expected NAME.pfm or NAME.png")
    return files


def _depth_file(path: Path, folder: Path, step: float | None, boxes: dict[str, Box]) -> _DepthFile:
    box = boxes.get(path.relative_to(folder).as_posix())
    if path.suffix == ".pfm":
        return _DepthFile(path, box=box)
    if step is None:
        raise InputError(f"{folder / 'depth.json'}: is missing; expected the scale of the maps")
    return _DepthFile(path, step, box)


def _depth_notes(path: Path) -> tuple[float | None, dict[str, Box]]:
    """Reads the scale and the boxes of a depth.json, as `exports.depth_maps` writes it."""
    if not os.path.exists(path):
        return None, {}
    try:
        notes = json.loads(read_text(path, 256_000_000, encoding="utf-8"))
        step = float(notes["scale"])
        boxes = {}
        for view in notes.get("views", []):
            x1, y1, x2, y2 = (float(edge) for edge in view["photo_box"])
            if not (np.isfinite([x1, y1, x2, y2]).all() and x1 < x2 and y1 < y2):
                raise ValueError("a photo_box has no extent")
            boxes[str(view["file"])] = x1, y1, x2, y2
    except InputError:
        raise
    except (
        ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError
    ) as error:  # fmt: skip
        raise InputError(f"{path}: expected scale, file and photo_box ({error})") from error
    if not (np.isfinite(step) and step > 0):
        raise InputError(f"{path}: scale: expected a positive number, got {step}")
    return step, boxes


def _read_depth(file: _DepthFile) -> np.ndarray:
    if file.path.suffix.lower() == ".pfm":
        return read_depth_pfm(file.path)
    from PIL import Image

    try:
        with Image.open(file.path, formats=["PNG"]) as image:
            image.verify()  # the checksums, which decoding by itself leaves out
        with Image.open(file.path, formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"{file.path}: {image.width}x{image.height} is no depth map")
            mode, values = image.mode, np.asarray(image)
    except InputError:
        raise
    except (*DECODE_ERRORS, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{file.path}: cannot be read ({reason}); expected a PNG") from error
    if mode != "I;16":
        raise InputError(f"{file.path}: expected a depth map with 16 bits of gray, got mode {mode}")
    return (values * np.float64(file.step)).astype(np.float32)


def _check_aspect(depth: np.ndarray, size: tuple[int, int], path: Path) -> None:
    """Refuses a depth map of another aspect ratio than its photo; resolutions may differ."""
    (height, width), (photo_width, photo_height) = depth.shape, size
    if abs(width * photo_height - height * photo_width) > (photo_width + photo_height) / 2:
        raise InputError(
            f"{path}: the depth map is {width}x{height}, its photo is {photo_width}x{photo_height};"
            " expected the same shape"
        )


def _natural(name: str) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", name, flags=re.ASCII)
    return [(int(part[:1000]), "") if part.isdecimal() else (0, part) for part in parts]
