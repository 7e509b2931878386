"""The GPU kernels: their numbers by running their code on a CPU, and their lowering to CUDA."""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite3r_jax.errors import InputError
from lite3r_jax.kernels.block_map.table import BlockMap, BlockTable
from lite3r_jax.kernels.sla.blocked import sla_blocked
from lite3r_jax.kernels.sla.cases import Case, vggt_global
from lite3r_jax.kernels.sla.limits import SlaCall, unsupported_triton
from lite3r_jax.kernels.sla.pallas_triton import _over_table, sla_triton
from lite3r_jax.kernels.sla.tiles import candidates
from tests.kernels.devices import described_gpu
from tests.kernels.sla.test_sla import (
    NAMES,
    PADDINGS,
    VALUES,
    Problem,
    compiled_selection,
    dense,
    errors,
    table,
)

slow = pytest.mark.slow
# In float32 the rounding of one sum over 64 channels: with one token do * v and do * o are equal,
# and their difference is that of the order in which a processor adds.
CAPS = {"float32": 5e-6, "bfloat16": 1e-2, "float16": 1e-2}
# One compilation each; what varies without another one is in LISTS and PADDINGS.
CASES = [(Case("two of all, short last blocks", 100, 150, 2, 2), "float32")]
SLOW_CASES = [
    (Case("relu, one block", 64, 64, phi="relu"), "float32"),
    (Case("relu, one token", 1, 1, phi="relu"), "float32"),
    (Case("head dim 128", 70, 130, 1, 2, 128), "float32"),
    (Case("elu1, wide blocks", 257, 190, 2, 1, 64, 128), "float32"),
    (Case("marginal, wide blocks", 140, 260, 1, 2, 64, 128, routing="block3"), "float32"),
    (Case("marginal", 100, 150, 2, 1, 128, phi="softmax", routing="block3"), "bfloat16"),
    (Case("elu1", 130, 150, 2, 2), "float16"),
    (Case("more keys than one program adds up", 65, 64 * 18), "bfloat16"),
    (
        Case("softmax, head dim 128, wide blocks", 150, 70, 1, 1, 128, 128, phi="softmax"),
        "bfloat16",
    ),
]


def gradient(case, interpret, run=sla_triton, full=0):
    """(q, k, v, w, critical, negligible, q_valid, k_valid, up) -> (o, dq, dk, dv, dw)."""

    def both(q, k, v, w, critical, negligible, q_valid, k_valid, up):
        maps = BlockMap(critical, negligible, case.q_block, case.k_block, full, full)
        o, pull = jax.vjp(
            lambda *x: run(
                *x, maps, routing=case.routing, phi=case.phi, keep=None, eps=1e-6,
                q_valid=q_valid, k_valid=k_valid, interpret=interpret,
            ),
            q, k, v, w,
        )  # fmt: skip
        return o, *pull(up)

    return jax.jit(both)


@functools.cache
def compiled(case):
    return gradient(case, interpret=True)


def check(got, problem, cap):
    """Errors are no larger than those of the plain form, or than twice them and below the cap."""
    error, plain = errors(got, problem.exact), errors(problem.plain, problem.exact)
    for name, e, p in zip(NAMES, error, plain, strict=True):
        assert e <= max(min(2 * p + cap / 2, cap), p), f"{name}: error {e:.1e}, plain {p:.1e}"


def values(cases, chosen, *marks):
    for (case, dtype), (lists, padding) in itertools.product(cases, chosen):
        yield pytest.param(
            case, dtype, lists, padding, id=f"{case.name}-{dtype}-{lists}-{padding}", marks=marks
        )


@pytest.mark.parametrize(
    "case,dtype,lists,padding",
    [
        *values(CASES, VALUES[::4]),
        *values(CASES, [x for x in VALUES if x not in VALUES[::4]], slow),
        *values(SLOW_CASES, VALUES, slow),
    ],
)
def test_equals_float64_in_value_and_gradient(case, dtype, lists, padding):
    problem = Problem(case, lists, padding, dtype=jnp.dtype(dtype).type)
    got = compiled(case)(*problem.args)
    assert [x.dtype for x in got] == [dtype] * 4 + ["float32"]
    check(got, problem, CAPS[dtype])


