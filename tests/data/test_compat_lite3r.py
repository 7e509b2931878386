"""compat="lite3r" against arrays that the original loaders made of the same files.

compat_lite3r.npz was made by running data/blendedmvs.py and data/dtu64.py of
github.com/AIGeeksGroup/Lite3R, unmodified, on the files of `write_inputs` with img_per_seq=3,
img_size=24 and seed=5: samples 0, 1 and 0 again of one dataset object. Images are stored times 255.
The files hold integers and few decimals only, and the images are PNG under any name, so that they
are the same wherever they are written.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lite3r_jax.data.blendedmvs import BlendedMVS
from lite3r_jax.data.compat_lite3r import choose_frames
from lite3r_jax.data.dtu64 import DTU64
from lite3r_jax.errors import InputError
from tests.data.world import View, cam_text, pfm_bytes

SIZE = (45, 64)
FRAMES = 5
TAILS = ["80 1.2 128 278", "60 1.5 128 280", "80 0.9", "-3 0.5 128 90", "100 0.2 128 278"]


def made_view(seed: int) -> View:
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    red = (x * 4 + seed * 31) % 256
    rgb = np.stack([red, (y * 5 + x + seed) % 256, (x * y + seed * 7) % 256], -1).astype(np.uint8)
    depth = 80 + ((x * 3 + y * 2 + seed * 17) % 200).astype(np.float32)
    depth[(x * 7 + y * 11 + seed) % 23 == 0] = 0  # none
    depth[(x + y * 3 + seed) % 29 == 0] = 900 + seed  # far beyond the median
    angle = (0.6, 0.8) if seed % 2 else (0.8, 0.6)
    rotation = [[angle[0], 0, angle[1]], [0, 1, 0], [-angle[1], 0, angle[0]]]
    shift = np.array([[seed * 20.5], [3.25 - seed], [40.0 + 2 * seed]])
    intrinsics = np.array([[70.5, 0, 31.25], [0, 72.25, 22.5], [0, 0, 1]])
    return View(rgb, depth, np.concatenate([rotation, shift], -1), intrinsics)


def write_inputs(root: Path) -> None:
    """root/blended with two scenes and root/dtu with two scans."""
    for scene in range(2):
        folder = root / "blended" / f"scene{scene}"
        for name in ("blended_images", "cams", "rendered_depth_maps"):
            (folder / name).mkdir(parents=True)
        for i in range(FRAMES):
            view = made_view(10 * scene + i)
            path = folder / "blended_images" / f"{i:08d}.jpg"
            Image.fromarray(view.rgb).save(path, "PNG")
            (folder / "cams" / f"{i:08d}_cam.txt").write_text(cam_text(view, TAILS[i]))
            path = folder / "rendered_depth_maps" / f"{i:08d}.pfm"
            path.write_bytes(pfm_bytes(view.depth))
    (root / "dtu" / "Cameras").mkdir(parents=True)
    for i in range(FRAMES):
        path = root / "dtu" / "Cameras" / f"{i:08d}_cam.txt"
        path.write_text(cam_text(made_view(i), "425 2.5"))
    for scan in ("scan1", "scan2"):
        folder = root / "dtu" / scan / "image"
        folder.mkdir(parents=True)
        for i in range(FRAMES):
            rgb = made_view(i + 3 * int(scan[4:])).rgb
            Image.fromarray(rgb).save(folder / f"{i:06d}.png")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("compat")
    write_inputs(root)
    return root


@pytest.fixture(scope="module")
def wanted():
    with np.load(Path(__file__).with_name("compat_lite3r.npz")) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module", params=["blended", "dtu"])
def samples(request, files):
    """Name, and samples 0, 1 and 0 drawn one after the other."""
    root = files / request.param
    kinds = {
        "blended": lambda: BlendedMVS(root, compat="lite3r"),
        "dtu": lambda: DTU64(root, views=FRAMES, compat="lite3r"),
    }
    source, generator = kinds[request.param](), np.random.default_rng(5)
    read = []
    for index in (0, 1, 0):
        scene = source.scenes[index]
        chosen = choose_frames(source.frames(scene), 3, generator)
        read.append(source.read(scene, chosen, (24, 24)))
    return request.param, read


def test_samples_equal_the_original(samples, wanted):
    name, read = samples
    for i, sample in enumerate(read):
        images = np.rint(sample.images * 255).astype(np.uint8)
        np.testing.assert_array_equal(images, wanted[f"{name}_{i}_images"])
        np.testing.assert_array_equal(sample.extrinsics, wanted[f"{name}_{i}_extrinsics"][:, :3])
        np.testing.assert_array_equal(sample.intrinsics, wanted[f"{name}_{i}_intrinsics"])


def test_depth_equals_the_original_with_its_wrong_range(samples, wanted):
    name, read = samples
    if name == "dtu":
        assert all(sample.depth is None for sample in read)
        return
    for i, sample in enumerate(read):
        np.testing.assert_array_equal(sample.depth, wanted[f"{name}_{i}_depths"])
        np.testing.assert_array_equal(sample.mask, wanted[f"{name}_{i}_depths"] > 0)


def test_without_compat_the_range_is_the_fourth_number(files):
    right, wrong = (
        BlendedMVS(files / "blended", compat=compat).read("scene0", (0, 1), (24, 24))
        for compat in (None, "lite3r")
    )
    assert right.depth is not None and wrong.depth is not None
    assert wrong.depth.max() * wrong.scale <= 1.5 * 128 < 270 < right.depth.max() <= 1.5 * 280
    assert right.mask.mean() > 1.5 * wrong.mask.mean()


def test_only_squares_are_made(files):
    with pytest.raises(InputError, match="squares only"):
        BlendedMVS(files / "blended", compat="lite3r").read("scene0", (0, 1), (24, 36))
