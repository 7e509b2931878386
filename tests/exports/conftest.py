"""A scene with exact geometry: a textured, tilted wall, seen by four cameras."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lite3r_jax.scene import Scene

NORMAL = np.array([0.2, -0.3, 1.0]) / np.linalg.norm([0.2, -0.3, 1.0])
DISTANCE = 4.0
HEIGHT, WIDTH = 70, 84
# name, size of the photo, box of the photo in the network image
VIEWS = [
    ("a.jpg", (168, 140), (0, 0, 84, 70)),  # whole
    ("room/left one.jpg", (126, 165), (0, -20, 84, 90)),  # rows cropped above and below
    ("a.png", (112, 140), (14, 0, 70, 70)),  # borders left and right
    ("room/plain", (100, 80), (3.25, 7.5, 80.75, 62.5)),  # borders all around, stretched
]


def texture(xyz: np.ndarray) -> np.ndarray:
    """Color of world points [..., 3], float64 in 0 to 255; it varies slowly."""
    waves = xyz @ np.array([[1.1, 0.2, -0.5], [0.1, 1.3, 0.7], [-0.4, 0.6, 0.3]])
    return 127.5 + 110 * np.sin(waves + [0.3, 1.1, 2.0])


@dataclass(frozen=True, eq=False)
class StillPhoto:
    """A photo in memory, and perhaps on disk."""

    pixels: np.ndarray
    file: Path | None = None

    def read(self) -> Image.Image:
        return Image.fromarray(self.pixels)

    def upright_file(self) -> Path | None:
        return self.file


@dataclass(frozen=True, eq=False)
class Room:
    """The scene, and the truth in float64.

    Attributes:
        rotations: [S, 3, 3] world to camera.
        shifts: [S, 3].
        lenses: [S, 3, 3] in pixels of the photos, pixel centers at integers.
    """

    scene: Scene
    rotations: np.ndarray
    shifts: np.ndarray
    lenses: np.ndarray
    texture: Callable[[np.ndarray], np.ndarray]

    def project(self, view: int, xyz: np.ndarray) -> np.ndarray:
        """World points [N, 3] to photo pixels [N, 2]."""
        camera = xyz @ self.rotations[view].T + self.shifts[view]
        pixels = camera @ self.lenses[view].T
        return pixels[:, :2] / pixels[:, 2:]

    def to_network(self, view: int, pixels: np.ndarray) -> np.ndarray:
        """Photo pixels [N, 2] to network pixels."""
        _, size, (x1, y1, x2, y2) = VIEWS[view]
        return (pixels + 0.5) * np.array([x2 - x1, y2 - y1]) / size + [x1, y1] - 0.5

    def to_photo(self, view: int, pixels: np.ndarray) -> np.ndarray:
        """Network pixels [..., 2] to photo pixels."""
        _, size, (x1, y1, x2, y2) = VIEWS[view]
        return (pixels + 0.5 - [x1, y1]) * np.array(size) / [x2 - x1, y2 - y1] - 0.5

    def wall(self, view: int, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What photo pixels [..., 2] see: (world points [..., 3], depth [...])."""
        rays = np.concatenate([pixels, np.ones_like(pixels[..., :1])], -1)
        rays = rays @ np.linalg.inv(self.lenses[view]).T @ self.rotations[view]
        center = -self.rotations[view].T @ self.shifts[view]
        depth = (DISTANCE - NORMAL @ center) / (rays @ NORMAL)
        return center + rays * depth[..., None], depth

    def seen(self, view: int, count: int = 50) -> np.ndarray:
        """World points [N, 3] on the wall, all over the photo."""
        size = np.array(VIEWS[view][1])
        pixels = np.random.default_rng(view).uniform(0.15, 0.85, (count, 2)) * size
        return self.wall(view, pixels)[0]

    def check_image(self, image: Image.Image, pixels: np.ndarray, xyz: np.ndarray) -> None:
        """The image shows these world points at these pixels (centers at integers)."""
        values = np.asarray(image.convert("RGB"), np.float64)
        x, y = np.rint(pixels).astype(int).T
        assert np.abs(values[y, x] - texture(xyz)).max() < 12
        # and nowhere else: mirrored or turned it would be far off
        for other in (values[::-1], values[:, ::-1], values[::-1, ::-1]):
            assert np.abs(other[y, x] - texture(xyz)).mean() > 15


