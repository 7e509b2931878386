"""Images that are exported with cameras, and the intrinsics of the cameras in their pixels."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from lite3r_jax.errors import InputError
from lite3r_jax.exports.names import with_suffixes, without_blanks
from lite3r_jax.exports.options import ImageKind
from lite3r_jax.scene import Scene

# A photo that has to be encoded anew becomes a JPEG if it was lossy before, else a PNG.
_JPEG = {".jpg", ".jpeg"}
_LOSSY = _JPEG | {".heic", ".heif", ".avif", ".webp"}


@dataclass(frozen=True, eq=False)
class ImageSet:
    """The S exported images of a scene: file names, sizes, intrinsics and places in network images.

    Attributes:
        kind: "source" or "network".
        names: relative file names without blanks, which text formats cannot hold.
        sizes: int64 [S, 2], (width, height).
        intrinsics: float64 [S, 3, 3] in pixels of these images, pixel centers at integers.
        boxes: float64 [S, 4], edges (x1, y1, x2, y2) of these images in the network images,
            measured from the outer corner of the first pixel.
        files: file that is copied for each image; None where an image has to be encoded.
    """

    kind: ImageKind
    names: tuple[str, ...]
    sizes: np.ndarray
    intrinsics: np.ndarray
    boxes: np.ndarray
    files: tuple[Path | None, ...]

    def pixels(self, view: np.ndarray, pixel: np.ndarray) -> np.ndarray:
        """Converts pixels of the network images to pixels of these images.

        Args:
            view: int [N], view of each pixel.
            pixel: [N, 2], (u, v), centers at integers.

        Returns:
            float64 [N, 2], (u, v) in these images, centers at integers.
        """
        low, high = self.boxes[:, :2], self.boxes[:, 2:]
        scale = self.sizes / (high - low)
        return (pixel + 0.5 - low[view]) * scale[view] - 0.5


def plan_images(scene: Scene, kind: ImageKind) -> ImageSet:
    """Decides names, sizes and intrinsics of the exported images, without writing an image.

    Raises:
        InputError: kind is "source" and the scene has no photos; two names differ only by blanks.
    """
    names = without_blanks(scene.names)
    if kind == "network":
        height, width = scene.size
        whole = np.array([0.0, 0.0, width, height])
        return ImageSet(
            kind=kind,
            names=with_suffixes(names, [".png"] * scene.views),
            sizes=np.tile(np.array([width, height]), (scene.views, 1)),
            intrinsics=scene.intrinsics.astype(np.float64),
            boxes=np.tile(whole, (scene.views, 1)),
            files=(None,) * scene.views,
        )
    if not scene.photos:
        raise InputError(
            "export.images=source: the scene comes without its photos; use export.images=network"
        )
    files = tuple(photo.upright_file() for photo in scene.photos)
    return ImageSet(
        kind=kind,
        names=with_suffixes(names, [_suffix(n, f) for n, f in zip(names, files, strict=True)]),
        sizes=scene.source_sizes.astype(np.int64),
        intrinsics=scene.source_intrinsics,
        boxes=scene.boxes.astype(np.float64),
        files=files,
    )


def write_images(scene: Scene, images: ImageSet, folder: Path) -> None:
    """Writes the images: upright photo files as they are, others as PNG or JPEG (quality 95).

    Raises:
        InputError: a photo cannot be read, or has another size than the scene says; it is named.
    """

    def write(s: int) -> None:
        path = folder / images.names[s]
        path.parent.mkdir(parents=True, exist_ok=True)
        if images.kind == "network":
            _encode(scene.images[s], path)
            return
        photo, file = scene.photos[s], images.files[s]
        if file is not None:
            _check_size(scene, s, _file_size(file))
            shutil.copyfile(file, path)
        else:
            image = photo.read()
            _check_size(scene, s, image.size)
            _encode(np.asarray(image), path)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow lets go of the GIL
        list(pool.map(write, range(scene.views)))


def _suffix(name: str, file: Path | None) -> str:
    if file is not None:
        return file.suffix
    own = PurePosixPath(name).suffix
    if own.lower() not in _LOSSY:
        return ".png"
    return own if own.lower() in _JPEG else ".jpg"


def _encode(pixels: np.ndarray, path: Path) -> None:
    from PIL import Image

    # from the bare array: a color profile of the photo belongs to the pixels before conversion
    image = Image.fromarray(pixels)
    if path.suffix.lower() == ".png":
        image.save(path, "PNG")
    else:
        image.save(path, "JPEG", quality=95, subsampling=0)


def _file_size(file: Path) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(file) as image:
            return image.size
    except (OSError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{file}: cannot be read any more; put the photo back or use export.images=network"
        ) from error


def _check_size(scene: Scene, s: int, size: tuple[int, int]) -> None:
    expected = tuple(map(int, scene.source_sizes[s]))
    if size != expected:
        raise InputError(
            f"{scene.names[s]}: the photo is {size[0]}x{size[1]} pixels now, it was"
            f" {expected[0]}x{expected[1]}; put it back or use export.images=network"
        )
