"""The TPU kernels' own code on a CPU, against float64, in value and gradient."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lite3r_jax.kernels.sla.cases import Case
from lite3r_jax.kernels.sla.pallas_tpu import sla_tpu
from lite3r_jax.kernels.sla.tiles import Product, TpuTiles
from tests.kernels.sla.test_sla import VALUES, Problem
from tests.kernels.sla.test_triton import check, gradient, values

pytestmark = pytest.mark.tpu_interpret
slow = pytest.mark.slow
CAPS = {"float32": 2e-6, "bfloat16": 1e-2}
# Two entries in a program, and scalar memory for two rows of a table: several steps and parts.
SMALL = TpuTiles(key_blocks=2, query_blocks=2, scalars=36)
USUAL = TpuTiles()
# Two products of keys, of queries and of both in a program, in the key gradient too.
SPLIT = TpuTiles(4, 4, forward=Product(128, 64), query_gradient=Product(128, 64), key_gradient=128)
CASES = [(Case("two sequences, short last blocks", 150, 230, 2), "float32", SMALL)]
SLOW_CASES = [
    (Case("two of all", 150, 230, 2, 2), "float32", USUAL),
    (Case("head dim 128, wide blocks", 150, 230, 1, 2, 128, 128), "float32", USUAL),
    (Case("products in parts", 150, 230, 1, 1, 64, 128), "float32", SPLIT),
    (Case("head dim 128, small tiles", 150, 230, 1, 2, 128, phi="softmax"), "bfloat16", SMALL),
    (Case("one token", 1, 1, phi="relu"), "float32", USUAL),
    (Case("marginal", 140, 260, 2, 2, 64, 128, routing="block3"), "float32", USUAL),
]
# Memory that was not written reads as NaN.
ONE_CORE = pltpu.InterpretParams()
TWO_CORES = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)


@functools.cache
def compiled(case, tiles):
    return gradient(case, ONE_CORE, run=functools.partial(sla_tpu, tiles=tiles))


def rows(cases, chosen, *marks):
    for case, dtype, tiles in cases:
        for row in values([(case, dtype)], chosen, *marks):
            yield pytest.param(*row.values, tiles, id=row.id, marks=row.marks)


@pytest.mark.parametrize(
    "case,dtype,lists,padding,tiles",
    [
        *rows(CASES, [("empty rows", "scattered")]),
        *rows(CASES, [("all", "no")], slow),
        *rows(SLOW_CASES, VALUES[6::12], slow),
    ],
)
def test_equals_float64_in_value_and_gradient(case, dtype, lists, padding, tiles):
    problem = Problem(case, lists, padding, dtype=jnp.dtype(dtype).type)
    got = compiled(case, tiles)(*problem.args)
    assert [x.dtype for x in got] == [dtype] * 4 + ["float32"]
    check(got, problem, CAPS[dtype])


@slow
def test_two_cores_race_for_nothing():
    case = Case("two heads", 64, 130, 1, 2)
    problem = Problem(case, "some", "no", dtype=jnp.bfloat16)
    check(gradient(case, TWO_CORES, run=sla_tpu)(*problem.args), problem, CAPS["bfloat16"])
    assert not races_found()


def test_a_race_would_be_seen():
    def last(x_ref, o_ref):
        o_ref[...] = x_ref[...]

    x = jnp.arange(16 * 128, dtype=jnp.float32).reshape(16, 128)
    block = (8, 128)
    write = pl.pallas_call(
        last,
        grid=(2,),
        in_specs=[pl.BlockSpec(block, lambda i: (i, 0))],
        out_specs=pl.BlockSpec(block, lambda i: (0, 0)),
        out_shape=jnp.zeros(block, jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        interpret=TWO_CORES,
    )
    try:
        write(x).block_until_ready()
    except jax.errors.JaxRuntimeError as error:  # of jax 0.12, which goes no further
        assert "RACE DETECTED" in str(error)
    else:
        assert races_found()


def races_found():
    """In the last call."""
    assert interpreter.races is not None
    return interpreter.races.races_found
