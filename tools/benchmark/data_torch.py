"""The data recipe of the original, for `tools.benchmark.data`: Pillow in a PyTorch DataLoader.

What data/blendedmvs.py of github.com/AIGeeksGroup/Lite3R does with a view: decode, to floats, back
to 8 bits, resize the whole picture so that the shorter side fits, crop the middle; depth likewise
by the nearest pixel; mask by the range of the camera file and five times the median. It is written
anew here and leaves out the world points and the scale of the scene, which the pipeline does not
compute either.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

Item = tuple[Path, tuple[int, ...]]  # folder of a scene, its frames


class Recipe(Dataset):
    """A dataset for PyTorch by the original's recipe: dicts of tensors, images [S, 3, H, W]."""

    def __init__(self, items: Sequence[Item], size: int):
        self.items, self.size = items, size

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        folder, frames = self.items[index]
        views = [self._view(folder, f"{frame:08d}") for frame in frames]
        images, depths, masks, extrinsics, intrinsics = map(np.stack, zip(*views, strict=True))
        return {
            "images": torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
            "depths": torch.from_numpy(depths),
            "masks": torch.from_numpy(masks),
            "extrinsics": torch.from_numpy(extrinsics),
            "intrinsics": torch.from_numpy(intrinsics),
        }

    def _view(self, folder: Path, name: str) -> tuple[np.ndarray, ...]:
        path = folder / "blended_images" / f"{name}.jpg"
        pixels = np.array(Image.open(path).convert("RGB"), dtype=np.float32) / 255.0
        depth = _pfm(folder / "rendered_depth_maps" / f"{name}.pfm")
        extrinsics, intrinsics, low, high = _cam(folder / "cams" / f"{name}_cam.txt")

        scale = self.size / min(depth.shape)
        height, width = (round(side * scale) for side in depth.shape)
        image = Image.fromarray((pixels * 255).astype(np.uint8)).resize((width, height))
        pixels = np.array(image, dtype=np.float32) / 255.0
        nearest = Image.fromarray(depth).resize((width, height), Image.Resampling.NEAREST)
        depth = np.array(nearest, dtype=np.float32)
        top, left = max(0, (height - self.size) // 2), max(0, (width - self.size) // 2)
        crop = np.s_[top : top + self.size, left : left + self.size]
        pixels, depth = pixels[crop], depth[crop]
        intrinsics[:2] *= scale
        intrinsics[:2, 2] -= left, top

        mask = (depth > 0) & np.isfinite(depth)
        if high > 0:
            mask &= (depth >= 0.5 * low) & (depth <= 1.5 * high)
        if mask.any():
            mask &= depth <= 5.0 * float(np.median(depth[mask]))
        return pixels, np.where(mask, depth, 0.0).astype(np.float32), mask, extrinsics, intrinsics


def loader(items: Sequence[Item], size: int, batch: int, workers: int, prefetch: int) -> DataLoader:
    """Returns a PyTorch DataLoader of batches of the items, in order."""
    return DataLoader(
        Recipe(items, size),
        batch_size=batch,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
    )


def _pfm(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        file.readline()
        width, height = map(int, file.readline().split())
        order = "<" if float(file.readline()) < 0 else ">"
        values = np.fromfile(file, f"{order}f4")
    return np.flipud(values.reshape(height, width)).astype(np.float32)


def _cam(path: Path) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Reads (extrinsics, intrinsics, least depth, what the original takes for the largest)."""
    numbers = np.array(re.findall(r"[-+]?\d[-+.\deE]*", path.read_text()), np.float32)
    extrinsics, intrinsics = numbers[:16].reshape(4, 4), numbers[16:25].reshape(3, 3)
    return extrinsics, intrinsics, float(numbers[25]), float(numbers[27])
