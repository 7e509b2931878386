"""The door: formats, conflicts, overwriting, determinism, failures half-way."""

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lite3r_jax.errors import InputError
from lite3r_jax.exports import (
    FORMATS,
    ExportOptions,
    PointOptions,
    parse_formats,
    planned,
    write,
)

OPTIONS = ExportOptions(points=PointOptions(max_points=1000), sparse_points=100)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_every_format_appears_under_its_name_and_nothing_else(room, tmp_path):
    ticks = []
    paths = write(
        room.scene,
        tmp_path / "new" / "out",
        list(FORMATS),
        OPTIONS,
        progress=lambda: ticks.append(1),
    )
    assert list(paths) == list(FORMATS)
    assert list(paths.values()) == planned(tmp_path / "new" / "out", list(FORMATS))
    assert sorted((tmp_path / "new" / "out").iterdir()) == sorted(paths.values())
    assert len(ticks) == len(FORMATS)


def test_two_writes_give_equal_bytes(room, tmp_path):
    for out in ("one", "two"):
        write(room.scene, tmp_path / out, list(FORMATS), OPTIONS)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert len(one) > 30
    assert one == two


def test_conflicts_are_all_named_before_anything_is_written(room, tmp_path):
    (tmp_path / "colmap").mkdir()
    (tmp_path / "points.ply").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has points\.ply, colmap already") as caught:
        write(room.scene, tmp_path, ["npz", "ply", "colmap"], OPTIONS)
    assert str(tmp_path) in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["colmap", "points.ply"]


def test_overwriting_replaces_whole_folders(room, tmp_path):
    paths = write(room.scene, tmp_path, ["ply", "colmap"], OPTIONS)
    before = contents(tmp_path)
    (paths["colmap"] / "stale.txt").write_text("old")
    paths["ply"].write_text("old")
    write(room.scene, tmp_path, ["ply", "colmap"], OPTIONS, overwrite=True)
    assert contents(tmp_path) == before


