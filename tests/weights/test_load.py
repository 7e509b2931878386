"""Loading: the numbers of the checkpoint, verified, and nothing that is not needed."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.attention.presets import plan
from lite3r_jax.attention.strategy import AttentionCore
from lite3r_jax.backbones.base import get_backbone, register, unregister
from lite3r_jax.errors import InputError
from lite3r_jax.weights import load as load_module
from lite3r_jax.weights.abstract import abstract_model
from lite3r_jax.weights.load import load
from lite3r_jax.weights.safetensors_file import SafetensorsFile


def parameters(model) -> dict[str, np.ndarray]:
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {"/".join(map(str, key)): np.asarray(value[...]) for key, value in flat}


@pytest.fixture
def toy_weights(toy, toy_file, tmp_path):
    toy.convert(toy_file, tmp_path / "out")
    return tmp_path / "out"


def test_golden_weights_are_the_checkpoint(golden_weights, golden_file, read_plain):
    source = read_plain(golden_file)
    model = load(golden_weights)
    loaded = parameters(model)
    assert sum(p.size for p in loaded.values()) == 1_505_984 - 64  # without the mask token
    for i in range(4):
        np.testing.assert_array_equal(
            loaded["aggregator/frame_blocks/attn/qkv/kernel"][i],
            source[f"aggregator.frame_blocks.{i}.attn.qkv.weight"].T,
        )
    np.testing.assert_array_equal(
        loaded["track_head/tracker/updateformer/virtual_tracks"],
        source["track_head.tracker.updateformer.virual_tracks"],
    )
    np.testing.assert_array_equal(
        loaded["camera_head/pose_modulation/kernel"],
        source["camera_head.poseLN_modulation.1.weight"].T,
    )
    np.testing.assert_array_equal(
        loaded["depth_head/upsample/0/kernel"],
        np.einsum("iohw->ihwo", source["depth_head.resize_layers.0.weight"]),
    )


def test_every_parameter_is_the_expected_one(toy, toy_weights):
    loaded = parameters(load(toy_weights, param_dtype=jnp.float32))
    for name, tensor in toy.expected(toy.tensors).items():
        assert loaded[name].dtype == np.float32
        np.testing.assert_array_equal(loaded[name], tensor.astype(np.float32), name)


def test_parameters_are_held_as_asked(toy, toy_weights, tmp_path, write_tensors):
    loaded = parameters(load(toy_weights, param_dtype=jnp.bfloat16))
    for name, tensor in toy.expected(toy.tensors).items():
        assert loaded[name].dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(loaded[name], tensor.astype(ml_dtypes.bfloat16), name)
    # Mixed files come as float32, uniform ones as they are.
    assert {p.dtype for p in parameters(load(toy_weights)).values()} == {np.dtype(np.float32)}
    halves = {name: t.astype(ml_dtypes.bfloat16) for name, t in toy.tensors.items()}
    toy.convert(write_tensors(tmp_path / "half.safetensors", halves), tmp_path / "half")
    kinds = {p.dtype for p in parameters(load(tmp_path / "half")).values()}
    assert kinds == {np.dtype(ml_dtypes.bfloat16)}


def test_parameters_survive_donation(toy_weights):
    # Arrays taken over from the host must still be JAX's own.
    kernel = load(toy_weights).trunk.blocks.kernel[...]
    before = np.array(kernel)
    after = jax.jit(lambda x: x * 2, donate_argnums=0)(kernel)
    np.testing.assert_array_equal(after, before * 2)
    again = np.array(load(toy_weights).trunk.blocks.kernel[...])
    np.testing.assert_array_equal(again, before)


def test_a_head_that_is_not_asked_for_is_not_read(toy_weights, monkeypatch):
    opened = []
    real = SafetensorsFile.__init__
    monkeypatch.setattr(
        SafetensorsFile,
        "__init__",
        lambda self, path: (opened.append(path.name), real(self, path))[1],
    )
    head = toy_weights / "head.safetensors"
    head.write_bytes(bytes(head.stat().st_size))
    model = load(toy_weights, heads=())
    assert opened == ["trunk.safetensors"] and not hasattr(model, "head")
    with pytest.raises(InputError, match=r"head.safetensors: damaged, its SHA-256"):
        load(toy_weights)


def test_heads_that_the_weights_do_not_have(toy_weights):
    with pytest.raises(InputError, match=r"heads: wings is not in .*out; choose from dense"):
        load(toy_weights, heads=("wings",))


@pytest.mark.parametrize(
    "name",
    [
        "trunk.safetensors",
        "head.safetensors",
        "carried.safetensors",
        "source_header.json",
        "config.json",
        "manifest.json",
    ],
)
def test_a_missing_file_is_named(toy_weights, name):
    (toy_weights / name).unlink()
    with pytest.raises(InputError, match=f"{name}: missing"):
        load(toy_weights)


def test_an_extra_file_is_named(toy_weights):
    (toy_weights / "more.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"more.safetensors: not part of the converted weights"):
        load(toy_weights)


@pytest.mark.parametrize("name", ["trunk.safetensors", "config.json"])
@pytest.mark.parametrize("where", [0, 9, -1])
def test_one_flipped_bit_is_found(toy_weights, name, where):
    path = toy_weights / name
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"{name}: damaged") as error:
        load(toy_weights)
    assert "\n" not in str(error.value)


def test_a_manifest_that_was_edited_consistently_but_not_by_us(toy_weights):
    path = toy_weights / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["origin"]["license"] = "CC0"
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"manifest.json: damaged or edited"):
        load(toy_weights)


def test_weights_of_another_version(toy_weights):
    path = toy_weights / "manifest.json"
    path.write_text(path.read_text().replace("lite3r_jax weights 1", "lite3r_jax weights 9"))
    with pytest.raises(InputError, match="weights 9, expected 'lite3r_jax weights 1'"):
        load(toy_weights)


def test_weights_that_fit_no_longer(toy_weights, monkeypatch):
    traced = load_module.abstract_model

    def larger(backbone, config, **kinds):
        return traced(backbone, type(config)(width=config.width + 1), **kinds)

    monkeypatch.setattr(load_module, "abstract_model", larger)
    with pytest.raises(InputError, match="does not fit the model of this version, 4 parameters"):
        load(toy_weights)


@pytest.mark.parametrize("source", ["nothing/here/at-all", "./nothing", "nothing"])
def test_no_such_directory(source):
    with pytest.raises(InputError, match="no such directory"):
        load(source)


def test_a_checkpoint_must_be_converted_first(golden_file):
    with pytest.raises(
        InputError, match=r"model.safetensors: a file, .*convert it with lite3r convert"
    ):
        load(golden_file)


def test_paths_and_strings_are_alike(toy_weights):
    load(str(toy_weights), heads=())
    load(toy_weights, heads=())


def test_a_copy_of_the_directory_is_as_good(toy_weights, tmp_path):
    load(shutil.copytree(toy_weights, tmp_path / "copy"), heads=())


@pytest.mark.slow
def test_a_student_has_its_teachers_weights_and_its_own_projections(golden_weights):
    teacher = parameters(load(golden_weights, heads=("camera",)))
    student = parameters(load(golden_weights, heads=("camera",), plan=plan("sla_paper")))
    own = {name: student.pop(name) for name in student.keys() - teacher.keys()}
    assert {name: values.shape for name, values in own.items()} == {
        "aggregator/patch_embed/cores/0/proj_lin": (3, 16, 16),
        "aggregator/frame_cores/0/proj_lin": (4, 16, 16),
        "aggregator/global_cores/0/proj_lin": (4, 16, 16),
        "camera_head/cores/0/proj_lin": (2, 32, 32),
    }
    for values in own.values():
        assert np.std(values) == pytest.approx(1e-3, rel=0.2)
        assert not np.array_equal(values[0], values[1]), "layers differ"
    for name, values in teacher.items():
        np.testing.assert_array_equal(student[name], values, name)


@pytest.mark.slow
def test_projections_are_those_of_the_seed(golden_weights):
    def own(seed):
        model = load(golden_weights, heads=(), plan=plan(), seed=seed, param_dtype=jnp.bfloat16)
        return model.aggregator.global_cores[0].proj_lin[...]

    first, again, other = own(1), own(1), own(2)
    assert first.dtype == jnp.bfloat16
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


class _Strategy(AttentionCore):
    def __init__(self):
        self.scale = nnx.Param(jnp.full(3, 2.0))


class _Layer(nnx.Module):
    def __init__(self):
        self.scale = nnx.Param(jnp.full(3, 2.0))


@pytest.mark.parametrize("kind", [_Strategy, _Layer])
def test_nothing_may_be_missing_but_what_strategies_add(toy_weights, monkeypatch, kind):
    toy = get_backbone("toy")

    class More(toy.model):
        def __init__(self, config, **kinds):
            super().__init__(config, **kinds)
            self.trunk.more = kind()

    monkeypatch.setattr(load_module, "abstract_model", abstract_model)
    unregister("toy")
    register(replace(toy, model=More))
    if kind is _Strategy:
        np.testing.assert_array_equal(load(toy_weights).trunk.more.scale[...], [2.0, 2.0, 2.0])
    else:
        with pytest.raises(InputError, match=r"1 parameters differ \(trunk/more/scale\)"):
            load(toy_weights)
