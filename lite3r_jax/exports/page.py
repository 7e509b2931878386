"""Writes a self-contained HTML page with points, cameras, photos and depth of a scene.

The page opens from disk, without a server and without network access: scripts, styles and data are
inside, and its Content-Security-Policy allows nothing else. The code that runs in the browser is in
plain files in `page_assets`.

Numbers are quantized to integers, and embedded as differences between neighbors, split into byte
planes, deflated (RFC 1950, which browsers read with DecompressionStream) and base64-encoded, see
`_pack`. Photos are JPEG.
"""

import base64
import hashlib
import html
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import numpy as np

from lite3r_jax.errors import InputError
from lite3r_jax.exports.masks import BACKGROUNDS, background, parse_masks
from lite3r_jax.exports.points import PointOptions, diagonal, hidden_percentage, select_points
from lite3r_jax.files import atomic_write
from lite3r_jax.scene import UNITS, Scene

_SCRIPTS = ("space.js", "data.js", "cloud.js", "orbit.js", "depth.js", "page.js", "save.js")
_JPEG_QUALITY = 85
_MIN_SIDE = 64  # smaller pictures show nothing
_POINT_STEP = 2.0**-16  # of `diagonal`: rounding moves no point by more than 1.4e-5 of it
_POINT_CODES = 2**24 - 1  # browsers hold coordinates as float32
_DEPTH_STEP = 2e-4  # of the logarithm: depth is right to 1e-4 of its value
_DEPTH_CODES = 2**16 - 2  # code 0 is "no depth"
_LEVELS = 256  # of confidence


@dataclass(frozen=True)
class PageOptions:
    """Options for what the HTML page of a scene contains.

    Attributes:
        title: title of the page.
        max_points: limit for the page, besides that of `PointOptions`; 0 is no limit.
        max_image_side: longer side of photos and depth maps in pixels; larger ones are scaled down.
        max_megabytes: limit of the file in 10^6 bytes. Pictures are made smaller until it holds,
            and the page says so.
    """

    title: str = "Reconstruction"
    max_points: int = 400_000
    max_image_side: int = 518
    max_megabytes: float = 30.0

    def __post_init__(self):
        if not isinstance(self.max_points, int) or self.max_points < 0:
            raise InputError(
                f"page.max_points: expected a whole number, 0 for no limit, got {self.max_points}"
            )
        if not isinstance(self.max_image_side, int) or self.max_image_side < _MIN_SIDE:
            raise InputError(
                f"page.max_image_side: expected {_MIN_SIDE} pixels or more,"
                f" got {self.max_image_side}"
            )
        if not self.max_megabytes > 0:
            raise InputError(f"page.max_megabytes: expected more than 0, got {self.max_megabytes}")


def write_page(
    scene: Scene,
    path: str | os.PathLike[str],
    options: PageOptions | None = None,
    points: PointOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Callable[[], object] | None = None,
    report: Mapping[str, Any] | None = None,
) -> None:
    """Writes one HTML file that shows the scene in any current browser, offline.

    Equal scenes, options and reports give equal bytes. Needs WebGL 2 for the points; the depth
    maps are shown without it.

    Args:
        scene: scene that is shown.
        path: path of the file, by convention *.html.
        options: settings of the page; the default is `PageOptions()`.
        points: which points; the default is `PointOptions()`. The page contains points of every
            confidence, and its slider starts at `points.conf_percentile`, where it shows the points
            that the other exports keep. Masked points are not in the page; for backgrounds that the
            scene has and that are not masked, the page has switches.
        overwrite: whether a file that exists may be replaced.
        progress: called once for every view.
        report: facts about the run for the page's last part: strings, numbers, and lists and
            dicts of them.

    Raises:
        InputError: no valid point; a report that is not plain data; more than `max_megabytes`
            with the smallest pictures; `path` exists or cannot be written.
    """
    options = options or PageOptions()
    with atomic_write(path, overwrite=overwrite) as partial:
        valid = scene.inside() & np.isfinite(scene.depth) & (scene.depth > 0)
        data, packed = _describe(scene, valid, options, points or PointOptions(), report)
        fixed = len(_assemble(options.title, data, packed, []))
        budget = options.max_megabytes * 1e6 - fixed
        pictures = _fit_pictures(
            scene, valid, data["depth"], options.max_image_side, budget, progress
        )
        data["pictureSize"] = pictures[0].size
        page = _assemble(options.title, data, packed, pictures)
        partial.write_bytes(page)


