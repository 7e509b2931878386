"""Finds pixels that give no points: sky, backgrounds, edges of objects, and masks of the user.

A mask is a picture of the size of its photo in which 0 means "leave out", as in COLMAP
(ImageReader.mask_path) and nerfstudio (mask_path of transforms.json).
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from lite3r_jax import geometry
from lite3r_jax.data.image_file import head_of, open_image
from lite3r_jax.data.images import read_image, upright_size
from lite3r_jax.data.photos import SourcePhoto
from lite3r_jax.errors import InputError, did_you_mean
from lite3r_jax.exports.edges import edges
from lite3r_jax.exports.sky import sky_pixels
from lite3r_jax.scene import PointSource, Scene

BACKGROUNDS = ("sky", "black", "white")
"""Names of the masks that are computed from the images alone."""
KINDS = (*BACKGROUNDS, "edges")
"""Names of all masks that `points.mask` accepts."""
_BLACK, _WHITE = 16, 240  # of the demo of VGGT (visual_util.py): sum of a pixel; each channel
_EXACT = ("PNG", "BMP", "GIF", "TIFF", "PPM")  # formats that keep a 0


def parse_masks(text: str) -> tuple[str, ...]:
    """Parses a comma-separated list of names of masks; returns each once.

    Raises:
        InputError: a name is not in `KINDS`.
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    for name in names:
        if name not in KINDS:
            raise InputError(
                f"points.mask: unknown: {name}; expected some of {', '.join(KINDS)}"
                f"{did_you_mean(name, KINDS)}"
            )
    return tuple(dict.fromkeys(names))


def background(scene: Scene, kind: str) -> np.ndarray:
    """Finds the pixels of a background, one of `BACKGROUNDS`.

    Args:
        scene: scene whose `images` are used.
        kind: sky: see `exports.sky`; black: red, green and blue add up to less than 16; white: each
            is more than 240. Black and white are decided pixel by pixel, also on objects.

    Returns:
        bool [S, H, W].
    """
    if kind == "sky":
        return sky_pixels(scene)
    if kind == "black":
        return scene.images.sum(-1, dtype=np.int32) < _BLACK
    return np.all(scene.images > _WHITE, axis=-1)


def edge_pixels(
    scene: Scene, points: np.ndarray, valid: np.ndarray, source: PointSource
) -> np.ndarray:
    """Finds the pixels at edges of objects, see `exports.edges`.

    Args:
        scene: the scene.
        points: float32 [S, H, W, 3] in the world.
        valid: bool [S, H, W], pixels with a valid point.
        source: source of the points: depth maps or the point head.

    Returns:
        bool [S, H, W].
    """
    at_edges = np.empty_like(valid)
    for s in range(scene.views):
        depth = scene.depth[s]
        if source == "head":
            depth = np.asarray(geometry.transform_points(scene.extrinsics[s], points[s]))[..., 2]
        at_edges[s] = edges(points[s], depth, valid[s])
    return at_edges


