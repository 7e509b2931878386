"""Float8 products compiled for a described H200: which product XLA chooses, and what it costs."""

import json
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lite3r_jax.kernels.fp8.api import fp8_dot_general, fp8_linear
from lite3r_jax.kernels.fp8.cases import vggt_linears
from tests.gpu_compile import h200
from tests.kernels.sla.test_triton import described_gpu

pytestmark = pytest.mark.gpu_compile

FLOAT8 = "__cublas$lt$matmul$f8"
OTHER = "__cublas$lt$matmul"


def simulated(x, w):
    return fp8_dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())))


def compiled(call, *shapes):
    where = NamedSharding(h200.mesh(), PartitionSpec())
    args = [jax.ShapeDtypeStruct(shape, dtype, sharding=where) for shape, dtype in shapes]
    with described_gpu():
        lowered = jax.jit(call).trace(*args).lower(lowering_platforms=("cuda",))
    return lowered.compile({"xla_gpu_enable_triton_gemm": False})


def products(text):
    return re.findall(r'custom_call_target="(__cublas[^"]+)"', text)


def precisions(text):
    found = re.findall(r'"operand_precision":(\[[^\]]*\])', text)
    return [json.loads(one) for one in found]


@pytest.mark.parametrize("case", vggt_linears(2), ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_stored_weights_are_multiplied_as_float8_and_not_copied(case, dtype):
    x = ((*case.batch, case.inputs), dtype)
    codes = ((case.outputs, case.inputs), jnp.float8_e4m3fn)
    scale = ((case.outputs,), jnp.float32)
    found = compiled(fp8_linear, x, codes, scale)
    text = found.as_text()
    assert products(text) == [FLOAT8]
    # Full accumulation, not the fast mode with fewer bits.
    assert precisions(text) == [["HIGHEST", "HIGHEST"]]
    entry = text[text.index("\nENTRY") :]
    sizes = f"f8e4m3fn\\[({case.outputs},{case.inputs}|{case.inputs},{case.outputs})\\]"
    assert len(re.findall(rf"= {sizes}", entry)) == 1, "the weight is copied"
    tokens = case.batch[1] + 8
    plan = found.memory_analysis().temp_size_in_bytes
    print(f"{case.name} {dtype}: temporary {plan / 2**20:.1f} MiB")
    # Codes of the tokens, the product in float32, the workspace of cuBLASLt.
    assert plan < tokens * (case.inputs + 4 * case.outputs + 4) + 2**22 + 2**16


def test_simulation_is_made_of_bfloat16_products():
    case = vggt_linears(2)[0]
    x, w = ((*case.batch, case.inputs), "bfloat16"), ((case.inputs, case.outputs), "bfloat16")
    up = ((*case.batch, case.outputs), "bfloat16")

    def both(x, w, up):
        y, pull = jax.vjp(simulated, x, w)
        return y, *pull(up)

    def frozen(x, w, up):
        y, pull = jax.vjp(lambda x: simulated(x, w), x)
        return y, *pull(up)

    assert products(compiled(both, x, w, up).as_text()) == [OTHER] * 3
    assert products(compiled(frozen, x, w, up).as_text()) == [OTHER] * 2


def test_quantising_stacked_layers_at_use_does_not_copy_them():
    layers, (case, *_) = 8, vggt_linears(2)
    shape = (layers, case.inputs, case.inputs)

    def loss(product):
        def run(x, w):
            step = jax.checkpoint(lambda x, w: (product(x, w), None))
            return jax.lax.scan(step, x, w)[0].astype(jnp.float32).sum()

        return jax.grad(run)

    def plan(product):
        x = ((*case.batch, case.inputs), "bfloat16")
        return compiled(loss(product), x, (shape, "bfloat16")).memory_analysis()

    plain, quantised = plan(jnp.matmul), plan(simulated)
    one_layer = 2 * case.inputs**2
    tokens = 4 * case.batch[1] * case.inputs
    print(f"{plain.temp_size_in_bytes / 2**20:.0f} MiB, {quantised.temp_size_in_bytes / 2**20:.0f}")
    allowed = plain.temp_size_in_bytes + 2 * one_layer + 3 * tokens
    assert quantised.temp_size_in_bytes < min(
        allowed, plain.temp_size_in_bytes + layers * one_layer
    )


def test_weights_alone_are_converted_before_a_bfloat16_product():
    case = vggt_linears(2)[0]
    found = compiled(
        lambda x, codes, scale: fp8_linear(x, codes, scale, activations=None),
        ((*case.batch, case.inputs), "bfloat16"),
        ((case.outputs, case.inputs), jnp.float8_e4m3fn),
        ((case.outputs,), jnp.float32),
    )
    assert products(found.as_text()) == [OTHER]
