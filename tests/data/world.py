"""A textured room with a block in it, cast exactly, written in the layouts of the datasets."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lite3r_jax.scene import Scene

ROOM = np.array([[-3.0, -2.0, -3.0], [3.0, 2.0, 3.0]])
BLOCK = np.array([[-0.6, 0.4, -0.5], [0.5, 2.0, 0.6]])


@dataclass(frozen=True)
class View:
    """uint8 [H, W, 3], float32 [H, W], float64 [3, 4] world-to-camera, float64 [3, 3]."""

    rgb: np.ndarray
    depth: np.ndarray
    extrinsics: np.ndarray
    intrinsics: np.ndarray


def look_at(center, target) -> np.ndarray:
    """World-to-camera [3, 4], y down."""
    forward = np.subtract(target, center)
    forward = forward / np.linalg.norm(forward)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    return np.concatenate([rotation, -rotation @ np.reshape(center, (3, 1))], -1)


def cast(extrinsics, intrinsics, size, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [H, W, 3], float64 [H, W]) of a camera whose world is in units of 1 / `scale`."""
    height, width = size
    rotation, center = extrinsics[:, :3], -extrinsics[:, :3].T @ extrinsics[:, 3] / scale
    v, u = np.mgrid[0:height, 0:width]
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(intrinsics).T @ rotation
    with np.errstate(divide="ignore", invalid="ignore"):
        walls = np.where(rays > 0, ROOM[1] - center, ROOM[0] - center) / rays
        wall = np.where(np.isfinite(walls), walls, np.inf).min(-1)
        near, far = np.sort([(edge - center) / rays for edge in BLOCK], axis=0)
    enter, leave = near.max(-1), far.min(-1)
    block = (enter > 0) & (enter < leave)
    depth = np.where(block, enter, wall)
    points = center + rays * depth[..., None]
    waves = np.sin(points @ [[5.0, 1.3, 7.1], [2.2, 6.1, 1.7], [3.1, 5.3, 4.1]])
    checks = (np.floor(points * 2.0 + 1e-6).sum(-1) % 2)[..., None]
    rgb = 0.5 + 0.22 * waves + 0.15 * (checks - 0.5) - 0.1 * block[..., None]
    return np.rint(np.clip(rgb, 0, 1) * 255).astype(np.uint8), depth * scale


def views(count: int = 6, size=(96, 128), scale: float = 1.0, seed: int = 0) -> list[View]:
    """Cameras on an arc around the block, fx and fy 5 % apart, the principal point off center."""
    rng = np.random.default_rng(seed)
    height, width = size
    made = []
    for angle in np.linspace(-0.5, 0.5, count) + rng.uniform(-0.03, 0.03, count):
        center = [2.4 * np.sin(angle), rng.uniform(-0.6, 0.2), -2.4 * np.cos(angle)]
        extrinsics = look_at(center, rng.uniform(-0.2, 0.2, 3))
        extrinsics[:, 3] *= scale
        intrinsics = np.array(
            [[0.8 * width, 0, 0.49 * width], [0, 0.84 * width, 0.52 * height], [0, 0, 1]]
        )
        rgb, depth = cast(extrinsics, intrinsics, size, scale)
        made.append(View(rgb, depth.astype(np.float32), extrinsics, intrinsics))
    return made


def pfm_bytes(values: np.ndarray, endian: str = "<") -> bytes:
    kind = b"PF" if values.ndim == 3 else b"Pf"
    height, width = values.shape[:2]
    scale = b"-1.000000" if endian == "<" else b"1.0"
    return (
        b"%s\n%d %d\n%s\n" % (kind, width, height, scale)
        + values[::-1].astype(f"{endian}f4").tobytes()
    )


def cam_text(view: View, tail: str) -> str:
    rows = [*np.vstack([view.extrinsics, [0, 0, 0, 1]]), *view.intrinsics]
    lines = [" ".join(f"{float(x):.9g}" for x in row) for row in rows]
    return "\n".join(["extrinsic", *lines[:4], "", "intrinsic", *lines[4:], "", tail]) + "\n"


def depth_tail(depth: np.ndarray) -> str:
    """Of four numbers; percentiles, so that some depths are beyond the range."""
    low, high = np.percentile(depth, [2, 98])
    return f"{low:.6g} {(high - low) / 127:.6g} 128 {high:.6g}"


def pair_text(count: int, partners: int = 10) -> str:
    lines = [str(count)]
    for a in range(count):
        others = sorted((b for b in range(count) if b != a), key=lambda b: abs(a - b))[:partners]
        pairs = [f"{b} {1000 / abs(a - b):.3f}" for b in others]
        lines += [str(a), " ".join([str(len(others)), *pairs]) + " "]
    return "\n".join(lines) + "\n"


def write_blendedmvs(root: Path, scene: str, made: list[View]) -> Path:
    folder = root / scene
    for name in ("blended_images", "cams", "rendered_depth_maps"):
        (folder / name).mkdir(parents=True)
    for i, view in enumerate(made):
        image = Image.fromarray(view.rgb)
        image.save(folder / "blended_images" / f"{i:08d}.jpg", quality=95)
        image.save(folder / "blended_images" / f"{i:08d}_masked.jpg", quality=50)
        (folder / "cams" / f"{i:08d}_cam.txt").write_text(cam_text(view, depth_tail(view.depth)))
        (folder / "rendered_depth_maps" / f"{i:08d}.pfm").write_bytes(pfm_bytes(view.depth))
    (folder / "cams" / "pair.txt").write_text(pair_text(len(made)))
    return folder


def write_dtu64(root: Path, scans: dict[str, list[View]]) -> Path:
    """Cameras are those of the first scan: all scans share them."""
    (root / "Cameras").mkdir(parents=True)
    for i, view in enumerate(next(iter(scans.values()))):
        (root / "Cameras" / f"{i:08d}_cam.txt").write_text(cam_text(view, "425 2.5"))
    for scan, made in scans.items():
        (root / scan / "image").mkdir(parents=True)
        for i, view in enumerate(made):
            Image.fromarray(view.rgb).save(root / scan / "image" / f"{i:06d}.png")
    return root


def scene_of(made: list[View]) -> Scene:
    """Views as a reconstructed scene, to be exported."""
    height, width = made[0].depth.shape
    count = len(made)
    return Scene(
        names=tuple(f"photo {i}.png" for i in range(count)),
        images=np.stack([view.rgb for view in made]),
        depth=np.stack([view.depth for view in made]),
        depth_conf=np.ones((count, height, width), np.float32),
        extrinsics=np.stack([view.extrinsics for view in made]).astype(np.float32),
        intrinsics=np.stack([view.intrinsics for view in made]).astype(np.float32),
        boxes=np.tile(np.array([0, 0, width, height], np.float32), (count, 1)),
        source_sizes=np.tile([width, height], (count, 1)),
    )
