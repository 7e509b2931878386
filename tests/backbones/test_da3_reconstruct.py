"""Depth Anything 3 through VGGT's doors: converted weights, the command line, a report."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lite3r_jax.experiment import from_config
from lite3r_jax.exports.npz import read_npz
from lite3r_jax.main import main
from lite3r_jax.weights.load import load

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.slow
def test_photos_become_a_scene(tiny_da3_dir, golden_da3, tmp_path):
    """One pair of photos of network size, so that the model sees exactly these pixels."""
    pixels = golden_da3("model_nopose_b2s4_56x84")["in_images_u8"][0, :2]
    (tmp_path / "photos").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "photos" / f"{i}.png")
    settings = {
        "input": tmp_path / "photos",
        "weights": tiny_da3_dir,
        "output": tmp_path / "out",
        "images.size": 84,
        "formats": "npz,colmap",
    }
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    assert main([f"--config={CONFIGS / 'da3_large.py'}", "--mode=reconstruct", *flags]) == 0
    scene = read_npz(tmp_path / "out" / "predictions.npz")
    want, _ = load(tiny_da3_dir, heads=("camera", "depth"))(pixels[None].astype(np.float32) / 255)
    np.testing.assert_allclose(scene.depth, want.depth[0, ..., 0], rtol=1e-5)
    np.testing.assert_allclose(scene.extrinsics, want.extrinsics[0], atol=1e-5)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["model"]["backbone"] == "da3"
    assert report["model"]["heads"] == ["camera", "depth"]
    assert set(report["model"]["attention"]) == {"frame", "global"}
    assert report["memory_GiB"]["measured_peak"] > 0


@pytest.mark.parametrize("size", ["small", "base", "large", "giant"])
def test_every_size_has_a_config(size):
    experiment = from_config(runpy.run_path(str(CONFIGS / f"da3_{size}.py"))["get_config"]())
    assert experiment.backbone == "da3"