def find_masks(folder: str | os.PathLike[str], names: Sequence[str]) -> list[Path]:
    """Finds each photo's mask: NAME itself, NAME.png as for COLMAP, or NAME with the suffix .png.

    Raises:
        InputError: the path is no folder, or a photo has no mask; it is named.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"{folder}: is not a folder; points.mask_folder is one with a mask for every photo"
        )
    masks = []
    for name in names:
        stem = str(PurePosixPath(name).with_suffix(".png"))
        fitting = list(dict.fromkeys([name, f"{name}.png", stem]))
        there = [folder / n for n in fitting if (folder / n).is_file()]
        if not there:
            raise InputError(
                f"{folder}: has no mask for {name}; expected {' or '.join(fitting)}, a picture of"
                " the size of the photo, 0 where it is to be left out"
            )
        masks.append(there[0])
    return masks


def check_masks(folder: str | os.PathLike[str], photos: Sequence[SourcePhoto]) -> None:
    """Refuses masks that do not fit the photos, before anything is computed.

    Args:
        folder: folder of the masks, see `find_masks`.
        photos: photos of one scene; only the heads of files are read.

    Raises:
        InputError: a mask is missing, is no picture, has another size than its photo, or is the
            photo itself; it is named.
    """
    paths = find_masks(folder, [photo.name for photo in photos])
    for path, photo in zip(paths, photos, strict=True):
        source = photo.source
        is_file = isinstance(source, str | os.PathLike) and os.path.exists(source)
        if is_file and os.path.samefile(path, str(source)):
            raise InputError(
                f"{path}: is the photo; points.mask_folder is another folder, with masks"
            )
        size = upright_size(photo.source, photo.label)
        _check_size(path, upright_size(path, str(path)), size, photo.name)


def read_masks(folder: str | os.PathLike[str], scene: Scene) -> np.ndarray:
    """Reads the pixels of the network images that masks of the user leave out.

    Args:
        folder: folder of the masks, see `find_masks`.
        scene: scene with the photos of the masks. Where lens distortion was removed from photos, it
            is removed from their masks as well.

    Returns:
        bool [S, H, W]: network pixels whose center lies on a 0 of the mask.

    Raises:
        InputError: a mask is missing, cannot be read, has transparency or another size than its
            photo; it is named.
    """
    left_out = np.zeros(scene.depth.shape, bool)
    height, width = scene.size
    for s, path in enumerate(find_masks(folder, scene.names)):
        across, down = scene.source_sizes[s].tolist()
        size = across, down
        mask = read_mask(path, size, scene.names[s])
        # photos from files have one; `Scene.photos` does not promise it
        camera = getattr(scene.photos[s], "camera", None) if scene.photos else None
        if camera is not None:
            mask = camera.undistort(mask.astype(np.uint8), size, nearest=True) > 0
        x1, y1, x2, y2 = scene.boxes[s].astype(np.float64)
        x = np.floor((np.arange(width) + 0.5 - x1) * size[0] / (x2 - x1)).astype(int)
        y = np.floor((np.arange(height) + 0.5 - y1) * size[1] / (y2 - y1)).astype(int)
        on_photo = np.ix_((y >= 0) & (y < size[1]), (x >= 0) & (x < size[0]))
        picked = np.ix_(y[(y >= 0) & (y < size[1])], x[(x >= 0) & (x < size[0])])
        left_out[s][on_photo] = mask[picked]
    return left_out


def read_mask(path: Path, size: tuple[int, int], photo: str) -> np.ndarray:
    """Reads the pixels of a photo that its mask leaves out.

    Args:
        path: file of the mask: gray, or color, which counts as 0 where all channels are 0. In lossy
            formats, such as JPEG, values below half of the range count as 0.
        size: (width, height) of the upright photo.
        photo: name of the photo, for messages.

    Returns:
        bool [height, width], true where the photo is left out.

    Raises:
        InputError: the mask cannot be read, has transparency or another size; it is named.
    """
    name = str(path)
    with open_image(path, head_of(path, name), name) as image:
        kind = image.format
        if image.has_transparency_data:
            raise InputError(
                f"{name}: has transparency; expected a mask in gray, 0 where {photo} is to be left"
                " out"
            )
    values = np.asarray(read_image(path, name)).max(-1)
    _check_size(path, (values.shape[1], values.shape[0]), size, photo)
    return values == 0 if kind in _EXACT else values < 128


def _check_size(path: Path, size: tuple[int, int], wanted: tuple[int, int], photo: str) -> None:
    if size != wanted:
        raise InputError(
            f"{path}: is {size[0]}x{size[1]}, expected {wanted[0]}x{wanted[1]}, the size of {photo}"
            " as EXIF turns it"
        )


def left_out(
    scene: Scene,
    kinds: Sequence[str],
    folder: str,
    points: np.ndarray,
    valid: np.ndarray,
    source: PointSource,
    known: Mapping[str, np.ndarray],
) -> np.ndarray:
    """Combines all masks to the pixels that give no points.

    Args:
        scene: the scene.
        kinds: some of `KINDS`.
        folder: folder of masks of the user; "" for none.
        points: see `edge_pixels`, and so are `valid` and `source`.
        valid: see `edge_pixels`.
        source: see `edge_pixels`.
        known: masks of backgrounds, by kind, that were computed before.

    Returns:
        bool [S, H, W], true where a pixel gives no point.

    Raises:
        InputError: see `read_masks`.
    """
    masked = read_masks(folder, scene) if folder else np.zeros(scene.depth.shape, bool)
    for kind in kinds:
        if kind == "edges":
            masked |= edge_pixels(scene, points, valid, source)
        else:
            masked |= known[kind] if kind in known else background(scene, kind)
    return masked