def _grid(width: int, height: int) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float64)


def _rotation(x: float, y: float, z: float) -> np.ndarray:
    cx, sx, cy, sy, cz, sz = *_turn(x), *_turn(y), *_turn(z)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _turn(angle: float) -> tuple[float, float]:
    return float(np.cos(angle)), float(np.sin(angle))


@pytest.fixture(scope="session")
def room(tmp_path_factory) -> Room:
    folder = tmp_path_factory.mktemp("photos")
    angles = [(0.05, -0.1, 0.02), (0.1, 0.2, -0.1), (-0.15, 0.05, 0.2), (0.02, -0.25, 0.1)]
    rotations = np.stack([_rotation(*angle) for angle in angles])
    shifts = np.array([[0.1, 0.05, 0.2], [-0.6, 0.1, 0.3], [0.4, -0.5, 0.1], [0.7, 0.3, -0.2]])
    focal = [(150.0, 155.0), (140.0, 131.0), (160.0, 150.0), (90.0, 110.0)]
    lenses = np.stack(
        [
            [[fx, 0, 0.52 * width - 0.5], [0, fy, 0.47 * height - 0.5], [0, 0, 1]]
            for (fx, fy), (_, (width, height), _) in zip(focal, VIEWS, strict=True)
        ]
    )
    # float32 is what a scene holds; the truth starts from there
    extrinsics = np.concatenate([rotations, shifts[..., None]], -1).astype(np.float32)
    rotations = extrinsics[..., :3].astype(np.float64)
    shifts = extrinsics[..., 3].astype(np.float64)
    draft = Room(None, rotations, shifts, lenses, texture)  # type: ignore[arg-type]
    photos, images, depths, worlds, intrinsics = [], [], [], [], []
    for s, (name, size, (x1, y1, x2, y2)) in enumerate(VIEWS):
        pixels = np.rint(texture(draft.wall(s, _grid(*size))[0])).astype(np.uint8)
        file = None
        if name in ("a.jpg", "a.png"):
            file = folder / name
            Image.fromarray(pixels).save(file, quality=98)
        photos.append(StillPhoto(pixels, file))
        scale = np.array([x2 - x1, y2 - y1]) / size
        in_photo = draft.to_photo(s, _grid(WIDTH, HEIGHT))
        world, depth = draft.wall(s, in_photo)
        worlds.append(world)
        depths.append(depth)
        on_photo = ((in_photo > -0.5) & (in_photo < np.array(size) - 0.5)).all(-1, keepdims=True)
        images.append(np.where(on_photo, np.rint(texture(world)), 255))
        k = lenses[s].copy()
        k[:2, :2] *= scale[:, None]
        k[:2, 2] = (lenses[s, :2, 2] + 0.5) * scale + [x1, y1] - 0.5
        intrinsics.append(k)
    depth = np.stack(depths).astype(np.float32)
    depth[0, 3, 4:8] = np.nan, np.inf, -1.0, 0.0
    rng = np.random.default_rng(0)
    scene = Scene(
        names=tuple(name for name, _, _ in VIEWS),
        images=np.stack(images).astype(np.uint8),
        depth=depth,
        depth_conf=rng.uniform(1, 3, depth.shape).astype(np.float32),
        extrinsics=extrinsics,
        intrinsics=np.stack(intrinsics).astype(np.float32),
        boxes=np.array([box for _, _, box in VIEWS], np.float32),
        source_sizes=np.array([size for _, size, _ in VIEWS]),
        world_points=np.stack(worlds).astype(np.float32),
        world_points_conf=rng.uniform(1, 3, depth.shape).astype(np.float32),
        photos=tuple(photos),
    )
    return Room(scene, rotations, shifts, lenses, texture)
