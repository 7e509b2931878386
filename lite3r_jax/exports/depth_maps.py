"""Writes depth maps as images: colored PNG, 16-bit PNG and PFM.

They have the size of the network images, one per view. `Scene.boxes` says where the whole photo
lies in them: photo pixel (x, y), centers at integers, of a photo width x height is at
u = x1 + (x + 0.5) (x2 - x1) / width - 0.5, v alike. Depth is z in the camera frame, in units of the
scene. Pixels without depth are 0: not finite, not in front of the camera, or on borders that were
added to the photo. Confidence plays no part here.
"""

import json
from pathlib import Path

import numpy as np

from lite3r_jax.exports.names import with_suffixes
from lite3r_jax.geometry import DEPTH_EPS
from lite3r_jax.html_report.colors import color_map
from lite3r_jax.scene import UNITS, Scene

_STEPS = 65535
_NO_DEPTH_COLOR = 128  # gray


def masked_depth(scene: Scene) -> np.ndarray:
    """Returns depth float32 [S, H, W], with 0 where depth is not valid."""
    depth = scene.depth
    valid = scene.inside() & np.isfinite(depth) & (depth > DEPTH_EPS)
    return np.where(valid, depth, np.float32(0))


def write_depth_color(scene: Scene, folder: Path) -> None:
    """Writes NAME.png per view: near is bright, far is dark, gray is no depth.

    All views have the same color scale: inverse depth from its 2nd to its 98th percentile.
    """
    from PIL import Image

    depth = masked_depth(scene)
    inverse = np.divide(1, depth, out=np.zeros_like(depth), where=depth > 0)
    seen = inverse[depth > 0]
    low, high = np.percentile(seen, [2, 98]) if seen.size else (0.0, 1.0)
    span = (high - low) or 1.0
    for s, path in enumerate(_paths(scene, folder, ".png")):
        rgb = color_map((inverse[s] - low) / span)
        rgb[depth[s] == 0] = _NO_DEPTH_COLOR
        Image.fromarray(rgb).save(path, "PNG")


def write_depth_png16(scene: Scene, folder: Path) -> None:
    """Writes a 16-bit NAME.png per view, and depth.json with the scale of the values.

    value * scale = depth, rounded to nearest; 0 is no depth. `scale` in depth.json is one number
    for all views, such that the largest depth of the scene is 65535. depth.json also has the file
    and the box (`Scene.boxes`) of every view.
    """
    depth = masked_depth(scene)
    scale = float(depth.max()) / _STEPS or 1.0
    paths = _paths(scene, folder, ".png")
    for s, path in enumerate(paths):
        write_png16(depth[s], scale, path)
    description = {
        "scale": scale,
        "unit": UNITS[scene.unit],
        "meaning": "value * scale = z in the camera frame, in units of the scene; 0 = no depth",
        "views": [
            {"name": name, "file": path.relative_to(folder).as_posix(), "photo_box": box}
            for name, path, box in zip(scene.names, paths, scene.boxes.tolist(), strict=True)
        ],
    }
    text = json.dumps(description, indent=1, ensure_ascii=False)
    (folder / "depth.json").write_text(text + "\n", encoding="utf-8")


def write_depth_pfm(scene: Scene, folder: Path) -> None:
    """Writes NAME.pfm per view: 32-bit floats, little endian, the lowest row first.

    Format: www.pauldebevec.com/Research/HDR/PFM.
    """
    height, width = scene.size
    depth = masked_depth(scene)
    for s, path in enumerate(_paths(scene, folder, ".pfm")):
        with path.open("wb") as file:
            file.write(f"Pf\n{width} {height}\n-1.0\n".encode())
            depth[s, ::-1].astype("<f4").tofile(file)


def write_png16(depth: np.ndarray, step: float, path: Path) -> None:
    """Writes depth [H, W] as 16-bit PNG in steps from 1 to 65535; larger depth becomes 0."""
    from PIL import Image

    values = np.maximum(np.rint(depth.astype(np.float64) / step), depth > 0)
    Image.fromarray(np.where(values > _STEPS, 0, values).astype(np.uint16)).save(path, "PNG")


def _paths(scene: Scene, folder: Path, suffix: str) -> list[Path]:
    paths = [folder / name for name in with_suffixes(scene.names, [suffix] * scene.views)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    return paths
