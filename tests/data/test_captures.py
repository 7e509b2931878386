"""Own captures: COLMAP models and transforms.json, as other programs write them."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pycolmap
import pytest
from PIL import Image

from lite3r_jax.data.captures import Capture
from lite3r_jax.data.colmap_model import read_colmap
from lite3r_jax.data.transforms_json import read_transforms
from lite3r_jax.data.views import cross_view_check
from lite3r_jax.errors import InputError
from lite3r_jax.exports import ExportOptions, write
from lite3r_jax.exports.depth_maps import masked_depth
from tests.data.mutate import COUNTS, mutants
from tests.data.world import pfm_bytes, scene_of, views

SIZE = (70, 84)  # that of tests/exports, which has compiled it


@pytest.fixture(scope="module")
def made():
    return views(4, SIZE)


@pytest.fixture(scope="module")
def scene(made):
    return scene_of(made)


@pytest.fixture(scope="module")
def exported(scene, tmp_path_factory):
    """Folder of each format."""
    out = tmp_path_factory.mktemp("exported")
    formats = ("colmap", "colmap_txt", "nerfstudio", "depth_pfm", "depth_png16")
    return write(scene, out, formats, ExportOptions(images="network", sparse_points=300))


@pytest.fixture
def copied(exported, tmp_path):
    """A function that copies one of the exported folders."""

    def copy(name):
        return shutil.copytree(exported[name], tmp_path / name)

    return copy


def read_all(capture, size=SIZE):
    (name,) = capture.scenes
    return capture.read(name, capture.frames(name), size)


# -- round trip -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["colmap", "colmap_txt", "nerfstudio"])
def test_exported_cameras_and_images_read_back(exported, scene, kind):
    capture = Capture(exported[kind])
    sample = read_all(capture)
    assert sample.frames == tuple(p.name for p in capture.photos) and sample.views == 4
    assert not capture.unposed and capture.pairs("") is None
    np.testing.assert_allclose(sample.extrinsics, scene.extrinsics, atol=1e-6)
    np.testing.assert_allclose(sample.intrinsics, scene.intrinsics, rtol=1e-6)
    np.testing.assert_array_equal(np.rint(sample.images * 255), scene.images)


@pytest.mark.parametrize("kind", ["depth_pfm", "depth_png16"])
def test_exported_depth_reads_back(exported, scene, kind):
    sample = read_all(Capture(exported["colmap"], depth=exported[kind]))
    tolerance = 0 if kind == "depth_pfm" else scene.depth.max() / 65535
    np.testing.assert_allclose(sample.depth, masked_depth(scene), atol=tolerance)
    assert np.nanmax(cross_view_check(sample).error) < 0.02


def test_exported_nerfstudio_depth_reads_back(exported, scene):
    sample = read_all(Capture(exported["nerfstudio"]))
    np.testing.assert_allclose(sample.depth, masked_depth(scene), atol=0.00051)


def test_a_flipped_bit_of_a_depth_map_is_noticed(tmp_path, exported):
    depth = shutil.copytree(exported["depth_png16"], tmp_path / "depth")
    file = sorted(depth.glob("*.png"))[0]
    whole = file.read_bytes()
    start, end = whole.index(b"IDAT") + 4, whole.index(b"IEND") - 8
    rng = np.random.default_rng(0)
    for bit in rng.choice(8 * (end - start), 50, replace=False):
        flipped = bytearray(whole)
        flipped[start + bit // 8] ^= 1 << (bit % 8)
        file.write_bytes(flipped)
        with pytest.raises(InputError, match=rf"{file.name}: cannot be read"):
            read_all(Capture(exported["colmap"], depth=depth))


class Photo:
    """Gray, at its own size."""

    def read(self):
        return Image.new("RGB", (112, 168), "gray")

    def upright_file(self):
        return None


def test_cropped_photos_read_back_with_their_depth(tmp_path, scene):
    """The network saw 70 of 84 rows of the photos at half their size, between black borders."""
    cropped = replace(
        scene,
        boxes=np.tile(np.array([14, -7, 70, 77], np.float32), (4, 1)),
        source_sizes=np.tile([112, 168], (4, 1)),
        photos=(Photo(),) * 4,
    )
    paths = write(cropped, tmp_path, ["colmap", "depth_png16", "nerfstudio"])
    rows = ((0, 0), (7, 7), (0, 0))  # of which nothing is known
    expected = np.pad(scene.depth[:, :, 14:70], rows).repeat(2, 1).repeat(2, 2)
    captures = [
        Capture(paths["colmap"], depth=paths["depth_png16"]),
        Capture(paths["nerfstudio"]),
    ]
    for capture in captures:
        sample = read_all(capture, (168, 112))
        np.testing.assert_allclose(sample.intrinsics, cropped.source_intrinsics, rtol=1e-5)
        np.testing.assert_allclose(sample.depth, expected, atol=0.00051)


# -- COLMAP -----------------------------------------------------------------------------------


def reconstruct(made, model=pycolmap.CameraModelId.PINHOLE, name="im {}.png"):
    """A model by COLMAP itself, one camera for all images."""
    height, width = SIZE
    k = made[0].intrinsics
    parameters = {
        pycolmap.CameraModelId.PINHOLE: [k[0, 0], k[1, 1], k[0, 2] + 0.5, k[1, 2] + 0.5],
        pycolmap.CameraModelId.SIMPLE_PINHOLE: [k[0, 0], k[0, 2] + 0.5, k[1, 2] + 0.5],
        pycolmap.CameraModelId.OPENCV_FISHEYE: [50, 50, 42, 35, 0, 0, 0, 0],
    }[model]
    rebuilt = pycolmap.Reconstruction()
    rebuilt.add_camera_with_trivial_rig(
        pycolmap.Camera(camera_id=7, model=model, width=width, height=height, params=parameters)
    )
    for i, view in enumerate(made):
        image = pycolmap.Image(name=name.format(12 - i), camera_id=7, image_id=i + 3)
        image.points2D = [pycolmap.Point2D([1.5, 2.5])] * i
        rebuilt.add_image_with_trivial_frame(
            image,
            pycolmap.Rigid3d(pycolmap.Rotation3d(view.extrinsics[:, :3]), view.extrinsics[:, 3]),
        )
    return rebuilt


@pytest.fixture
def colmap(made, tmp_path):
    """A capture with a model by COLMAP, in the form asked for."""

    def build(form="bin", model=pycolmap.CameraModelId.PINHOLE):
        root = tmp_path / "capture"
        (root / "sparse" / "0").mkdir(parents=True)
        (root / "images").mkdir()
        rebuilt = reconstruct(made, model)
        (rebuilt.write_binary if form == "bin" else rebuilt.write_text)(root / "sparse" / "0")
        for i, view in enumerate(made):
            Image.fromarray(view.rgb).save(root / "images" / f"im {12 - i}.png")
        return root

    return build


@pytest.mark.parametrize("form", ["bin", "txt"])
@pytest.mark.parametrize("model", ["PINHOLE", "SIMPLE_PINHOLE"])
def test_models_by_colmap_are_read(colmap, made, form, model):
    capture = Capture(colmap(form, getattr(pycolmap.CameraModelId, model)))
    assert [p.name for p in capture.photos] == [f"im {i}.png" for i in (9, 10, 11, 12)]
    sample = read_all(capture)
    for s, view in enumerate(reversed(made)):
        np.testing.assert_allclose(sample.extrinsics[s], view.extrinsics, atol=1e-6)
        expected = made[0].intrinsics.copy()
        if model == "SIMPLE_PINHOLE":
            expected[1, 1] = expected[0, 0]
        np.testing.assert_allclose(sample.intrinsics[s], expected, rtol=1e-6)
        np.testing.assert_array_equal(np.rint(sample.images[s] * 255), view.rgb)
    assert sample.depth is None


@pytest.mark.parametrize("form", ["bin", "txt"])
def test_fisheye_models_are_refused_with_a_remedy(colmap, form):
    root = colmap(form, pycolmap.CameraModelId.OPENCV_FISHEYE)
    message = r"OPENCV_FISHEYE is for fisheye lenses, expected .*FULL_OPENCV;.*image_undistorter"
    with pytest.raises(InputError, match=message):
        Capture(root)


@pytest.mark.parametrize("form", ["bin", "txt"])
@pytest.mark.parametrize("name", ["../im.png", "/im.png", "C:\\im.png"])
def test_names_that_lead_elsewhere_are_refused(made, tmp_path, form, name):
    rebuilt = reconstruct(made[:1], name=name)
    (rebuilt.write_binary if form == "bin" else rebuilt.write_text)(tmp_path)
    with pytest.raises(InputError, match="expected the name of a file inside the capture"):
        read_colmap(tmp_path)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("file", ["cameras.bin", "images.bin", "cameras.txt", "images.txt"])
def test_no_damaged_model_is_accepted(made, tmp_path, file, count):
    rebuilt = reconstruct(made[1:3])
    (rebuilt.write_binary if file.endswith("bin") else rebuilt.write_text)(tmp_path)
    path = tmp_path / file
    taken = 0
    for _ in mutants(path, path.read_bytes(), count, seed=4):
        try:
            photos = read_colmap(tmp_path)
        except InputError as error:
            text = str(error)
            assert text.startswith(f"{tmp_path}/") and "\n" not in text
            assert re.search(r"line \d+|byte \d+|is missing|has no image", text)
            continue
        taken += 1
        for photo in photos:
            rotation = photo.extrinsics[:, :3]
            assert np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-6
            assert np.isfinite(photo.extrinsics).all() and np.isfinite(photo.lens).all()
            assert min(photo.lens[:2]) > 0 and min(photo.size) > 0
            assert photo.name and not photo.name.startswith(("/", ".."))
    assert 0 < taken < count


def test_photos_without_camera_are_told(colmap, made):
    root = colmap()
    Image.fromarray(made[0].rgb).save(root / "images" / "extra.png")
    (root / "images" / "notes.txt").write_text("")
    assert Capture(root).unposed == ("extra.png",)


def test_cameras_without_photo_are_an_error(colmap):
    root = colmap()
    path = root / "images" / "im 10.png"
    path.unlink()
    capture = Capture(root)
    with pytest.raises(InputError, match=re.escape(f"{path}: is missing")):
        capture.frames("capture")
    assert capture.inventory("capture").frames == (0, 2, 3)
    with pytest.raises(InputError, match=re.escape(str(path))):
        capture.read("capture", (0, 1), SIZE)
    with pytest.raises(InputError, match="has frames 0 to 3, 4 was asked for"):
        capture.read("capture", (4,), SIZE)


def test_photos_of_another_size_or_turned_are_refused(colmap, made):
    root = colmap()
    path = root / "images" / "im 9.png"
    Image.fromarray(made[0].rgb[:, :-2]).save(path)
    with pytest.raises(InputError, match=r"im 9\.png: is 82x70, its camera is for 84x70"):
        Capture(root).read("capture", (0,), SIZE)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down: the size tells nothing
    Image.fromarray(made[0].rgb).save(path, exif=exif)
    with pytest.raises(InputError, match=r"im 9\.png: is stored turned"):
        Capture(root).read("capture", (0,), SIZE)


def test_the_model_is_found_or_named(colmap, tmp_path):
    root = colmap()
    (root / "sparse" / "0").rename(root / "model")
    with pytest.raises(InputError, match="has no cameras; expected one COLMAP model"):
        Capture(root)
    assert len(Capture(root, model=root / "model").photos) == 4
    shutil.copytree(root / "model", root / "sparse" / "0")
    (root / "transforms.json").write_text("{}")
    with pytest.raises(InputError, match=r"sparse/0 and .*transforms.json; expected one"):
        Capture(root)
    (root / "transforms.json").unlink()
    (root / "sparse" / "1").mkdir()
    with pytest.raises(InputError, match="has several models"):
        Capture(root)
    with pytest.raises(InputError, match="nowhere: is no folder"):
        Capture(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"cameras.txt: is missing"):
        Capture(root, model=root / "images")


# -- depth folders ----------------------------------------------------------------------------


def test_depth_of_another_resolution_must_have_the_shape_of_the_photo(colmap, made, tmp_path):
    root, folder = colmap(), tmp_path / "depth"
    folder.mkdir()
    for i, view in enumerate(made):
        (folder / f"im {12 - i}.pfm").write_bytes(pfm_bytes(view.depth[::2, ::2]))
    sample = read_all(Capture(root, depth=folder))
    np.testing.assert_array_equal(sample.depth[3, ::2, ::2], made[0].depth[::2, ::2])
    (folder / "im 9.pfm").write_bytes(pfm_bytes(made[0].depth[::2, :]))
    with pytest.raises(InputError, match="the depth map is 84x35, its photo is 84x70"):
        Capture(root, depth=folder).read("capture", (0,), SIZE)
    (folder / "im 9.pfm").unlink()
    with pytest.raises(InputError, match=r"im 9\.png: has no depth map, other photos have one"):
        Capture(root, depth=folder).frames("capture")


def test_depth_images_need_16_bits_and_a_scale(colmap, made, tmp_path):
    root, folder = colmap(), tmp_path / "depth"
    with pytest.raises(InputError, match="depth: is no folder"):
        Capture(root, depth=folder)
    folder.mkdir()
    with pytest.raises(InputError, match="has no depth map of any photo"):
        Capture(root, depth=folder)
    Image.fromarray(made[0].rgb[..., 0]).save(folder / "im 9.png")
    with pytest.raises(InputError, match=r"depth\.json: is missing"):
        Capture(root, depth=folder)
    notes = folder / "depth.json"
    for wrong, message in (
        ('{"scale": 0}', "scale: expected a positive number"),
        ("[1]", "expected scale, file and photo_box"),
        ('{"scale": 1, "views": [{"file": "a", "photo_box": [0, 0, 0, 5]}]}', "no extent"),
    ):
        notes.write_text(wrong)
        with pytest.raises(InputError, match=message):
            Capture(root, depth=folder)
    notes.write_text('{"scale": 0.01}')
    with pytest.raises(InputError, match=r"im 9\.png: expected a depth map with 16 bits"):
        Capture(root, depth=folder).read("capture", (0,), SIZE)
    (folder / "im 9.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"im 9\.png: cannot be read"):
        Capture(root, depth=folder).read("capture", (0,), SIZE)
    (folder / "im 9.pfm").write_bytes(pfm_bytes(made[0].depth))
    with pytest.raises(InputError, match=r"im 9\.pfm: stands beside im 9\.png"):
        Capture(root, depth=folder)


# -- transforms.json --------------------------------------------------------------------------


@pytest.fixture
def table(made, tmp_path):
    """A transforms.json with shared intrinsics, and its photos; a function writes it."""
    width, k = SIZE[1], made[0].intrinsics
    frames = []
    (tmp_path / "train").mkdir()
    for i, view in enumerate(made):
        Image.fromarray(view.rgb).save(tmp_path / "train" / f"r_{i}.png")
        pose = np.linalg.inv(np.vstack([view.extrinsics, [0, 0, 0, 1]]))
        pose[:, 1:3] *= -1  # OpenGL: y up, z backward
        frames.append({"file_path": f"./train/r_{i}.png", "transform_matrix": pose.tolist()})
    whole = {"w": width, "h": SIZE[0], "fl_x": k[0, 0], "fl_y": k[1, 1]}
    return whole | {"cx": k[0, 2] + 0.5, "cy": k[1, 2] + 0.5, "frames": frames}


def put(folder, table):
    (folder / "transforms.json").write_text(json.dumps(table))
    return Capture(folder)


def test_shared_intrinsics_and_opengl_poses_are_read(table, made, tmp_path):
    sample = read_all(put(tmp_path, table))
    assert sample.frames[1] == "train/r_1.png" and sample.depth is None
    for s, view in enumerate(made):
        np.testing.assert_allclose(sample.extrinsics[s], view.extrinsics, atol=1e-6)
        np.testing.assert_allclose(sample.intrinsics[s], view.intrinsics, rtol=1e-6)


def test_intrinsics_of_a_frame_count_more(table, tmp_path):
    table["frames"][2] |= {"fl_x": 99.0, "cx": 30.0}
    del table["fl_y"]
    sample = read_all(put(tmp_path, table))
    assert sample.intrinsics[2, 0].tolist() == pytest.approx([99, 0, 29.5])
    assert sample.intrinsics[2, 1, 1] == 99
    assert sample.intrinsics[1, 1, 1] == pytest.approx(table["fl_x"])


def test_field_of_view_and_names_without_suffix_are_read(table, tmp_path):
    angle = 2 * np.arctan(SIZE[1] / 2 / table["fl_x"])
    old = {"camera_angle_x": angle, "w": SIZE[1], "h": SIZE[0], "frames": table["frames"]}
    for frame in old["frames"]:
        frame["file_path"] = frame["file_path"].removesuffix(".png")
    sample = read_all(put(tmp_path, old))
    k = sample.intrinsics[0]
    assert k[0, 0] == k[1, 1] == pytest.approx(table["fl_x"])
    assert (k[0, 2], k[1, 2]) == ((SIZE[1] - 1) / 2, (SIZE[0] - 1) / 2)


def test_distortion_of_zero_is_none(table, tmp_path):
    table |= {"camera_model": "OPENCV", "k1": 0.0, "p2": 0, "is_fisheye": False}
    assert len(put(tmp_path, table).photos) == 4


MATRIX = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    "change,message",
    [
        ({"k4": 0.1}, "k4 is not 0, expected a camera_model .*image_undistorter"),
        ({"k1": 0.1, "camera_model": "PINHOLE"}, "k1 is not 0, expected a camera_model"),
        ({"camera_model": "OPENCV_FISHEYE"}, "camera_model is 'OPENCV_FISHEYE', expected a camera"),
        ({"is_fisheye": True}, "is_fisheye is set, expected a camera_model"),
        ({"frames": []}, "frames: expected a list with at least one"),
        ({"frames": [3]}, r"frames\[0\]: expected an object, got int"),
        ({"fl_x": None}, "fl_x: expected a number, got 'None'"),
        ({"fl_x": -5}, "expected positive focal lengths"),
        ({"fl_x": 10**400}, "fl_x: expected a finite number"),
        ({"w": 70.5}, "w: expected a number of pixels"),
        ({"w": True}, "w: expected a number, got 'True'"),
        ({"depth_unit_scale_factor": 0}, "depth_unit_scale_factor: expected a positive"),
        ({"frames": [{"file_path": 3}]}, "file_path: expected the name of a file"),
        ({"frames": [{"file_path": "../a.png"}]}, "inside the capture"),
        ({"frames": [{"file_path": "a"}]}, r"frames\[0\].transform_matrix: expected 4 rows"),
        (
            {"frames": [{"file_path": "a", "transform_matrix": MATRIX[::-1]}]},
            "expected the last row 0 0 0 1",
        ),
        (
            {"frames": [{"file_path": "a", "transform_matrix": [*MATRIX[1::-1], *MATRIX[2:]]}]},
            "got a mirror",
        ),
        (
            {"frames": [{"file_path": "a", "transform_matrix": MATRIX[:2] + MATRIX[1:3]}]},
            "expected 4 rows|expected the last row",
        ),
        (
            {"frames": [{"file_path": "a", "transform_matrix": [[2, 0, 0, 0], *MATRIX[1:]]}]},
            "expected a rotation, its rows are off",
        ),
        ({"frames": [{"file_path": "a", "transform_matrix": MATRIX}] * 2}, "comes twice"),
    ],
)
def test_what_transforms_cannot_say_is_named(table, tmp_path, change, message):
    with pytest.raises(InputError, match=message) as error:
        put(tmp_path, table | change)
    assert str(error.value).startswith(f"{tmp_path / 'transforms.json'}: ")


@pytest.mark.parametrize(
    "missing,message", [("fl_x", "fl_x: is missing"), ("h", "expected w and h, or neither")]
)
def test_missing_keys_are_named(table, tmp_path, missing, message):
    del table[missing]
    with pytest.raises(InputError, match=message):
        put(tmp_path, table)


@pytest.mark.parametrize(
    "text,message",
    [
        ('{"w": 1,\n', "line 2: expected JSON"),
        ('{"w": 1, "w": 2}', "a key comes twice"),
        ('{"w": NaN}', "NaN is no number"),
        ("[" * 100_000, "expected JSON"),
        ("[]", "expected an object, got list"),
    ],
)
def test_what_is_no_json_is_refused(tmp_path, text, message):
    path = tmp_path / "transforms.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_transforms(path)


@pytest.mark.parametrize("count", COUNTS)
def test_no_damaged_transforms_are_accepted(table, tmp_path, count):
    path = tmp_path / "transforms.json"
    text = json.dumps(table | {"frames": table["frames"][:2]}, indent=1).encode()
    taken = 0
    for _ in mutants(path, text, count, seed=5):
        try:
            photos = read_transforms(path)
        except InputError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            continue
        taken += 1
        for photo in photos:
            rotation = photo.extrinsics[:, :3]
            assert np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-2
            assert np.isfinite(photo.extrinsics).all() and min(photo.lens[:2]) > 0
            assert np.isfinite(photo.intrinsics((84, 70))).all()
            assert photo.name and ".." not in photo.name.split("/")
    assert 0 < taken < count


def test_missing_depth_maps_are_named(exported, tmp_path):
    root = shutil.copytree(exported["nerfstudio"], tmp_path / "capture")
    path = next((root / "depth").glob("*1*"))
    path.unlink()
    with pytest.raises(InputError, match=re.escape(f"{path}: is missing")):
        Capture(root).frames("capture")
    with pytest.raises(InputError, match="names photos and depth itself"):
        Capture(root, depth=root / "depth")
