"""Measures how far refinement corrects disturbed cameras, on generated scenes with exact truth.

    python -m tools.benchmark.refine [--scenes 10] [--seeds 3] [--degrees 1,2,5] [--views 8]
                                     [--size 448] [--split test] [--first 0] [--matches klt|sift]
                                     [--keep FOLDER]

Every camera but the first is turned by a random rotation of so many degrees (root of the mean
square) and moved by 2.5 % of the spread of the cameras for each degree, at most 10 %; focal lengths
are too long by the same share; depth is wrong by a smooth 5 %. Rotations and directions are of all
pairs of views; depth is compared after one scale for the scene. Cells: median before -> after
(worst scene and seed after). Reprojected color: see `color_psnr`, with the true depth. COLMAP: the
median distance in pixels from observations to their points in the written model, read by pycolmap.
Seconds are those of refinement alone: of the processors, and on the clock, which other work on the
machine lengthens. --keep keeps views that were drawn and figures of every run: with the same
command a table that was stopped goes on; after changes to the code the folder has to be a new one.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lite3r_jax.data.synthetic.source import SyntheticScenes
from lite3r_jax.data.views import Sample
from lite3r_jax.exports import ExportOptions, write
from lite3r_jax.files import atomic_write
from lite3r_jax.metrics.pose import pair_errors
from lite3r_jax.refine import RefineOptions, refine
from lite3r_jax.refine.geometry_of_views import Cameras, depth_lookup
from lite3r_jax.refine.klt import surface_points
from lite3r_jax.scene import Scene, StillPhoto

DEPTH_ERROR = 0.05


def scene_of(sample: Sample) -> Scene:
    """Makes a scene of a sample with depth, as if it was reconstructed without an error."""
    assert sample.depth is not None
    views, (height, width) = sample.views, sample.size
    images = np.rint(sample.images * 255).astype(np.uint8)
    return Scene(
        names=tuple(f"{frame}.png" for frame in sample.frames),
        images=images,
        depth=sample.depth,
        depth_conf=np.ones_like(sample.depth),
        extrinsics=sample.extrinsics,
        intrinsics=sample.intrinsics,
        boxes=np.tile(np.array([0, 0, width, height], np.float32), (views, 1)),
        source_sizes=np.tile(np.array([width, height]), (views, 1)),
        photos=tuple(map(StillPhoto, images)),
    )


def drawn(source: SyntheticScenes, name: str, size: tuple[int, int], keep: Path | None) -> Sample:
    """Draws all frames of a generated scene, or reads them from a folder if drawn before."""
    frames = source.frames(name)
    if keep is None:
        return source.read(name, frames, size)
    file = f"{name}-{len(frames)}x{size[0]}x{size[1]}-{source.samples}.npz"
    parts = ("images", "depth", "extrinsics", "intrinsics")
    arrays: dict[str, Any]
    if not (keep / file).is_file():
        sample = source.read(name, frames, size)
        with atomic_write(keep / file) as path, path.open("wb") as out:
            arrays = {part: getattr(sample, part) for part in parts[1:]}
            np.savez(out, images=np.rint(sample.images * 255).astype(np.uint8), **arrays)
    with np.load(keep / file) as kept:
        arrays = {part: kept[part] for part in parts}
    images = arrays.pop("images").astype(np.float32) / 255
    return Sample("synthetic", name, tuple(map(str, frames)), images, **arrays)


def disturbed(scene: Scene, degrees: float, seed: int, depth_error: float = DEPTH_ERROR) -> Scene:
    """Returns a scene with errors in cameras and depth, as a model might have predicted it.

    The docstring of the module says how large the errors are.
    """
    import cv2
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(seed)
    share = min(0.025 * degrees, 0.1)
    centers = scene.camera_to_world[..., 3]
    spread = np.linalg.norm(centers - centers.mean(0), axis=-1).mean()
    extrinsics = scene.extrinsics.astype(np.float64)
    for view in range(1, scene.views):
        turn = Rotation.from_rotvec(rng.normal(size=3) * np.radians(degrees) / np.sqrt(3))
        rotation = turn.as_matrix() @ extrinsics[view, :, :3]
        center = centers[view] + rng.normal(size=3) * spread * share / np.sqrt(3)
        extrinsics[view] = np.concatenate([rotation, -(rotation @ center)[:, None]], -1)
    intrinsics = scene.intrinsics.copy()
    intrinsics[:, (0, 1), (0, 1)] *= 1 + share
    height, width = scene.size
    smooth = [
        cv2.resize(rng.normal(size=(4, 5)), (width, height), interpolation=cv2.INTER_CUBIC)
        for _ in range(scene.views)
    ]
    depth = scene.depth * (1 + depth_error * np.stack(smooth))
    return replace(
        scene,
        extrinsics=extrinsics.astype(np.float32),
        intrinsics=intrinsics,
        depth=depth.astype(np.float32),
    )


def camera_errors(scene: Scene, truth: Scene) -> dict[str, float]:
    """Returns median errors of rotations, directions, focal lengths and depth of a scene.

    Rotations and directions are of pairs of views, in degrees; the other errors are relative.
    """
    off = pair_errors(scene.extrinsics, truth.extrinsics)
    focal = scene.intrinsics[:, 0, 0] / truth.intrinsics[:, 0, 0]
    valid = truth.depth > 0
    depth = scene.depth[valid] / truth.depth[valid]
    depth /= np.median(depth)
    return {
        "rotation": float(np.median(off.rotation)),
        "direction": float(np.nanmedian(off.direction)),
        "focal": float(np.median(np.abs(focal - 1))),
        "depth": float(np.median(np.abs(depth - 1))),
    }


def color_psnr(scene: Scene) -> float:
    """Returns the PSNR in dB of each view's colors where its points are in the next view.

    Points come from the depth of the view; those that the next view does not see at about its own
    depth are left out. A splat or a mesh would have to live with this error, which is found without
    training one.
    """
    import cv2

    cameras, depth = Cameras.of(scene), depth_lookup(scene, None)
    squares: list[np.ndarray] = []
    for a in range(scene.views - 1):
        points = surface_points(scene, cameras, a)
        b = np.full(len(points), a + 1)
        place, z = cameras.project(b, points)
        there = depth.at(b, np.where((z > 0)[:, None], place, -1e9))
        seen = (there > 0) & (np.abs(there - z) < 0.05 * z) & (scene.depth[a].ravel() > 0)
        u, v = place[seen].astype(np.float32).T
        image = scene.images[a + 1].astype(np.float32)
        rows = [
            cv2.remap(image, u[i : i + 30_000, None], v[i : i + 30_000, None], cv2.INTER_LINEAR)
            for i in range(0, len(u), 30_000)
        ]
        if rows:
            colors = np.concatenate(rows).reshape(-1, 3)
            squares.append((colors - scene.images[a].reshape(-1, 3)[seen]) ** 2)
    if not squares:
        return float("nan")
    return float(10 * np.log10(255**2 / np.concatenate(squares).mean()))


def colmap_error(scene: Scene) -> float:
    """Returns the median reprojection error in pixels of a refined scene's COLMAP model.

    The model is written and read back.
    """
    import pycolmap

    with tempfile.TemporaryDirectory() as folder:
        options = ExportOptions(images="network")
        path = write(scene, folder, ("colmap",), options)["colmap"]
        model = pycolmap.Reconstruction(path / "sparse" / "0")
    off = [
        np.linalg.norm(image.project_point(model.points3D[point.point3D_id].xyz) - point.xy)
        for image in model.images.values()
        for point in image.points2D
        if point.has_point3D()
    ]
    return float(np.median(off))


def measured(truth: Scene, degrees: float, seed: int, options: RefineOptions) -> dict[str, Any]:
    """Refines a disturbed scene and returns errors before and after, and times, as plain data."""
    start = disturbed(truth, degrees, seed)
    began, clock = time.process_time(), time.perf_counter()
    refined = refine(start, options)
    seconds = {"cpu": time.process_time() - began, "clock": time.perf_counter() - clock}
    # with true depth, so that nothing but cameras differs
    posed = (replace(scene, depth=truth.depth) for scene in (start, refined.scene, truth))
    return {
        "views": truth.views,
        "before": camera_errors(start, truth),
        "after": camera_errors(refined.scene, truth),
        "report": dict(refined.report),
        "seconds": seconds,
        "colors": [color_psnr(scene) for scene in posed],
        "colmap": colmap_error(refined.scene) if refined.report["refined"] else None,
    }


def row(degrees: float, runs: Sequence[dict[str, Any]]) -> str:
    """Formats a row of the table: medians over scenes and seeds."""

    def spread(name: str) -> str:
        one, two = (np.array([run[when][name] for run in runs]) for when in ("before", "after"))
        factor, unit = (100, " %") if name in ("focal", "depth") else (1, "")
        return (
            f"{factor * np.median(one):.2f} -> {factor * np.median(two):.2f}"
            f" ({factor * two.max():.2f}){unit}"
        )

    done = [run for run in runs if run["report"]["refined"]]
    tied = sum(run["views"] - len(run["report"]["not_tied"]) for run in done)
    colors = np.nanmedian([run["colors"] for run in runs], axis=0)
    cells: list[Any] = [
        f"{degrees:g}", f"{len(done)} of {len(runs)}",
        f"{100 * tied / sum(run['views'] for run in runs):.1f} %",
        *map(spread, ("rotation", "direction", "focal", "depth")),
        f"{np.mean([run['report']['mean_track_length'] for run in done]):.1f}" if done else "",
        " / ".join(f"{psnr:.1f}" for psnr in colors),
        f"{np.median([run['colmap'] for run in done]):.2f}" if done else "",
        *(f"{np.median([run['seconds'][of] for run in runs]):.1f}" for of in ("cpu", "clock")),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def kept(keep: Path | None, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Reads the figures of a run from a folder, or makes new ones and keeps them there."""
    if keep is None:
        return make()
    path = keep / f"{name}.json"
    if not path.is_file():
        with atomic_write(path) as file:
            file.write_text(json.dumps(make()))
    return json.loads(path.read_text())


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures refinement at all disturbances and prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark.refine", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--scenes", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="number of the first scene")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--degrees", default="1,2,5")
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--size", type=int, default=448)
    parser.add_argument("--samples", type=int, default=2, help="rays across a pixel")
    parser.add_argument("--split", default="test")
    parser.add_argument("--rounds", type=int, default=RefineOptions.rounds)
    parser.add_argument("--keep", type=Path, help="folder for views and figures of runs")
    parser.add_argument("--matches", choices=("klt", "sift"), default=RefineOptions.matches)
    args = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")  # of it, only views are drawn with JAX
    source = SyntheticScenes(
        args.split,
        args.scenes,
        args.views,
        first=args.first,
        samples=args.samples,
        renderer="jax",
    )
    size = (args.size, args.size)
    options = RefineOptions(rounds=args.rounds, matches=args.matches)
    print(
        "| degrees | refined | views tied | rotation, degrees | direction, degrees | focal length"
        " | depth | track length | reprojected color, dB: before / after / true cameras | COLMAP"
        " | CPU seconds | seconds on the clock |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for degrees in args.degrees.split(","):
        runs = []
        for name, seed in product(source.scenes, range(args.seeds)):
            truth = partial(drawn, source, name, size, args.keep)
            what = f"{name}-{args.views}x{args.size}-{args.samples}-{args.matches}-{args.rounds}"
            runs.append(
                kept(
                    args.keep,
                    f"{what}-{float(degrees):g}-{seed}",
                    lambda of=truth, seed=seed, degrees=degrees: measured(
                        scene_of(of()), float(degrees), seed, options
                    ),
                )
            )
        print(row(float(degrees), runs), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
