"""Settings of the refinement."""

from dataclasses import dataclass
from typing import Literal

CameraModel = Literal["SIMPLE_PINHOLE", "PINHOLE"]
Intrinsics = Literal["auto", "shared", "per_view", "fixed"]


@dataclass(frozen=True)
class RefineOptions:
    """How predicted cameras are adjusted to matches between the photos.

    Attributes:
        on: whether cameras and depth are refined.
        camera: COLMAP's camera model: one focal length (SIMPLE_PINHOLE) or two (PINHOLE).
        intrinsics: which views have the same camera. auto: those whose photos have one size, and
            the same camera and focal length in their EXIF data; shared: all of one size; per_view:
            none; fixed: intrinsics stay as predicted.
        principal_point: whether principal points are adjusted; otherwise they stay as predicted.
        corners: corners of each view that are followed into other views.
        partners: views into which those of a view are followed.
        rounds: of matching: the second is guided by what the first found.
        max_side: longer side in pixels at which photos are matched; larger ones are made smaller.
    """

    on: bool = False
    camera: CameraModel = "SIMPLE_PINHOLE"
    intrinsics: Intrinsics = "auto"
    principal_point: bool = False
    corners: int = 600
    partners: int = 10
    rounds: int = 2
    max_side: int = 2048
