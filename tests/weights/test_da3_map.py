"""The map of Depth Anything 3 against the golden names and the published counts."""

import functools
import math
from pathlib import Path

import pytest
from safetensors import safe_open

from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.backbones.da3.config import PRESETS, DA3Config
from lite3r_jax.backbones.da3.weight_map import CHECKPOINT, license_of, name_map
from lite3r_jax.errors import InputError
from lite3r_jax.weights.abstract import abstract_model
from lite3r_jax.weights.convert import convert
from lite3r_jax.weights.export import export
from lite3r_jax.weights.safetensors_file import open_safetensors

GOLDEN = Path(__file__).parents[1] / "golden" / "da3" / "weights.safetensors"
BACKBONE = get_backbone("da3")
NET = "model.backbone.pretrained."
# Upstream gives every level of the ray branch an output and uses the finest.
UNUSED = 42


def _slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def upstream_shapes(config):
    model = abstract_model(BACKBONE, config, heads=BACKBONE.heads)
    return name_map(config).upstream_shapes(model.shapes)


@pytest.fixture(scope="module")
def config_of_golden(tiny_da3_json):
    return BACKBONE.config_from_json(tiny_da3_json)


@pytest.fixture(scope="module")
def published():
    return functools.cache(lambda name: upstream_shapes(PRESETS[name]))


def test_golden_names_and_shapes_come_back_exactly(config_of_golden):
    model = abstract_model(BACKBONE, config_of_golden, heads=BACKBONE.heads)
    with safe_open(GOLDEN, "np") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    names = name_map(config_of_golden)
    plan = names.match(shapes, model.shapes, "golden")
    assert len(plan.skipped) == UNUSED
    assert sum(len(pairs) for pairs in plan.leaves.values()) == len(shapes) - UNUSED
    assert names.upstream_shapes(model.shapes) == shapes


# Stored tensors and parameters, counted upstream; of the giant without its Gaussian head, which is
# 35,628,486 parameters of the published 1,355,674,125.
@pytest.mark.parametrize(
    ("name", "backbone", "head", "camera_encoder", "camera", "total"),
    [
        ("da3-small", 22_059_008, 3_873_854, 7_178_496, 1_188_105, 34_299_463),
        _slow("da3-base", 86_583_296, 15_387_582, 28_660_224, 4_735_497, 135_366_599),
        _slow("da3-large", 304_373_760, 47_229_246, 50_927_616, 8_411_145, 410_941_767),
        _slow(
            "da3-giant",
            1_136_489_216,
            50_114_878,
            114_533_376,
            18_908_169,
            1_355_674_125 - 35_628_486,
        ),
    ],
)
def test_published_models_have_the_published_counts(
    published, name, backbone, head, camera_encoder, camera, total
):
    shapes = published(name)

    def count(prefix):
        return sum(math.prod(s) for key, s in shapes.items() if key.startswith(prefix))

    counts = [count(f"model.{part}.") for part in ("backbone", "head", "cam_enc", "cam_dec")]
    assert counts == [backbone, head, camera_encoder, camera]
    assert count("model.") == total


@pytest.mark.parametrize(
    ("name", "tensors"), [_slow("da3-small", 437), _slow("da3-base", 437), ("da3-large", 637)]
)
def test_published_models_have_the_published_number_of_tensors(published, name, tensors):
    assert len(published(name)) == tensors


@pytest.mark.parametrize(
    ("model", "name", "shape"),
    [
        ("da3-large", NET + "camera_token", (1, 2, 1024)),
        ("da3-large", NET + "pos_embed", (1, 1370, 1024)),
        ("da3-large", NET + "patch_embed.proj.weight", (1024, 3, 14, 14)),
        ("da3-large", NET + "blocks.23.attn.qkv.weight", (3072, 1024)),
        ("da3-large", NET + "blocks.8.attn.q_norm.weight", (64,)),
        ("da3-large", "model.head.projects.3.weight", (1024, 2048, 1, 1)),
        ("da3-large", "model.head.resize_layers.1.weight", (512, 512, 2, 2)),
        ("da3-large", "model.head.scratch.output_conv1_aux.0.1.weight", (256, 128, 3, 3)),
        ("da3-large", "model.head.scratch.output_conv2_aux.2.5.weight", (7, 32, 1, 1)),
        ("da3-large", "model.head.scratch.output_conv2_aux.0.2.weight", (32,)),
        ("da3-large", "model.cam_enc.pose_branch.fc1.weight", (512, 9)),
        ("da3-large", "model.cam_dec.backbone.2.weight", (2048, 2048)),
        _slow("da3-giant", NET + "blocks.13.attn.k_norm.bias", (64,)),
        _slow("da3-giant", NET + "blocks.39.mlp.w12.weight", (8192, 1536)),
        _slow("da3-giant", NET + "blocks.39.mlp.w3.weight", (1536, 4096)),
    ],
)
def test_published_names_and_shapes(published, model, name, shape):
    assert published(model)[name] == shape


@pytest.mark.slow
def test_names_that_the_checkpoints_do_not_have(published):
    large, giant = published("da3-large"), published("da3-giant")
    assert NET + "blocks.7.attn.q_norm.weight" not in large
    assert NET + "blocks.24.norm1.weight" not in large
    assert NET + "blocks.12.attn.q_norm.weight" not in giant
    assert NET + "blocks.0.mlp.fc1.weight" not in giant
    assert "model.head.scratch.output_conv2_aux.3.2.weight" not in large, "stored once"
    assert "model.head.scratch.refinenet4_aux.resConfUnit1.conv1.weight" not in large


