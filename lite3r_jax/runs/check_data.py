"""Checks a multi-view dataset: what it holds, and everything that is wrong with it.

`lite3r check-data SOURCE` prints the findings. SOURCE is what `train.data.source` and
`evaluate.protocols` take: blendedmvs:FOLDER, dtu64:FOLDER, capture:FOLDER@depth=FOLDER,
photos:FOLDER, synthetic:SPLIT, or a folder whose layout tells the dataset. Every file is read.
Cameras and depth are compared across views, and a contact sheet shows some views of each scene with
their depth.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from lite3r_jax.data.blendedmvs import BlendedMVS
from lite3r_jax.data.captures import Capture
from lite3r_jax.data.folders import Inventory
from lite3r_jax.data.sampling import MIN_VIEWS, choose_frames
from lite3r_jax.data.sources import SourceOptions, parse_source
from lite3r_jax.data.splits import (
    BLENDEDMVS_TRAINING,
    BLENDEDMVS_VALIDATION,
)
from lite3r_jax.data.transforms import Frame
from lite3r_jax.data.views import Sample, SceneSource, Scores, Views, ViewSource, cross_view_check
from lite3r_jax.errors import InputError, printable
from lite3r_jax.files import atomic_write
from lite3r_jax.html_report.colors import color_map
from lite3r_jax.progress import Progress

SHOWN_VIEWS = 5  # of each scene: on the sheet and compared with each other
SHOWN_SCENES = 24
SIDE = 160  # longer side of a picture on the sheet
_LABEL = 14  # height of a line of text
# Views that overlap agree in most pixels; hidden surfaces leave some pairs with less.
_LEAST_OVERLAP, _LEAST_VISIBLE = 0.1, 0.2


@runtime_checkable
class FileSource(SceneSource, Protocol):
    """A reader of dataset files that gives single frames as the files have them."""

    def inventory(self, scene: str) -> Inventory:
        """Returns the frames of a scene of which nothing is missing, and what is missing."""
        ...

    def read_frame(self, scene: str, frame: int) -> Frame:
        """Reads one frame at its own size."""
        ...


@dataclass
class SceneReport:
    """What the check of one scene has found: sizes, depth, agreement of views, and faults."""

    scene: str
    frames: int = 0
    sizes: set[tuple[int, int]] = field(default_factory=set)  # (width, height)
    depth_share: list[float] = field(default_factory=list)  # of each frame with depth
    depth_range: tuple[float, float] | None = None
    agreement: tuple[float, float] | None = None  # median error, share of visible pixels
    faults: list[str] = field(default_factory=list)
    sample: Views | None = None

    def line(self) -> str:
        """Returns the findings as one line for people."""
        sizes = ", ".join(f"{width}x{height}" for width, height in sorted(self.sizes))
        parts = [f"{self.frames} frames" + (f" of {sizes}" if sizes else "")]
        if self.depth_share:
            empty = sum(share == 0 for share in self.depth_share)
            parts.append(f"depth in {100 * np.mean(self.depth_share):.0f} % of the pixels")
            parts += [f"{empty} frames without any"] if empty else []
        else:
            parts.append("no depth")
        if self.depth_range is not None:
            parts.append("from {:.4g} to {:.4g}".format(*self.depth_range))
        if self.agreement is not None:
            error, visible = self.agreement
            parts.append(
                f"views agree to {100 * error:.2g} % (median), {100 * visible:.0f} % visible"
            )
        return f"{self.scene}: {', '.join(parts)}"


def inventory(source: ViewSource, scene: str) -> Inventory:
    """Returns the frames of a scene, and what is missing from its files if it has files."""
    if isinstance(source, FileSource):
        return source.inventory(scene)
    return Inventory(source.frames(scene))


def check_scene(
    source: ViewSource, scene: str, size: tuple[int, int], tick: Callable[[], object]
) -> SceneReport:
    """Reads every file of a scene; faults are collected, not raised.

    Args:
        source: the reader.
        scene: one of its scenes.
        size: (height, width) of frames that have no size of their own.
        tick: called after each frame.
    """
    report = SceneReport(scene)
    listed = inventory(source, scene)
    report.faults += listed.faults
    report.frames = len(listed.frames)
    good = []
    for frame in listed.frames:
        try:
            if isinstance(source, FileSource):
                whole = source.read_frame(scene, frame)
                _count(report, whole.image.size, whole.depth)
            else:
                sample = source.read(scene, (frame,), size)
                depth = sample.depth if isinstance(sample, Sample) else None
                _count(report, (size[1], size[0]), None if depth is None else depth[0])
        except InputError as error:
            report.faults.append(str(error))
        else:
            good.append(frame)
        tick()
    pairs = None
    try:
        pairs = source.pairs(scene)
    except InputError as error:
        report.faults.append(str(error))
    try:
        _compare(source, report, good, pairs)
    except InputError as error:
        report.faults.append(str(error))
    return report


def _count(report: SceneReport, size: tuple[int, int], depth: np.ndarray | None) -> None:
    report.sizes.add(size)
    if depth is None:
        return
    valid = depth[depth > 0]
    report.depth_share.append(valid.size / depth.size)
    if valid.size:
        low, high = report.depth_range or (np.inf, 0.0)
        report.depth_range = min(low, float(valid.min())), max(high, float(valid.max()))


def _compare(
    source: ViewSource, report: SceneReport, frames: list[int], pairs: Scores | None
) -> None:
    """Reads some frames of a scene and checks whether their cameras and depth are of one world."""
    views = min(SHOWN_VIEWS, len(frames))
    if views == 0:
        return
    chosen = tuple(frames)
    if views >= MIN_VIEWS:
        chosen = _chosen(frames, views, pairs, report.scene)
    width, height = max(report.sizes)
    scale = SIDE / max(width, height)
    size = max(round(height * scale), 1), max(round(width * scale), 1)
    sample = report.sample = source.read(report.scene, chosen, size)
    if not isinstance(sample, Sample) or sample.depth is None or sample.views < 2:
        return
    seen = np.asarray(sample.depth.any((1, 2)))
    others = ~np.eye(sample.views, dtype=bool) & seen & seen[:, None]
    if not others.any():  # one view of a stereo pair has depth
        return
    check = cross_view_check(sample)
    compared = others & (check.in_view >= _LEAST_OVERLAP)
    if not compared.any():
        report.faults.append(
            f"{sample.name}: frames {', '.join(sample.frames)} do not overlap, by their cameras and"
            " depth; check conventions and units"
        )
        return
    visible = check.visible[compared]
    report.agreement = float(np.median(check.error[compared])), float(visible.mean())
    if (visible < _LEAST_VISIBLE).mean() > 0.5:
        report.faults.append(
            f"{sample.name}: frames {', '.join(sample.frames)}: depth agrees in only"
            f" {100 * visible.mean():.0f} % of the shared pixels; check conventions and units of"
            " cameras and depth"
        )


def _chosen(frames: list[int], views: int, pairs: Scores | None, scene: str) -> tuple[int, ...]:
    """Chooses frames to compare: neighbors by pair.txt if enough are connected, else by number."""
    options = {"seed": 0, "index": 0, "name": scene}
    if pairs is not None:
        try:
            return choose_frames(frames, views, "pairs", pairs=pairs, **options)
        except InputError:  # of no more than a few frames, or frames that were damaged
            pass
    return choose_frames(frames, views, "consecutive", **options)


def draw_sheet(reports: Sequence[SceneReport]) -> np.ndarray:
    """Draws views of each scene in a row with their depth below: near bright, far dark, gray none.

    Returns:
        uint8 [H, W, 3].
    """
    from PIL import Image, ImageDraw

    samples = [report.sample for report in reports if report.sample is not None][:SHOWN_SCENES]
    heights = [
        _LABEL * 2 + sample.size[0] * (1 if _depth_colors(sample) is None else 2)
        for sample in samples
    ]
    sheet = Image.new("RGB", (SHOWN_VIEWS * (SIDE + 4), max(sum(heights), 1)), "white")
    draw = ImageDraw.Draw(sheet)
    top = 0
    for sample, height in zip(samples, heights, strict=True):
        draw.text((2, top + 1), sample.scene, fill="black")
        depth = _depth_colors(sample)
        for s in range(sample.views):
            left, below = s * (SIDE + 4), top + 2 * _LABEL
            draw.text((left + 2, top + _LABEL + 1), sample.frames[s][-24:], fill="black")
            pixels = np.rint(sample.images[s] * 255).astype(np.uint8)
            sheet.paste(Image.fromarray(pixels), (left, below))
            if depth is not None:
                sheet.paste(Image.fromarray(depth[s]), (left, below + sample.size[0]))
        top += height
    return np.asarray(sheet)


def _depth_colors(sample: Views) -> np.ndarray | None:
    if not isinstance(sample, Sample) or sample.depth is None or sample.mask is None:
        return None
    inverse = np.divide(1, sample.depth, out=np.zeros_like(sample.depth), where=sample.mask)
    seen = inverse[sample.mask]
    low, high = np.percentile(seen, [2, 98]) if seen.size else (0.0, 1.0)
    colors = color_map((inverse - low) / ((high - low) or 1.0))
    colors[~sample.mask] = 128
    return colors


def check(text: str, sheet: Path, *, overwrite: bool = False) -> int:
    """Check a dataset, print what was found, write the contact sheet.

    Returns:
        Number of faults.

    Raises:
        InputError: `text` is no data source; `sheet` exists or cannot be written.
    """
    from PIL import Image

    spec = parse_source(text)
    source = spec.open(None, SourceOptions(views=1, scenes=SHOWN_SCENES))
    reports = []
    with atomic_write(
        sheet, overwrite=overwrite
    ) as partial:  # refuses before the work, not after it
        license = spec.row.license or "not known"
        print(f"{printable(spec)}: {len(source.scenes)} scenes; license: {license}")
        total = sum(len(inventory(source, scene).frames) for scene in source.scenes)
        with Progress().stage("checking", total, "frame") as tick:
            for scene in source.scenes:
                reports.append(check_scene(source, scene, spec.row.size, tick))
        Image.fromarray(draw_sheet(reports)).save(partial, "PNG")
    for report in reports:
        print(f"  {printable(report.line())}")
    for note in _notes(source):
        print(f"note: {printable(note)}")
    faults = [fault for report in reports for fault in report.faults]
    faults = list(dict.fromkeys(faults))  # cameras that scans share come once
    for fault in faults:
        print(f"fault: {printable(fault)}")
    print(f"{len(faults)} faults; contact sheet: {printable(sheet)}")
    return len(faults)


def _notes(source: ViewSource) -> list[str]:
    if isinstance(source, Capture):
        notes = [f"cameras of {source.model.relative_to(source.root)}"]
        if not source.unposed:
            return notes
        names = ", ".join(source.unposed[:5]) + (", ..." if len(source.unposed) > 5 else "")
        return [*notes, f"{len(source.unposed)} photos have no camera: {names}"]
    if isinstance(source, BlendedMVS) and len(source.scenes) > 1:
        there = set(source.scenes)
        train, validation = there & set(BLENDEDMVS_TRAINING), there & set(BLENDEDMVS_VALIDATION)
        return [
            f"official scenes: {len(train)} of {len(BLENDEDMVS_TRAINING)} for training,"
            f" {len(validation)} of {len(BLENDEDMVS_VALIDATION)} for validation; others:"
            f" {len(there - train - validation)}"
        ]
    return []
