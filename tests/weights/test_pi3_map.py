"""The map of pi^3 against the golden names and the published counts."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from lite3r_jax.attention.presets import parse_plan, plan_name
from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.backbones.pi3.config import SPEED3R, Pi3Config, license_of
from lite3r_jax.backbones.pi3.weight_map import CHECKPOINT, name_map
from lite3r_jax.cli.convert import main as convert_command
from lite3r_jax.errors import InputError
from lite3r_jax.models import ModelSpec, check_model
from lite3r_jax.weights.abstract import abstract_model
from lite3r_jax.weights.convert import convert
from lite3r_jax.weights.export import export
from lite3r_jax.weights.load import load
from lite3r_jax.weights.manifest import read_manifest
from lite3r_jax.weights.safetensors_file import open_safetensors

FOLDER = Path(__file__).parents[1] / "golden" / "pi3"
GOLDEN = FOLDER / "model.safetensors"
BACKBONE = get_backbone("pi3")


def test_published_counts_and_shapes():
    model = abstract_model(BACKBONE, Pi3Config(), heads=BACKBONE.heads)
    shapes = name_map(Pi3Config()).upstream_shapes(model.shapes)
    assert (len(shapes), sum(map(math.prod, shapes.values()))) == (1210, 958_696_738)

    def count(part):
        return sum(math.prod(s) for n, s in shapes.items() if n.startswith(f"{part}."))

    assert count("encoder") == 304_371_712 and count("decoder") == 453_547_008
    assert count("point_decoder") == count("conf_decoder") == 66_128_896
    assert count("camera_decoder") == 65_604_096 and count("camera_head") == 2_107_404
    assert (count("point_head"), count("conf_head")) == (602_700, 200_900)
    assert shapes["register_token"] == (1, 1, 5, 1024)
    assert shapes["image_mean"] == shapes["image_std"] == (1, 3, 1, 1)
    assert shapes["decoder.35.attn.k_norm.bias"] == (64,)
    assert shapes["camera_head.res_conv.1.res_conv3.weight"] == (512, 512)
    assert "point_decoder.blocks.0.ls1.gamma" not in shapes


@pytest.mark.parametrize(
    ("block", "stack", "place"), [(0, "frame", 0), (1, "global", 0), (34, "frame", 17),
                                  (35, "global", 17)]
)  # fmt: skip
def test_even_blocks_are_frame_blocks(block, stack, place):
    (pair,) = name_map(Pi3Config()).to_here(f"decoder.{block}.norm1.bias")
    assert (pair.target, pair.index) == (f"trunk/{stack}_blocks/norm1/bias", place)


def test_from_the_command_line_and_back_the_file_is_the_same(tmp_path):
    out, again = tmp_path / "out", tmp_path / "again.safetensors"
    words = ["pi3", str(GOLDEN), str(out), "--config", str(FOLDER / "config.json")]
    assert convert_command(words) == 0
    manifest = read_manifest(out)
    assert set(manifest.skipped) == {"image_mean", "image_std"}
    assert manifest.heads == ("camera", "depth")
    export(out, again)
    assert again.read_bytes() == GOLDEN.read_bytes()


@pytest.fixture(scope="module")
def tensors():
    with safe_open(GOLDEN, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("decoder.5.ls1.gamma"), "1 missing.*decoder.5.ls1.gamma"),
        (lambda t: t.update({"decoder.5.x": np.zeros(1, "f4")}), "1 not known here .decoder.5.x"),
        (
            lambda t: t.update({"image_mean": t["image_mean"] + 0.1}),
            r"tensor image_mean holds \[0.58.*but the model here has \[0.485",
        ),
        (
            lambda t: t.update({"local_decoder.0.norm1.bias": np.zeros(1, "f4")}),
            'not a pi.3 checkpoint but Speed3R\'s .* write ."sparse": true. into it',
        ),
        (
            lambda t: t.update({"point_head.output_block.0.weight": np.zeros(1, "f4")}),
            "not a pi.3 checkpoint but Pi3X; .* lite3r convert pi3 --config FILE",
        ),
    ],
)
def test_other_checkpoints_are_refused(
    tensors, write_tensors, tmp_path, tiny_pi3_json, change, message
):
    changed = dict(tensors)
    change(changed)
    path = write_tensors(tmp_path / "changed.safetensors", changed)
    with open_safetensors(path) as source, pytest.raises(InputError, match=message):
        convert(source, tmp_path / "out", backbone="pi3", config=tiny_pi3_json)


def test_the_license_is_that_of_the_published_size(tiny_pi3_dir):
    assert license_of(Pi3Config()) == "CC-BY-NC-4.0" == BACKBONE.published[0].license
    assert read_manifest(tiny_pi3_dir).origin.license == "unknown"
    assert set(CHECKPOINT.heads) == set(BACKBONE.heads)


def test_published_counts_of_the_sparse_model():
    model = abstract_model(BACKBONE, SPEED3R, heads=BACKBONE.heads)
    shapes = name_map(SPEED3R).upstream_shapes(model.shapes)
    # two tensors of gates in 18 layers, no register token
    assert len(shapes) == 1210 + 36 - 1
    assert sum(map(math.prod, shapes.values())) == 958_696_738 + 18 * 32 * 1025 - 5120
    assert shapes["global_decoder.17.attn.gate.0.weight"] == (32, 1024)
    assert shapes["local_decoder.0.attn.q_norm.weight"] == (64,)
    assert not any(name.startswith(("decoder.", "register_token")) for name in shapes)
    assert CHECKPOINT.config_of(shapes, Pi3Config()) is SPEED3R


@pytest.fixture(scope="module")
def sparse(tensors, tiny_pi3_json, tmp_path_factory):
    """(file, config, converted weights) of the golden model under the names of Speed3R."""
    rng, renamed = np.random.default_rng(0), {}
    for name, x in tensors.items():
        if name.startswith("decoder."):
            number, _, rest = name.removeprefix("decoder.").partition(".")
            which = ("local", "global")[int(number) % 2]
            renamed[f"{which}_decoder.{int(number) // 2}.{rest}"] = x
        elif name != "register_token":
            renamed[name] = x
    heads, c = tiny_pi3_json["decoder"]["heads"], tiny_pi3_json["decoder"]["dim"]
    for i in range(tiny_pi3_json["decoder"]["depth"] // 2):
        gate = f"global_decoder.{i}.attn.gate.0"
        renamed[f"{gate}.weight"] = rng.standard_normal((2 * heads, c), np.float32)
        renamed[f"{gate}.bias"] = rng.standard_normal(2 * heads, np.float32)
    folder = tmp_path_factory.mktemp("sparse")
    save_file(renamed, folder / "model.safetensors")
    sizes = {k: v for k, v in tiny_pi3_json.items() if k != "parameters"} | {"sparse": True}
    (folder / "config.json").write_text(json.dumps(sizes))
    words = [
        "pi3",
        folder / "model.safetensors",
        folder / "out",
        "--config",
        folder / "config.json",
    ]
    assert convert_command(list(map(str, words))) == 0
    return folder / "model.safetensors", sizes, folder / "out"


def test_names_of_speed3r_convert_both_ways(sparse, tmp_path):
    file, _, out = sparse
    export(out, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()


@pytest.mark.slow
def test_a_sparse_model_has_its_gates_and_its_attention(sparse):
    file, _, out = sparse
    with safe_open(file, "np") as tensors:
        gate = tensors.get_tensor("global_decoder.1.attn.gate.0.weight")
    model = check_model(ModelSpec(out)).build()
    assert plan_name(model.plan) == "speed3r(window=4,top=32)"
    kernel = model.trunk.global_cores[0].gate.kernel[...]
    np.testing.assert_array_equal(kernel[1], gate.T)
    images = np.random.default_rng(0).random((1, 3, 70, 98, 3), np.float32)
    few = load(out, plan=parse_plan("speed3r(window=4,top=1)"))
    depths = [np.asarray(m(images)[0].depth) for m in (model, few)]
    # 3 views of 5 x 7 patches are 12 windows, of which all are selected, or one
    assert all(np.isfinite(d).all() and (d > 0).all() for d in depths)
    assert np.abs(depths[0] / depths[1] - 1).max() > 1e-4


@pytest.mark.parametrize("attention", ["dense", "sla_global", "speed3r(window=8)"])
def test_sparse_weights_are_not_run_with_other_attention(sparse, attention):
    with pytest.raises(InputError, match=r"these weights are Speed3R's.*top=64.*yyfz233/Pi3"):
        check_model(ModelSpec(sparse[2], attention=attention)).build()


def test_a_dense_checkpoint_is_no_sparse_one_and_says_how_to_start_gates(sparse, tmp_path):
    message = r"but a dense pi\^3, which has no gates; .* lite3r distill --recipe pi3:speed3r"
    with open_safetensors(GOLDEN) as source, pytest.raises(InputError, match=message):
        convert(source, tmp_path / "out", backbone="pi3", config=sparse[1])
