"""Times writing points to PLY, GLB and COLMAP, against the method of the original's scripts.

    python -m tools.benchmark.exports [--points 5000000] [--views 20] [--repeats 3]

The other method is what one finds in the scripts around VGGT: for PLY a struct.pack per point; for
GLB a trimesh.Scene of a PointCloud and a cone per camera; for COLMAP a pycolmap reconstruction
built point by point (demo_colmap.py and np_to_pycolmap.py of VGGT), and beside it the struct loop
of COLMAP's read_write_model.py. Both sides write the same points and cameras, and no images. The
fastest of the repeats counts; slow loops run once, and in proportion where --loop-points says so.
Needs trimesh and pycolmap.
"""

import argparse
import shutil
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lite3r_jax.exports.cameras import FLIP
from lite3r_jax.exports.colmap import write_model
from lite3r_jax.exports.glb import write_glb
from lite3r_jax.exports.images import ImageSet, plan_images
from lite3r_jax.exports.ply import write_ply
from lite3r_jax.exports.points import PointCloud, PointOptions, select_points, thinned
from lite3r_jax.scene import Scene

SIZE = 518


def make_scene(views: int) -> Scene:
    """Makes a scene of cameras on an arc, with random depth and images of noise."""
    rng = np.random.default_rng(0)
    maps = (views, SIZE, SIZE)
    angle = np.linspace(-0.5, 0.5, views)
    poses = np.zeros((views, 3, 4), np.float32)
    poses[:, 0, 0] = poses[:, 2, 2] = np.cos(angle)
    poses[:, 0, 2], poses[:, 2, 0] = np.sin(angle), -np.sin(angle)
    poses[:, 1, 1] = 1
    poses[:, 0, 3] = angle
    lens = np.array([[500, 0, SIZE / 2], [0, 500, SIZE / 2], [0, 0, 1]], np.float32)
    return Scene(
        names=tuple(f"{s:04}.png" for s in range(views)),
        images=rng.integers(0, 256, (*maps, 3), np.uint8),
        depth=rng.uniform(2, 3, maps).astype(np.float32),
        depth_conf=rng.uniform(1, 3, maps).astype(np.float32),
        extrinsics=poses,
        intrinsics=np.tile(lens, (views, 1, 1)),
        boxes=np.tile(np.array([0, 0, SIZE, SIZE], np.float32), (views, 1)),
        source_sizes=np.tile([SIZE, SIZE], (views, 1)),
    )


def loop_ply(cloud: PointCloud, path: Path) -> None:
    """Writes PLY by a struct.pack per point."""
    with path.open("wb") as file:
        names = ["float x", "float y", "float z", "uchar red", "uchar green", "uchar blue"]
        lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(cloud)}"]
        lines += [f"property {name}" for name in names] + ["end_header", ""]
        file.write("\n".join(lines).encode())
        for (x, y, z), (r, g, b) in zip(cloud.xyz, cloud.rgb, strict=True):
            file.write(struct.pack("<fffBBB", x, y, z, r, g, b))


def trimesh_glb(scene: Scene, cloud: PointCloud, path: Path) -> None:
    """Writes GLB by trimesh, a cone with four sides per camera."""
    import trimesh
    from trimesh.visual import ColorVisuals

    flip = np.eye(4)
    flip[:3, :3] = FLIP
    out = trimesh.Scene([trimesh.PointCloud(cloud.xyz, colors=cloud.rgb)])
    for pose in scene.camera_to_world:
        cone = trimesh.creation.cone(0.05, 0.1, sections=4)
        cone.visual = ColorVisuals(cone, face_colors=[255, 0, 0, 255])
        cone.apply_transform(np.concatenate([pose, [[0, 0, 0, 1]]]) @ flip)
        out.add_geometry(cone)
    out.apply_transform(flip)
    out.export(path, file_type="glb")