@slow
@pytest.mark.parametrize(
    "case,tiles",
    [
        (Case("two programs a block", 257, 130, 1, 1, 64, 128), 1),
        (Case("parts of rows", 130, 150, 1, 1, 128, 128), 2),
    ],
)
def test_smaller_tiles_give_the_same(case, tiles):
    launch = candidates(case.head_dim, jnp.float32, case.q_block)[tiles]
    lists, padding = VALUES[0]
    problem = Problem(case, lists, padding)
    run = functools.partial(sla_triton, launch=launch)
    check(gradient(case, interpret=True, run=run)(*problem.args), problem, CAPS["float32"])


@slow
@pytest.mark.parametrize("lists,padding", VALUES[::3])
def test_large_logits_are_as_exact_as_plain_ones(lists, padding):
    problem = Problem(CASES[0][0], lists, padding, scale=8.0)
    check(compiled(CASES[0][0])(*problem.args), problem, cap=1e-5)


@slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_gradients_of_a_saturated_softmax_are_as_exact_as_plain_ones(dtype):
    """Where do * v and do * o nearly cancel, an o rounded to half precision is off by 1e-2."""
    case = Case("half", 192, 256, 1, 2)
    plain = gradient(case, False, lambda *args, interpret, **rest: sla_blocked(*args, **rest))
    for scale in (64.0, 144.0):
        problem = Problem(case, "all", "no", dtype=jnp.dtype(dtype).type, scale=scale)
        error, wanted = (
            errors(f(*problem.args), problem.exact)[1:3] for f in (compiled(case), plain)
        )
        for e, w in zip(error, wanted, strict=True):
            assert e <= 1.2 * w


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=slow)])
def test_the_gradient_of_proj_lin_is_float32_for_half_precision(dtype):
    """Sums over tokens of operands that are rounded to bfloat16 are off by 1e-3."""
    case = Case("half", 192, 256, 1, 1)
    problem = Problem(case, "all", "no", dtype=jnp.dtype(dtype).type)
    error = errors(compiled(case)(*problem.args), problem.exact)[-1]
    plain = errors(problem.plain, problem.exact)[-1]
    print(f"dproj_lin: {error:.1e}, plain {plain:.1e}")
    assert error <= 2 * plain


@slow
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(
    "case",
    [
        Case("lowest keep", 200, 500, 1, 2, keep=1e-9),
        Case("all kept, low keep", 200, 260, always=2, keep=0.3, low=0.5, routing="block3"),
    ],
    ids=lambda case: case.name,
)
def test_selection_and_attention_together_equal_float64(case, padding):
    problem = Problem(case, "selected", padding, select=compiled_selection(case))
    check(compiled(case)(*problem.args), problem, CAPS["float32"])


@pytest.mark.parametrize(
    "case",
    [CASES[0][0], *(pytest.param(SLOW_CASES[i][0], marks=slow) for i in (2, 3, 4))],
    ids=lambda case: case.name,
)
def test_all_blocks_without_projection_is_dense_attention(case):
    q, k, v, w, *rest = Problem(case, "all", "no").args
    got = compiled(case)(q, k, v, 0 * w, *rest)[:4]
    for x, wanted in zip(got, dense(q, k, v, rest[-1]), strict=True):
        np.testing.assert_allclose(x, wanted, atol=2e-6 * float(jnp.abs(wanted).max()))


def test_a_token_of_a_dropped_block_reaches_a_query_only_through_the_linear_part():
    case, _ = CASES[0]
    listed = np.zeros((2, 2, case.q_blocks, case.k_blocks), bool)
    listed[..., [0, 2]] = True
    nothing = table(np.zeros_like(listed))
    q, k, v, w, _, _, q_valid, k_valid, up = Problem(case, "all", "no").args
    k_other, v_other = k.copy(), v.copy()
    k_other[:, 70] += 1
    v_other[:, 70] += 1
    for scale, reached in ((0, False), (1, True)):
        rest = w * scale, table(listed), nothing, q_valid, k_valid, up
        before, after = (compiled(case)(q, *kv, *rest)[0] for kv in ((k, v), (k_other, v_other)))
        assert (np.abs(before - after).max(-1) > 1e-6).all() == reached
        assert (before == after).all() != reached


