"""The pictures of one evaluated scene: photos, ground truth, and every variant's prediction."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lite3r_jax import geometry
from lite3r_jax import metrics as m
from lite3r_jax.errors import printable
from lite3r_jax.evaluation import render
from lite3r_jax.evaluation.record import Record
from lite3r_jax.evaluation.score import NO_CAMERA_HEAD, NO_DEPTH, NO_DEPTH_HEAD, ScoreOptions
from lite3r_jax.evaluation.thumbnails import Thumbnails
from lite3r_jax.html_report.colors import VIRIDIS, color_map

ERROR_RANGE = (0.005, 0.5)
"""Relative errors of depth from the first color to the last."""
TRUE, PREDICTED = (195, 202, 214), (255, 158, 51)
"""RGB colors of true and of predicted cameras in pictures."""
_NOTHING = (128, 128, 128)
_QUALITY = 88


@dataclass(frozen=True, eq=False)
class SceneFigures:
    """The ground truth and the predictions of one scene, from which its pictures are drawn.

    Attributes:
        protocol: its name with the number of views, as in tables.
        record: of the first variant; its scene and frames are those of all variants.
        truth: None if the sample could not be read.
        variants: name -> its record, and what it predicts, None after a failure.
    """

    protocol: str
    record: Record
    truth: Thumbnails | None
    variants: Mapping[str, tuple[Record, Thumbnails | None]]


@dataclass(frozen=True, eq=False)
class Panel:
    """One column of a scene's pictures: the ground truth, or a variant.

    Attributes:
        name: heading.
        note: line below it.
        points: JPEG of points and cameras, or why there is none.
        views: for every shown view, what it is -> JPEG, or why there is none.
    """

    name: str
    note: str
    points: bytes | str
    views: Sequence[Mapping[str, bytes | str]]


@dataclass(frozen=True, eq=False)
class Figures:
    """The pictures of one scene in columns, the ground truth first."""

    caption: str
    panels: Sequence[Panel]

    @property
    def size(self) -> int:
        """Number of bytes of the pictures in a page (base64)."""
        files = [
            one
            for panel in self.panels
            for one in (panel.points, *(x for view in panel.views for x in view.values()))
        ]
        return sum((len(one) + 2) // 3 * 4 for one in files if isinstance(one, bytes))


def figures(scene: SceneFigures, options: ScoreOptions) -> Figures:
    """Draws the pictures of one scene.

    Args:
        scene: the truth and the predictions.
        options: alignment of depth.

    Raises:
        InputError: a prediction that cannot be aligned.
    """
    record, truth = scene.record, scene.truth
    frames = ", ".join(map(str, record.frames))
    caption = f"{printable(record.scene)}, frames {frames}"
    if truth is None or truth.images is None:
        return Figures(f"{caption}: failed: {record.failure}", ())
    if len(truth.views) < len(record.frames):
        shown = ", ".join(str(record.frames[n]) for n in truth.views)
        caption += f"; maps and points of {shown}"
    stage = _Stage(truth, [variant[1] for variant in scene.variants.values()], options)
    panels = [stage.truth_panel()]
    for n, (name, (variant, shown)) in enumerate(scene.variants.items()):
        panels.append(stage.panel(n, name, variant, shown))
    return Figures(caption, panels)


class _Stage:
    """Draws the columns of one scene, with one reference, color scale and viewpoint for all."""

    def __init__(
        self, truth: Thumbnails, variants: Sequence[Thumbnails | None], options: ScoreOptions
    ):
        assert truth.images is not None
        self.truth, self.images, self.options = truth, truth.images, options
        with_depth = [truth, *(variant for variant in variants if variant is not None)]
        self.reference = next((one for one in with_depth if one.depth is not None), truth)
        depth = self.reference.depth
        self.mask = None
        self.near, self.far = 0.0, 1.0  # of the logarithm of depth
        if depth is not None:
            self.mask = np.isfinite(depth) & (depth > 0)
            if self.mask.any():
                near, far = np.percentile(np.log(depth[self.mask]), [2, 98])
                self.near, self.far = float(near), float(far)
        self.cloud = self._cloud(self.reference)
        self.moved = [None if variant is None else self._moved(variant) for variant in variants]
        self.view = None
        if self.cloud is not None:
            places = [render.centers(one.extrinsics) for one in self.moved if one is not None]
            self.view = render.viewpoint(self.cloud, np.concatenate([np.zeros((0, 3)), *places]))

    def truth_panel(self) -> Panel:
        """Draws the column of the ground truth: photos, true depth and true points."""
        depth = self.truth.depth
        views = []
        for n, image in enumerate(self.images):
            true = NO_DEPTH
            if depth is not None:
                true = self._depth(depth[n]) if (depth[n] > 0).any() else "no true depth"
            views.append({"photo": _jpeg(image), "true depth": true})
        points: bytes | str = "no true points"
        if depth is not None and self.cloud is not None and self.view is not None:
            cameras = [(self.cloud.extrinsics, self.cloud.intrinsics, TRUE)]
            points = _jpeg(render.draw(self.cloud, self.view, cameras))
        return Panel("truth", "photo and true depth", points, views)

    def panel(self, n: int, name: str, record: Record, shown: Thumbnails | None) -> Panel:
        """Draws the column of variant number n: depth, its error, points and cameras."""
        if shown is None:
            return Panel(name, f"failed: {record.failure}", "failed", ())
        depth = self._aligned(shown)
        views = []
        for v in range(len(shown.views)):
            if depth is None:
                views.append({"depth": NO_DEPTH_HEAD})
                continue
            error = "stands in for the truth"
            if shown is not self.reference:
                error = self._error(depth[v], v)
            views.append({"depth": self._depth(depth[v]), "error": error})
        return Panel(name, _note(record), self._points(shown, self.moved[n]), views)

    def _aligned(self, shown: Thumbnails) -> np.ndarray | None:
        depth, true = shown.depth, self.reference.depth
        if depth is None or true is None or self.mask is None or not self.mask.any():
            return depth
        if shown is self.reference:
            return depth
        return m.align_depth(
            depth, true, self.mask, alignment=self.options.alignment, scope=self.options.scope
        )

    def _depth(self, depth: np.ndarray) -> bytes:
        known = np.isfinite(depth) & (depth > 0)
        logarithm = np.log(np.where(known, depth, 1))
        rgb = color_map((self.far - logarithm) / ((self.far - self.near) or 1.0))
        rgb[~known] = _NOTHING
        return _jpeg(rgb)

    def _error(self, depth: np.ndarray, n: int) -> bytes | str:
        true, mask = self.reference.depth, self.mask
        if true is None or mask is None or not mask[n].any():
            return "no true depth"
        share = np.abs(depth - true[n]) / np.where(mask[n], true[n], 1)
        low, high = np.log(ERROR_RANGE)
        rgb = color_map((np.log(np.maximum(share, 1e-9)) - low) / (high - low), VIRIDIS)
        rgb[~mask[n] | ~np.isfinite(share)] = _NOTHING
        return _jpeg(rgb)

    def _cloud(self, shown: Thumbnails) -> render.Cloud | None:
        if shown.depth is None or shown.extrinsics is None or shown.intrinsics is None:
            return None
        cameras = shown.extrinsics, shown.intrinsics
        cloud = render.cloud(shown.depth, self.images, shown.views, *cameras)
        return cloud if len(cloud.xyz) else None

    def _moved(self, shown: Thumbnails) -> render.Cloud | None:
        """Returns the points of a prediction after their alignment with those of the reference."""
        cloud = self._cloud(shown)
        if cloud is None or self.cloud is None or shown is self.reference:
            return cloud
        fit = self._similarity(shown)
        return None if fit is None else render.moved(cloud, fit)

    def _points(self, shown: Thumbnails, moved: render.Cloud | None) -> bytes | str:
        if shown.depth is None or shown.extrinsics is None:
            return NO_DEPTH_HEAD if shown.depth is None else NO_CAMERA_HEAD
        if moved is None or self.cloud is None or self.view is None:
            return "no points"
        cameras = [(moved.extrinsics, moved.intrinsics, PREDICTED)]
        if self.truth.depth is not None:  # else their unit is not that of the points
            cameras.insert(0, (self.cloud.extrinsics, self.cloud.intrinsics, TRUE))
        return _jpeg(render.draw(moved, self.view, cameras))

    def _similarity(self, shown: Thumbnails) -> geometry.Sim3 | None:
        """Fits the similarity from predicted points to the reference's; None for too few points.

        Points correspond pixel by pixel.
        """
        both, known = [], np.asarray(self.mask)
        for one in (shown, self.reference):
            assert one.depth is not None
            assert one.extrinsics is not None and one.intrinsics is not None
            cameras = one.extrinsics[one.views], one.intrinsics[one.views]
            xyz, there = render.unproject(one.depth, *cameras)
            both.append(xyz)
            known = known & there
        if known.sum() < 3:
            return None
        return geometry.fit_sim3(both[0][known], both[1][known], xp=np)


def _note(record: Record) -> str:
    """Returns a line with the main errors of a record."""
    names = {"AbsRel": ("abs_rel", 3), "AUC@30": ("auc_30", 2), "Chamfer": ("chamfer", 3)}
    texts = []
    for heading, (metric, decimals) in names.items():
        value = record.metrics.get(metric)
        if isinstance(value, float):
            texts.append(f"{heading} {value:.{decimals}f}")
    return ", ".join(texts)


def _jpeg(rgb: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=_QUALITY, optimize=True, subsampling=0)
    return file.getvalue()
