"""The way back: the very checkpoint that was converted, bit for bit."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from lite3r_jax.errors import InputError
from lite3r_jax.weights.convert import convert
from lite3r_jax.weights.export import export
from lite3r_jax.weights.safetensors_file import open_safetensors


def same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype and actual[name].shape == tensor.shape, name
        assert actual[name].tobytes() == tensor.tobytes(), name


def test_the_golden_checkpoint_comes_back_as_the_same_file(golden_weights, golden_file, tmp_path):
    record = export(golden_weights, tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == golden_file.read_bytes()
    assert record.size == golden_file.stat().st_size


def test_a_bfloat16_checkpoint_with_fewer_heads(
    golden_file, golden_config, tmp_path, read_plain, write_tensors
):
    tensors = {
        name: tensor.astype(ml_dtypes.bfloat16)
        for name, tensor in read_plain(golden_file).items()
        if name.startswith(("aggregator.", "camera_head.", "depth_head."))
    }
    path = write_tensors(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    source = open_safetensors(path)
    manifest = convert(
        source,
        tmp_path / "out",
        backbone="vggt",
        config=golden_config,
        heads=["depth", "camera"],
    )
    source.close()
    assert manifest.heads == ("camera", "depth") and manifest.dtypes == {"BF16": len(tensors)}
    export(tmp_path / "out", tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == path.read_bytes()
    same(read_plain(tmp_path / "back.safetensors"), tensors)


def test_special_bits_survive(toy, tmp_path, read_plain, write_tensors):
    weight = toy.tensors["trunk.blocks.0.weight"]
    weight.reshape(-1)[:4] = [-0.0, 1e-45, np.finfo(np.float32).max, np.finfo(np.float32).tiny]
    path = write_tensors(tmp_path / "x.safetensors", toy.tensors)
    toy.convert(path, tmp_path / "out")
    export(tmp_path / "out", tmp_path / "back.safetensors")
    same(read_plain(tmp_path / "back.safetensors"), toy.tensors)


def test_a_header_of_another_writer_comes_back(toy, tmp_path):
    # Another order of the data, other spacing, metadata, and unusual but legal padding.
    header, data = {"__metadata__": {"by": "hand"}}, b""
    for name, tensor in sorted(toy.tensors.items(), reverse=True):
        kind = {np.dtype(np.float32): "F32"}.get(tensor.dtype, "BF16")
        offsets = [len(data), len(data) + tensor.nbytes]
        header[name] = {"data_offsets": offsets, "dtype": kind, "shape": list(tensor.shape)}
        data += tensor.tobytes()
    text = json.dumps(header, indent=3).encode() + b"   "
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    toy.convert(path, tmp_path / "out")
    export(tmp_path / "out", tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == path.read_bytes()


def test_shards_come_back_as_one_file(toy, tmp_path, read_plain):
    for name in ("trunk.blocks.0.bias", "trunk.blocks.1.bias"):
        toy.tensors[name] = toy.tensors[name].astype(np.float32)
    for name in ("head.patch.weight", "head.mix.weight"):
        toy.tensors[name] = toy.tensors[name].astype(np.float32)
    names = sorted(toy.tensors)
    shards = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for shard, held in shards.items():
        save_file({name: toy.tensors[name] for name in held}, tmp_path / shard)
    index = tmp_path / "model.safetensors.index.json"
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    index.write_text(json.dumps({"weight_map": weight_map}))
    manifest = toy.convert(index, tmp_path / "out")
    assert set(manifest.source_files) == {index.name, *shards}
    export(tmp_path / "out", tmp_path / "back.safetensors")
    same(read_plain(tmp_path / "back.safetensors"), toy.tensors)


def test_existing_files_and_strange_places(toy, toy_file, tmp_path):
    toy.convert(toy_file, tmp_path / "out")
    target = tmp_path / "back.safetensors"
    target.write_text("old")
    with pytest.raises(InputError, match=r"exists; .* --overwrite"):
        export(tmp_path / "out", target)
    assert target.read_text() == "old"
    export(tmp_path / "out", target, overwrite=True)
    assert target.read_bytes() == toy_file.read_bytes()
    with pytest.raises(InputError, match=r"ends in .safetensors"):
        export(tmp_path / "out", tmp_path / "back.pt")
    with pytest.raises(InputError, match="inside the converted weights"):
        export(tmp_path / "out", tmp_path / "out" / "back.safetensors")
    with pytest.raises(InputError, match="cannot be written"):
        export(tmp_path / "out", tmp_path / "no" / "back.safetensors")
    with pytest.raises(InputError, match="no such directory"):
        export(tmp_path / "nothing", tmp_path / "b.safetensors")
    with pytest.raises(InputError, match="no directory of converted weights"):
        export(tmp_path, tmp_path / "b.safetensors")


def test_damaged_weights_are_not_exported(toy, toy_file, tmp_path):
    out = tmp_path / "out"
    toy.convert(toy_file, out)
    path = out / "carried.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"carried.safetensors: damaged"):
        export(out, tmp_path / "back.safetensors")
    assert not (tmp_path / "back.safetensors").exists()
