"""Deployed models on disk: they are what `deploy` makes, and nothing damaged is let through."""

import json
import shutil

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.attention.presets import plan
from lite3r_jax.deploy.checkpoint import deployed_rules, load_deployed
from lite3r_jax.deploy.manifest import find_deployment, read_deployment
from lite3r_jax.distillation.checkpoint import (
    StudentManifest,
    describe_teacher,
    load_student,
    write_student,
)
from lite3r_jax.errors import InputError
from lite3r_jax.kernels.fp8.reference import quantize_reference
from lite3r_jax.layers.fp8 import StoredWeight
from lite3r_jax.precision import deploy, preset
from lite3r_jax.runs.deploy import export_deployment
from lite3r_jax.weights.load import load
from lite3r_jax.weights.safetensors_file import SafetensorsFile

QKV = "aggregator/frame_blocks/attn/qkv"


@pytest.fixture(scope="module")
def made(tiny_dir, tmp_path_factory):
    """The encoder and trunk of the golden model, deployed; not to be changed."""
    out = tmp_path_factory.mktemp("deployed") / "out"
    export_deployment(tiny_dir, out, heads=(), license="Apache-2.0")
    return out


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made, tmp_path / "copy")


def state_of(model):
    return {"/".join(map(str, key)): v for key, v in nnx.to_flat_state(nnx.state(model))}


def check_equal(loaded, wanted):
    """Bit for bit, with what is no code and no scale rounded to bfloat16."""
    assert nnx.split(loaded)[0] == nnx.split(wanted)[0]
    actual, wanted = state_of(loaded), state_of(wanted)
    assert actual.keys() == wanted.keys()
    for path, variable in wanted.items():
        array = np.asarray(variable.get_value())
        if not isinstance(variable, StoredWeight):
            array = array.astype(ml_dtypes.bfloat16)
        got = np.asarray(actual[path].get_value())
        assert got.dtype == array.dtype, path
        assert got.tobytes() == array.tobytes(), path


def test_what_is_loaded_is_what_deploy_makes_and_the_definition(made, tiny_dir):
    loaded = load_deployed(made)
    teacher = load(tiny_dir, heads=(), dtype=jnp.bfloat16, param_dtype=jnp.float32)
    check_equal(loaded, deploy(teacher, preset("default"), "fp8_dynamic"))
    kernel = np.asarray(state_of(teacher)[f"{QKV}/kernel"].get_value())
    codes, scale = quantize_reference(kernel.swapaxes(-1, -2), "e4m3", -1)
    state = state_of(loaded)
    np.testing.assert_array_equal(state[f"{QKV}/weight"].get_value(), codes)
    np.testing.assert_array_equal(state[f"{QKV}/weight_scale"].get_value(), scale[..., 0])


def test_equal_weights_give_equal_bytes_that_say_what_they_are(made, tiny_dir, tmp_path):
    export_deployment(tiny_dir, tmp_path / "again", heads=(), license="Apache-2.0")
    for path in made.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    assert sorted(p.name for p in made.iterdir()) == [
        "aggregator.safetensors", "config.json", "manifest.json",
    ]  # fmt: skip
    manifest = read_deployment(made)
    assert (manifest.kind, manifest.precision, manifest.variant) == (
        "fp8_dynamic", "default", "dense-fp8_dynamic",
    )  # fmt: skip
    assert manifest.origin.license == "Apache-2.0" and manifest.student is None
    files = json.loads((tiny_dir / "manifest.json").read_text())["files"]
    names = ("aggregator.safetensors", "config.json")
    assert manifest.teacher == {name: files[name]["sha256"] for name in names}
    with SafetensorsFile(made / "aggregator.safetensors") as file:
        specs = file.specs
        assert file.metadata == {"format": "lite3r_jax"}
    assert specs[f"{QKV}/weight"].dtype == "F8_E4M3"
    assert {spec.dtype for spec in specs.values()} == {"F8_E4M3", "F32", "BF16"}
    scales = sum(spec.size for name, spec in specs.items() if name.endswith("weight_scale"))
    total = sum(spec.size for spec in specs.values())
    assert manifest.parameters == {"aggregator": total - scales}


@pytest.mark.parametrize("name", ["aggregator.safetensors", "config.json", "manifest.json"])
def test_a_damaged_or_missing_file_is_named(copy, name):
    path = copy / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=name):
        load_deployed(copy)
    path.write_bytes(data[:-1])
    with pytest.raises(InputError, match=name):
        load_deployed(copy)
    path.unlink()
    with pytest.raises(InputError, match=f"{name}: (missing|not there)"):
        load_deployed(copy)


