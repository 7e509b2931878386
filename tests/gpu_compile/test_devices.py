"""Other GPUs than the H200: what is not refused compiles for them, value and gradient.

`make test-gpu-compile` installs what it takes. The sizes are those of a layer over all views of the
published models, of which all have heads of 64; heads of 128 are compiled as well.
"""

import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from lite3r_jax.attention.sla import SLA
from lite3r_jax.attention.strategy import AttentionInputs, Layouts, TokenLayout
from lite3r_jax.kernels.fp8.fused import OPERATOR as FP8
from lite3r_jax.kernels.fp8.fused import Product
from lite3r_jax.kernels.fp8.pallas_triton import quantize_rows
from lite3r_jax.kernels.fp8.quantized import Norm
from tests.gpu_compile import h200
from tests.kernels.devices import proven_gpu
from tests.kernels.sla.test_triton import SOFTMAX_KERNELS, linear_kernels

pytestmark = [
    pytest.mark.gpu_compile,
    pytest.mark.filterwarnings("ignore:.*Triton.*:DeprecationWarning"),
]
KINDS = {
    "a100": "NVIDIA A100-SXM4-80GB",
    "rtx4090": "NVIDIA GeForce RTX 4090",
    "rtx5090": "NVIDIA GeForce RTX 5090",
    "h200": "NVIDIA H200",
    "b200": "NVIDIA B200",
}
T4 = "Tesla T4"
# Views, special tokens and patches: VGGT at 518 x 518, DA3-Large at 504 x 504, pi^3 at its most
# pixels, 4 : 3.
LAYOUTS = {
    "vggt": TokenLayout(8, 5, (37, 37), "global"),
    "da3": TokenLayout(8, 1, (36, 36), "global"),
    "pi3": TokenLayout(8, 5, (31, 41), "global"),
}


def compile_attention(name, layout, dtype, head_dim, spec):
    """Value and gradient of a strategy with its selection; the names of its Triton kernels."""
    where = NamedSharding(h200.mesh(name=name), PartitionSpec())
    x = jax.ShapeDtypeStruct((1, layout.tokens, 4, head_dim), dtype, sharding=where)
    core = spec.build(heads=4, head_dim=head_dim, param_dtype=jnp.float32, rngs=nnx.Rngs(0))

    def both(q, k, v, up):
        o, pull = jax.vjp(lambda *x: core(AttentionInputs(*x, Layouts.both(layout))), q, k, v)
        return o, *pull(up)

    with proven_gpu(KINDS.get(name, T4)):
        lowered = jax.jit(both).trace(x, x, x, x).lower(lowering_platforms=("cuda",))
    lowered.compile({"xla_gpu_enable_triton_gemm": False})
    return set(re.findall(r'__gpu\$xla\.gpu\.triton.*?\bname = "(\w+)"', lowered.as_text()))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "layout,dtype,head_dim",
    [
        *((layout, dtype, 64) for layout in LAYOUTS for dtype in ("bfloat16", "float32")),
        ("vggt", "float16", 64),
        ("vggt", "bfloat16", 128),
        ("vggt", "float32", 128),
    ],
)
def test_what_auto_takes_compiles_in_value_and_gradient(name, layout, dtype, head_dim):
    kernels = compile_attention(name, LAYOUTS[layout], dtype, head_dim, SLA(keep=0.1))
    assert kernels == {"block_map_select", *SOFTMAX_KERNELS, *linear_kernels(head_dim)}


@pytest.mark.parametrize("name", KINDS)
def test_query_blocks_of_64_compile_as_well(name):
    spec = SLA(keep=0.1, q_block=64)
    for dtype, head_dim in (("float32", 64), ("bfloat16", 128)):
        assert compile_attention(name, LAYOUTS["vggt"], dtype, head_dim, spec)


def test_a_t4_takes_plain_jax_which_compiles_and_kernels_would_not():
    assert compile_attention("t4", LAYOUTS["vggt"], "float16", 64, SLA(keep=0.1)) == set()


@pytest.mark.parametrize("name", [name for name in KINDS if name != "a100"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_float8_quantization_compiles_where_there_are_float8_products(name, dtype):
    where = NamedSharding(h200.mesh(name=name), PartitionSpec())
    shapes = ((2748, 1024), dtype), ((1024,), dtype), ((1024,), dtype)
    args = [jax.ShapeDtypeStruct(shape, kind, sharding=where) for shape, kind in shapes]

    def quantized(x, scale, bias):
        codes = quantize_rows(x, Norm(scale, bias, 1e-5, jnp.dtype(dtype)))
        return codes.codes, codes.scale

    with proven_gpu(KINDS[name]):
        product = Product(2748, 1024, 3072, jnp.dtype(dtype))
        assert FP8.choose("auto", product) == ("mosaic" if name == "h200" else "triton")
        lowered = jax.jit(quantized).trace(*args).lower(lowering_platforms=("cuda",))
    lowered.compile({"xla_gpu_enable_triton_gemm": False})
