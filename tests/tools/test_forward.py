"""Plans of programs for a GPU or TPU that are compiled on a machine without one."""

import pytest

from lite3r_jax import InputError
from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.presets import parse_plan, plan
from lite3r_jax.evaluation.variants import parse_variants
from tools.benchmark import tpu
from tools.benchmark.forward import planned


def test_a_variant_has_its_settings_and_the_forms_of_a_gpu():
    dense, sparse = map(planned, parse_variants("dense-float32,sla_global(keep=0.1)-fp8_dynamic"))
    assert dense.default == Dense("blocked") and not dense.rules
    (rule,) = plan("sla_global", keep=0.1, implementation="triton").rules
    assert sparse.rules == (rule,) and sparse.default == Dense("blocked")
    assert parse_plan("sla_global(keep=0.1)").rules[0].spec != rule.spec


def test_a_variant_has_the_forms_of_a_tpu_where_it_is_planned_for_one():
    (row,) = parse_variants("sla_global(keep=0.1)-bfloat16")
    for chip in ("v5e", "v5p", "v6e"):
        (rule,) = plan("sla_global", keep=0.1, implementation="tpu").rules
        assert planned(row, chip).rules == (rule,)
        assert planned(row, chip).default == Dense(), "the best that can run"


def test_a_plan_for_a_tpu_says_where_its_compiler_comes_from(monkeypatch):
    monkeypatch.setattr(tpu.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"libtpu is not there, .*`make test-tpu-compile`"):
        tpu.mesh("v5e")
    with pytest.raises(InputError, match="65 chips of v5e: expected at most 64"):
        tpu.devices("v5e", 65)
