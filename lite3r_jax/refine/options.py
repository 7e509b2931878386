"""Settings of the refinement of predicted cameras by matches between photos."""

from dataclasses import dataclass
from typing import Literal

from lite3r_jax.errors import InputError

CameraModel = Literal["SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL"]
Matches = Literal["klt", "sift", "track"]
Intrinsics = Literal["auto", "shared", "per_view", "fixed"]


@dataclass(frozen=True)
class RefineOptions:
    """Options for how predicted cameras are adjusted to matches between the photos.

    Attributes:
        on: whether cameras and depth are refined.
        matches: how points are found in several views. klt: corners are followed to where predicted
            geometry has them; sift: features that look alike near there, for predictions that are
            far off; track: by the track head of the model, where it has one.
        camera: COLMAP's camera model: one focal length (SIMPLE_PINHOLE), two (PINHOLE), or one and
            radial distortion of the lens (SIMPLE_RADIAL), which is then taken out of the photos.
        intrinsics: which views have the same camera. auto: those whose photos have one size, and
            the same camera and focal length in their EXIF data; shared: all of one size; per_view:
            none; fixed: intrinsics stay as predicted.
        principal_point: whether principal points are adjusted; otherwise they stay as predicted.
        corners: corners of each view that are followed into other views.
        partners: views into which those of a view are followed.
        rounds: rounds of matching: the second is guided by what the first found.
        max_side: longer side in pixels at which photos are matched; larger ones are made smaller.
    """

    on: bool = False
    matches: Matches = "klt"
    camera: CameraModel = "SIMPLE_PINHOLE"
    intrinsics: Intrinsics = "auto"
    principal_point: bool = False
    corners: int = 600
    partners: int = 10
    rounds: int = 2
    max_side: int = 2048


def check_options(options: RefineOptions, known: bool) -> None:
    """Refuses settings of the refinement that contradict each other.

    Args:
        options: the settings.
        known: whether cameras are known.

    Raises:
        InputError: settings contradict each other; the message names the setting.
    """
    if options.camera != "SIMPLE_RADIAL":
        return
    if known:
        raise InputError(
            "refine.camera=SIMPLE_RADIAL: known cameras stay as they are, with the distortion that"
            " they were given with; leave it or the known cameras out"
        )
    if options.intrinsics == "fixed":
        raise InputError(
            "refine.camera=SIMPLE_RADIAL: with refine.intrinsics=fixed nothing of a lens is"
            " adjusted; choose auto, shared or per_view"
        )
