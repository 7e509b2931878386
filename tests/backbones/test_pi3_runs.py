"""pi^3 from the command line, tiny but real: photos, an evaluation, a benchmark."""

import json
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from lite3r_jax.attention.presets import plan
from lite3r_jax.backbones.base import ImageInput
from lite3r_jax.backbones.pi3 import Pi3, Pi3Config
from lite3r_jax.deploy.checkpoint import load_deployed
from lite3r_jax.deploy.manifest import Program
from lite3r_jax.distillation.surgery import variables
from lite3r_jax.experiment import from_config
from lite3r_jax.exports.npz import read_npz
from lite3r_jax.infer.options import ImageOptions
from lite3r_jax.main import main
from lite3r_jax.runs.deploy import export_deployment
from lite3r_jax.weights.load import load

CONFIG = Path(__file__).parents[2] / "configs" / "pi3.py"


@pytest.fixture
def lite3r(pinhole_pi3_dir, tmp_path):
    def run(mode, **settings):
        settings = {"weights": pinhole_pi3_dir, "output": tmp_path / mode} | settings
        flags = [f"--config.{name}={value}" for name, value in settings.items()]
        return main([f"--config={CONFIG}", f"--mode={mode}", *flags])

    return run


def test_photos_become_a_scene_with_the_models_own_points(
    lite3r, pinhole_pi3_dir, golden_pi3, tmp_path, capsys
):
    """Two photos that are of the limit's size, so that the model sees exactly these pixels."""
    pixels = np.moveaxis(golden_pi3("inputs")["images"][0, :2], 1, -1)
    (tmp_path / "photos").mkdir()
    for i, image in enumerate(np.rint(pixels * 255).astype(np.uint8)):
        Image.fromarray(image).save(tmp_path / "photos" / f"{i}.png")
    settings = {
        "input": tmp_path / "photos",
        "images.size": 56 * 84,
        "formats": "npz,ply",
        "export.points.source": "head",
        "cameras.choices": "intrinsics=shared",
    }
    assert lite3r("reconstruct", **settings) == 0
    scene = read_npz(tmp_path / "reconstruct" / "predictions.npz")
    model = load(pinhole_pi3_dir)
    want, _ = model(pixels[None].astype(np.float32), points=True, intrinsics="shared")
    np.testing.assert_allclose(scene.depth, want.depth[0, ..., 0], rtol=1e-4)
    np.testing.assert_allclose(scene.extrinsics, want.extrinsics[0], atol=1e-4)
    np.testing.assert_array_equal(scene.intrinsics[0], scene.intrinsics[1])
    np.testing.assert_allclose(scene.world_points, want.world_points[0], rtol=1e-3, atol=1e-3)
    assert scene.depth_conf.min() > 0 and scene.depth_conf.max() < 1
    report = json.loads((tmp_path / "reconstruct" / "report.json").read_text())
    assert report["model"]["backbone"] == "pi3"
    assert set(report["model"]["attention"]) == {"patch", "frame", "global", "head"}
    assert lite3r("reconstruct", **settings | {"cameras.known": "C"}) == 2
    assert "Pi3 takes no known cameras" in capsys.readouterr().err


@pytest.mark.slow
def test_it_is_evaluated_and_measured(lite3r, tmp_path):
    assert lite3r("eval", **{
        "evaluate.protocols": "synthetic:test", "evaluate.scenes": 1, "evaluate.size": "28x28",
        "evaluate.variants": "dense-float32", "evaluate.resamples": 5, "evaluate.views": 2,
    }) == 0  # fmt: skip
    report = json.loads((tmp_path / "eval" / "report.json").read_text())
    assert report["results"][0]["metrics"]["abs_rel"]["scenes"] == 1
    assert lite3r("bench", **{
        "bench.baselines": "dense-float32", "bench.variants": "", "bench.views": "2",
        "bench.size": "28x28", "bench.warmup": 0, "bench.runs": 1, "bench.isolate": False,
    }) == 0  # fmt: skip
    cells = json.loads((tmp_path / "bench" / "bench.json").read_text())["cells"]
    assert [(cell["variant"], cell["views"]) for cell in cells] == [("dense-float32", 2)]
    assert cells[0]["seconds"]


@pytest.mark.slow
def test_a_deployed_one_runs_as_a_program_and_reconstructs(
    lite3r, pinhole_pi3_dir, golden_pi3, tmp_path
):
    out, size = tmp_path / "deployed", (2, 56, 84)
    on_cpu, on_gpu = (Program(platform, *size, "float32") for platform in ("cpu", "cuda"))
    export_deployment(
        pinhole_pi3_dir,
        out,
        heads=("camera", "depth"),
        kind="fp8_weight_only",
        programs=[on_cpu, on_gpu],
    )
    images = np.moveaxis(golden_pi3("inputs")["images"][:1, :2], 2, -1).astype(np.float32)
    model = load_deployed(out, dtype=np.float32)
    weights = {path: variable[...] for path, (_, variable) in variables(model).items()}
    program = jax.export.deserialize(bytearray((out / on_cpu.file_name).read_bytes()))
    got, (want, _) = program.call(weights, images), model(images)
    assert {"extrinsics", "intrinsics", "depth", "depth_conf"} <= set(got)
    for name, array in got.items():
        wanted = np.asarray(getattr(want, name))
        np.testing.assert_allclose(array, wanted, atol=2e-5 * np.abs(wanted).max(), err_msg=name)
    on_device = jax.export.deserialize(bytearray((out / on_gpu.file_name).read_bytes()))
    assert on_device.platforms == ("cuda",)

    (tmp_path / "photos").mkdir()
    for i, image in enumerate(np.rint(images[0] * 255).astype(np.uint8)):
        Image.fromarray(image).save(tmp_path / "photos" / f"{i}.png")
    photos = {"input": tmp_path / "photos", "images.size": 56 * 84, "formats": "npz"}
    assert lite3r("reconstruct", weights=out, **photos) == 0
    scene = read_npz(tmp_path / "reconstruct" / "predictions.npz")
    np.testing.assert_allclose(scene.depth, want.depth[0, ..., 0], rtol=1e-3)
    report = json.loads((tmp_path / "reconstruct" / "report.json").read_text())
    assert report["model"]["precision"] == "fp8_weight_only"


def test_images_are_those_of_the_authors_or_of_the_position_table(pinhole_pi3_dir):
    get_config = runpy.run_path(str(CONFIG))["get_config"]
    experiment = from_config(get_config())
    assert (experiment.backbone, experiment.images) == ("pi3", ImageOptions())
    assert Pi3.images_for(Pi3Config()) == ImageInput("pixel_limit", 255_000)
    model = load(pinhole_pi3_dir)  # its table is for 70 x 70 pixels
    for asked, mode, size in (("auto", "pixel_limit", 4900), ("crop", "crop", 70)):
        used = ImageOptions(mode=asked).of(model)
        assert (used.mode, used.size) == (mode, size)
    assert from_config(get_config("backbone")).distill.plan == ""


def test_the_default_plan_is_sparse_at_the_global_layers_alone():
    default = plan()
    assert default.at("global", 17) != default.at("head", 0) == default.at("frame", 0)