def pycolmap_model(scene: Scene, cloud: PointCloud, images: ImageSet, folder: Path) -> None:
    """Writes COLMAP by a pycolmap.Reconstruction, point by point, then image by image."""
    import pycolmap

    folder.mkdir()
    model = pycolmap.Reconstruction()
    for xyz, rgb in zip(cloud.xyz, cloud.rgb, strict=True):
        model.add_point3D(xyz, pycolmap.Track(), rgb)
    pixels = images.pixels(cloud.view, cloud.pixel) + 0.5
    for s, name in enumerate(images.names):
        k = images.intrinsics[s]
        camera = pycolmap.Camera(
            model="PINHOLE", width=SIZE, height=SIZE, camera_id=s + 1,
            params=[k[0, 0], k[1, 1], k[0, 2] + 0.5, k[1, 2] + 0.5],
        )  # fmt: skip
        model.add_camera_with_trivial_rig(camera)
        image = pycolmap.Image(image_id=s + 1, name=name, camera_id=s + 1)
        points2d = []
        for i in np.flatnonzero(cloud.view == s):
            point_id = int(i) + 1
            points2d.append(pycolmap.Point2D(pixels[i], point_id))
            model.points3D[point_id].track.add_element(s + 1, len(points2d) - 1)
        image.points2D = pycolmap.Point2DList(points2d)
        pose = pycolmap.Rigid3d(
            pycolmap.Rotation3d(scene.extrinsics[s, :, :3]), scene.extrinsics[s, :, 3]
        )
        model.add_image_with_trivial_frame(image, pose)
    model.write_binary(str(folder))


def loop_colmap(cloud: PointCloud, images: ImageSet, folder: Path) -> None:
    """Writes points3D.bin and the observations of images.bin by a struct.pack per point."""
    folder.mkdir()
    pixels = images.pixels(cloud.view, cloud.pixel) + 0.5
    with (folder / "points3D.bin").open("wb") as file:
        file.write(struct.pack("<Q", len(cloud)))
        index, last = 0, -1
        for i, (xyz, rgb, view) in enumerate(zip(cloud.xyz, cloud.rgb, cloud.view, strict=True)):
            index, last = (index + 1 if view == last else 0), view
            file.write(struct.pack("<QdddBBBd", i + 1, *xyz, *rgb, 0.0))
            file.write(struct.pack("<QII", 1, view + 1, index))
    with (folder / "images.bin").open("wb") as file:
        for i, (x, y) in enumerate(pixels):
            file.write(struct.pack("<ddQ", x, y, i + 1))


def fastest(function: Callable[[Path], None], folder: Path, repeats: int) -> float:
    """Returns seconds of the fastest of some runs; each writes a path, which is then removed."""
    seconds = []
    for number in range(repeats):
        path = folder / f"out{number}"
        start = time.perf_counter()
        function(path)
        seconds.append(time.perf_counter() - start)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return min(seconds)


def main() -> None:
    """Times all writers and prints a table."""
    parser = argparse.ArgumentParser(description="Time of writing points to files")
    parser.add_argument("--points", type=int, default=5_000_000)
    parser.add_argument("--views", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3, help="of everything but slow loops")
    parser.add_argument(
        "--loop-points", type=int, default=0, help="points of the slow loops; 0: all of them"
    )
    args = parser.parse_args()
    scene = make_scene(args.views)
    images = plan_images(scene, "network")
    options = PointOptions(conf_percentile=0, max_points=args.points)
    select_points(scene, options)  # compiles
    start = time.perf_counter()
    cloud = select_points(scene, options)
    print(f"{len(cloud)} points of {args.views} views; select_points: ", end="")
    print(f"{time.perf_counter() - start:.2f} s")
    part = thinned(cloud, args.loop_points)
    factor = len(cloud) / len(part)
    ours = {
        "PLY": lambda path: write_ply(cloud, path),
        "GLB": lambda path: write_glb(scene, cloud, path),
        "COLMAP": lambda path: write_model(scene, cloud, images, path),
    }
    others = [
        ("PLY", "struct loop", lambda path: loop_ply(part, path)),
        ("GLB", "trimesh", lambda path: trimesh_glb(scene, cloud, path)),
        ("COLMAP", "pycolmap loop", lambda path: pycolmap_model(scene, part, images, path)),
        ("COLMAP", "struct loop", lambda path: loop_colmap(part, images, path)),
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = {kind: fastest(function, folder, args.repeats) for kind, function in ours.items()}
        print("| format | ours (s) | other method | its time (s) | ratio |\n|---|---|---|---|---|")
        for kind, method, function in others:
            loop = method != "trimesh"
            seconds = fastest(function, folder, 1 if loop else args.repeats)
            seconds *= factor if loop else 1
            ratio = seconds / own[kind]
            print(f"| {kind} | {own[kind]:.2f} | {method} | {seconds:.2f} | {ratio:.1f} |")


if __name__ == "__main__":
    main()
