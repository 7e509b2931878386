"""NPZ: everything comes back, and nothing else is taken for a scene."""

import io
import os
import zipfile
from dataclasses import fields, replace

import numpy as np
import pytest

from lite3r_jax.errors import InputError
from lite3r_jax.exports import read_npz, write


@pytest.fixture(scope="module")
def path(room, tmp_path_factory):
    return write(room.scene, tmp_path_factory.mktemp("npz"), ["npz"])["npz"]


def same(one, two):
    for field in fields(one):
        if field.name != "photos":
            np.testing.assert_array_equal(getattr(one, field.name), getattr(two, field.name))


def rewritten(path, tmp_path, compressed=False, **changes):
    """A copy with arrays replaced, or left out where the change is None."""
    with np.load(path) as file:
        arrays = dict(file) | changes
    out = tmp_path / "changed.npz"
    save = np.savez_compressed if compressed else np.savez
    save(out, **{name: array for name, array in arrays.items() if array is not None})
    return out


def test_scene_comes_back_whole(room, path):
    assert path.name == "predictions.npz"
    scene = read_npz(path)
    same(scene, room.scene)
    assert scene.names == room.scene.names and scene.photos == ()
    np.testing.assert_array_equal(scene.source_intrinsics, room.scene.source_intrinsics)


def test_scene_without_point_head_comes_back(room, tmp_path):
    scene = replace(room.scene, world_points=None, world_points_conf=None)
    read = read_npz(write(scene, tmp_path, ["npz"])["npz"])
    assert read.world_points is None and read.world_points_conf is None


def test_arrays_are_documented_and_open_with_numpy(room, path):
    with np.load(path) as file:
        for name in file.files:
            assert name == "conventions" or name in str(file["conventions"]) + "format_version"
        assert np.abs(file["source_intrinsics"] - room.lenses).max() < 1e-4
        assert file["format_version"] == 1


@pytest.mark.parametrize(
    "change,message",
    [
        ({"depth": None}, "missing or unknown: depth"),
        ({"extra": np.zeros(1)}, "missing or unknown: extra"),
        ({"depth": np.zeros((4, 70, 84))}, "depth is <f8"),
        ({"depth": np.zeros((4, 70), np.float32)}, "depth is .* with 3 axes"),
        ({"depth": np.zeros((4, 70, 83), np.float32)}, r"depth is float32 \[4, 70, 83\]"),
        ({"images": np.zeros((4, 84, 70, 3), np.uint8)}, "expected"),
        ({"names": np.array(["a", "b", "c", "../d"])}, "not a usable name"),
        ({"names": np.array(["a", "b", "c"])}, "3 views"),
        ({"format_version": np.array(2)}, "format version 2"),
    ],
)
def test_wrong_arrays_are_refused_by_name(path, tmp_path, change, message):
    changed = rewritten(path, tmp_path, **change)
    with pytest.raises(InputError, match=message) as caught:
        read_npz(changed)
    assert str(changed) in str(caught.value) and "\n" not in str(caught.value)


def test_compressed_arrays_are_refused(path, tmp_path):
    with pytest.raises(InputError, match="is compressed"):
        read_npz(rewritten(path, tmp_path, compressed=True))


class _Touch:
    def __reduce__(self):
        return (os.mkdir, ("pwned",))


def test_pickles_are_not_executed(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad = rewritten(path, tmp_path, names=np.array([_Touch()], object))
    with pytest.raises(InputError, match="names is"):
        read_npz(bad)
    assert not (tmp_path / "pwned").exists()


def test_header_that_promises_too_much_is_refused(path, tmp_path):
    out = tmp_path / "huge.npz"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename == "depth.npy":
                head = io.BytesIO()
                shape = {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6, 10**3)}
                np.lib.format.write_array_header_1_0(head, shape)
                data = head.getvalue()
            new.writestr(info.filename, data)
    with pytest.raises(InputError, match=r"huge\.npz"):
        read_npz(out)


@pytest.mark.parametrize("content", [b"", b"PK", b"ply\nformat ascii 1.0\n", b"\x93NUMPY" * 9])
def test_foreign_files_are_refused(tmp_path, content):
    out = tmp_path / "foreign.npz"
    out.write_bytes(content)
    with pytest.raises(InputError, match=r"foreign\.npz: cannot be read as NPZ"):
        read_npz(out)


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_npz(tmp_path / "none.npz")
    with pytest.raises(InputError, match="Is a directory"):
        read_npz(tmp_path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_damaged_files_are_refused_or_still_the_same(room, tmp_path):
    small = replace(
        room.scene,
        images=room.scene.images[:, :4, :4],
        depth=room.scene.depth[:, :4, :4],
        depth_conf=room.scene.depth_conf[:, :4, :4],
        world_points=None,
        world_points_conf=None,
    )
    whole = write(small, tmp_path, ["npz"])["npz"].read_bytes()
    rng = np.random.default_rng(0)
    out = tmp_path / "damaged.npz"
    refused = 0
    for trial in range(600):
        data = bytearray(whole)
        if trial % 3 == 0:
            data = data[: rng.integers(len(data))]
        else:
            for _ in range(rng.integers(1, 4)):
                data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        out.write_bytes(data)
        try:
            scene = read_npz(out)
        except InputError as error:
            assert str(out) in str(error) and "\n" not in str(error)
            refused += 1
        else:  # what changed was no part of the scene, such as a date in the archive
            same(scene, small)
    assert refused > 500
