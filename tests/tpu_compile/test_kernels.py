"""The TPU kernels compiled for described TPUs, without one; `make test-tpu-compile` runs this."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lite3r_jax.kernels.block_map.api import OPERATOR as SELECTION
from lite3r_jax.kernels.dense.flash_tpu import flash_tpu
from lite3r_jax.kernels.sla.cases import Case, vggt_global
from lite3r_jax.kernels.sla.pallas_tpu import sla_tpu
from tests.kernels.sla.test_triton import gradient, shapes
from tools.benchmark import tpu

pytestmark = pytest.mark.tpu_compile
KERNELS = {"sla_forward", "sla_query_gradient", "sla_key_gradient"}


def kernels(text):
    """Names of the Pallas kernels of a compiled program."""
    return set(re.findall(r'%([a-z_]+)[.\d]* = [^\n]*custom_call_target="tpu_custom_call"', text))


def here(chip):
    return NamedSharding(tpu.mesh(chip), PartitionSpec())


@pytest.mark.parametrize(
    "chip,views,head_dim,q_block,dtype,low",
    [
        ("v5e", 2, 64, 64, "bfloat16", 0.0),
        ("v5e", 8, 64, 128, "bfloat16", 0.0),
        ("v5p", 8, 64, 128, "bfloat16", 0.0),
        ("v6e", 8, 64, 128, "bfloat16", 0.0),
        ("v6e", 8, 128, 128, "bfloat16", 0.1),
        ("v5e", 2, 64, 128, "float32", 0.0),
    ],
)
def test_value_and_gradient_compile(chip, views, head_dim, q_block, dtype, low):
    case = vggt_global(views, 0.1, q_block=q_block, low=low)
    case = dataclasses.replace(case, head_dim=head_dim)
    call = gradient(case, interpret=False, run=sla_tpu)
    compiled = tpu.lower(chip, call, *shapes(case, dtype, here(chip))).compile()
    assert kernels(compiled.as_text()) == KERNELS
    plan = compiled.memory_analysis()
    size = jnp.dtype(dtype).itemsize * case.heads * case.head_dim
    inputs = size * (case.q_tokens + 2 * case.k_tokens)
    states = 2**30 if low else 0  # of marginal blocks, held some at a time
    print(f"temporary {plan.temp_size_in_bytes / 2**20:.0f} MiB, inputs {inputs / 2**20:.0f} MiB")
    assert plan.temp_size_in_bytes < 12 * inputs + states


@pytest.mark.parametrize("chip,dtype", [("v5e", "float32"), ("v5p", "bfloat16")])
def test_the_smallest_call_compiles(chip, dtype):
    call = gradient(Case("one token", 1, 1), interpret=False, run=sla_tpu)
    args = shapes(Case("one token", 1, 1), dtype, here(chip))
    assert kernels(tpu.lower(chip, call, *args).compile().as_text()) == KERNELS


@pytest.mark.parametrize("precision", ["default", "highest"])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])
def test_dense_attention_compiles_in_value_and_gradient(chip, head_dim, precision):
    """jax's kernel at a frame of VGGT-1B, whatever precision the products of a program have."""
    x = jax.ShapeDtypeStruct((1, 1_374, 16, head_dim), "bfloat16", sharding=here(chip))

    def both(q, k, v, up):
        o, pull = jax.vjp(jax.jit(flash_tpu), q, k, v)
        return o, *pull(up)

    with jax.default_matmul_precision(precision):
        text = tpu.lower(chip, both, x, x, x, x).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 3


@pytest.mark.parametrize(
    "chip,columns,bottom,dtype",
    [
        ("v5e", 217, 0, "float32"),
        ("v5e", 2_180, 100, "float32"),
        ("v5p", 217, 0, "float32"),
        ("v6e", 2_180, 0, "bfloat16"),
    ],
)
def test_selection_compiles_without_a_sort(chip, columns, bottom, dtype):
    chosen = functools.partial(
        SELECTION["tpu"].run, kept=np.arange(30, dtype=np.int32), top=columns // 10, bottom=bottom
    )
    sharding, rows = here(chip), columns // 2
    q, k = (jax.ShapeDtypeStruct((1, 16, m, 64), dtype, sharding=sharding) for m in (rows, columns))
    q_used, k_used = (
        jax.ShapeDtypeStruct((1, m), bool, sharding=sharding) for m in (rows, columns)
    )
    text = tpu.lower(chip, chosen, q, q_used, k, k_used).compile().as_text()
    assert kernels(text) == {"block_map_select"}
    assert not re.search(r" (sort|topk)\(|TopK", text)