def test_other_files_in_the_folder_stay(room, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    write(room.scene, tmp_path, ["tum"], OPTIONS)
    write(room.scene, tmp_path, ["tum"], OPTIONS, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_formats_are_parsed_once_each_in_order():
    assert parse_formats(" ply, npz ,ply") == ("ply", "npz")


@pytest.mark.parametrize("text", ["", " , ", "ply,obj", "PLY"])
def test_unknown_formats_are_refused_with_the_list(text):
    with pytest.raises(InputError, match="npz, ply, glb, colmap, colmap_txt, nerfstudio"):
        parse_formats(text)


def test_a_string_is_no_list_of_formats(room, tmp_path):
    with pytest.raises(InputError, match="expected a list"):
        write(room.scene, tmp_path, "ply", OPTIONS)


def test_output_that_is_a_file_is_refused(room, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="out: is not a folder"):
        write(room.scene, tmp_path / "out", ["tum"], OPTIONS)
    assert (tmp_path / "out").read_text() == "mine"


@dataclass(frozen=True)
class GonePhoto:
    """A photo that cannot be read any more."""

    def read(self) -> Image.Image:
        raise InputError("b.jpg: no such file")

    def upright_file(self) -> None:
        return None


@pytest.mark.parametrize("form", ["colmap", "nerfstudio"])
def test_failed_write_leaves_nothing_and_keeps_the_old(room, tmp_path, form):
    broken = replace(room.scene, photos=(*room.scene.photos[:3], GonePhoto()))
    with pytest.raises(InputError, match="no such file"):
        write(broken, tmp_path, [form], OPTIONS)
    assert list(tmp_path.iterdir()) == []
    write(room.scene, tmp_path, [form], OPTIONS)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        write(broken, tmp_path, [form], OPTIONS, overwrite=True)
    assert contents(tmp_path) == before


def test_killed_write_leaves_nothing_under_a_final_name(tmp_path):
    program = textwrap.dedent("""
        import os, signal, sys
        import numpy as np
        from lite3r_jax import exports
        from lite3r_jax.scene import Scene

        class Deadly:
            def upright_file(self):
                return None
            def read(self):
                os.kill(os.getpid(), signal.SIGKILL)

        camera = np.eye(4, dtype=np.float32)[None]
        ones = np.ones((1, 14, 14), np.float32)
        scene = Scene(
            ("a.jpg",), np.zeros((1, 14, 14, 3), np.uint8), ones, ones, camera[:, :3],
            camera[:, :3, :3], np.array([[0, 0, 14, 14]], np.float32), np.array([[14, 14]]),
            photos=(Deadly(),),
        )
        exports.write(scene, sys.argv[1], ["tum", "colmap", "ply"])
    """)
    run = subprocess.run([sys.executable, "-c", program, tmp_path], timeout=120)
    assert run.returncode == -signal.SIGKILL
    visible = [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert visible == ["trajectory.txt"]  # what was complete before


def test_photo_that_changed_its_size_is_refused(room, tmp_path):
    sizes = room.scene.source_sizes.copy()
    sizes[0] = 336, 280
    with pytest.raises(InputError, match=r"a\.jpg: the photo is 168x140 pixels now.*336x280"):
        write(replace(room.scene, source_sizes=sizes), tmp_path, ["colmap"], OPTIONS)


def test_photo_file_that_is_gone_is_refused_by_name(room, tmp_path):
    gone = replace(room.scene.photos[0], file=tmp_path / "gone.jpg")
    scene = replace(room.scene, photos=(gone, *room.scene.photos[1:]))
    with pytest.raises(InputError, match=r"gone\.jpg: cannot be read any more"):
        write(scene, tmp_path / "out", ["colmap"], OPTIONS)


def test_without_photos_the_error_names_the_setting(room, tmp_path):
    with pytest.raises(InputError, match=r"export\.images=network"):
        write(replace(room.scene, photos=()), tmp_path, ["tum", "colmap"], OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_names_that_differ_only_by_blanks_are_refused(room, tmp_path):
    scene = replace(room.scene, names=("a b.jpg", "a_B.jpg", "c", "d"))
    with pytest.raises(InputError, match=r"'a b\.jpg' and 'a_B\.jpg'"):
        write(scene, tmp_path, ["colmap"], OPTIONS)


@pytest.mark.parametrize(
    "field,index,value,message",
    [
        ("extrinsics", (2, 0, 3), np.nan, "not finite"),
        ("intrinsics", (2, 0, 0), np.inf, "not finite"),
        ("intrinsics", (2, 1, 1), -5, "focal lengths"),
        ("intrinsics", (2, 0, 1), 3, r"\[\[fx, 0, cx\]"),
        ("extrinsics", (2, 1, 1), 3, "no rotation"),
        ("extrinsics", (2, slice(None), 0), (1e-9, 0, 0), "no rotation"),
        ("boxes", (2, 2), 3, "no extent"),
        ("source_sizes", (2, 1), 0, "no extent"),
    ],
)
def test_cameras_that_no_file_can_hold_are_refused_by_name(
    room, tmp_path, field, index, value, message
):
    array = getattr(room.scene, field).copy()
    array[index] = value
    with pytest.raises(InputError, match=rf"^a\.png: .*{message}"):
        write(replace(room.scene, **{field: array}), tmp_path, ["tum"], OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_mirrored_cameras_are_refused(room, tmp_path):
    extrinsics = room.scene.extrinsics * np.array([[1], [1], [-1]], np.float32)
    with pytest.raises(InputError, match="no rotation"):
        write(replace(room.scene, extrinsics=extrinsics), tmp_path, ["tum"], OPTIONS)


@pytest.mark.parametrize(
    "key,value",
    [
        ("images", "thumbnails"),
        ("sparse_points", -1),
        ("sparse_points", 0.5),
        ("frustum", -0.1),
        ("depth_step", 0.0),
        ("depth_step", float("inf")),
    ],
)
def test_bad_options_are_refused_by_name(key, value):
    with pytest.raises(InputError, match=rf"export\.{key}: expected"):
        ExportOptions(**{key: value})


def test_the_page_shows_the_points_of_the_other_files_and_the_report(room, tmp_path):
    options = replace(OPTIONS, points=PointOptions(max_points=500, conf_percentile=12.5))
    path = write(room.scene, tmp_path, ["html"], options, report={"kernel": "dense"})["html"]
    page = path.read_text()
    assert '"percentile":12.5' in page and '"count":500' in page and '{"kernel":"dense"}' in page


def test_photos_in_need_of_encoding_keep_their_kind(room, tmp_path):
    names = ("a.HEIC", "b.JPEG", "c.tif", "d")
    photos = tuple(replace(photo, file=None) for photo in room.scene.photos)
    scene = replace(room.scene, names=names, photos=photos)
    folder = write(scene, tmp_path, ["colmap"], OPTIONS)["colmap"] / "images"
    assert sorted(os.listdir(folder)) == ["a.jpg", "b.JPEG", "c.png", "d.png"]


def test_copied_photos_keep_the_suffix_of_their_file(room, tmp_path):
    scene = replace(room.scene, names=("a", "b.jpg", "c", "d"))
    folder = write(scene, tmp_path, ["colmap"], OPTIONS)["colmap"] / "images"
    assert sorted(os.listdir(folder)) == ["a.jpg", "b.jpg", "c.png", "d.png"]
    assert (folder / "a.jpg").read_bytes() == room.scene.photos[0].file.read_bytes()