def test_an_extra_file_is_named_and_another_version_refused(copy):
    (copy / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes.txt: not part of the deployed model"):
        load_deployed(copy)
    body = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(body | {"kind": "fp8_weight_only"}))
    with pytest.raises(InputError, match="damaged or edited"):
        load_deployed(copy)


def test_weights_and_deployed_models_are_not_taken_for_each_other(made, tiny_dir, tmp_path):
    with pytest.raises(
        InputError, match=r"a deployed model, which has no weights .* lite3r_jax.load"
    ):
        load(made)
    with pytest.raises(InputError, match="this is no deployed model; make one with"):
        load_deployed(tiny_dir)
    with pytest.raises(InputError, match="no such directory"):
        load_deployed(tmp_path / "none")
    assert find_deployment(tiny_dir) is None and find_deployment(tmp_path / "none") is None


def test_heads_that_it_does_not_have_are_refused(made):
    with pytest.raises(InputError, match=r"heads: depth is not in .*choose from none"):
        load_deployed(made, heads=("depth",))


def test_nothing_is_replaced_unasked_and_only_a_deployed_model_is(made, tiny_dir, tmp_path):
    with pytest.raises(InputError, match="exists already"):
        export_deployment(tiny_dir, made)
    before = sorted(p.name for p in tiny_dir.iterdir())
    with pytest.raises(InputError, match="no deployed model, so it is not replaced"):
        export_deployment(tiny_dir, tiny_dir, overwrite=True)
    assert sorted(p.name for p in tiny_dir.iterdir()) == before


def test_a_failure_leaves_nothing_under_the_final_name(tiny_dir, tmp_path, monkeypatch):
    def stop(*_):
        raise InputError("disk is full")

    monkeypatch.setattr("lite3r_jax.deploy.checkpoint.strict_json.dump", stop)
    with pytest.raises(InputError, match="disk is full"):
        export_deployment(tiny_dir, tmp_path / "out", heads=(), rest="float32")
    assert not list(tmp_path.iterdir())


def test_a_student_runs_with_the_rules_that_it_was_trained_with(tiny_dir, tmp_path):
    student = StudentManifest("vggt", (), plan("sla_global"), "strategy", 0, "paper", {})
    assert deployed_rules(student) == "paper" and deployed_rules(None) == "default"
    with pytest.raises(InputError, match="trained under 'paper', 'default' was asked for"):
        deployed_rules(student, "default")
    with pytest.raises(InputError, match="can only be simulated"):
        export_deployment(tiny_dir, tmp_path / "out", heads=(), rules="paper_w4a16")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("trainable,rank", [("strategy", 0), ("lora", 2)])
def test_a_student_comes_back_with_plan_and_what_was_trained(tiny_dir, tmp_path, trainable, rank):
    attention = plan("sla_global", keep=0.25, block=16)
    teacher = describe_teacher(tiny_dir, ["aggregator"], "")[1]
    manifest = StudentManifest("vggt", (), attention, trainable, rank, "paper", teacher)
    depth, dim = 4, 64
    shapes = {"aggregator/global_cores/0/proj_lin": (depth, 16, 16)}
    if rank:
        attn = "aggregator/global_blocks/attn"
        for name, out in (("qkv", 3 * dim), ("proj", dim)):
            shapes[f"{attn}/{name}_lora/down"] = (depth, dim, rank)
            shapes[f"{attn}/{name}_lora/up"] = (depth, rank, out)
    rng = np.random.default_rng(0)
    arrays = {path: rng.standard_normal(shape, np.float32) for path, shape in shapes.items()}
    write_student(tmp_path / "student", manifest, arrays)
    exported = export_deployment(
        tiny_dir, tmp_path / "out", student=tmp_path / "student", kind="fp8_weight_only"
    )
    assert (exported.variant, exported.plan, exported.precision) == (
        "student-fp8_weight_only", attention, "paper",
    )  # fmt: skip
    wanted = load_student(
        tmp_path / "student", tiny_dir, simulate=False, dtype=jnp.bfloat16,
        param_dtype=jnp.float32,
    )  # fmt: skip
    check_equal(load_deployed(tmp_path / "out"), deploy(wanted, preset("paper"), "fp8_weight_only"))
