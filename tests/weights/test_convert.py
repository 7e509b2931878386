"""Conversion: everything checked, one tensor at a time, all or nothing."""

import json
import os
import shutil
import weakref
from collections import Counter

import ml_dtypes
import numpy as np
import pytest

from lite3r_jax.errors import InputError
from lite3r_jax.weights import convert as convert_module
from lite3r_jax.weights.convert import contiguous, convert, count_not_finite, license_beside
from lite3r_jax.weights.manifest import Origin
from lite3r_jax.weights.safetensors_file import SafetensorsFile, open_safetensors
from lite3r_jax.weights.safetensors_writer import SafetensorsWriter, hash_file


def refused(kit, path, out, match, **options) -> str:
    """The message of a refusal that leaves nothing behind."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(InputError, match=match) as error:
        kit.convert(path, out, **options)
    assert sorted(out.parent.iterdir()) == before
    message = str(error.value)
    assert message.isprintable()
    return message


def test_every_tensor_lands_where_it_belongs(toy, toy_file, tmp_path, read_plain):
    out = tmp_path / "out"
    toy.convert(toy_file, out)
    actual = read_plain(out / "trunk.safetensors") | read_plain(out / "head.safetensors")
    expected = toy.expected(toy.tensors)
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        np.testing.assert_array_equal(actual[name], tensor, name)
    carried = read_plain(out / "carried.safetensors")
    np.testing.assert_array_equal(carried["trunk.mask"], toy.tensors["trunk.mask"])


def test_the_report_says_what_happened(toy, toy_file, tmp_path):
    out = tmp_path / "out"
    manifest = toy.convert(toy_file, out, origin=Origin("MIT", "me", "a/b", "c"))
    saved = json.loads((out / "manifest.json").read_text())
    assert saved == json.loads(json.dumps(manifest.to_json()))
    assert saved["origin"] == {
        "license": "MIT",
        "license_from": "me",
        "repo": "a/b",
        "revision": "c",
    }
    assert saved["heads"] == ["dense"] and saved["backbone"] == "toy"
    assert saved["skipped"] == {"trunk.mask": "nothing reads it"}
    assert saved["dtypes"] == Counter(dtype for dtype, _ in toy.specs.values())
    assert saved["parts"]["trunk"] == {"tensors": 7, "leaves": 5, "parameters": 3 * 3 + 24 + 8}
    assert saved["parts"]["head"] == {"tensors": 3, "leaves": 3, "parameters": 12 + 6 + 24}
    source = hash_file(toy_file)
    assert saved["source_files"] == {toy_file.name: {"size": source.size, "sha256": source.sha256}}
    written = {p.name for p in out.iterdir()} - {"manifest.json"}
    assert set(saved["files"]) == written
    for name in written:
        record = hash_file(out / name)
        assert saved["files"][name] == {"size": record.size, "sha256": record.sha256}
    report = manifest.report()
    for text in ("trunk.mask: nothing reads it", source.sha256, "MIT (me)", "F32 x 7, BF16 x 4"):
        assert text in report


def test_two_conversions_of_one_file_write_the_same_weights(toy, toy_file, tmp_path):
    first = toy.convert(toy_file, tmp_path / "a")
    second = toy.convert(toy_file, tmp_path / "b")
    assert first.files == second.files


def test_never_more_than_one_tensor_is_held(toy, toy_file, tmp_path, monkeypatch):
    alive, most = 0, 0

    def gone():
        nonlocal alive
        alive -= 1

    read = SafetensorsFile.read

    def counted(self, name):
        nonlocal alive, most
        tensor = read(self, name)
        alive, most = alive + 1, max(most, alive + 1)
        weakref.finalize(tensor, gone)
        return tensor

    monkeypatch.setattr(SafetensorsFile, "read", counted)
    toy.convert(toy_file, tmp_path / "out")
    # The next one is read before the name of the last one is bound anew.
    assert 1 <= most <= 2 and alive == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["trunk.blocks.1.weight", "head.mix.weight", "trunk.mask"])
def test_nan_and_infinity_are_refused_by_name(toy, tmp_path, write_tensors, name, bad):
    toy.tensors[name].reshape(-1)[-1] = bad
    path = write_tensors(tmp_path / "bad.safetensors", toy.tensors)
    message = refused(toy, path, tmp_path / "out", "NaN or infinite")
    assert f"{path}: tensor {name} holds 1 NaN" in message


@pytest.mark.parametrize(
    "change, match",
    [
        ({"trunk.token": None}, r"1 missing \(trunk.token\)"),
        ({"trunk.more": np.zeros(3, np.float32)}, r"1 not known here \(trunk.more\)"),
        (
            {"trunk.token": np.zeros((1, 4), np.float32)},
            r"trunk.token \[1, 4\] instead of \[1, 3\]",
        ),
        ({"trunk.token": np.zeros((1, 3), np.float64)}, "trunk.token is F64; expected one of F32"),
        ({"trunk.token": np.zeros((1, 3), np.int32)}, "trunk.token is I32; expected one of F32"),
        ({"trunk.token": np.zeros((1, 3), np.float16)}, "float16 and bfloat16 in one checkpoint"),
        ({"trunk.blocks.1.weight": np.zeros((4, 3), ml_dtypes.bfloat16)}, "mix dtypes BF16, F32"),
    ],
)
def test_a_checkpoint_that_does_not_fit(toy, tmp_path, write_tensors, change, match):
    tensors = {k: v for k, v in (toy.tensors | change).items() if v is not None}
    path = write_tensors(tmp_path / "bad.safetensors", tensors)
    assert str(path) in refused(toy, path, tmp_path / "out", match)


def test_another_size_needs_its_config(toy, tmp_path, write_tensors):
    for name in ("trunk.token", "trunk.mask", "trunk.norm.weight", "trunk.norm.bias"):
        toy.tensors[name] = toy.tensors[name][..., :2]
    for i in range(2):
        toy.tensors[f"trunk.blocks.{i}.weight"] = toy.tensors[f"trunk.blocks.{i}.weight"][:, :2]
    path = write_tensors(tmp_path / "small.safetensors", toy.tensors)
    refused(toy, path, tmp_path / "out", "6 of another shape .* pass --config")
    toy.convert(path, tmp_path / "out", config={"width": 2})
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"width": 2}
    refused(toy, path, tmp_path / "other", "unknown keys", config={"size": 2})


def test_a_checkpoint_without_a_head_needs_to_be_told_so(toy, tmp_path, write_tensors):
    tensors = {k: v for k, v in toy.tensors.items() if not k.startswith("head.")}
    path = write_tensors(tmp_path / "part.safetensors", tensors)
    out = tmp_path / "out"
    refused(toy, path, out, "no tensors of the heads dense; .* pass --heads none")
    manifest = toy.convert(path, out, heads=[])
    assert manifest.heads == () and list(manifest.parts) == ["trunk"]
    assert not (out / "head.safetensors").exists()


def test_a_head_is_not_dropped_silently(toy, toy_file, tmp_path):
    refused(toy, toy_file, tmp_path / "out", "has the heads dense, which --heads", heads=[])


@pytest.mark.parametrize("heads", [["wings"], ["dense", "dense"]])
def test_unknown_heads(toy, toy_file, tmp_path, heads):
    refused(toy, toy_file, tmp_path / "out", "heads: .* choose from dense", heads=heads)


@pytest.mark.parametrize(
    "name, kind",
    [
        ("model.backbone.pretrained.blocks.0.norm1.weight", "Depth Anything 3"),
        ("decoder.0.attn.qkv.weight", "Pi3"),
        ("enc_blocks.0.norm1.weight", "DUSt3R or MASt3R"),
        ("blocks.0.norm1.weight", "a plain DINOv2"),
        ("module.trunk.token", "data-parallel"),
        ("something.else", "of no kind known here"),
    ],
)
def test_another_backbone_is_named(toy, tmp_path, write_tensors, name, kind):
    path = write_tensors(tmp_path / "other.safetensors", {name: np.zeros(3, np.float32)})
    message = refused(toy, path, tmp_path / "out", f"not a toy checkpoint, it .*{kind}")
    assert f"found {name}" in message


def test_an_existing_directory_is_kept(toy, toy_file, tmp_path):
    out = tmp_path / "out"
    toy.convert(toy_file, out)
    refused(toy, toy_file, out, "exists; .* --overwrite")


def test_overwriting_replaces_all_of_it(toy, toy_file, tmp_path, write_tensors):
    out = tmp_path / "out"
    old = toy.convert(toy_file, out)
    toy.tensors["trunk.token"][:] = 7
    new = toy.convert(write_tensors(tmp_path / "b.safetensors", toy.tensors), out, overwrite=True)
    assert new.files["trunk.safetensors"] != old.files["trunk.safetensors"]
    assert {p.name for p in out.iterdir()} == {*new.files, "manifest.json"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.safetensors", "out", toy_file.name]


def test_overwriting_an_empty_directory(toy, toy_file, tmp_path):
    (tmp_path / "out").mkdir()
    toy.convert(toy_file, tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("kind", ["directory", "file", "link"])
def test_overwrite_touches_nothing_but_converted_weights(toy, toy_file, tmp_path, kind):
    out = tmp_path / "out"
    if kind == "directory":
        out.mkdir()
        (out / "thesis.tex").write_text("years of work")
    elif kind == "file":
        out.write_text("years of work")
    else:
        toy.convert(toy_file, tmp_path / "real")
        out.symlink_to(tmp_path / "real")
    refused(toy, toy_file, out, "does not touch it", overwrite=True)


def test_the_checkpoint_is_not_overwritten_by_its_own_conversion(toy, toy_file, tmp_path):
    out = tmp_path / "out"
    toy.convert(toy_file, out)
    inside = shutil.copy(toy_file, out / "model.safetensors")
    refused(toy, inside, out, "would replace the checkpoint", overwrite=True)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, InputError])
@pytest.mark.parametrize("existing", [True, False])
def test_a_conversion_that_dies_half_way_leaves_no_trace(
    toy, toy_file, tmp_path, monkeypatch, failure, existing
):
    out = tmp_path / "out"
    if existing:
        toy.convert(toy_file, out)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    write, calls = SafetensorsWriter.write, []

    def dies(self, name, array):
        calls.append(name)
        if len(calls) == 8:
            raise failure("killed")
        write(self, name, array)

    monkeypatch.setattr(SafetensorsWriter, "write", dies)
    with pytest.raises(failure):
        toy.convert(toy_file, out, overwrite=existing)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_the_old_result_comes_back_if_the_last_rename_fails(toy, toy_file, tmp_path, monkeypatch):
    out = tmp_path / "out"
    toy.convert(toy_file, out)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    replace = os.replace

    def fails(source, target):
        if ".partial-" in str(source):
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(convert_module.os, "replace", fails)
    refused(toy, toy_file, out, "cannot be written", overwrite=True)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_where_nothing_can_be_written(toy, toy_file, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"no/out: cannot be written, .*no is no directory"):
        toy.convert(toy_file, tmp_path / "no" / "out")
    with pytest.raises(
        InputError, match=r"out: cannot be written, .*toy.safetensors is no directory"
    ):
        toy.convert(toy_file, toy_file / "out")

    def denied(self, *arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(convert_module.Path, "mkdir", denied)
    refused(toy, toy_file, tmp_path / "out", r"out: cannot be written \(Permission denied\)")
    monkeypatch.setattr(convert_module.os, "access", lambda path, mode: mode != os.W_OK)
    refused(toy, toy_file, tmp_path / "out", "out: cannot be written, no permission in ")


def test_a_full_disk_is_found_before_writing(toy, toy_file, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(convert_module.shutil, "disk_usage", lambda path: usage)
    refused(toy, toy_file, tmp_path / "out", "needs .* GB free")


def test_a_checkpoint_that_changes_meanwhile(toy, toy_file, tmp_path, monkeypatch):
    read, done = SafetensorsFile.read, []

    def touching(self, name):
        if not done:
            done.append(name)
            os.utime(toy_file, (1, 1))
        return read(self, name)

    monkeypatch.setattr(SafetensorsFile, "read", touching)
    refused(toy, toy_file, tmp_path / "out", "changed while it was being converted")


@pytest.mark.parametrize(
    "card, license",
    [
        ("---\nlicense: cc-by-nc-4.0\ntags: [x]\n---\ntext", "cc-by-nc-4.0"),
        ('---\ntags:\n- x\nlicense: "MIT"\n---\n', "MIT"),
        ("---\ntags: [x]\n---\nlicense: MIT\n", "unknown"),
        ("license: MIT\n", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_the_licence_comes_from_the_model_card(toy_file, card, license):
    if card is not None:
        (toy_file.parent / "README.md").write_text(card)
    source = open_safetensors(toy_file)
    assert license_beside(source).license == license
    source.close()


def test_golden_checkpoint_misses_a_layer(golden_file, golden_config, tmp_path, write_tensors):
    source = open_safetensors(golden_file)
    tensors = {name: source.read(name) for name in source.specs}
    source.close()
    del tensors["aggregator.global_blocks.2.attn.q_norm.bias"]
    source = open_safetensors(write_tensors(tmp_path / "x.safetensors", tensors))
    with pytest.raises(
        InputError, match=r"1 missing \(aggregator.global_blocks.2.attn.q_norm.bias"
    ):
        convert(source, tmp_path / "out", backbone="vggt", config=golden_config)
    source.close()


@pytest.mark.parametrize("shape", [(1,), (7,), (100, 37), (64, 64), (3, 5, 2), ()])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_fast_transposition_is_transposition(shape, dtype):
    tensor = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    copied = contiguous(tensor.T)
    assert copied.flags.c_contiguous and copied.dtype == dtype
    np.testing.assert_array_equal(copied, tensor.T)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_not_finite_values_are_counted(dtype):
    largest = ml_dtypes.finfo(dtype).max
    tensor = np.full((10, 10), largest, dtype)  # a sum of these overflows
    assert count_not_finite(tensor) == 0
    tensor[3, 4], tensor[5, 6], tensor[9, 9] = np.nan, np.inf, -np.inf
    assert count_not_finite(tensor) == 3
    assert count_not_finite(np.zeros((0, 3), dtype)) == 0
