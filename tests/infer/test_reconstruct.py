"""Photos to scenes in Python."""

import dataclasses
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lite3r_jax import reconstruct
from lite3r_jax.backbones.vggt import VGGTConfig
from lite3r_jax.data.images import load_images
from lite3r_jax.data.photos import find_scenes
from lite3r_jax.errors import InputError
from lite3r_jax.infer.expected_time import ExpectedTime
from lite3r_jax.infer.options import ComputeOptions, ImageOptions
from lite3r_jax.infer.reconstruct import Reconstructor, to_scene
from lite3r_jax.weights.load import load

SMALL = ImageOptions(mode="crop", size=56)


@pytest.fixture(scope="module")
def model(fake_model):
    return fake_model()


@pytest.fixture
def photos(tmp_path, tiny_images):
    """A folder with two photos, one wide, one tall."""
    folder = tmp_path / "garden"
    folder.mkdir()
    for name, shape, image in zip(
        ("img10.png", "img2.png"), ((168, 112), (112, 168)), tiny_images[0], strict=False
    ):
        pixels = Image.fromarray(np.rint(image * 255).astype(np.uint8))
        pixels.resize(shape).save(folder / name)
    return folder


@pytest.mark.slow
def test_a_folder_becomes_a_scene_with_vggts_numbers(tiny_dir, photos):
    model = load(tiny_dir, heads=("camera", "depth", "point"))
    scene = reconstruct(model, photos, images=SMALL)
    assert scene.names == ("img2.png", "img10.png")  # natural order
    assert [tuple(size) for size in scene.source_sizes] == [(112, 168), (168, 112)]
    images = load_images([photos / name for name in scene.names], "crop", 56)
    np.testing.assert_array_equal(scene.images / np.float32(255), images)
    want, _ = model(jnp.asarray(images[None]))
    for got, name in [
        (scene.depth[..., None], "depth"),
        (scene.depth_conf, "depth_conf"),
        (scene.extrinsics, "extrinsics"),
        (scene.intrinsics, "intrinsics"),
        (scene.world_points, "world_points"),
        (scene.world_points_conf, "world_points_conf"),
    ]:
        expected = np.asarray(getattr(want, name))[0]
        np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-4)
    assert scene.photos[1].read().size == (168, 112)


def test_the_photos_meet_the_model_in_order(model, photos):
    scene = reconstruct(model, photos, images=SMALL)
    assert scene.names == ("img2.png", "img10.png")
    np.testing.assert_allclose(
        scene.depth, 1 + scene.images.mean(-1, dtype=np.float32) / 255, atol=1e-6
    )
    np.testing.assert_allclose(scene.extrinsics[:, 0, 3], [0, -0.1], atol=1e-7)
    assert scene.size == (56, 56)


def test_arrays_and_files_give_the_same_scene(model, photos):
    arrays = [np.asarray(Image.open(photos / name)) for name in ("img2.png", "img10.png")]
    by_file = reconstruct(model, photos, images=SMALL)
    by_array = reconstruct(model, arrays, images=SMALL)
    for name in ("images", "depth", "extrinsics", "boxes"):
        np.testing.assert_array_equal(getattr(by_file, name), getattr(by_array, name))


def test_points_of_the_head_are_there_if_the_head_is(fake_model, photos):
    scene = reconstruct(fake_model(), photos, images=SMALL)
    assert scene.world_points is None and scene.world_points_conf is None
    scene = reconstruct(fake_model(heads=("camera", "depth", "point")), photos, images=SMALL)
    np.testing.assert_array_equal(scene.world_points[..., 1], scene.depth)
    np.testing.assert_array_equal(scene.world_points_conf, scene.depth)


