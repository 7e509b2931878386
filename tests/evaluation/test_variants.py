"""Rows of a table from a deployed model: the one that it is, and no other."""

from dataclasses import replace

import jax.numpy as jnp
import pytest

from lite3r_jax.attention.plan import Plan
from lite3r_jax.deploy.manifest import Deployment
from lite3r_jax.errors import InputError
from lite3r_jax.evaluation import variants
from lite3r_jax.models import ModelSpec, check_model
from lite3r_jax.runs.deploy import export_deployment
from lite3r_jax.weights.manifest import Origin

TEACHER = Deployment(
    "vggt", ("camera", "depth"), Plan(), 0, "fp8_dynamic", "default", (), "bfloat16", Origin(), {},
    None, {}, (), {}, "",
)  # fmt: skip


def test_a_deployed_model_is_one_row_and_brings_its_student():
    student = replace(TEACHER, student="0" * 64)
    assert (
        variants.parse_variants("dense-fp8_dynamic", deployment=TEACHER)[0].name == TEACHER.variant
    )
    assert (
        variants.parse_variants("student-fp8_dynamic", deployment=student)[0].name
        == student.variant
    )
    with pytest.raises(InputError, match="dense-fp8_dynamic, which cannot be 'dense-float32'; set"):
        variants.parse_variants("dense-float32", deployment=TEACHER)
    with pytest.raises(InputError, match=r"evaluate.student: not set"):
        variants.parse_variants("student-fp8_dynamic")


def test_rows_are_plans_as_text_and_commas_of_settings_do_not_part_them():
    rows = variants.parse_variants("dense-float32, sla_global(keep=0.1,block=32)-fp8_dynamic")
    assert [row.attention for row in rows] == ["dense", "sla_global(keep=0.1,block=32)"]
    [row] = variants.parse_variants("sla_global-float32")
    assert row.name == "sla_global(keep=0.3)-float32", "what is kept is part of the name"
    with pytest.raises(InputError, match="each once"):
        variants.parse_variants("sla_global-float32,sla_global(keep=0.3)-float32")
    spec = variants.spec_of(rows[1], "vggt-tiny")
    assert spec.attention == rows[1].attention and spec.precision == "fp8_dynamic"
    with pytest.raises(InputError, match="did you mean 'sla_global'"):
        variants.parse_variants("sla_globl-float32")
    with pytest.raises(InputError, match="expected ATTENTION-PRECISION of dense"):
        variants.parse_variants("dense-float31")


def test_an_untrained_row_is_the_student_without_its_numbers(bundled_student):
    row = variants.Variant("untrained", "float32")
    spec = variants.spec_of(row, "vggt-tiny", str(bundled_student))
    trained = check_model(ModelSpec("vggt-tiny", student=bundled_student))
    assert not spec.student and check_model(spec).plan == trained.plan
    assert check_model(spec).rules == trained.rules


def test_a_deployed_model_is_loaded_and_not_made_again(tiny_dir, tmp_path):
    export_deployment(tiny_dir, tmp_path / "out", heads=("camera", "depth"))
    row = variants.Variant("dense", "fp8_dynamic")
    model = variants.build_variant(row, tmp_path / "out", dtype=jnp.float32)
    assert model.heads == variants.HEADS and model.dtype == jnp.float32
    spec = variants.spec_of(row, tmp_path / "out", dtype=jnp.float32)
    assert not spec.precision and check_model(spec).name == row.name
