"""Float8 products compiled for a described H200: which product XLA chooses, and what it costs."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lite3r_jax.kernels.fp8.api import fp8_dot_general, fp8_linear
from lite3r_jax.kernels.fp8.cases import vggt_linears
from lite3r_jax.kernels.fp8.pallas_mosaic import scaled_product
from lite3r_jax.kernels.fp8.pallas_triton import quantize_rows
from lite3r_jax.kernels.fp8.quantized import Gelu, Norm, Quantized, padded_rows
from lite3r_jax.kernels.fp8.tiles import COLUMNS, tiles
from tests.gpu_compile import h200
from tests.kernels.devices import described_gpu
from tools.benchmark import fp8_block

pytestmark = [
    pytest.mark.gpu_compile,
    pytest.mark.filterwarnings("ignore:.*Triton.*:DeprecationWarning"),
]
BUDGETS = json.loads(Path(__file__).with_name("budgets.json").read_text())["fp8"]

FLOAT8 = "__cublas$lt$matmul$f8"
OTHER = "__cublas$lt$matmul"


def simulated(x, w):
    return fp8_dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())))


def described(*shapes):
    where = NamedSharding(h200.mesh(), PartitionSpec())
    return [jax.ShapeDtypeStruct(shape, dtype, sharding=where) for shape, dtype in shapes]


def compiled(call, *shapes):
    args = described(*shapes)
    with described_gpu():
        lowered = jax.jit(call).trace(*args).lower(lowering_platforms=("cuda",))
    return lowered.compile({"xla_gpu_enable_triton_gemm": False})


def products(text):
    return re.findall(r'custom_call_target="(__cublas[^"]+)"', text)


def precisions(text):
    matches = re.findall(r'"operand_precision":(\[[^\]]*\])', text)
    return [json.loads(one) for one in matches]


@pytest.mark.parametrize("case", vggt_linears(2), ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_stored_weights_are_multiplied_as_float8_and_not_copied(case, dtype):
    x = ((*case.batch, case.inputs), dtype)
    codes = ((case.outputs, case.inputs), jnp.float8_e4m3fn)
    scale = ((case.outputs,), jnp.float32)
    program = compiled(fp8_linear, x, codes, scale)
    text = program.as_text()
    assert products(text) == [FLOAT8]
    # Full accumulation, not the fast mode with fewer bits.
    assert precisions(text) == [["HIGHEST", "HIGHEST"]]
    entry = text[text.index("\nENTRY") :]
    sizes = f"f8e4m3fn\\[({case.outputs},{case.inputs}|{case.inputs},{case.outputs})\\]"
    assert len(re.findall(rf"= {sizes}", entry)) == 1, "the weight is copied"
    tokens = case.batch[1] + 8
    plan = program.memory_analysis().temp_size_in_bytes
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


def test_quantizing_stacked_layers_at_use_does_not_copy_them():
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

    plain, quantized = plan(jnp.matmul), plan(simulated)
    one_layer = 2 * case.inputs**2
    tokens = 4 * case.batch[1] * case.inputs
    print(f"{plain.temp_size_in_bytes / 2**20:.0f} MiB, {quantized.temp_size_in_bytes / 2**20:.0f}")
    allowed = plain.temp_size_in_bytes + 2 * one_layer + 3 * tokens
    assert quantized.temp_size_in_bytes < min(
        allowed, plain.temp_size_in_bytes + layers * one_layer
    )


def test_weights_alone_are_converted_before_a_bfloat16_product():
    case = vggt_linears(2)[0]
    program = compiled(
        lambda x, codes, scale: fp8_linear(x, codes, scale, activations=None),
        ((*case.batch, case.inputs), "bfloat16"),
        ((case.outputs, case.inputs), jnp.float8_e4m3fn),
        ((case.outputs,), jnp.float32),
    )
    assert products(program.as_text()) == [OTHER]


@pytest.mark.parametrize("case", (*vggt_linears(1), *vggt_linears(8)), ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_hopper_product_is_one_kernel_within_its_budget(case, dtype, tmp_path):
    tokens, kind = case.batch[1], jnp.dtype(dtype)
    rows = padded_rows(tokens)

    def call(codes, scale, w, w_scale, bias):
        x = Quantized(codes, scale, (1, tokens, case.inputs), kind)
        return scaled_product(x, w, w_scale, bias, kind)

    args = described(
        ((rows, case.inputs), jnp.float8_e4m3fn),
        ((rows,), jnp.float32),
        ((case.outputs, case.inputs), jnp.float8_e4m3fn),
        ((case.outputs,), jnp.float32),
        ((case.outputs,), kind),
    )
    program, kernels = h200.compile_kernels(call, args, tmp_path)
    assert kernels.keys() == {"mosaic"}
    h200.check_budget("mosaic", kernels["mosaic"], BUDGETS["mosaic"])
    # 128 inputs are four instructions of 32; the sums of a tile's parts go one after the other.
    parts = tiles(rows, case.outputs, kind).columns // COLUMNS
    assert kernels["mosaic"].wgmma == 4 * parts
    [path] = (tmp_path / "mosaic").glob("*.ptx")
    instructions = set(re.findall(r"wgmma\.mma_async\.(\S+)", path.read_text()))
    assert instructions == {f"sync.aligned.m64n{COLUMNS}k32.f32.e4m3.e4m3"}
    assert [k.name for k in fp8_block.kernels(program.as_text())] == ["mosaic_gpu_v2"]
    assert program.memory_analysis().temp_size_in_bytes < 2**16


NORM = Norm(None, None, 1e-5, jnp.bfloat16)


@pytest.mark.parametrize(
    "before,width,dtype",
    [
        (NORM, 1024, "float32"),
        (Gelu(jnp.bfloat16), 4096, "bfloat16"),
        (None, 1024, "bfloat16"),
        (None, 768, "bfloat16"),
        (Gelu(jnp.bfloat16), 8192, "bfloat16"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Norm | Gelu | None) else str(x),
)
def test_quantization_reads_and_writes_once_within_its_budget(before, width, dtype, tmp_path):
    def call(x, scale, bias):
        full = Norm(scale, bias, before.eps, before.dtype) if isinstance(before, Norm) else before
        return quantize_rows(x, full)

    args = described(((1, 1374, width), dtype), *[((width,), jnp.bfloat16)] * 2)
    program, kernels = h200.compile_kernels(call, args, tmp_path)
    assert kernels.keys() == {"fp8_rows"}
    h200.check_budget("fp8_rows", kernels["fp8_rows"], BUDGETS["fp8_rows"])
    launched = fp8_block.kernels(program.as_text())
    assert [k.name for k in launched] == ["__gpu$xla.gpu.triton"]
    text = "".join(path.read_text() for path in tmp_path.glob("*.ptx"))
    code = text.split(".entry fp8_rows", 1)[1]
    assert "cvt.rn.satfinite.e4m3x2.f32" in code
    # 16 bytes of codes and of tokens at a time.
    assert "st.global.v4.b32" in code and "ld.global.v4.b32" in code
    assert "st.global.b8" not in code


@pytest.mark.parametrize("views", [2, 8])
def test_a_block_holds_no_float32_results_and_no_kernels_between(views):
    mesh, kernels = h200.mesh(), {}
    for form in fp8_block.FORMS:
        program = fp8_block.lower(form, views, mesh).compile({"xla_gpu_enable_triton_gemm": False})
        kernels[form] = fp8_block.kernels(program.as_text())
        print(form, len(kernels[form]), sum(k.read + k.written for k in kernels[form]) / 2**20)
    rows = padded_rows(views * 1374)
    wide = re.compile(rf"f32\[(1,)?({rows}|{views * 1374}),(3072|4096)\]")
    assert any(wide.search(k.results) for k in kernels["xla"])
    own = kernels["mosaic"]
    names = [k.name for k in own if k.name.startswith(("mosaic", "__gpu$xla"))]
    assert names == ["__gpu$xla.gpu.triton", "mosaic_gpu_v2"] * 4
    # What XLA still does: qk-norm, RoPE and the stand-in of attention; two residual sums.
    assert len(own) <= 8 + 5 < len(kernels["xla"]) - 4
    for kernel in own:
        assert not wide.search(kernel.results)
        assert "f8e4m3" not in kernel.results or kernel.name == "__gpu$xla.gpu.triton"
    total = {form: sum(k.read + k.written for k in ks) for form, ks in kernels.items()}
    assert total["mosaic"] < min(total["bfloat16"], 0.7 * total["xla"])
