"""Write scenes of the generated world in the layouts of BlendedMVS or DTU-64.

    python -m tools.make_synthetic --layout={blendedmvs,dtu64} --preset={tiny,small,bench} OUT

The files are those that the datasets have: JPEG images, cameras, PFM depth maps and pair.txt, or
PNG images of 64 views whose cameras all scans share. The same arguments write the same bytes on one
machine. OUT appears when it is complete.

Exit code: 0, or 2 when something was refused.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from lite3r_jax.data.cam_file import CamFile, write_cam
from lite3r_jax.data.pair_file import write_pairs
from lite3r_jax.data.pfm import write_pfm
from lite3r_jax.data.splits import DTU64_EVALUATION, DTU64_VIEWS
from lite3r_jax.data.synthetic.cameras import table_cameras
from lite3r_jax.data.synthetic.drawing import Renderer, cut, draw
from lite3r_jax.data.synthetic.rng import Rng
from lite3r_jax.data.synthetic.scene import TABLE_SCALE, make_table
from lite3r_jax.data.synthetic.source import SyntheticScenes
from lite3r_jax.data.synthetic.splits import SEEDS, Split, seeds_of
from lite3r_jax.errors import InputError
from lite3r_jax.files import atomic_write
from lite3r_jax.progress import Progress

_PLANES = 128  # of the depth range in camera files
_JPEG = {"quality": 92, "subsampling": 0}


@dataclass(frozen=True)
class Preset:
    """The size of a dataset to be written: scenes, frames, pixels and samples.

    Attributes:
        scenes: number of scenes or scans.
        frames: of each scene.
        size: (height, width).
        samples: color is the mean of samples x samples rays a pixel.
    """

    scenes: int
    frames: int
    size: tuple[int, int]
    samples: int = 2


PRESETS = {
    "blendedmvs": {
        "tiny": Preset(4, 6, (192, 256)),  # 6 MB
        "small": Preset(48, 8, (192, 256)),  # 100 MB
        "bench": Preset(24, 16, (576, 768)),  # 0.9 GB, the size of the dataset's images
    },
    "dtu64": {
        "tiny": Preset(2, DTU64_VIEWS, (96, 128)),
        "small": Preset(4, DTU64_VIEWS, (240, 320)),
        "bench": Preset(2, DTU64_VIEWS, (1200, 1600)),
    },
}
"""Layout of the files -> name of the preset -> preset."""

Tick = Callable[[], object]


def write(
    layout: str,
    preset: Preset,
    out: Path,
    *,
    split: Split = "test",
    seed: int = 0,
    renderer: Renderer = "jax",
    overwrite: bool = False,
) -> None:
    """Writes a dataset of generated scenes in one of the layouts.

    Args:
        layout: one of `PRESETS`.
        preset: how much.
        out: folder to be written.
        split: which scenes; for dtu64 only its textures count, cameras are the layout's own. Scans
            of a split to train on have numbers that are not evaluated on.
        seed: number of the first scene in its split.
        renderer: see `data.synthetic.drawing.draw`.
        overwrite: whether a folder that exists may be replaced.

    Raises:
        InputError: wrong arguments, or `out` exists or cannot be written.
    """
    if layout == "dtu64" and split in ("wide_baseline", "sky"):
        raise InputError(
            f"split: {split} is about cameras or the sky, and dtu64 has cameras of its own that"
            " look at a table; use blendedmvs"
        )
    if not 0 <= seed <= SEEDS - preset.scenes:
        raise InputError(f"seed: expected 0 to {SEEDS - preset.scenes}, got {seed}")
    with atomic_write(out, overwrite=overwrite) as partial:
        partial.mkdir()
        total = preset.scenes * preset.frames
        with Progress().stage("writing", total, "view") as tick, ThreadPoolExecutor() as pool:
            if layout == "dtu64":
                first = seeds_of(split).start + seed
                _write_dtu64(partial, preset, first, scan_names(split), renderer, pool, tick)
            else:
                source = SyntheticScenes(
                    split, preset.scenes, preset.frames,
                    first=seed, samples=preset.samples, renderer=renderer,
                )  # fmt: skip
                _write_blendedmvs(partial, source, preset.size, pool, tick)


def scan_names(split: Split) -> tuple[str, ...]:
    """Returns names of scans for a split: those for evaluation, or the others for training."""
    if not split.startswith("train"):
        return DTU64_EVALUATION
    return tuple(name for n in range(1, 129) if (name := f"scan{n}") not in DTU64_EVALUATION)


def _write_blendedmvs(
    root: Path,
    source: SyntheticScenes,
    size: tuple[int, int],
    pool: ThreadPoolExecutor,
    tick: Tick,
) -> None:
    for scene in source.scenes:
        for name in ("blended_images", "cams", "rendered_depth_maps"):
            (root / scene / name).mkdir(parents=True)
        write_pairs(root / scene / "cams" / "pair.txt", source.pairs(scene))
        jobs = []
        for frame in source.frames(scene):
            sample = source.read(scene, (frame,), size)
            assert sample.depth is not None
            near, far = (float(bound(sample.depth[sample.depth > 0])) for bound in (np.min, np.max))
            cam = CamFile(
                sample.extrinsics[0].astype(np.float64),
                sample.intrinsics[0].astype(np.float64),
                near,
                (far - near) / (_PLANES - 1),
                float(_PLANES),
                far,
            )
            image = np.rint(sample.images[0] * 255).astype(np.uint8)
            jobs.append(
                pool.submit(_blendedmvs_frame, root / scene, frame, image, sample.depth[0], cam)
            )
            tick()
        for job in jobs:  # no more than one scene waits in memory
            job.result()


def _blendedmvs_frame(
    folder: Path, frame: int, image: np.ndarray, depth: np.ndarray, cam: CamFile
) -> None:
    from PIL import Image

    name, images = f"{frame:08d}", folder / "blended_images"
    Image.fromarray(image).save(images / f"{name}.jpg", "JPEG", **_JPEG)
    masked = image * (depth > 0)[..., None]
    Image.fromarray(masked).save(images / f"{name}_masked.jpg", "JPEG", **_JPEG)
    write_cam(folder / "cams" / f"{name}_cam.txt", cam)
    write_pfm(folder / "rendered_depth_maps" / f"{name}.pfm", depth)


def _write_dtu64(
    root: Path,
    preset: Preset,
    first: int,
    names: Sequence[str],
    renderer: Renderer,
    pool: ThreadPoolExecutor,
    tick: Tick,
) -> None:
    planned = table_cameras(Rng(first), preset.frames)
    (root / "Cameras").mkdir()
    cameras = cut(planned, range(preset.frames), preset.size)
    poses = cameras.extrinsics(TABLE_SCALE)
    for view in range(preset.frames):  # the depth range of the dataset's own files
        cam = CamFile(poses[view], cameras.intrinsics[view], 425.0, 2.5, None, None)
        write_cam(root / "Cameras" / f"{view:08d}_cam.txt", cam)
    for index, scan in enumerate(names[: preset.scenes]):
        folder = root / scan / "image"
        folder.mkdir(parents=True)
        world, jobs = make_table(first + index, planned).world, []
        for view in range(preset.frames):
            one = cut(planned, (view,), preset.size)
            images, _ = draw(world, one, samples=preset.samples, renderer=renderer)
            jobs.append(pool.submit(_write_png, folder / f"{view:06d}.png", images[0]))
            tick()
        for job in jobs:
            job.result()


def _write_png(path: Path, image: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(image).save(path, "PNG")


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the dataset that the command line names; returns 0, or 2 if refused."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.make_synthetic", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("out", type=Path, help="folder to be written")
    parser.add_argument("--layout", choices=sorted(PRESETS), required=True)
    parser.add_argument("--preset", choices=sorted(PRESETS["dtu64"]), required=True)
    parser.add_argument("--split", choices=get_args(Split), default="test")
    parser.add_argument("--seed", type=int, default=0, help="number of the first scene")
    parser.add_argument("--renderer", choices=get_args(Renderer), default="jax")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that exists")
    options = parser.parse_args(arguments)
    preset = PRESETS[options.layout][options.preset]
    try:
        write(
            options.layout, preset, options.out,
            split=options.split, seed=options.seed, renderer=options.renderer,
            overwrite=options.overwrite,
        )  # fmt: skip
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    what = "scans" if options.layout == "dtu64" else "scenes"
    print(f"{options.out}: {preset.scenes} {what} with {preset.frames} views each")
    return 0


if __name__ == "__main__":
    sys.exit(main())