@dataclass(frozen=True)
class _Picture:
    size: tuple[int, int]  # (width, height)
    photo: str  # JPEG, base64
    maps: str  # depth codes and confidence levels, see `_pack`

    def __len__(self) -> int:
        return len(self.photo) + len(self.maps)


def _describe(
    scene: Scene,
    valid: np.ndarray,
    options: PageOptions,
    chosen: PointOptions,
    report: Mapping[str, Any] | None,
) -> tuple[dict[str, Any], str]:
    """Returns the description of the scene as plain data for JSON, and the packed points."""
    limits = [n for n in (chosen.max_points, options.max_points) if n]
    kept = replace(chosen, conf_percentile=0.0, max_points=min(limits, default=0))
    masked = parse_masks(chosen.mask)
    seen = {kind: background(scene, kind) for kind in BACKGROUNDS}
    cloud = select_points(scene, kept, seen)
    pixels = cloud.view, cloud.pixel[:, 1], cloud.pixel[:, 0]
    flags = sum(seen[kind][pixels].astype(int) << i for i, kind in enumerate(BACKGROUNDS))
    by_user = ["what your masks leave out"] if chosen.mask_folder else []

    low = cloud.xyz.min(0).astype(np.float64)
    extent = float((cloud.xyz.max(0) - low).max())
    step = max(diagonal(cloud.xyz) * _POINT_STEP, extent / _POINT_CODES) or 1.0
    codes = np.rint((cloud.xyz - low) / step).astype(np.int64)
    point_levels = _levels(cloud.conf)
    points = _pack(
        *((codes[:, i], 4) for i in range(3)),
        *((cloud.rgb[:, i], 2) for i in range(3)),
        (_to_level(cloud.conf, point_levels), 2),
        (cloud.view, 4),
        (np.asarray(flags), 1),
    )

    near, far = (np.log(f(scene.depth[valid])) if valid.any() else 0.0 for f in (np.min, np.max))
    conf = scene.depth_conf[np.isfinite(scene.depth_conf)]
    description = {
        "title": options.title,
        "size": [scene.size[1], scene.size[0]],
        "unit": UNITS[scene.unit],
        "views": [_view(scene, s, valid[s]) for s in range(scene.views)],
        "points": {
            "count": len(cloud),
            "low": low.tolist(),
            "step": step,
            "confidence": point_levels.tolist(),
            "percentile": hidden_percentage(cloud.conf, chosen.conf_percentile),
            "backgrounds": {k: int(seen[k][pixels].sum()) for k in BACKGROUNDS if k not in masked},
            "mask": [*masked, *by_user],
            "source": chosen.source,
        },
        "depth": {
            "low": float(near),
            "step": max(_DEPTH_STEP, float(far - near) / (_DEPTH_CODES - 1)),
            "confidence": _levels(conf if conf.size else np.zeros(1)).tolist(),
        },
        "report": dict(report or {}),
    }
    try:
        json.dumps(description, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"page: the report must hold strings, finite numbers, lists and dicts ({error})"
        ) from error
    return description, points


def _view(scene: Scene, s: int, valid: np.ndarray) -> dict[str, Any]:
    height, width = scene.size
    depth = scene.depth[s][valid]
    x1, y1, x2, y2 = scene.boxes[s].tolist()
    crop = [max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)]
    spread = np.percentile(depth, [2, 50, 98]) if depth.size else np.ones(3)
    return {
        "name": scene.names[s],
        "source": scene.source_sizes[s].tolist(),
        "extrinsics": scene.extrinsics[s].ravel().tolist(),
        "intrinsics": scene.intrinsics[s][[0, 1, 0, 1], [0, 1, 2, 2]].tolist(),
        "crop": crop,
        "depth": spread.tolist(),
    }


