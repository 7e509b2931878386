"""The kernels in Triton's language by its interpreter, on a CPU: `make test-triton`.

Cases and tolerances are those of `tests.kernels.sla.test_triton` and of the self-checks.
"""

import functools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import triton

from lite3r_jax.benchmarking.device_check import tuning
from lite3r_jax.benchmarking.device_check.sizes import Sizes
from lite3r_jax.kernels import proofs
from lite3r_jax.kernels.block_map import check as block_map_check
from lite3r_jax.kernels.block_map.jax_triton import select_jax_triton
from lite3r_jax.kernels.sla import launches
from lite3r_jax.kernels.sla.cases import Case
from lite3r_jax.kernels.sla.compile_triton import Usage
from lite3r_jax.kernels.sla.jax_triton import sla_jax_triton
from lite3r_jax.kernels.sla.launches import Launches, RowsLaunch
from tests.kernels.devices import GPU
from tests.kernels.sla.test_sla import Problem
from tests.kernels.sla.test_triton import CAPS, CASES, SLOW_CASES, VALUES, check, gradient

pytestmark = pytest.mark.triton
# Every case once, each with other lists and paddings, and the first with three; each takes seconds.
CHOSEN = [
    *((CASES[0], value) for value in VALUES[:15:7]),
    *zip(SLOW_CASES, VALUES[1::2], strict=False),
]
assert triton.knobs.runtime.interpret, "run this by `make test-triton`, with TRITON_INTERPRET=1"


@functools.cache
def compiled(case, launch=None):
    run = functools.partial(sla_jax_triton, launch=launch)
    return gradient(case, interpret=True, run=run)


@pytest.mark.parametrize(
    "case,dtype,lists,padding",
    [pytest.param(*case, *value, id=f"{case[0].name}-{case[1]}") for case, value in CHOSEN],
)
def test_equals_float64_in_value_and_gradient(case, dtype, lists, padding):
    problem = Problem(case, lists, padding, dtype=jnp.dtype(dtype).type)
    got = compiled(case)(*problem.args)
    assert [x.dtype for x in got] == [dtype] * 4 + ["float32"]
    check(got, problem, CAPS[dtype])


@pytest.mark.parametrize("rows", [32])
def test_smaller_tiles_give_the_same(rows):
    case = Case("parts of wide blocks", 257, 130, 1, 1, 64, 128)
    one = RowsLaunch(4, 1, rows)
    problem = Problem(case, *VALUES[0])
    check(compiled(case, Launches(one, one, one))(*problem.args), problem, CAPS["float32"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_saturated_softmax_is_as_exact_as_plain_jax(dtype):
    case = Case("half", 192, 256, 1, 2)
    problem = Problem(case, "all", "no", dtype=jnp.dtype(dtype).type, scale=64.0)
    check(compiled(case)(*problem.args), problem, CAPS[dtype])


# A tile of a program takes a second.
@pytest.mark.parametrize(
    "case,kind",
    [
        (case, kind)
        for case in block_map_check.CASES
        for kind in ("whole numbers", "real numbers")
        if case.columns <= 200 and case.batch * case.heads * case.rows <= 66
        if kind == "whole numbers" or case.bottom or case.dtype == "bfloat16"
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_selection_is_that_of_the_definition(case, kind):
    run = functools.partial(select_jax_triton, interpret=True)
    assert block_map_check.wrong(run, case, kind) is None


def test_a_wrong_launch_is_never_kept_and_the_fastest_right_one_is(tmp_path):
    """`lite3r device-check tune`, with the interpreter's times."""

    def compile_kernel(kernel, launch, dtype, head_dim, q_block, capability):
        spilled = 8 if launch.stages == 4 else 0
        return Usage(100, spilled, 300_000 if launch.warps == 8 else 1000, 0, 0)

    sizes = Sizes((1,), (8, 9), (0.5,), True)
    with proofs.kept_in(tmp_path):
        rows = []
        for row in tuning.rows(
            sizes,
            time.time() + 600,
            compile_kernel=compile_kernel,
            device=GPU,
            interpret=True,
        ):
            rows.append(row)
            if row.what.startswith("sla_query_gradient"):
                break
        path = launches.user_table(GPU)
        [kept] = launches.read(path)
    timed = [row for row in rows if row.what.startswith("sla_forward")]
    assert all(row.figures for row in timed)
    assert "8 warps" not in str(timed) and "4 stages" not in str(timed)
    best = min(timed, key=lambda row: row.figures.ms)
    assert best.variant == f"{kept.rows} rows, {kept.warps} warps, {kept.stages} stages"
    assert kept.microseconds == round(1000 * best.figures.ms, 1)
    assert "device-check tune" in json.loads(path.read_text())["made"]


def test_what_a_kernel_does_not_write_is_seen():
    """NaN and -1 in what the interpreter gives a kernel to write."""
    from lite3r_jax.kernels.jax_triton_call import call
    from lite3r_jax.kernels.launch import Launch
    from lite3r_jax.kernels.sla import jax_triton_kernels as kernels

    x = jnp.ones((1, 128, 1, 64))
    ids, counts = jnp.zeros((1, 1, 2, 1), jnp.int32), jnp.ones((1, 1, 2), jnp.int32)
    o, lse = jax.jit(
        lambda: call(
            kernels.sla_forward, Launch(4, 1), (1, 1, 1),  # one block of two
            [x, x, x, jnp.zeros((1, 128)), ids, counts, 2, 2, 1],
            [(x.shape, jnp.float32), ((1, 1, 128), jnp.float32)],
            interpret=True, HEADS=1, D=64, Q_BLOCK=64, K_BLOCK=64, ROWS=64, SCALE=0.125,
        )
    )()  # fmt: skip
    assert np.isfinite(o[:, :64]).all() and np.isnan(o[:, 64:]).all()
    assert np.isfinite(lse[..., :64]).all() and np.isnan(lse[..., 64:]).all()
