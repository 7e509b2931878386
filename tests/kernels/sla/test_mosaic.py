"""The Hopper forward kernel: its numbers in its interpreter, its lowering, what it refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite3r_jax.kernels.block_map.table import BlockMap
from lite3r_jax.kernels.sla.api import OPERATOR
from lite3r_jax.kernels.sla.cases import Case, vggt_global
from lite3r_jax.kernels.sla.limits import SlaCall
from lite3r_jax.kernels.sla.pallas_mosaic import sla_mosaic
from tests.kernels.devices import described_gpu, proven_gpu
from tests.kernels.sla.test_sla import Problem, table
from tests.kernels.sla.test_triton import (
    LINEAR_KERNELS,
    check,
    gradient,
    lowered_kernels,
    values,
)

slow = pytest.mark.slow
CASES = [(Case("elu1, short last blocks", 150, 330, q_block=128), "bfloat16")]
SLOW_CASES = [
    (Case("softmax, head dim 128", 130, 150, 2, 2, 128, 128, phi="softmax"), "float16"),
    (Case("marginal relu", 129, 200, 1, 1, 64, 128, phi="relu", routing="block3"), "bfloat16"),
]
VALUES = [("some", "no"), ("empty rows", "scattered"), ("all", "whole blocks of"), ("one", "only")]


@functools.cache
def compiled(case):
    return gradient(case, interpret=True, run=sla_mosaic)


@pytest.mark.parametrize(
    "case,dtype,lists,padding",
    [
        *values(CASES, VALUES[1:2]),
        *values(CASES, VALUES[:1] + VALUES[2:], slow),
        *values(SLOW_CASES, VALUES, slow),
    ],
)
def test_equals_float64_in_value_and_gradient(case, dtype, lists, padding):
    """jax 0.10 has no interpreter for it, and says so."""
    problem = Problem(case, lists, padding, dtype=jnp.dtype(dtype).type)
    if jax.__version_info__ < (0, 11):
        with pytest.raises(ValueError, match=r"cannot interpret the Mosaic kernel, 0\.11 can"):
            compiled(case)(*problem.args)
        return
    with described_gpu():
        got = compiled(case)(*problem.args)
    assert [x.dtype for x in got] == [dtype] * 4 + ["float32"]
    check(got, problem, 1e-2)


@pytest.mark.filterwarnings("ignore:.*Pallas Triton.*:DeprecationWarning")
def test_lowers_to_cuda_at_the_size_of_100_views():
    mosaic, triton = lowered_kernels(vggt_global(100, 0.1, q_block=128), "bfloat16", sla_mosaic)
    assert mosaic == 1
    rest = {"sla_query_gradient", "sla_key_gradient", "sla_linear_forward"}
    assert triton == sorted(rest | LINEAR_KERNELS)


def test_runs_where_it_is_asked_for_by_name_and_can():
    x = jnp.zeros((1, 256, 1, 64), jnp.bfloat16)
    small = BlockMap(*[table(np.ones((1, 1, 4, 4), bool))] * 2, 64, 64)
    usual = SlaCall("block", 64, jnp.bfloat16, 128, 64)
    choose = OPERATOR.choose
    with proven_gpu():
        assert choose("mosaic", usual) == "mosaic"
        assert choose("auto", usual) == "triton"
        for other, message in [
            ({"q_block": 64}, "query blocks of 64 are not 128; .*triton can"),
            ({"dtype": jnp.float32}, "float32 is not one of bfloat16, float16; .*triton can"),
            ({"head_dim": 32}, "head dim 32"),
        ]:
            with pytest.raises(ValueError, match=f"'mosaic' cannot run this: {message}"):
                choose("mosaic", dataclasses.replace(usual, **other))
    with described_gpu("NVIDIA A100-SXM4-80GB"), pytest.raises(ValueError, match="Hopper GPUs"):
        choose("mosaic", usual)
    if jax.default_backend() == "cpu":
        with pytest.raises(
            ValueError, match=r"'mosaic' cannot run this: .*this is cpu; .*blocked can"
        ):
            choose("mosaic", usual)
    with pytest.raises(ValueError, match="the Mosaic kernel cannot run this: query blocks of 64"):
        sla_mosaic(
            x, x, x, jnp.eye(64), small, routing="block", phi="elu1", keep=None, eps=0.0,
            q_valid=jnp.ones((1, 256), bool), k_valid=jnp.ones((1, 256), bool),
        )  # fmt: skip