def _fit_pictures(
    scene: Scene,
    valid: np.ndarray,
    coding: dict[str, Any],
    side: int,
    budget: float,
    progress: Callable[[], object] | None,
) -> list[_Picture]:
    """Encodes photos and maps of at most `side` pixels, smaller ones if `budget` bytes need it."""
    probe = sorted({0, scene.views // 3, scene.views // 2, scene.views - 1})
    side = min(side, max(scene.size))
    while True:
        mean = sum(len(_picture(scene, valid, s, side, coding)) for s in probe) / len(probe)
        need = mean * scene.views
        if need <= 0.98 * budget:
            pictures = []
            for s in range(scene.views):
                pictures.append(_picture(scene, valid, s, side, coding))
                if progress:
                    progress()
            need = sum(map(len, pictures))
            if need <= budget:
                return pictures
            progress = None  # it has had its calls
        if side <= _MIN_SIDE:
            raise InputError(
                f"page: {scene.views} views do not fit into page.max_megabytes even as pictures of"
                f" {_MIN_SIDE} pixels; raise it, or lower page.max_points"
            )
        ratio = max(budget, 0) / need
        side = max(_MIN_SIDE, int(side * min(0.97, ratio**0.5)))


def _picture(
    scene: Scene, valid: np.ndarray, s: int, side: int, coding: dict[str, Any]
) -> _Picture:
    from PIL import Image

    height, width = scene.size
    scale = min(1.0, side / max(height, width))
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    photo = Image.fromarray(scene.images[s])
    if (w, h) != (width, height):
        photo = photo.resize((w, h), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=_JPEG_QUALITY, optimize=True)

    # nearest pixels: what is read off is what the model said, not a mean over an edge
    rows = ((np.arange(h) + 0.5) * height / h).astype(int)
    columns = ((np.arange(w) + 0.5) * width / w).astype(int)
    pick = np.ix_(rows, columns)
    depth, known = scene.depth[s][pick].astype(np.float64), valid[s][pick]
    log_depth = np.log(np.where(known, depth, 1.0))
    codes = np.where(known, 1 + np.rint((log_depth - coding["low"]) / coding["step"]), 0)
    levels = _to_level(scene.depth_conf[s][pick], np.asarray(coding["confidence"]))
    maps = _pack((codes.astype(np.int64).ravel(), 3), (levels.ravel(), 2))
    return _Picture((w, h), base64.b64encode(file.getvalue()).decode(), maps)


def _levels(conf: np.ndarray) -> np.ndarray:
    """Returns 256 quantiles of confidence: the fraction i / 256 of the values is below level i."""
    return np.quantile(conf.astype(np.float64), np.arange(_LEVELS) / _LEVELS, method="lower")


def _to_level(conf: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Returns for each value the index of the highest level that it reaches; 0 for NaN."""
    level = np.searchsorted(levels, np.nan_to_num(conf.astype(np.float64), nan=-np.inf), "right")
    return np.maximum(level - 1, 0)


def _pack(*streams: tuple[np.ndarray, int]) -> str:
    """Encodes integers as base64 of deflated byte planes of their differences.

    Args:
        streams: (integers [N], bytes per difference). A difference d from the value before (the
            first from 0) is stored as 2 d, or as -2 d - 1 where it is negative; each stream has
            all highest bytes first, and all lowest bytes last.
    """
    planes = []
    for values, width in streams:
        delta = np.diff(values.astype(np.int64), prepend=0)
        coded = np.where(delta < 0, -2 * delta - 1, 2 * delta)
        planes += [
            ((coded >> (8 * i)) & 0xFF).astype(np.uint8).tobytes() for i in reversed(range(width))
        ]
    return base64.b64encode(zlib.compress(b"".join(planes), 6)).decode()


def _assemble(title: str, data: dict[str, Any], points: str, pictures: list[_Picture]) -> bytes:
    assets = files("lite3r_jax.exports") / "page_assets"
    script = "".join((assets / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}}})();\n'
    style = (assets / "page.css").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)};"
        " img-src data:; base-uri 'none'; form-action 'none'"
    )
    # "<" would end the element that the text stands in
    described = json.dumps(data, separators=(",", ":"), allow_nan=False)
    blocks = [_block("scene", "application/json", described.replace("<", "\\u003c"))]
    blocks += [_block("points", "text/plain", points)]
    for s, picture in enumerate(pictures):
        blocks += [_block(f"photo-{s}", "text/plain", picture.photo)]
        blocks += [_block(f"maps-{s}", "text/plain", picture.maps)]
    parts = {
        "policy": html.escape(policy, quote=False),
        "title": html.escape(title),
        "style": style,
        "data": "".join(blocks),
        "script": script,
    }
    page = (assets / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page).encode(errors="replace")


def _hash(source: str) -> str:
    digest = hashlib.sha256(source.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _block(name: str, kind: str, text: str) -> str:
    return f'<script type="{kind}" id="{name}">{text}</script>\n'
