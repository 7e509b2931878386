"""Every backbone, tiny but real, from the command line: nothing is replaced by anything."""

import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from lite3r_jax.distillation.checkpoint import load_student
from lite3r_jax.exports.npz import read_npz
from lite3r_jax.main import main
from lite3r_jax.weights.load import load

ROOT = Path(__file__).parents[2]
SMALL = {
    "train.data.source": "synthetic",
    "train.data.buckets": "1x3x28x28",
    "train.data.scenes": 2,
    "train.data.frames": 3,
    "train.data.workers": 0,
    "train.dtype": "float32",
    "train.remat": False,
    "train.loop.steps": 2,
    "train.loop.log_every": 1,
    "train.loop.evaluate_every": 0,
}


def lite3r(config, mode, **settings):
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    return main([f"--config={ROOT / 'configs' / config}", f"--mode={mode}", *flags])


def steps(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def parameters(model):
    return nnx.to_flat_state(nnx.state(model, nnx.Param))


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("da3", "pi3")]


@pytest.fixture(params=["vggt", "da3", "pi3"])
def backbone(request, tiny_dir, tiny_da3_dir, pinhole_pi3_dir):
    """(recipe, converted weights) of a tiny model with the published architecture."""
    models = {
        "vggt": ("vggt.py", tiny_dir),
        "da3": ("da3_large.py", tiny_da3_dir),
        "pi3": ("pi3.py", pinhole_pi3_dir),
    }
    return models[request.param]


@pytest.mark.parametrize("backbone", ["vggt", *OTHERS], indirect=True)
@pytest.mark.parametrize("trainable", ["camera_head", pytest.param(".*", marks=pytest.mark.slow)])
def test_the_backbone_itself_is_trained_further(backbone, tmp_path, trainable):
    recipe, weights = backbone
    run, settings = tmp_path / "run", SMALL | {"train.trainable": trainable}
    assert lite3r(f"{recipe}:backbone", "train", weights=weights, output=run, **settings) == 0
    assert len(lines := steps(run)) == 2
    assert all(
        line["skipped"] == 0 and line.get("loss_T", line.get("loss_cameras")) > 0 for line in lines
    )
    before, after = load(weights, heads=("camera", "depth")), load(run / "weights")
    changed = [
        "/".join(map(str, path))
        for (path, old), (_, new) in zip(*map(parameters, (before, after)), strict=True)
        if not np.array_equal(old[...], new[...])
    ]
    assert changed and all(path.startswith("camera_head/") for path in changed) == (
        trainable == "camera_head"
    )


@pytest.mark.parametrize("backbone", ["vggt", OTHERS[0], "pi3"], indirect=True)
def test_a_sparse_student_is_distilled(backbone, tmp_path):
    recipe, weights = backbone
    run = tmp_path / "run"
    apart = {"distill.targets": "none", "distill.match.mode": "layerwise"}
    assert lite3r(recipe, "train", weights=weights, output=run, **SMALL | apart) == 0
    assert all(line["skipped"] == 0 and line["distill_global"] > 0 for line in steps(run))
    student = load_student(run / "student", weights)
    assert "sla" in student.attention()["global"]


def test_photos_become_cameras_and_depth(backbone, tmp_path):
    recipe, weights = backbone
    if recipe == "vggt.py":  # the golden weights see no field of view in photos like these
        weights = "vggt-tiny"
    photos = tmp_path / "photos"
    photos.mkdir()
    for n in range(2):
        pixels = np.random.default_rng(n).integers(0, 256, (42, 56, 3), np.uint8)
        Image.fromarray(pixels).save(photos / f"{n}.png")
    settings = {"input": photos, "weights": weights, "output": tmp_path / "out"}
    images = {"images.size": 56 * 42 if recipe == "pi3.py" else 56}  # a limit of pixels, or an edge
    if recipe == "vggt.py":
        images["images.mode"] = "crop"
    assert lite3r(recipe, "reconstruct", **settings, **images, formats="npz") == 0
    scene = read_npz(tmp_path / "out" / "predictions.npz")
    assert scene.depth.shape == (2, 42, 56) and (scene.depth > 0).all()
    rotation = scene.extrinsics[:, :, :3]
    np.testing.assert_allclose(rotation @ rotation.swapaxes(1, 2) - np.eye(3), 0, atol=1e-5)
    images = scene.images[None].astype(np.float32) / 255
    want, _ = load(weights, heads=("camera", "depth"))(images)
    np.testing.assert_allclose(scene.depth, want.depth[0, ..., 0], rtol=1e-4)
    np.testing.assert_allclose(scene.extrinsics, want.extrinsics[0], atol=1e-4)
