"""What a multi-view dataset holds, and everything that is wrong with it.

    python -m tools.check_dataset PATH [--sheet FILE] [--depth FOLDER]

PATH is a folder of BlendedMVS scenes or one of them, DTU-64, or an own capture (photos with a
COLMAP model or transforms.json). Every file is read. Cameras and depth are compared across views,
and a contact sheet shows some views of each scene with their depth.

Exit code: 0 without faults, 1 with faults, 2 if PATH is no dataset.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from lite3r_jax.data.blendedmvs import BlendedMVS
from lite3r_jax.data.captures import Capture
from lite3r_jax.data.dtu64 import DTU64
from lite3r_jax.data.folders import Inventory, subfolders
from lite3r_jax.data.sampling import MIN_VIEWS, choose_frames
from lite3r_jax.data.splits import (
    BLENDEDMVS_TRAINING,
    BLENDEDMVS_VALIDATION,
)
from lite3r_jax.data.transforms import Frame
from lite3r_jax.data.views import Sample, SceneSource, Scores, cross_view_check
from lite3r_jax.errors import InputError
from lite3r_jax.files import staged
from lite3r_jax.infer.progress import Progress
from lite3r_jax.pages.colours import colour_map

SHOWN_VIEWS = 5  # of each scene: on the sheet and compared with each other
SHOWN_SCENES = 24
SIDE = 160  # longer side of a picture on the sheet
_LABEL = 14  # height of a line of text
# Views that overlap agree in most pixels; hidden surfaces leave some pairs with less.
_LEAST_OVERLAP, _LEAST_VISIBLE = 0.1, 0.2


class Source(SceneSource, Protocol):
    """What can be checked."""

    def inventory(self, scene: str) -> Inventory:
        """Frames of which nothing is missing, and what is missing."""
        ...

    def read_frame(self, scene: str, frame: int) -> Frame:
        """One frame at its own size."""
        ...


@dataclass
class SceneReport:
    """What was found in one scene."""

    scene: str
    frames: int = 0
    sizes: set[tuple[int, int]] = field(default_factory=set)  # (width, height)
    depth_share: list[float] = field(default_factory=list)  # of each frame with depth
    depth_range: tuple[float, float] | None = None
    agreement: tuple[float, float] | None = None  # median error, share of visible pixels
    faults: list[str] = field(default_factory=list)
    sample: Sample | None = None

    def line(self) -> str:
        """One line for people."""
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


def open_dataset(path: Path, depth: Path | None = None) -> tuple[str, Source]:
    """The reader of a dataset, told by its folders.

    Returns:
        (name of the layout, reader).

    Raises:
        InputError: it is no dataset.
    """
    names = subfolders(path)
    is_capture = (path / "transforms.json").exists() or "sparse" in names
    is_capture |= any((path / f"images.{kind}").exists() for kind in ("bin", "txt"))
    if is_capture:
        source = Capture(path, depth=depth)
        return f"capture, cameras of {source.model.relative_to(path)}", source
    if depth is not None:
        raise InputError(f"{path}: is no capture; --depth is for depth maps of captures")
    if "Cameras" in names:
        return "DTU-64", DTU64(path)
    if "blended_images" in names:
        whole = path.resolve()
        return "one scene of BlendedMVS", BlendedMVS(whole.parent, [whole.name])
    if any((path / name / "blended_images").is_dir() for name in names):
        return "BlendedMVS", BlendedMVS(path)
    raise InputError(
        f"{path}: is no dataset; expected scenes with blended_images, Cameras and scans, or photos"
        " with sparse/0 or transforms.json"
    )


def check_scene(source: Source, scene: str, tick: Callable[[], object]) -> SceneReport:
    """Read every file of a scene; faults are collected, not raised.

    Args:
        source: the reader.
        scene: one of its scenes.
        tick: called after each frame.
    """
    report = SceneReport(scene)
    inventory = source.inventory(scene)
    report.faults += inventory.faults
    report.frames = len(inventory.frames)
    good = []
    for frame in inventory.frames:
        try:
            whole = source.read_frame(scene, frame)
        except InputError as error:
            report.faults.append(str(error))
        else:
            good.append(frame)
            _count(report, whole)
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


def _count(report: SceneReport, frame: Frame) -> None:
    report.sizes.add(frame.image.size)
    if frame.depth is None:
        return
    valid = frame.depth[frame.depth > 0]
    report.depth_share.append(valid.size / frame.depth.size)
    if valid.size:
        low, high = report.depth_range or (np.inf, 0.0)
        report.depth_range = min(low, float(valid.min())), max(high, float(valid.max()))


def _compare(source: Source, report: SceneReport, frames: list[int], pairs: Scores | None) -> None:
    """Read some frames as a sample and see whether their cameras and depth are of one world."""
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
    if sample.depth is None or sample.views < 2:
        return
    check = cross_view_check(sample)
    others = ~np.eye(sample.views, dtype=bool)
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
    """Neighbours by pair.txt where that connects enough of them, else by number."""
    options = {"seed": 0, "index": 0, "name": scene}
    if pairs is not None:
        try:
            return choose_frames(frames, views, "pairs", pairs=pairs, **options)
        except InputError:  # of no more than a few frames, or frames that were damaged
            pass
    return choose_frames(frames, views, "consecutive", **options)


def draw_sheet(reports: Sequence[SceneReport]) -> np.ndarray:
    """Views of each scene in a row with their depth below: near bright, far dark, grey none.

    Returns:
        uint8 [H, W, 3].
    """
    from PIL import Image, ImageDraw

    samples = [report.sample for report in reports if report.sample is not None][:SHOWN_SCENES]
    heights = [
        _LABEL * 2 + sample.size[0] * (1 if sample.depth is None else 2) for sample in samples
    ]
    sheet = Image.new("RGB", (SHOWN_VIEWS * (SIDE + 4), max(sum(heights), 1)), "white")
    draw = ImageDraw.Draw(sheet)
    top = 0
    for sample, height in zip(samples, heights, strict=True):
        draw.text((2, top + 1), sample.scene, fill="black")
        depth = _depth_colours(sample)
        for s in range(sample.views):
            left, below = s * (SIDE + 4), top + 2 * _LABEL
            draw.text((left + 2, top + _LABEL + 1), sample.frames[s][-24:], fill="black")
            pixels = np.rint(sample.images[s] * 255).astype(np.uint8)
            sheet.paste(Image.fromarray(pixels), (left, below))
            if depth is not None:
                sheet.paste(Image.fromarray(depth[s]), (left, below + sample.size[0]))
        top += height
    return np.asarray(sheet)


def _depth_colours(sample: Sample) -> np.ndarray | None:
    if sample.depth is None or sample.mask is None:
        return None
    inverse = np.divide(1, sample.depth, out=np.zeros_like(sample.depth), where=sample.mask)
    seen = inverse[sample.mask]
    low, high = np.percentile(seen, [2, 98]) if seen.size else (0.0, 1.0)
    colours = colour_map((inverse - low) / ((high - low) or 1.0))
    colours[~sample.mask] = 128
    return colours


def check(path: Path, sheet: Path, *, depth: Path | None = None, overwrite: bool = False) -> int:
    """Check a dataset, print what was found, write the contact sheet.

    Returns:
        Number of faults.

    Raises:
        InputError: `path` is no dataset; `sheet` exists or cannot be written.
    """
    from PIL import Image

    layout, source = open_dataset(path, depth)
    reports = []
    with staged(sheet, overwrite=overwrite) as partial:  # refuses before the work, not after it
        print(f"{path}: {layout}, {len(source.scenes)} scenes")
        total = sum(len(source.inventory(scene).frames) for scene in source.scenes)
        with Progress().stage("checking", total, "frame") as tick:
            for scene in source.scenes:
                reports.append(check_scene(source, scene, tick))
        Image.fromarray(draw_sheet(reports)).save(partial, "PNG")
    for report in reports:
        print(f"  {report.line()}")
    for note in _notes(source):
        print(f"note: {note}")
    faults = [fault for report in reports for fault in report.faults]
    faults = list(dict.fromkeys(faults))  # cameras that scans share come once
    for fault in faults:
        print(f"fault: {fault}")
    print(f"{len(faults)} faults; contact sheet: {sheet}")
    return len(faults)


def _notes(source: Source) -> list[str]:
    if isinstance(source, Capture) and source.unposed:
        names = ", ".join(source.unposed[:5]) + (", ..." if len(source.unposed) > 5 else "")
        return [f"{len(source.unposed)} photos have no camera: {names}"]
    if isinstance(source, BlendedMVS) and len(source.scenes) > 1:
        there = set(source.scenes)
        train, validation = there & set(BLENDEDMVS_TRAINING), there & set(BLENDEDMVS_VALIDATION)
        return [
            f"official scenes: {len(train)} of {len(BLENDEDMVS_TRAINING)} for training,"
            f" {len(validation)} of {len(BLENDEDMVS_VALIDATION)} for validation; others:"
            f" {len(there - train - validation)}"
        ]
    return []


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 without faults, 1 with faults, 2 when something was refused."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.check_dataset", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("path", type=Path, help="folder of the dataset")
    parser.add_argument(
        "--sheet", type=Path, default=Path("contact_sheet.png"), help="PNG file to write"
    )
    parser.add_argument("--depth", type=Path, help="folder of depth maps of a COLMAP capture")
    parser.add_argument("--overwrite", action="store_true", help="replace the contact sheet")
    options = parser.parse_args(arguments)
    try:
        faults = check(
            options.path, options.sheet, depth=options.depth, overwrite=options.overwrite
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
