"""jax's flash attention as it is called here, on a CPU, by the cases of the self-check."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from lite3r_jax.kernels.dense.check import CASES, wrong
from lite3r_jax.kernels.dense.flash_tpu import flash_tpu
from lite3r_jax.kernels.dense.reference import reference

pytestmark = pytest.mark.tpu_interpret


def test_equals_the_definition_in_value():
    """With keys and queries that do not fill a block; their number matters to nothing else."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((1, t, 1, 64)), jnp.bfloat16) for t in (3, 9, 9))
    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams()):
        got = jax.jit(flash_tpu)(q, k, v)
    exact = reference(*(np.asarray(x, np.float32) for x in (q, k, v)))
    assert got.dtype == jnp.bfloat16 and got.shape == q.shape
    np.testing.assert_allclose(np.asarray(got, np.float32), exact, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[4]], ids=lambda case: case.name)
def test_equals_the_definition_in_value_and_gradient(case):
    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams()):
        assert wrong(flash_tpu, case, "bfloat16") is None


@pytest.mark.slow
def test_the_comparison_finds_a_key_that_is_left_out():
    def lossy(q, k, v):
        return flash_tpu(q, k[:, :-1], v[:, :-1])

    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams()):
        assert "o is off by" in (wrong(lossy, CASES[1], "bfloat16") or "")
