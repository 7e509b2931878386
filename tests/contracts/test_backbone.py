"""A backbone from outside, registered by one call, goes through every entrance there is."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from lite3r_jax.backbones.base import get_backbone, register
from lite3r_jax.benchmarking.flops import count
from lite3r_jax.cli.convert import main as convert_command
from lite3r_jax.distillation.checkpoint import read_student
from lite3r_jax.errors import InputError
from lite3r_jax.exports.npz import read_npz
from lite3r_jax.main import main
from lite3r_jax.name_map import inverse
from lite3r_jax.precision import match, preset
from lite3r_jax.weights.load import load
from tests.contracts.pocket import ENTRY, NAMES

TRAINING = {
    "train.data.source": "synthetic", "train.data.buckets": "2x2x28x28", "train.data.scenes": 4,
    "train.data.frames": 3, "train.loop.steps": 3, "train.loop.log_every": 1,
    "train.loop.evaluate_every": 0,
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("pocket")


@pytest.fixture
def weights(pocket_weights):
    return pocket_weights


@pytest.fixture
def lite3r(pocket_recipe, weights):
    """A mode from the command line, with a config file."""

    def run(mode, **settings):
        settings = {"weights": weights} | settings
        flags = [f"--config.{name}={value}" for name, value in settings.items()]
        return main([f"--config={pocket_recipe}", f"--mode={mode}", *flags])

    return run


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def images(*size):
    return np.random.default_rng(1).random((1, *size, 3), np.float32)


def test_weights_come_in_and_go_out_under_their_own_names(upstream_pocket, weights, tmp_path):
    model = load(weights)
    flat = {"/".join(map(str, k)): v[...] for k, v in nnx.to_flat_state(nnx.state(model))}
    rows = dict(NAMES.to_upstream("trunk/global_blocks/attn/qkv/kernel", (2, 16, 48)))
    (pair,) = [pair for pair in rows if pair.index == 1]
    np.testing.assert_array_equal(
        flat[pair.target][1], upstream_pocket["net.global.1.attn.qkv.weight"].T
    )
    assert pair.source == "net.global.1.attn.qkv.weight"
    assert inverse(pair.transform, np.asarray(flat[pair.target][1])).shape == (48, 16)
    back = tmp_path / "back.safetensors"
    assert convert_command(["export", str(weights), str(back)]) == 0
    assert back.read_bytes() == (weights.parent / "published.safetensors").read_bytes()


def test_photos_become_a_scene_and_choices_reach_the_model(lite3r, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for n in range(2):
        pixels = np.random.default_rng(n).integers(0, 256, (42, 56, 3), np.uint8)
        Image.fromarray(pixels).save(photos / f"{n}.png")
    settings = {"input": photos, "images.size": 56, "formats": "npz"}
    depths = []
    for side, more in (("front", {}), ("back", {"cameras.choices": "side=back"})):
        assert lite3r("reconstruct", output=tmp_path / side, **settings, **more) == 0
        scene = read_npz(tmp_path / side / "predictions.npz")
        assert scene.depth.shape == (2, 42, 56)
        assert (scene.extrinsics[:, 2, 3] > 5).all() == (side == "back")
        depths.append(scene.depth)
    np.testing.assert_array_equal(*depths)
    report = json.loads((tmp_path / "front" / "report.json").read_text())
    assert report["model"]["backbone"] == "pocket"
    for choice, message in (
        ("side=left", "cameras.side: expected one of auto, front, back, got 'left'"),
        ("sied=back", "cameras.sied: Pocket has no such choice; did you mean 'side'?"),
    ):
        assert (
            lite3r("reconstruct", output=tmp_path / "no", **settings, **{"cameras.choices": choice})
            == 2
        )
        assert message in capsys.readouterr().err
    assert lite3r("reconstruct", output=tmp_path / "no", **settings, **{"cameras.known": "C"}) == 2
    assert "Pocket takes no known cameras" in capsys.readouterr().err


def test_it_is_trained(lite3r, weights, tmp_path):
    assert lite3r("train", output=tmp_path / "run", **TRAINING) == 0
    assert np.isfinite(values := losses(tmp_path / "run")).all() and len(values) == 3
    before, after = load(weights), load(tmp_path / "run" / "weights")
    x = images(2, 28, 28)
    assert np.abs(after(x)[0].depth - before(x)[0].depth).max() > 1e-5


def test_a_sparse_student_is_distilled_and_evaluated_beside_its_teacher(lite3r, tmp_path):
    run, plan = tmp_path / "run", {"distill.plan": "sla_global(block=4)"}
    plan |= {"distill.precision": "default"}
    assert lite3r("train", output=run, **TRAINING, **plan) == 0
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert records[0]["distill_global"] > 0
    assert read_student(run / "student")[0].backbone == "pocket"
    code = lite3r("eval", output=tmp_path / "evaluation", **{
        "evaluate.protocols": "synthetic:test", "evaluate.scenes": 1, "evaluate.size": "28x28",
        "evaluate.student": run / "student", "evaluate.variants": "student-float32",
        "evaluate.resamples": 5,
    })  # fmt: skip
    assert code == 0
    report = json.loads((tmp_path / "evaluation" / "report.json").read_text())
    assert report["results"][0]["metrics"]["abs_rel"]["scenes"] == 1


@pytest.mark.slow
def test_it_is_measured(lite3r, weights, tmp_path):
    code = lite3r("bench", output=tmp_path, **{
        "bench.baselines": "dense-float32", "bench.variants": "", "bench.views": "2",
        "bench.size": "28x28", "bench.warmup": 0, "bench.runs": 1,
    })  # fmt: skip
    assert code == 0
    work = count(load(weights), 2, 28, 28)
    # per view and pair: 4 tokens x (4 C^2 + 8 C^2) products, twice; attention within and across
    c, tokens, views, depth = 16, 4, 2, 2
    blocks = depth * 2 * (2 * views * tokens * 12 * c**2)
    attention = depth * 4 * c * (views * tokens**2 + (views * tokens) ** 2)
    heads = 2 * views * 2 * c * (9 + tokens * 2 * 14**2)
    assert work.total == 2 * views * tokens * 3 * 14**2 * c + blocks + attention + heads


def test_what_the_base_promises_it_keeps(weights):
    model = load(weights)
    x = images(3, 28, 42)
    prediction, taps = model(x, taps=("camera/pose_enc", "global/attn"))
    assert taps["camera/pose_enc"].shape == (1, 1, 3, 9)
    assert taps["global/attn"].shape[model.taps["global/attn"].layer_axis] == 2
    np.testing.assert_array_equal(taps["camera/pose_enc"][-1], prediction.pose_enc)
    layers = {site.path: site.wrapped for site in match(model, preset("default"))}
    assert sorted(layers, key=layers.get)[0] == "camera_head" and sum(layers.values()) == 9
    assert prediction.unit == "model" and model.sites == {"frame": 2, "global": 2}
    order = [2, 0, 1]  # no reference view: permuting views permutes everything
    turned, _ = model(x[:, order])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[:, order], b, rtol=2e-5, atol=2e-5),
        prediction, turned,
    )  # fmt: skip
    for bad, message in (
        ({"side": "left"}, "side: 'left' is not known; choose one of: front, back"),
        ({"sied": "back"}, "sied: Pocket takes no such argument; did you mean 'side'"),
        ({"taps": ("global/atn",)}, "tap 'global/atn' is not known; did you mean 'global/attn'"),
    ):
        with pytest.raises(InputError, match=message):
            model(x, **bad)
    with pytest.raises(InputError, match="camera/pose_enc: needs the head camera"):
        load(weights, heads=("depth",))(x, taps=("camera/pose_enc",))


def test_two_backbones_of_one_name_and_misspelt_names_are_refused():
    for entry in (ENTRY, replace(ENTRY, name="vggt")):
        with pytest.raises(InputError, match=f"backbone '{entry.name}' is registered already"):
            register(entry)
    assert get_backbone("pocket") is ENTRY
    with pytest.raises(InputError, match="'pockt' is not known; did you mean 'pocket'"):
        get_backbone("pockt")