def test_states_say_what_they_are_not_made_for():
    x = jnp.zeros((1, 64, 1, 64))

    def maps(q_block, k_block):
        return BlockMap(table(np.ones((1, 1, 1, 1), bool)), BlockTable(x, 1), q_block, k_block)

    for routing, q, block_map, message in [
        ("token", x, None, "not made of blocks"),
        ("block", x[..., :32], maps(64, 64), "head dim 32 is not one of (64, 128)"),
        ("block", x, maps(32, 64), "query blocks of 32 and key blocks of 64"),
        ("block3", x, maps(64, 128), "key blocks of 128"),
        ("block", x.astype(jnp.float8_e5m2), maps(64, 64), "float8_e5m2 is not one of bfloat16"),
    ]:
        assert message in unsupported_triton(SlaCall.of(routing, q, block_map))
    assert unsupported_triton(SlaCall.of("block", x, maps(128, 64))) is None
    with pytest.raises(ValueError, match="cannot run this: head dim 32"):
        sla_triton(
            *[x[..., :32]] * 3, jnp.eye(32), maps(64, 64), routing="block", phi="elu1", keep=None,
            eps=0.0, q_valid=jnp.ones((1, 64), bool), k_valid=jnp.ones((1, 64), bool),
        )  # fmt: skip


def shapes(case, dtype, sharding=None, full=0):
    """Arguments of `gradient(case)` without numbers, so many query blocks in no table."""

    def described(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    b, n, d = case.batch, case.heads, case.head_dim
    q, k = (described((b, t, n, d), dtype) for t in (case.q_tokens, case.k_tokens))
    *heads, rows, kept = case.table_shape
    low = case.budgets[1] if case.routing == "block3" else 0
    critical, negligible = (
        BlockTable(described((*heads, rows - full, width), jnp.int32), case.k_blocks)
        for width in (kept, low)
    )
    masks = (described((b, t), bool) for t in (case.q_tokens, case.k_tokens))
    return q, k, k, described((d, d), jnp.float32), critical, negligible, *masks, q


SOFTMAX_KERNELS = {"sla_forward", "sla_query_gradient", "sla_key_gradient"}
LINEAR_KERNELS = {
    "sla_linear_state",
    "sla_linear_project",
    "sla_linear_query_gradient",
    "sla_linear_state_gradient",
    "sla_linear_key_gradient",
}


def linear_kernels(head_dim):
    """States of heads of 128 are projected by XLA."""
    return LINEAR_KERNELS - ({"sla_linear_project"} if head_dim > 64 else set())


@pytest.mark.filterwarnings("ignore:.*Pallas Triton.*:DeprecationWarning")
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=slow)])
@pytest.mark.parametrize(
    "q_block,head_dim", [pytest.param(64, 64, marks=slow), (128, 64), (64, 128)]
)
def test_lowers_to_cuda_at_the_size_of_100_views(q_block, head_dim, dtype):
    case = vggt_global(100, 0.1, q_block=q_block)
    case = dataclasses.replace(case, head_dim=head_dim)
    lower_and_check(case, dtype, SOFTMAX_KERNELS | linear_kernels(head_dim))
    with_marginal = vggt_global(100, 0.1, q_block=q_block, low=0.1)
    lower_and_check(with_marginal, dtype, SOFTMAX_KERNELS)


def lower_and_check(case, dtype, kernels):
    assert lowered_kernels(case, dtype) == (0, sorted(kernels))


def lowered_kernels(case, dtype, run=sla_triton):
    """How many Mosaic kernels value and gradient have, and the names of the Triton kernels."""
    with described_gpu():
        lowered = (
            gradient(case, interpret=False, run=run)
            .trace(*shapes(case, dtype))
            .lower(lowering_platforms=("cuda",))
        )
    text = lowered.as_text()
    triton = re.findall(r'__gpu\$xla\.gpu\.triton.*?\bname = "(\w+)"', text)
    return len(re.findall(r"custom_call @mosaic_gpu\w*", text)), sorted(triton)


def test_a_table_of_more_ids_than_kernels_count_to_is_refused():
    """As that of 10,000 views of 518 x 518 in blocks of 64 would be."""
    table = BlockTable(jax.ShapeDtypeStruct((1, 1, 107_344, 21_469), jnp.int32), 214_688)
    with pytest.raises(InputError, match=r"need 2,304,\d{3},\d{3} ids .* set keep lower") as e:
        _over_table(*4 * [None], table, None)
    assert "\n" not in str(e.value)
