"""Reader of BlendedMVS in its low-resolution layout (github.com/YoYo000/BlendedMVS, README).

    ROOT/SCENE/blended_images/00000000.jpg      and 00000000_masked.jpg, which is not used
    ROOT/SCENE/cams/00000000_cam.txt, pair.txt
    ROOT/SCENE/rendered_depth_maps/00000000.pfm

Every scene has a length unit of its own.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from lite3r_jax.data import compat_lite3r
from lite3r_jax.data.cam_file import CamFile, read_cam
from lite3r_jax.data.folders import Inventory, subfolders, take_inventory
from lite3r_jax.data.images import read_image
from lite3r_jax.data.pair_file import read_pairs
from lite3r_jax.data.pfm import read_depth_pfm
from lite3r_jax.data.splits import BLENDEDMVS_TRAINING, BLENDEDMVS_VALIDATION
from lite3r_jax.data.transforms import Frame, check_frame, fit_frames
from lite3r_jax.data.views import Sample
from lite3r_jax.errors import InputError

Split = Literal["train", "validation"]
_SPLITS = {"train": BLENDEDMVS_TRAINING, "validation": BLENDEDMVS_VALIDATION}
Compat = Literal["lite3r"]


@dataclass(frozen=True)
class DepthFilter:
    """Filter that drops implausible rendered depths, by the rules that Lite3R's loader intends.

    Attributes:
        nearest: depths below this many times the camera file's depth_min do not count.
        farthest: depths above this many times its depth_max do not count. Files without a range
            that makes sense filter nothing.
        median: depths above this many times the median of what is left do not count.
    """

    nearest: float = 0.5
    farthest: float = 1.5
    median: float = 5.0

    def __post_init__(self):
        if not (0 <= self.nearest <= 1 <= self.farthest and self.median >= 1):
            raise InputError(
                "depth_filter: expected nearest of 0 to 1, farthest and median of at least 1"
                f" (inf for none), got {self}"
            )

    def __call__(self, depth: np.ndarray, cam: CamFile) -> np.ndarray:
        """Returns the depth map with 0 where the depth is not valid."""
        valid = depth > 0
        if cam.depth_range is not None:
            low, high = cam.depth_range
            valid &= (depth >= self.nearest * low) & (depth <= self.farthest * high)
        kept = depth * valid
        if self._may_be_beyond_median(kept):
            kept[kept > self.median * np.median(kept[kept > 0])] = 0
        return kept

    def _may_be_beyond_median(self, depth: np.ndarray) -> bool:
        """Returns False only if no depth exceeds `median` times the median depth.

        This is much faster than finding the median. If fewer than half of the depths are below a
        `median`-th of the largest one, then the median is not below it either, and even the largest
        depth is within the limit.
        """
        count = int(np.count_nonzero(depth))
        limit = float(depth.max()) / self.median * (1 + 1e-6)  # more than float32 rounds off
        below = int(np.count_nonzero((depth > 0) & (depth < limit)))
        return count > 0 and below > (count - 1) // 2


class BlendedMVS:
    """Source of the scenes of BlendedMVS; implements `data.views.SceneSource`.

    A missing or damaged file is an error that names it; nothing is put in its place.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        scenes: Split | Sequence[str] | None = None,
        *,
        depth_filter: DepthFilter = DepthFilter(),
        compat: Compat | None = None,
    ):
        """Lists the scenes of a folder; the files of a scene are looked at only on demand.

        Args:
            root: folder of scenes.
            scenes: names; "train" or "validation": the 106 or the 7 official ones, all of which
                must be there; None: whatever is there.
            depth_filter: which depths are valid.
            compat: "lite3r": samples have the numbers of Lite3R's loader, see `compat_lite3r`.

        Raises:
            InputError: no folder, no scenes, or a scene that is not there.
        """
        if compat not in (None, *get_args(Compat)):
            raise InputError(f"compat: expected lite3r or None, got {compat!r}")
        self.root = Path(root)
        self.depth_filter = depth_filter
        self.compat = compat
        self.scenes = self._find(scenes)
        self._inventories: dict[str, Inventory] = {}

    def _find(self, scenes: Split | Sequence[str] | None) -> tuple[str, ...]:
        there = [n for n in subfolders(self.root) if (self.root / n / "blended_images").is_dir()]
        if not there:
            inside = (self.root / "blended_images").is_dir()
            hint = "; this is one scene, give the folder above it" if inside else ""
            raise InputError(
                f"{self.root}: has no scene of BlendedMVS (a folder with blended_images){hint}"
            )
        if scenes is None:
            return tuple(there)
        if isinstance(scenes, str) and scenes not in _SPLITS:
            raise InputError(f"scenes: expected train, validation or names, got {scenes!r}")
        chosen = tuple(_SPLITS[scenes] if isinstance(scenes, str) else scenes)
        if missing := [name for name in chosen if name not in there]:
            more = f", as are {len(missing) - 1} more" if missing[1:] else ""
            raise InputError(f"{self.root / missing[0]}: is missing or has no blended_images{more}")
        return chosen

    def inventory(self, scene: str) -> Inventory:
        """Returns the frames of a scene and which of their files are missing."""
        if scene not in self._inventories:
            folder = self.root / scene
            self._inventories[scene] = take_inventory(
                {
                    "image": (folder / "blended_images", r"(\d{8})\.jpg", "%08d.jpg"),
                    "camera": (folder / "cams", r"(\d{8})_cam\.txt", "%08d_cam.txt"),
                    "depth map": (folder / "rendered_depth_maps", r"(\d{8})\.pfm", "%08d.pfm"),
                }
            )
        return self._inventories[scene]

    def frames(self, scene: str) -> tuple[int, ...]:
        """Returns the numbers of a scene's frames.

        Raises:
            InputError: the scene has a frame of which something is missing.
        """
        return self.inventory(scene).complete()

    def pairs(self, scene: str) -> dict[int, dict[int, float]]:
        """Returns the overlap scores of a scene, read from its pair.txt.

        Raises:
            InputError: the file is missing or damaged, or has a view that is no frame.
        """
        path = self.root / scene / "cams" / "pair.txt"
        pairs, inventory = read_pairs(path), self.inventory(scene)
        if unknown := sorted(pairs.keys() - {*inventory.frames, *inventory.partial}):
            raise InputError(f"{path}: has view {unknown[0]}, which is no frame of the scene")
        return pairs

    def read_frame(self, scene: str, frame: int) -> Frame:
        """Reads image, camera and depth of one frame as stored, before the depth filter.

        Raises:
            InputError: naming the file that is missing or damaged.
        """
        return self._read_frame(scene, frame)[0]

    def _read_frame(self, scene: str, frame: int) -> tuple[Frame, CamFile]:
        folder, name = self.root / scene, f"{frame:08d}"
        path = folder / "blended_images" / f"{name}.jpg"
        image = read_image(path, str(path))
        cam = read_cam(folder / "cams" / f"{name}_cam.txt")
        depth = read_depth_pfm(
            folder / "rendered_depth_maps" / f"{name}.pfm", (image.height, image.width)
        )
        whole = Frame(name, image, cam.extrinsics, cam.intrinsics, depth)
        return check_frame(whole, str(folder / "cams" / f"{name}_cam.txt")), cam

    def read(self, scene: str, frames: Sequence[int], size: tuple[int, int]) -> Sample:
        """Reads frames of a scene as one sample, center-cropped and resized.

        Args:
            scene: one of `scenes`.
            frames: some of `frames(scene)`, in the order of the sample.
            size: (height, width); square with compat="lite3r".

        Raises:
            InputError: naming the file that is missing or damaged.
        """
        read = [self._read_frame(scene, frame) for frame in frames]
        if self.compat == "lite3r":
            return compat_lite3r.fit_frames(read, size, dataset="blendedmvs", scene=scene)
        filtered = [
            replace(frame, depth=self.depth_filter(frame.depth, cam))
            for frame, cam in read
            if frame.depth is not None
        ]
        return fit_frames(filtered, size, dataset="blendedmvs", scene=scene)