# Block -> stack and place in it, by the rule that odd blocks from the start on are global.
@pytest.mark.parametrize(
    ("config", "block", "stack", "place"),
    [
        (PRESETS["da3-large"], 7, "early_blocks", 7),
        (PRESETS["da3-large"], 8, "frame_blocks", 0),
        (PRESETS["da3-large"], 9, "global_blocks", 0),
        (PRESETS["da3-large"], 23, "global_blocks", 7),
        (PRESETS["da3-giant"], 12, "early_blocks", 12),
        (PRESETS["da3-giant"], 13, "lead_blocks", 0),
        (PRESETS["da3-giant"], 14, "frame_blocks", 0),
        (PRESETS["da3-giant"], 39, "global_blocks", 12),
    ],
)
def test_every_block_goes_to_its_stack(config, block, stack, place):
    (pair,) = name_map(config).to_here(f"{NET}blocks.{block}.norm1.bias")
    assert (pair.target, pair.index) == (f"trunk/{stack}/norm1/bias", place)


def test_converted_and_exported_again_the_file_is_the_same(tiny_da3_dir, tmp_path):
    out = tmp_path / "again.safetensors"
    export(tiny_da3_dir, out)
    assert out.read_bytes() == GOLDEN.read_bytes()


@pytest.fixture(scope="module")
def tensors():
    with safe_open(GOLDEN, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture
def convert_changed(tensors, write_tensors, tmp_path, tiny_da3_json):
    def run(change, **options):
        path = write_tensors(tmp_path / "changed.safetensors", change(dict(tensors)))
        with open_safetensors(path) as source:
            options = {"config": tiny_da3_json, "backbone": "da3"} | options
            return convert(source, tmp_path / "out", **options)

    return run


AUX = "model.head.scratch.output_conv2_aux"


def test_the_other_names_of_the_shared_norm_and_a_gaussian_head_are_carried_along(convert_changed):
    def change(tensors):
        for level in (1, 2, 3):
            for leaf in ("weight", "bias"):
                tensors[f"{AUX}.{level}.2.{leaf}"] = tensors[f"{AUX}.0.2.{leaf}"]
        tensors["model.gs_head.norm.weight"] = tensors["model.head.norm.weight"]
        return tensors

    skipped = convert_changed(change).skipped
    assert len(skipped) == UNUSED + 7
    assert "another name" in skipped[f"{AUX}.3.2.bias"]
    assert "Gaussians" in skipped["model.gs_head.norm.weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{AUX}.0.2.weight"), "1 missing.*output_conv2_aux.0.2.weight"),
        (lambda t: t.pop(NET + "blocks.5.ls1.gamma"), "1 missing.*blocks.5.ls1.gamma"),
        (
            lambda t: t.update({"model.head.x": t["model.head.norm.bias"]}),
            "1 not known here .model.head.x",
        ),
    ],
)
def test_incomplete_and_unknown_names_are_refused(convert_changed, change, message):
    def changed(tensors):
        change(tensors)
        return tensors

    with pytest.raises(InputError, match=message):
        convert_changed(changed)


@pytest.mark.slow
def test_tensors_that_are_not_known_are_left_out_on_request_and_exported_again(
    convert_changed, tmp_path
):
    """As it may be with the published DA3-SMALL, whose file is said to hold three more."""

    def change(tensors):
        extra = {f"model.more.{i}": tensors["model.head.norm.bias"] + i for i in range(3)}
        return tensors | extra

    with pytest.raises(InputError, match=r"3 not known here .*model.more.2.*--ignore NAME"):
        convert_changed(change)
    names = [f"model.more.{i}" for i in range(3)]
    skipped = convert_changed(change, ignore=names).skipped
    assert {name: skipped[name] for name in names} == dict.fromkeys(
        names, "not known here, left out on request"
    )
    export(tmp_path / "out", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (
        tmp_path / "changed.safetensors"
    ).read_bytes()


def test_a_checkpoint_without_a_head_says_so(convert_changed):
    def change(tensors):
        return {n: t for n, t in tensors.items() if not n.startswith("model.cam_enc.")}

    with pytest.raises(InputError, match=r"the heads camera_encoder;.* --heads camera,depth,ray"):
        convert_changed(change)
    assert convert_changed(change, heads=("camera", "depth", "ray")).heads[-1] == "ray"


def test_another_size_than_the_config_is_refused(convert_changed):
    with pytest.raises(InputError, match="of another shape"):
        convert_changed(lambda tensors: tensors, config={"model_name": "da3-small"})


def test_licences_differ_by_size():
    licenses = {name: license_of(config) for name, config in PRESETS.items()}
    assert licenses == {
        "da3-small": "Apache-2.0",
        "da3-base": "Apache-2.0",
        "da3-large": "CC-BY-NC-4.0",
        "da3-giant": "CC-BY-NC-4.0",
    }
    assert license_of(DA3Config(camera_blocks=2)) is None
    for model in BACKBONE.published:
        assert model.license == license_of(model.config)


def test_every_head_has_a_part_of_its_own():
    assert set(CHECKPOINT.heads) == set(BACKBONE.heads)
