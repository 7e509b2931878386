"""Settings of the export of scenes to files."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from lite3r_jax.errors import InputError
from lite3r_jax.exports.page import PageOptions
from lite3r_jax.exports.points import PointOptions

ImageKind = Literal["source", "network"]
ColmapPoints = Literal["tracks", "dense", "both"]


@dataclass(frozen=True)
class ExportOptions:
    """Options for what the exported files of a scene contain.

    Attributes:
        points: which points the files contain.
        images: which images COLMAP models and nerfstudio data come with, and in whose pixels their
            cameras are. "source": the photos, upright, at their own size; "network": the images
            that the network saw, with the borders that it saw.
        sparse_points: at most this many of the points go into COLMAP models and nerfstudio data,
            where they start an optimization; 0 is no limit.
        colmap_points: points of COLMAP models of a refined scene: those that several views see,
            with their tracks ("tracks"), pixels with depth ("dense"), or both; other scenes have
            only the dense ones.
        frustum: length of the cameras drawn in the GLB, as a fraction of `points.diagonal` of the
            points; 0 draws none.
        depth_step: length of one step of nerfstudio's 16-bit depth maps, in units of the scene.
            nerfstudio expects 0.001 unless told otherwise; what exceeds 65535 steps is left out.
        page: settings of the HTML page.
    """

    points: PointOptions = field(default_factory=PointOptions)
    images: ImageKind = "source"
    sparse_points: int = 100_000
    colmap_points: ColmapPoints = "tracks"
    frustum: float = 0.05
    depth_step: float = 0.001
    page: PageOptions = field(default_factory=PageOptions)

    def __post_init__(self):
        if self.images not in get_args(ImageKind):
            raise InputError(f"export.images: expected source or network, got {self.images!r}")
        if self.colmap_points not in get_args(ColmapPoints):
            raise InputError(
                f"export.colmap_points: expected tracks, dense or both, got {self.colmap_points!r}"
            )
        if not isinstance(self.sparse_points, int) or self.sparse_points < 0:
            raise InputError(
                "export.sparse_points: expected a whole number, 0 for no limit, got"
                f" {self.sparse_points}"
            )
        if not 0 <= self.frustum <= 1:
            raise InputError(f"export.frustum: expected 0 (off) to 1, got {self.frustum}")
        if not 0 < self.depth_step < math.inf:
            raise InputError(
                f"export.depth_step: expected a positive length, got {self.depth_step}"
            )
