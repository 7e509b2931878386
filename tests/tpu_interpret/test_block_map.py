"""The TPU selection kernel's own code on a CPU, against its definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from lite3r_jax.kernels.block_map import check, reference
from lite3r_jax.kernels.block_map.check import CASES
from lite3r_jax.kernels.block_map.pallas_tpu import select_tpu
from tests.kernels.block_map.test_pallas_triton import USED, VALUES

pytestmark = pytest.mark.tpu_interpret
slow = pytest.mark.slow
run = functools.partial(select_tpu, interpret=pltpu.InterpretParams())


@functools.cache
def compiled(case):
    kept = np.asarray(case.always, np.int32)
    return jax.jit(functools.partial(run, kept=kept, top=case.top, bottom=case.bottom, chunk=30))


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("q_used,k_used", [("few", "few"), pytest.param("all", "all", marks=slow)])
@pytest.mark.parametrize(
    "case",
    [CASES[0], *(pytest.param(case, marks=slow) for case in CASES[5:-1])],
    ids=lambda case: case.name,
)
def test_equals_the_definition(case, q_used, k_used, values):
    rng = np.random.default_rng(0)
    q, k = (
        VALUES[values](rng, (case.batch, case.heads, blocks, case.head_dim))
        for blocks in (case.rows, case.columns)
    )
    used = USED[q_used](rng, (case.batch, case.rows)), USED[k_used](rng, (case.batch, case.columns))
    got = compiled(case)(q, used[0], k, used[1])
    with np.errstate(invalid="ignore"):
        scores = np.einsum("bnid,bnjd->bnij", q, k, dtype=np.float64)
    classes = reference.classes(scores, *used, case.top, case.bottom, case.always)
    wanted = (1, case.top + len(case.always)), (-1, case.bottom)
    for ids, (value, width) in zip(got, wanted, strict=True):
        assert ids.dtype == jnp.int32
        listed = np.where(classes == value, np.arange(case.columns), case.columns)
        np.testing.assert_array_equal(ids, np.sort(listed, -1)[..., :width])


@slow
@pytest.mark.parametrize("case", CASES[:1], ids=lambda case: case.name)
def test_chooses_among_real_numbers_what_sorting_chooses(case):
    assert check.wrong(run, case, "real numbers") is None
