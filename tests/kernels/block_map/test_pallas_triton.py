"""The selection kernel: what it picks, by running its code on a CPU, and its lowering to CUDA."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite3r_jax.kernels.block_map import reference
from lite3r_jax.kernels.block_map.api import OPERATOR, SelectionCall
from lite3r_jax.kernels.block_map.check import CASES as ALL_CASES
from lite3r_jax.kernels.block_map.limits import unsupported
from lite3r_jax.kernels.block_map.pallas_triton import select_triton
from tests.kernels.devices import described_gpu

slow = pytest.mark.slow


LONG = ("many", "few of very many")
CASES = [case for case in ALL_CASES if case.name in (ALL_CASES[0].name, "few of many")]
SLOW_CASES = [case for case in ALL_CASES if case not in CASES and case.name not in LONG]
USED = {"all": lambda rng, shape: np.ones(shape, bool), "few": lambda rng, s: rng.random(s) < 0.4}


def whole(rng, shape):
    """Whole numbers in few dimensions: exact products, and many equal scores."""
    x = rng.integers(-2, 3, shape).astype(np.float32)
    x[..., 3:] = 0
    return x


def odd(rng, shape):
    """Also not finite, and -0."""
    x = whole(rng, shape)
    for value in (np.inf, -np.inf, np.nan, -0.0):
        x[rng.random(shape) < 1 / 64] = value
    return x


VALUES = {
    "equal scores": whole,
    "not finite": odd,
    "zeros": lambda rng, shape: whole(rng, shape) * 0,
}


@functools.cache
def compiled(case):
    return jax.jit(
        functools.partial(
            select_triton,
            kept=np.asarray(case.always, np.int32),
            top=case.top,
            bottom=case.bottom,
            interpret=True,
        )
    )


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("q_used,k_used", [("all", "all"), ("few", "few")])
@pytest.mark.parametrize(
    "case",
    [*CASES, *(pytest.param(case, marks=slow) for case in SLOW_CASES)],
    ids=lambda case: case.name,
)
def test_equals_the_definition(case, q_used, k_used, values):
    rng = np.random.default_rng(0)
    q, k = (
        VALUES[values](rng, (case.batch, case.heads, blocks, case.head_dim))
        for blocks in (case.rows, case.columns)
    )
    used = USED[q_used](rng, (case.batch, case.rows)), USED[k_used](rng, (case.batch, case.columns))
    got = compiled(case)(q.astype(case.dtype), used[0], k.astype(case.dtype), used[1])
    with np.errstate(invalid="ignore"):
        scores = np.einsum("bnid,bnjd->bnij", q, k, dtype=np.float64)
    classes = reference.classes(scores, *used, case.top, case.bottom, case.always)
    wanted = (1, case.top + len(case.always)), (-1, case.bottom)
    for ids, (value, width) in zip(got, wanted, strict=True):
        assert ids.dtype == jnp.int32
        listed = np.where(classes == value, np.arange(case.columns), case.columns)
        np.testing.assert_array_equal(ids, np.sort(listed, -1)[..., :width])


def test_chooses_among_real_numbers_what_sorting_chooses():
    case = CASES[0]
    rng = np.random.default_rng(1)
    shapes = [
        (case.batch, case.heads, blocks, case.head_dim) for blocks in (case.rows, case.columns)
    ]
    q, k = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    used = np.ones((case.batch, case.rows), bool), np.ones((case.batch, case.columns), bool)
    scores = np.einsum("bnid,bnjd->bnij", q, k, dtype=np.float64)
    classes = reference.classes(scores, *used, case.top, case.bottom, case.always)
    got = compiled(case)(q, used[0], k, used[1])
    for ids, value in zip(got, (1, -1), strict=True):
        np.testing.assert_array_equal(ids, np.nonzero(classes == value)[3].reshape(ids.shape))


def test_states_what_it_is_not_made_for():
    assert unsupported(64, jnp.float32) is None and unsupported(128, jnp.float32) is None
    assert "head dim 96 is not one of (64, 128)" in (unsupported(96, jnp.float32) or "")
    assert "float64 is not one of float32" in (unsupported(64, np.float64) or "")
    usual = SelectionCall(64, jnp.float32)
    with described_gpu():
        assert OPERATOR.choose("triton", usual) == "triton"
        with pytest.raises(ValueError, match=r"head dim 32 .*; sorted can"):
            OPERATOR.choose("triton", SelectionCall(32, jnp.float32))
    x, used = jnp.zeros((1, 1, 2, 32)), jnp.ones((1, 2), bool)
    with pytest.raises(ValueError, match="cannot run this: head dim 32"):
        select_triton(x, used, x, used, kept=np.zeros(0, np.int32), top=1, bottom=0)


@pytest.mark.filterwarnings("ignore:.*Pallas Triton.*:DeprecationWarning")
@pytest.mark.parametrize("head_dim,bottom", [(64, 0), (128, 100)])
def test_lowers_to_cuda_at_the_size_of_1000_views(head_dim, bottom):
    run = functools.partial(
        OPERATOR["triton"].run, kept=np.arange(101, dtype=np.int32), top=2_000, bottom=bottom
    )
    q, k = (jax.ShapeDtypeStruct((1, 16, m, head_dim), jnp.float32) for m in (11_000, 22_079))
    used = (jax.ShapeDtypeStruct((1, m), bool) for m in (11_000, 22_079))
    with described_gpu():
        lowered = (
            jax.jit(run).trace(q, next(used), k, next(used)).lower(lowering_platforms=("cuda",))
        )
    text = lowered.as_text()
    assert re.findall(r'\bname = "(\w+)"', text) == ["block_map_select"]
    assert "sort" not in text and "x11000x22079x" not in text


@pytest.mark.filterwarnings("ignore:.*Pallas Triton.*:DeprecationWarning")
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=slow)])
def test_few_of_many_lower_to_cuda_without_their_scores(dtype):
    """Windows of 4 x 4 patches at 1,000 views of 37 x 37, 32 chosen."""
    run = functools.partial(OPERATOR["triton"].run, kept=np.zeros(0, np.int32), top=32, bottom=0)
    windows, used = 100_000, jax.ShapeDtypeStruct((1, 100_000), bool)
    pooled = jax.ShapeDtypeStruct((1, 1, windows, 64), dtype)
    with described_gpu():
        traced = jax.jit(run).trace(pooled, used, pooled, used)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    names = re.findall(r'\bname = "(\w+)"', text)
    assert names == ["block_map_maxima", "block_map_tiles", "block_map_among"]
    largest = max(
        math.prod(map(int, x.split("x"))) for x in re.findall(r"tensor<([\dx]+\d)x", text)
    )
    assert "sort" not in text and largest <= windows * (windows / 64 + 64)
