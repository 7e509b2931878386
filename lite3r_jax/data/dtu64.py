"""Reader of DTU-64: 64 views of each scan, with cameras that all scans share, and no depth.

    ROOT/Cameras/00000000_cam.txt
    ROOT/scan24/image/000000.png      also 00000000.png: the number counts

The layout is that of bench/datasets/dtu64.py in github.com/ByteDance-Seed/Depth-Anything-3 and of
data/dtu64.py in Lite3R. Lengths are millimeters.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from lite3r_jax.data import compat_lite3r
from lite3r_jax.data.blendedmvs import Compat
from lite3r_jax.data.cam_file import CamFile, read_cam
from lite3r_jax.data.folders import Inventory, numbered_files, subfolders, take_inventory
from lite3r_jax.data.images import read_image
from lite3r_jax.data.splits import DTU64_EVALUATION, DTU64_REFERENCE, DTU64_VIEWS
from lite3r_jax.data.transforms import Frame, check_frame, fit_frames
from lite3r_jax.data.views import Sample
from lite3r_jax.errors import InputError

_IMAGE, _CAMERA = r"(\d+)\.png", r"(\d+)_cam\.txt"


class DTU64:
    """Source of the scans of DTU-64, without depth; implements `data.views.SceneSource`."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        scenes: Literal["evaluation", "training"] | Sequence[str] | None = None,
        *,
        views: int | None = DTU64_VIEWS,
        compat: Compat | None = None,
    ):
        """Lists the scans of a folder; the files of a scan are looked at only on demand.

        Args:
            root: folder of Cameras and scans.
            scenes: names; "evaluation": the 13 that are evaluated on; "training": all others that
                are there; None: all.
            views: how many each scan must have; None: as many as there are cameras.
            compat: "lite3r": samples have the numbers of Lite3R's loader, see `compat_lite3r`.

        Raises:
            InputError: no folder, no Cameras, no scans, or a scan that is not there.
        """
        if compat not in (None, *get_args(Compat)):
            raise InputError(f"compat: expected lite3r or None, got {compat!r}")
        self.root = Path(root)
        self.views = views
        self.compat = compat
        there = [name for name in subfolders(self.root) if (self.root / name / "image").is_dir()]
        scans = sorted((n for n in there if re.fullmatch(r"scan\d+", n)), key=lambda n: int(n[4:]))
        if not (self.root / "Cameras").is_dir():
            raise InputError(f"{self.root / 'Cameras'}: is missing; expected the shared cameras")
        if not scans:
            raise InputError(f"{self.root}: has no scan of DTU-64 (a folder scanN with image)")
        if isinstance(scenes, str) and scenes not in ("evaluation", "training"):
            raise InputError(f"scenes: expected evaluation, training or names, got {scenes!r}")
        if scenes == "training":
            scans = [name for name in scans if name not in DTU64_EVALUATION]
            if not scans:
                raise InputError(
                    f"{self.root}: has only scans that are evaluated on (scan24 and 12 others);"
                    " add others to train on"
                )
        elif scenes is not None:
            chosen = DTU64_EVALUATION if scenes == "evaluation" else tuple(scenes)
            if missing := [name for name in chosen if name not in scans]:
                raise InputError(f"{self.root / missing[0]}: is missing or has no folder image")
            scans = list(chosen)
        self.scenes = tuple(scans)
        self._inventories: dict[str, Inventory] = {}
        self._files: dict[Path, dict[int, Path]] = {}

    def inventory(self, scene: str) -> Inventory:
        """Returns the frames of a scan and which of their files are missing."""
        if scene not in self._inventories:
            inventory = take_inventory(
                {
                    "image": (self.root / scene / "image", _IMAGE, "%06d.png"),
                    "camera": (self.root / "Cameras", _CAMERA, "%08d_cam.txt"),
                }
            )
            if (
                self.views is not None
                and not inventory.faults
                and len(inventory.frames) != self.views
            ):
                fault = (
                    f"{self.root / scene / 'image'}: has {len(inventory.frames)} images with"
                    f" cameras, expected {self.views}"
                )
                inventory = Inventory(inventory.frames, (fault,))
            self._inventories[scene] = inventory
        return self._inventories[scene]

    def frames(self, scene: str) -> tuple[int, ...]:
        """Returns the numbers of a scan's frames.

        Raises:
            InputError: an image or camera is missing, or there are not as many as expected.
        """
        return self.inventory(scene).complete()

    def pairs(self, scene: str) -> None:
        """Returns None: the layout of DTU-64 has no overlap scores (pair.txt)."""
        del scene

    def read_frame(self, scene: str, frame: int) -> Frame:
        """Reads the image and the camera of one frame as stored.

        Raises:
            InputError: naming the file that is missing or damaged.
        """
        return self._read_frame(scene, frame)[0]

    def _read_frame(self, scene: str, frame: int) -> tuple[Frame, CamFile]:
        path = self._file(self.root / scene / "image", _IMAGE, frame)
        image = read_image(path, str(path))
        cam = read_cam(self._file(self.root / "Cameras", _CAMERA, frame))
        whole = Frame(f"{frame:08d}", image, cam.extrinsics, cam.intrinsics)
        return check_frame(whole, str(path)), cam

    def read(self, scene: str, frames: Sequence[int], size: tuple[int, int]) -> Sample:
        """Reads frames of a scan as one sample, center-cropped and resized.

        Args:
            scene: one of `scenes`.
            frames: some of `frames(scene)`, in the order of the sample.
            size: (height, width); square with compat="lite3r".

        Raises:
            InputError: naming the file that is missing or damaged.
        """
        read = [self._read_frame(scene, frame) for frame in frames]
        if self.compat == "lite3r":
            return compat_lite3r.fit_frames(read, size, dataset="dtu64", scene=scene, unit="mm")
        whole = [frame for frame, _ in read]
        return fit_frames(whole, size, dataset="dtu64", scene=scene, unit="mm")

    def _file(self, folder: Path, pattern: str, frame: int) -> Path:
        if folder not in self._files:
            self._files[folder] = numbered_files(folder, pattern)[0]
        if frame not in self._files[folder]:
            raise InputError(f"{folder}: has no file of frame {frame}; check the dataset")
        return self._files[folder][frame]


def reference_first(frames: Sequence[int]) -> tuple[int, ...]:
    """Returns a scan's frames with that at index 33, DTU-64's reference view, moved to the front.

    This is the order of DTU-64 evaluation.

    Raises:
        InputError: there are no more than 33 frames.
    """
    if len(frames) <= DTU64_REFERENCE:
        raise InputError(
            f"frames: expected more than {DTU64_REFERENCE}, since that one is the reference, got"
            f" {len(frames)}"
        )
    at = DTU64_REFERENCE
    return (frames[at], *frames[:at], *frames[at + 1 :])
