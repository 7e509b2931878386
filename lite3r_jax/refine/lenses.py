"""Groups photos by the camera that took them, as far as sizes and EXIF data tell."""

from collections.abc import Hashable
from typing import Any

import numpy as np

from lite3r_jax.refine.adjustment import Lenses
from lite3r_jax.refine.options import RefineOptions
from lite3r_jax.scene import Scene

_MAKE, _MODEL, _EXIF = 0x010F, 0x0110, 0x8769
_FOCAL, _LENS = 0x920A, 0xA434


def lenses_of(scene: Scene, options: RefineOptions, known: bool) -> Lenses:
    """Groups the views of a scene by camera, and decides which intrinsics are adjusted.

    Args:
        scene: the scene; EXIF data are read from the `source` of its photos, where they have one.
        options: which views share a camera, its model, and whether principal points are adjusted.
        known: whether the cameras are known, so that no intrinsics are adjusted.
    """
    keys: list[Hashable] = []
    for view, size in enumerate(scene.source_sizes.tolist()):
        if known or options.intrinsics in ("per_view", "fixed"):
            keys.append(view)
        elif options.intrinsics == "shared" or not scene.photos:
            keys.append(tuple(size))
        else:
            keys.append((*size, *_camera_of(scene.photos[view])))
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    stay = known or options.intrinsics == "fixed"
    return Lenses(
        np.array([numbers[key] for key in keys]),
        scene.source_sizes,
        "PINHOLE" if stay else options.camera,
        focal=not stay,
        center=options.principal_point and not stay,
    )


def _camera_of(photo: Any) -> tuple[str, ...]:
    """Returns make, model, lens and focal length of a photo's EXIF data; empty without EXIF."""
    from PIL import Image

    source = getattr(photo, "source", None)
    if isinstance(source, bytes) or source is None or isinstance(source, np.ndarray):
        return ()  # frames of videos and arrays have no such data
    try:
        if isinstance(source, Image.Image):
            exif = source.getexif()
        else:
            with Image.open(source) as image:
                exif = image.getexif()
        inner = exif.get_ifd(_EXIF)
    except (OSError, ValueError, SyntaxError, TypeError, KeyError):
        return ()  # it was read as a photo before: only what stands beside the pixels is damaged
    values = [exif.get(_MAKE), exif.get(_MODEL), inner.get(_LENS), inner.get(_FOCAL)]
    return tuple(str(value) for value in values)
