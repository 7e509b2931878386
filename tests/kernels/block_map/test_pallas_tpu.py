"""The TPU selection kernel: its lowering, and where it is chosen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite3r_jax.kernels.block_map.api import OPERATOR, SelectionCall
from lite3r_jax.kernels.block_map.pallas_tpu import select_tpu
from tests.kernels.devices import described_gpu, described_tpu, proven_tpu


@pytest.mark.parametrize("columns,bottom", [(2_180, 0), (22_079, 100)])
def test_lowers_to_a_tpu_without_a_sort(columns, bottom):
    chosen = functools.partial(
        OPERATOR["tpu"].run, kept=np.arange(101, dtype=np.int32), top=200, bottom=bottom
    )
    q, k = (jax.ShapeDtypeStruct((1, 16, m, 64), jnp.float32) for m in (columns // 2, columns))
    used = (jax.ShapeDtypeStruct((1, m), bool) for m in (columns // 2, columns))
    with described_tpu():
        lowered = (
            jax.jit(chosen).trace(q, next(used), k, next(used)).lower(lowering_platforms=("tpu",))
        )
    text = lowered.as_text()
    assert text.count("tpu_custom_call") == 1 and "block_map_select" in text
    assert "sort" not in text and "top_k" not in text


def test_is_chosen_on_a_tpu_only():
    usual = SelectionCall(64, jnp.float32)
    with proven_tpu():
        for dtype in (jnp.float32, jnp.bfloat16):
            assert OPERATOR.choose("auto", SelectionCall(64, dtype)) == "tpu"
        with pytest.raises(ValueError, match="this is TPU v5 lite; sorted, tpu can"):
            OPERATOR.choose("triton", usual)
        with pytest.raises(ValueError, match="float64 is not one of float32, bfloat16"):
            OPERATOR.choose("tpu", SelectionCall(64, np.float64))
    with described_tpu():
        assert OPERATOR.choose("auto", usual) == "sorted", "it was proven on none"
    with described_gpu(), pytest.raises(ValueError, match="for TPUs and this is NVIDIA H200"):
        OPERATOR.choose("tpu", usual)
    x, used = jnp.zeros((1, 1, 2, 32), jnp.float16), jnp.ones((1, 2), bool)
    with pytest.raises(ValueError, match="the TPU kernel cannot run this: float16 is not one of"):
        select_tpu(x, used, x, used, kept=np.zeros(0, np.int32), top=1, bottom=0)
