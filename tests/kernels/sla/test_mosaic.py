"""The Hopper kernels: their numbers in their interpreter, lowering, and what is refused."""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas

from lite3r_jax.kernels.block_map.table import BlockMap
from lite3r_jax.kernels.sla import mosaic_kernels
from lite3r_jax.kernels.sla.api import OPERATOR, selection
from lite3r_jax.kernels.sla.blocked import sla_blocked
from lite3r_jax.kernels.sla.cases import Case, vggt_global
from lite3r_jax.kernels.sla.limits import SlaCall
from lite3r_jax.kernels.sla.pallas_mosaic import sla_mosaic
from tests.kernels.devices import described_gpu, proven_gpu
from tests.kernels.sla.test_sla import Problem, errors, table
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
MOSAIC_KERNELS = {
    "sla_mosaic_forward",
    "sla_mosaic_query_gradient",
    "sla_mosaic_key_gradient",
}
VALUES = [("some", "no"), ("empty rows", "scattered"), ("all", "whole blocks of"), ("one", "only")]


@functools.cache
def compiled(case, plain_linear=False):
    return gradient(
        case, interpret=True, run=functools.partial(sla_mosaic, plain_linear=plain_linear)
    )


needs_interpreter = pytest.mark.skipif(
    jax.__version_info__ < (0, 11), reason="this jax cannot interpret the Mosaic kernels"
)


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
        with pytest.raises(ValueError, match=r"cannot interpret the Mosaic kernels, 0\.11 can"):
            compiled(case)(*problem.args)
        return
    with described_gpu():
        got = compiled(case)(*problem.args)
    assert [x.dtype for x in got] == [dtype] * 4 + ["float32"]
    check(got, problem, 1e-2)


@slow
@needs_interpreter
@pytest.mark.parametrize("case,dtype", CASES + SLOW_CASES)
def test_without_triton_lowering_it_equals_float64_too(case, dtype):
    problem = Problem(case, "some", "scattered", dtype=jnp.dtype(dtype).type)
    check(compiled(case, plain_linear=True)(*problem.args), problem, 1e-2)


@slow
@needs_interpreter
def test_with_long_programs_first_the_interpreter_finds_no_race(monkeypatch):
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

    params = functools.partial(mosaic_kernels.plgpu.InterpretGPUParams, detect_races=True)
    monkeypatch.setattr(mosaic_kernels.plgpu, "InterpretGPUParams", params)
    case = Case("more steps than stages", 128 * 5, 64 * 5, heads=2, q_block=128)
    problem = Problem(case, "all", "no", dtype=jnp.bfloat16)

    def long_first(q, k, v, w, maps, **settings):
        maps = dataclasses.replace(maps, full_columns=2)
        return sla_mosaic(q, k, v, w, maps, plain_linear=True, **settings)

    check(gradient(case, interpret=True, run=long_first)(*problem.args), problem, 1e-2)
    assert not gpu_callbacks.get_races().races_found


@slow
@needs_interpreter
def test_gradients_of_a_saturated_softmax_are_as_exact_as_plain_ones():
    """Where do * v and do * o nearly cancel, an o rounded to half precision is off by 1e-2."""
    case = Case("half", 192, 256, 1, 2, q_block=128)
    plain = gradient(case, False, lambda *args, interpret, **rest: sla_blocked(*args, **rest))
    for scale in (64.0, 144.0):
        problem = Problem(case, "all", "no", dtype=jnp.bfloat16, scale=scale)
        error, wanted = (
            errors(f(*problem.args), problem.exact)[1:3]
            for f in (compiled(case, plain_linear=True), plain)
        )
        print(f"dq, dk: {error}, plain {wanted}")
        for e, w in zip(error, wanted, strict=True):
            assert e <= 1.2 * w


@pytest.mark.filterwarnings("ignore:.*Pallas Triton.*:DeprecationWarning")
def test_lowers_to_cuda_at_the_size_of_100_views():
    mosaic, triton = lowered_kernels(vggt_global(100, 0.1, q_block=128), "bfloat16", sla_mosaic)
    assert mosaic == 3
    assert triton == sorted({"sla_linear_forward"} | LINEAR_KERNELS)


def test_lowers_to_cuda_without_a_triton_kernel_where_that_lowering_is_gone(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)
    monkeypatch.delattr(pallas, "triton")
    case = dataclasses.replace(vggt_global(2, 0.1, q_block=128), head_dim=128)
    assert lowered_kernels(case, "float16", sla_mosaic) == (3, [])
    assert selection("mosaic") == "auto"
    call = SlaCall("block", 64, jnp.bfloat16, 128, 64)
    with proven_gpu():
        assert OPERATOR.choose("mosaic", call) == OPERATOR.choose("auto", call) == "mosaic"


def test_runs_where_it_is_asked_for_by_name_and_can():
    x = jnp.zeros((1, 256, 1, 64), jnp.bfloat16)
    small = BlockMap(*[table(np.ones((1, 1, 4, 4), bool))] * 2, 64, 64)
    usual = SlaCall("block", 64, jnp.bfloat16, 128, 64)
    choose = OPERATOR.choose
    with proven_gpu():
        assert choose("mosaic", usual) == "mosaic"
        assert selection("mosaic") == "triton"
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
    with pytest.raises(ValueError, match="the Mosaic kernels cannot run this: query blocks of 64"):
        sla_mosaic(
            x, x, x, jnp.eye(64), small, routing="block", phi="elu1", keep=None, eps=0.0,
            q_valid=jnp.ones((1, 256), bool), k_valid=jnp.ones((1, 256), bool),
        )  # fmt: skip
