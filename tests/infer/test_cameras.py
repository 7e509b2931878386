"""Known cameras and choices of cameras through the door that photos go through."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lite3r_jax import geometry, reconstruct
from lite3r_jax.backbones.base import Choice, Prediction
from lite3r_jax.backbones.da3.model import DA3
from lite3r_jax.backbones.model import BackboneModel
from lite3r_jax.backbones.vggt import VGGT
from lite3r_jax.data.known_cameras import known_cameras
from lite3r_jax.data.photos import find_scenes
from lite3r_jax.errors import InputError
from lite3r_jax.infer.cameras import CameraOptions
from lite3r_jax.infer.options import ImageOptions
from lite3r_jax.infer.reconstruct import Reconstructor

WIDTH, HEIGHT = 200, 150
SMALL = ImageOptions(mode="upper_bound_resize", size=84)  # 84 x 70 here
SCALE = 0.4


class Follower(BackboneModel):
    """Takes known cameras, and predicts them in a smaller world that is turned and moved.

    Depth is the focal length that it was given, so that this can be seen.
    """

    parts: ClassVar = {"camera": "camera_head", "depth": "depth_head"}
    patch_size = 14
    inputs: ClassVar = DA3.inputs

    def __init__(self):
        super().__init__(None, heads=("camera", "depth"), plan=None, dtype="float32")
        self.one = nnx.Param(jnp.ones(()))

    def roles(self):
        return {}

    def operations(self, views, grid):
        return {"global": {"layers": 1}}

    def __call__(self, images, extrinsics, intrinsics, *, frame_chunk: int = 1):
        del frame_chunk
        turn = jnp.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
        extrinsics = self.one[...] * extrinsics
        shift = extrinsics[..., 3] * SCALE - extrinsics[..., :3] @ turn @ jnp.array([1.0, 2, 3])
        b, s, h, w, _ = images.shape
        prediction = Prediction(
            extrinsics=jnp.concatenate([extrinsics[..., :3] @ turn, shift[..., None]], -1),
            intrinsics=jnp.tile(jnp.eye(3), (b, s, 1, 1)),
            depth=jnp.ones((b, s, h, w, 1)) * intrinsics[..., :1, :1, None],
            depth_conf=jnp.ones((b, s, h, w)),
        )
        return prediction, {}


def arrays(views):
    """Known cameras of `views` photos, and the photos, of which only the size matters."""
    rng = np.random.default_rng(views)
    rotation = np.asarray(geometry.quat_to_mat(rng.standard_normal((views, 4))))
    poses = np.concatenate([rotation, 20 * rng.standard_normal((views, 3, 1))], -1)
    k = np.tile(np.array([[180.0, 0, 95], [0, 170, 80], [0, 0, 1]]), (views, 1, 1))
    photos = rng.integers(0, 255, (views, HEIGHT, WIDTH, 3), np.uint8)
    return poses, k, list(photos)


@pytest.mark.parametrize("views", [1, 2, 4])
def test_the_scene_stands_in_the_world_of_the_known_cameras(views):
    poses, k, photos = arrays(views)
    given = known_cameras(poses, k, sizes=[(WIDTH, HEIGHT)] * views)
    scene = reconstruct(Follower(), photos, images=SMALL, known=given)
    np.testing.assert_array_equal(scene.extrinsics, poses.astype(np.float32))
    np.testing.assert_allclose(scene.source_intrinsics, k, rtol=1e-5)
    assert scene.size == (70, 84)
    # The focal length at the size of the network, in the unit of the known cameras. One camera
    # alone has no unit.
    scale = SCALE if views > 1 else 1
    np.testing.assert_allclose(scene.depth, 180 * 84 / WIDTH / scale, rtol=1e-4)


def test_the_known_cameras_move_into_the_predicted_world_on_demand():
    poses, k, photos = arrays(4)
    (scene,) = find_scenes(photos)
    reconstructor = Reconstructor(
        Follower(),
        images=SMALL,
        cameras=CameraOptions(world="predicted"),
        known=known_cameras(poses, k),
    )
    prediction = reconstructor(scene)
    np.testing.assert_allclose(prediction.depth, 180 * 84 / WIDTH, rtol=1e-5)
    model, images = Follower(), jnp.zeros((1, 4, 14, 14, 3))
    predicted, _ = model(images, jnp.asarray(poses[None], jnp.float32), jnp.ones((1, 4, 3, 3)))
    np.testing.assert_allclose(prediction.extrinsics, predicted.extrinsics[0], atol=1e-4)
    assert reconstructor.alignment is not None
    assert reconstructor.alignment["scale"] == pytest.approx(SCALE, rel=1e-5)
    assert reconstructor.alignment["median_rotation_degrees"] < 1e-3
    assert reconstructor.alignment["median_distance"] < 1e-3


def test_photos_without_their_cameras_are_refused_before_anything_is_read():
    poses, k, photos = arrays(2)
    photos[0] = np.full((2, 2), np.nan)  # which could not be read
    with pytest.raises(InputError, match="has 2 cameras without names for 3 photos"):
        reconstruct(Follower(), [*photos, photos[1]], known=known_cameras(poses, k))


def test_cameras_of_another_size_are_refused():
    poses, k, photos = arrays(2)
    given = known_cameras(poses, k, sizes=[(WIDTH, HEIGHT), (100, 75)], source="c.npz")
    with pytest.raises(InputError, match=r"image_000001.png: is 200x150, its camera in c.npz is"):
        reconstruct(Follower(), photos, known=given)


def test_cameras_may_be_named_by_their_file(tmp_path):
    poses, k, photos = arrays(2)
    np.savez(tmp_path / "cameras.npz", extrinsics=poses, intrinsics=k)
    cameras = CameraOptions(known=str(tmp_path / "cameras.npz"))
    (scene,) = find_scenes(photos)
    for prediction in (
        reconstruct(Follower(), photos, images=SMALL, cameras=cameras),
        Reconstructor(Follower(), images=SMALL, cameras=cameras)(scene),
    ):
        np.testing.assert_array_equal(prediction.extrinsics, poses.astype(np.float32))


def test_a_prediction_that_is_not_finite_is_named_and_not_aligned():
    poses, k, photos = arrays(2)
    model = Follower()
    nnx.update(model, jax.tree.map(lambda x: x * jnp.nan, nnx.state(model)))
    with pytest.raises(InputError, match=r"image_000000.png: the model gave a camera that is not"):
        reconstruct(model, photos, images=SMALL, known=known_cameras(poses, k))


class Chooser(BackboneModel):
    """Cameras stand where they are asked to."""

    parts: ClassVar = {"camera": "camera_head", "depth": "depth_head"}
    patch_size = 14
    choices: ClassVar = {"poses": Choice({"near": None, "far": None}, "where cameras stand")}

    def __init__(self):
        super().__init__(None, heads=("camera", "depth"), plan=None, dtype="float32")
        self.one = nnx.Param(jnp.ones(()))

    def roles(self):
        return {}

    def operations(self, views, grid):
        return {"global": {"layers": 1}}

    def __call__(self, images, *, poses="near", frame_chunk=1):
        del frame_chunk
        b, s, h, w, _ = images.shape
        pose = jnp.eye(3, 4).at[2, 3].set({"near": 1, "far": 9}[poses]) * self.one[...]
        prediction = Prediction(
            extrinsics=jnp.tile(pose, (b, s, 1, 1)),
            intrinsics=jnp.tile(jnp.eye(3), (b, s, 1, 1)),
            depth=images[..., :1] + 1,
            depth_conf=jnp.ones((b, s, h, w)),
        )
        return prediction, {}


def test_a_choice_reaches_the_model():
    photos = arrays(1)[2]
    scene = reconstruct(Chooser(), photos, images=SMALL, cameras=CameraOptions(poses="far"))
    assert scene.extrinsics[0, 2, 3] == 9
    assert reconstruct(Chooser(), photos, images=SMALL).extrinsics[0, 2, 3] == 1
    with pytest.raises(InputError, match="poses: expected one of auto, near, far, got 'ray'"):
        reconstruct(Chooser(), photos, cameras=CameraOptions(poses="ray"))


@pytest.mark.parametrize("choice", ["saddle_balanced", "saddle_sim_range", "middle", "first"])
def test_the_choices_of_a_model_are_those_that_it_declares(choice):
    assert CameraOptions(reference=choice).arguments(DA3, False) == {"reference": choice}
    assert CameraOptions(poses="ray").arguments(DA3, True) == {"poses": "ray"}
    assert CameraOptions().arguments(VGGT, False) == {}


@pytest.mark.parametrize(
    ("options", "model", "known", "message"),
    [
        ({"reference": "last"}, DA3, False, "reference: expected one of auto, saddle_balanced"),
        ({"poses": "rays"}, DA3, False, "poses: expected one of auto, camera, ray, got 'rays'"),
        ({"reference": "first"}, VGGT, False, "reference: VGGT has no such choice; leave it auto"),
        ({"poses": "ray"}, VGGT, False, "poses: VGGT has no such choice"),
        ({}, VGGT, True, "known: VGGT takes no known cameras; leave them out, or use a model"),
        ({"reference": "first"}, DA3, True, "reference: first has no effect with known cameras"),
        ({"world": "predicted"}, DA3, False, "world: predicted without known cameras"),
    ],
)
def test_what_a_model_cannot_do_is_refused(options, model, known, message):
    with pytest.raises(InputError, match=f"^cameras.{message}") as error:
        CameraOptions(**options).arguments(model, known)
    assert "\n" not in str(error.value)


def test_a_file_of_known_cameras_is_of_one_scene(tmp_path):
    path = tmp_path / "cameras.npz"
    poses, k, photos = arrays(2)
    np.savez(path, extrinsics=poses, intrinsics=k)
    (scene,) = find_scenes(photos)
    read = CameraOptions(known=str(path)).read
    assert len(read([scene]).cameras) == 2
    assert CameraOptions().read([scene, scene]) is None
    with pytest.raises(InputError, match="is of one scene, the input has 2"):
        read([scene, scene])
    with pytest.raises(InputError, match="2 cameras without names for 1 photos"):
        read([dataclasses.replace(scene, photos=scene.photos[:1])])


@pytest.mark.slow
def test_the_whole_path_agrees_with_upstream(golden_da3, parity, tiny_da3):
    """upstream's inference(), from resized photos to aligned cameras."""
    g = golden_da3("api_e2e")
    photos = list(g["in_resized_u8"])

    def compare(kind, scene):
        for key, got in (("depth", scene.depth), ("conf", scene.depth_conf)):
            gate = 5e-5 if key == "depth" else 2e-5
            if f"{kind}_{key}" in g:
                parity("da3/api_e2e", f"{kind}_{key}", got, g[f"{kind}_{key}"], gate, relative=True)
        want = g[f"{kind}_extrinsics"]
        last = np.broadcast_to([0, 0, 0, 1.0], (4, want.shape[1] - 3, 4))
        got = np.concatenate([scene.extrinsics, last], 1)
        parity("da3/api_e2e", f"{kind}_extrinsics", got, want, 2e-5, relative=True)
        k = scene.intrinsics + 0
        if kind != "nopose":
            k[:, :2, 2] += 0.5  # upstream counts pixels from their corners
        parity("da3/api_e2e", f"{kind}_intrinsics", k, g[f"{kind}_intrinsics"], 2e-5, relative=True)

    compare("nopose", reconstruct(tiny_da3, photos, images=SMALL))
    images = g["in_resized_u8"][None].astype(np.float32) / 255
    _, taps = tiny_da3(images, taps=("trunk/reference",))
    parity("da3/api_e2e", "nopose_b_idx", taps["trunk/reference"], g["nopose_b_idx"], 0)

    height, width = images.shape[2:4]
    k = np.array([width / 120, height / 90, 1])[:, None] * g["in_K"]  # photos of 120 x 90
    k[:, :2, 2] -= 0.5
    given = known_cameras(g["in_w2c"], k)
    compare("pose_align", reconstruct(tiny_da3, photos, images=SMALL, known=given))
    moved = CameraOptions(world="predicted")
    prediction = reconstruct(tiny_da3, photos, images=SMALL, known=given, cameras=moved)
    compare("pose_noalign", prediction)