def test_a_reconstructor_compiles_a_shape_once(model, photos, monkeypatch):
    reconstructor = Reconstructor(model, images=SMALL)
    forward = reconstructor._forward
    compiled = []
    compile = forward._compile
    monkeypatch.setattr(forward, "_compile", lambda *key: compiled.append(key) or compile(*key))
    (scene,) = find_scenes(photos)
    first, second = reconstructor(scene), reconstructor(scene)
    assert compiled == [(2, 56, 56, 1, False)]  # tokens rest on the device
    np.testing.assert_array_equal(first.depth, second.depth)
    assert reconstructor.plan is not None and reconstructor.plan.views == 2


def test_a_scene_needs_camera_and_depth(fake_model):
    with pytest.raises(InputError, match="this model is without depth; load it with them"):
        Reconstructor(fake_model(heads=("camera",)))


def test_several_scenes_and_missing_views_are_refused(model, photos, tmp_path):
    other = tmp_path / "house"
    other.mkdir()
    Image.new("RGB", (30, 30)).save(other / "a.png")
    with pytest.raises(InputError, match=r"holds 2 scenes \(garden, house\)"):
        reconstruct(model, tmp_path, images=SMALL)
    with pytest.raises(InputError, match="too few views: 1, at least 2"):
        reconstruct(model, other, images=dataclasses.replace(SMALL, min_views=2))


def test_names_that_results_cannot_have_are_refused_at_once(model, photos):
    (photos / "img2.png").rename(photos / "12:30.png")
    with pytest.raises(InputError, match=r"'12:30.png': is not a usable name"):
        reconstruct(model, photos, images=SMALL)


def test_what_does_not_fit_is_refused_before_it_runs(model, photos):
    with pytest.raises(InputError, match=r"memory: 2 views of 56x56: .* do not fit"):
        reconstruct(model, photos, images=SMALL, compute=ComputeOptions(memory_limit=0.01))


def test_cameras_that_are_not_finite_are_named(model, photos, tiny_images):
    (scene,) = find_scenes(photos)
    images = np.rint(tiny_images[0, :2] * 255).astype(np.float32) / 255
    prediction, _ = model(jnp.asarray(images[None]))
    broken = dataclasses.replace(
        prediction, intrinsics=prediction.intrinsics.at[0, 1, 0, 0].set(jnp.inf)
    )
    boxes = np.tile(np.array([[0, 0, 84, 56, 84, 56]], np.float32), (2, 1))
    to_scene(prediction, images, boxes, scene)
    with pytest.raises(InputError, match=r"img10.png: the model gave a camera that is not finite"):
        to_scene(broken, images, boxes, scene)


def test_the_time_of_a_pass_is_expected_from_the_one_before(model):
    expected = ExpectedTime(model)
    assert 0 < expected.seconds(2, 56, 56) < 60  # 1e9 operations, at the speed of a product
    expected.took(3.0, 2, 56, 56)
    assert expected.seconds(4, 56, 56) == pytest.approx(3.0)  # the fake has 1e9 of any shape


def test_stages_are_shown_where_there_is_a_terminal(model, photos, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    reconstruct(model, photos, images=SMALL, progress=False)
    assert "load photos" not in capsys.readouterr().err
    reconstruct(model, photos, images=SMALL)
    shown = capsys.readouterr().err
    assert "load photos: 100%" in shown and "run: 00:00 of about 00:0" in shown


def test_images_are_those_that_the_weights_were_made_for(
    model, tiny_vggt, tiny_da3, photos, capsys
):
    assert str(model.images_for(VGGTConfig())) == "518 pixels (crop)"
    own = [ImageOptions().of(each) for each in (tiny_vggt, tiny_da3)]
    assert [(o.mode, o.size) for o in own] == [("pad", 70), ("upper_bound_resize", 504)]
    assert reconstruct(model, photos, progress=False).images.shape[2] == 518
    assert capsys.readouterr().err == ""
    reconstruct(model, photos, images=SMALL, progress=False)
    assert capsys.readouterr().err == (
        "note: images of 56 pixels (crop); these weights were made for 518 pixels (crop) and may"
        " do worse\n"
    )
