"""Students on disk: what is in them, and which ones are refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from lite3r_jax.attention.plan import Plan, Rule, plan_from_json, plan_to_json
from lite3r_jax.attention.presets import plan
from lite3r_jax.attention.sla import SLA
from lite3r_jax.distillation.checkpoint import (
    ARRAYS,
    MANIFEST,
    StudentManifest,
    describe_teacher,
    fill,
    load_student,
    read_student,
    write_student,
)
from lite3r_jax.distillation.options import DistillOptions, MatchOptions
from lite3r_jax.distillation.trainable import trained_paths
from lite3r_jax.errors import InputError
from lite3r_jax.weights import sealed_json, strict_json
from tests.distillation.mini import build

PLAN = plan("sla_global", keep=0.25, block=16)
SHAPES = {"global_cores/0/proj_lin": (2, 8, 8)}


@pytest.fixture(scope="module")
def manifest(tiny_dir):
    backbone, teacher = describe_teacher(tiny_dir, ["aggregator", "camera_head"], "")
    return StudentManifest(backbone, ("camera",), PLAN, "strategy", 0, "none", teacher)


def arrays(shapes=SHAPES):
    rng = np.random.default_rng(0)
    return {path: rng.standard_normal(shape, np.float32) for path, shape in shapes.items()}


@pytest.fixture
def folder(manifest, tmp_path):
    write_student(tmp_path / "student", manifest, arrays())
    return tmp_path / "student"


def test_what_is_read_is_what_was_written(folder, manifest):
    read, tensors = read_student(folder)
    assert read == manifest
    for path, x in arrays().items():
        np.testing.assert_array_equal(tensors[path], x)
    assert sorted(p.name for p in folder.iterdir()) == [MANIFEST, ARRAYS]
    assert (folder / ARRAYS).stat().st_size < 128 * 4 + 200  # nothing but what was trained


def test_equal_students_are_equal_bytes_and_say_whose_they_are(
    folder, manifest, tmp_path, tiny_dir
):
    write_student(tmp_path / "again", manifest, arrays())
    for name in (MANIFEST, ARRAYS):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    body = json.loads((folder / MANIFEST).read_text())
    assert body["count"] == 128 and body["parameters"] == {"global_cores/0/proj_lin": [2, 8, 8]}
    files = json.loads((tiny_dir / "manifest.json").read_text())["files"]
    names = {"config.json", "aggregator.safetensors", "camera_head.safetensors"}
    assert body["teacher"] == {name: files[name]["sha256"] for name in names}


@pytest.mark.parametrize("name", [MANIFEST, ARRAYS])
def test_any_damage_is_found(folder, tiny_dir, name):
    path = folder / name
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=name):
        load_student(folder, tiny_dir)
    path.unlink()
    with pytest.raises(InputError, match=f"{name}: missing"):
        load_student(folder, tiny_dir)


def test_an_additional_file_is_named(folder):
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"student/notes.txt: not part of the student; remove it"):
        read_student(folder)


def test_another_teacher_is_refused_by_the_file_that_differs(folder, tiny_dir, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_dir, other)
    body = strict_json.read_object(other / "manifest.json")
    del body["sha256"]
    body["files"]["aggregator.safetensors"]["sha256"] = "0" * 64
    body["sha256"] = sealed_json.digest(body)
    (other / "manifest.json").write_text(json.dumps(body))
    with pytest.raises(InputError, match=r"aggregator.safetensors: not of the teacher that"):
        load_student(folder, other)


def test_a_teacher_of_another_architecture_is_refused(manifest, tiny_dir, tmp_path):
    write_student(tmp_path / "student", replace(manifest, backbone="da3"), arrays())
    with pytest.raises(InputError, match=r"is a vggt, the student .* a da3"):
        load_student(tmp_path / "student", tiny_dir)


def test_another_plan_is_refused_and_another_kernel_is_not(folder, tiny_dir, monkeypatch):
    with pytest.raises(InputError, match="was trained with another plan"):
        load_student(folder, tiny_dir, plan=plan("sla_global", keep=0.5, block=16))

    class Reached(Exception):
        pass

    def stop(*_, plan, **__):
        assert plan.rules[0].spec.implementation == "reference"
        raise Reached

    monkeypatch.setattr("lite3r_jax.distillation.checkpoint.load", stop)
    same = plan("sla_global", keep=0.25, block=16, implementation="reference")
    with pytest.raises(Reached):
        load_student(folder, tiny_dir, plan=same)


def test_missing_additional_and_misshapen_parameters_are_refused_by_name(manifest, tmp_path):
    model = build(Plan((Rule("global", SLA()), Rule("frame", SLA()))))
    mine = dict.fromkeys(trained_paths(model, "strategy"), (2, 8, 8))
    assert len(mine) == 2
    fill(model, arrays(mine), manifest, tmp_path)
    np.testing.assert_array_equal(
        model.global_cores[0].proj_lin[...], arrays(mine)["global_cores/0/proj_lin"]
    )
    with pytest.raises(InputError, match=r"lacks frame_cores/0/proj_lin \(1 of 2"):
        fill(model, arrays(), manifest, tmp_path)
    with pytest.raises(InputError, match=r"embed/kernel .* does not fit"):
        fill(model, arrays(mine | {"embed/kernel": (3, 16)}), manifest, tmp_path)
    with pytest.raises(InputError, match=r"\(3, 8, 8\) does not fit"):
        fill(
            model, arrays(mine | SHAPES | {"frame_cores/0/proj_lin": (3, 8, 8)}), manifest, tmp_path
        )
    # A head that was left out takes its parameters with it.
    fill(model, arrays(mine | {"camera_head/cores/0/proj_lin": (2, 8, 8)}), manifest, tmp_path)


@pytest.mark.parametrize("example", [
    Plan(),
    PLAN,
    plan("sla_paper"),
    plan("sla_frame", routing="block3", negligible_fraction=0.2, q_block=32, layers=(1, 3)),
])  # fmt: skip
def test_plans_survive_json(example):
    text = json.dumps(plan_to_json(example))
    assert plan_from_json(json.loads(text)) == example


def test_kernels_and_mesh_axes_are_no_part_of_a_plan_on_disk():
    here = plan("sla_global", implementation="reference", heads_axis="x")
    assert plan_from_json(plan_to_json(here)) == plan("sla_global")
    data = plan_to_json(here)
    data["rules"][0]["spec"]["implementation"] = "reference"
    with pytest.raises(ValueError, match="implementation"):
        plan_from_json(data)


@pytest.mark.parametrize("text,message", [
    ("slaa", "distill.plan: plan 'slaa' is not known; did you mean 'sla'"),
    ("dense", "distill.plan: 'dense' is the teacher's attention; choose one for the student"),
    ("dense_global(q_block=8)", "is the teacher's attention"),
    ("sla_global(keep=1.5)", r"distill.plan .*keep must be in \(0, 1\]"),
    ("sla_global(routing=token)", "set keep_special=False"),
])  # fmt: skip
def test_plans_without_a_meaning_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        DistillOptions(plan=text).student_plan()


@pytest.mark.parametrize("options,message", [
    ({"rank": 0}, "distill.rank"),
    ({"targets": "none", "match": MatchOptions(weight=0)}, "leave no objective"),
    ({"match": MatchOptions(mode="layerwise")}, "set distill.targets=none"),
])  # fmt: skip
def test_objectives_without_a_meaning_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        DistillOptions(plan="sla_global", **options)
    with pytest.raises(InputError, match="weight and final_weight have to be 0 or more"):
        MatchOptions(final_weight=-1)
