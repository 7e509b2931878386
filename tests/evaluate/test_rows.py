"""Rows of a table from a deployed model: the one that it is, and no other."""

from dataclasses import replace

import jax.numpy as jnp
import pytest

from lite3r_jax.attention.core import Plan
from lite3r_jax.deploy.manifest import Deployment
from lite3r_jax.errors import InputError
from lite3r_jax.evaluate import rows
from lite3r_jax.weights.manifest import Origin

TEACHER = Deployment(
    "vggt", ("camera", "depth"), Plan(), 0, "fp8_dynamic", "default", (), "bfloat16", Origin(), {},
    None, {}, (), {}, "",
)  # fmt: skip


def test_a_deployed_model_is_one_row_and_brings_its_student():
    student = replace(TEACHER, student="0" * 64)
    assert rows.parse_rows("dense-fp8_dynamic", deployment=TEACHER)[0].name == TEACHER.row
    assert rows.parse_rows("student-fp8_dynamic", deployment=student)[0].name == student.row
    with pytest.raises(InputError, match="dense-fp8_dynamic, which cannot be 'dense-float32'; set"):
        rows.parse_rows("dense-float32", deployment=TEACHER)
    with pytest.raises(InputError, match=r"evaluate.student: not set"):
        rows.parse_rows("student-fp8_dynamic")


def test_a_deployed_model_is_loaded_and_not_made_again(monkeypatch, tmp_path):
    loaded = []
    monkeypatch.setattr(rows, "find_deployment", lambda path: TEACHER)
    monkeypatch.setattr(rows, "load_deployed", lambda *a, **k: loaded.append((a, k)))
    rows.build_row(rows.Row("dense", "fp8_dynamic"), tmp_path, dtype=jnp.float32)
    assert loaded == [((tmp_path,), {"heads": rows.HEADS, "dtype": jnp.float32})]
