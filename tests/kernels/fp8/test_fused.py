"""The fused float8 kernels: their numbers by running their code on a CPU, and who runs where."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.kernels.fp8.api import fp8_linear
from lite3r_jax.kernels.fp8.fused import OPERATOR, Product, linear, quantize_before
from lite3r_jax.kernels.fp8.pallas_mosaic import scaled_product
from lite3r_jax.kernels.fp8.pallas_triton import gelu, quantize_rows
from lite3r_jax.kernels.fp8.quantize import quantize
from lite3r_jax.kernels.fp8.quantized import Gelu, Norm, Quantized, padded_rows
from lite3r_jax.kernels.fp8.reference import (
    LEAST_SCALE,
    gelu_reference,
    norm_reference,
    quantize_reference,
)
from lite3r_jax.kernels.fp8.tiles import COLUMNS, INPUTS, ROWS, ProductTiles, tiles
from lite3r_jax.layers.norm import layer_norm
from tests.kernels.devices import described_gpu, proven_gpu

slow = pytest.mark.slow
F8 = jnp.float8_e4m3fn
INPUT = 48  # no power of two: columns of a program that are not there
# Values beside zeros in the first tokens.
EDGES = {
    "zero": 0.0,
    "least": 1e-45,
    "tiny": 2e-38,
    "huge": 3e38,
    "infinite": np.inf,
    "not a number": np.nan,
}


def tokens(dtype, shape=(3, 29, INPUT)):
    """Tokens of many sizes; the first ones are zeros but for a value of `EDGES`."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape) * np.exp2(rng.uniform(-9, 9, (*shape[:-1], 1)))
    flat = x.reshape(-1, shape[-1])
    flat[: len(EDGES)] = 0
    for row, value in enumerate(EDGES.values()):
        flat[row, 5] = value
    return jnp.asarray(x, dtype)


def affine(dtype="float32"):
    rng = np.random.default_rng(1)
    return (jnp.asarray(rng.normal(loc, 0.3, INPUT), dtype) for loc in (1, 0))


def run(x, before):
    quantized = jax.jit(lambda x: quantize_rows(x, before, interpret=True))(x)
    rows = x.size // x.shape[-1]
    assert quantized.shape == x.shape and quantized.rows == rows
    assert quantized.codes.shape == (padded_rows(rows), x.shape[-1]) and quantized.codes.dtype == F8
    assert quantized.scale.shape == (padded_rows(rows),) and quantized.scale.dtype == jnp.float32
    return np.asarray(quantized.codes[:rows]), np.asarray(quantized.scale[:rows])


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=slow)])
def test_quantizes_as_is_defined(dtype):
    x = tokens(dtype)
    codes, scale = run(x, None)
    flat = np.asarray(x, np.float32).reshape(-1, INPUT)
    with np.errstate(invalid="ignore"):
        wanted, wanted_scale = quantize_reference(flat, "e4m3", -1)
    np.testing.assert_array_equal(scale, wanted_scale[:, 0])
    names = list(EDGES)
    assert (scale[names.index("zero")], scale[names.index("tiny")]) == (LEAST_SCALE, LEAST_SCALE)
    assert np.isnan(scale[names.index("infinite")]) and np.isnan(scale[names.index("not a number")])
    finite = np.isfinite(scale)
    assert finite.sum() == len(scale) - 2
    np.testing.assert_array_equal(codes[finite].view(np.uint8), wanted[finite].view(np.uint8))


def layers(x):
    """Name -> what is before, what the model's own layer gives, and the definition in float64."""
    scale, bias = affine()
    norm = layer_norm(INPUT, 1e-5, rngs=nnx.Rngs(0))
    norm.scale, norm.bias = nnx.Param(scale), nnx.Param(bias)
    bare = layer_norm(INPUT, 1e-6, affine=False, rngs=nnx.Rngs(0))
    flat = np.asarray(x, np.float64).reshape(-1, INPUT)
    kind = jnp.dtype("bfloat16")
    with np.errstate(invalid="ignore", over="ignore"):
        return {
            "norm": (Norm(scale, bias, 1e-5, kind), norm, norm_reference(flat, scale, bias, 1e-5)),
            "bare norm": (
                Norm(None, None, 1e-6, kind),
                bare,
                norm_reference(flat, None, None, 1e-6),
            ),
            "gelu": (
                Gelu(kind),
                lambda x: jax.nn.gelu(x.astype(jnp.float32), approximate=False),
                gelu_reference(flat),
            ),
        }


@pytest.mark.parametrize(
    "name,dtype",
    [
        ("norm", "float32"),
        pytest.param("gelu", "bfloat16", marks=slow),
        pytest.param("norm", "bfloat16", marks=slow),
        # one token is below the smallest normal number, where compilers differ
        pytest.param("bare norm", "float32", marks=[slow, pytest.mark.optimized]),
        pytest.param("gelu", "float32", marks=slow),
    ],
)
def test_what_comes_before_is_that_of_the_model(name, dtype):
    x = tokens(dtype)
    before, layer, exact = layers(x)[name]
    codes, scale = run(x, before)
    wanted, wanted_scale = jax.jit(lambda x: quantize(layer(x).reshape(-1, INPUT)))(x)
    wanted, wanted_scale = np.asarray(wanted), np.asarray(wanted_scale)[:, 0]
    flat = np.asarray(x, np.float64).reshape(-1, INPUT)
    # Squares of a norm end at 1e19.
    finite = np.abs(flat).max(1) < 1e18
    assert finite.sum() == len(finite) - 3
    assert np.isnan(scale[~np.isfinite(flat).all(1)]).all() and np.isfinite(scale[finite]).all()
    codes, wanted, exact = codes[finite], wanted[finite], exact[finite]
    scale, wanted_scale = scale[finite], wanted_scale[finite]
    np.testing.assert_allclose(scale, wanted_scale, rtol=1e-5)
    assert (codes.view(np.uint8) != wanted.view(np.uint8)).mean() < 0.002
    # What stands for a value is within half a step of e4m3 of it, or within that of its smallest;
    # what is smaller than float32 has in full is taken for 0, before a norm makes it larger.
    error = np.abs(codes.astype(np.float64) * scale[:, None] - exact)
    allowed = (2.0**-4 + 1e-4) * np.abs(exact) + scale[:, None] * 2.0**-10 * 1.0001 + 2.0**-115
    assert (error <= allowed).all()


def test_gelu_is_exact_to_the_tails():
    x = np.linspace(-13, 13, 20001, dtype=np.float32)
    wanted = gelu_reference(x.astype(np.float64))
    got = np.asarray(gelu(jnp.asarray(x)), np.float64)
    there = np.abs(wanted) > 1e-30
    assert there.sum() > 18000
    assert (np.abs(got - wanted)[there] <= 3e-5 * np.abs(wanted)[there]).all()
    assert np.abs(got - wanted)[~there].max() < 1e-30


def problem(rows, inputs, outputs, dtype, seed=0):
    rng = np.random.default_rng(seed)
    x, w = (
        jnp.asarray(rng.standard_normal(shape) * 50, F8)
        for shape in ((padded_rows(rows), inputs), (outputs, inputs))
    )
    scales = [jnp.asarray(np.exp2(rng.uniform(-9, 0, len(a))), jnp.float32) for a in (x, w)]
    bias = jnp.asarray(rng.standard_normal(outputs) * 100, dtype)
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    exact = exact * np.asarray(scales[0], np.float64)[:, None] * np.asarray(scales[1], np.float64)
    exact = exact[:rows] + np.asarray(bias, np.float64)
    return Quantized(x, scales[0], (rows, inputs), jnp.dtype(dtype)), w, scales[1], bias, exact


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=slow)])
def test_the_product_by_xla_is_that_of_stored_weights(dtype):
    x, w, scale, bias, exact = problem(14, 32, 24, dtype)
    got = jax.jit(lambda *args: linear(*args, implementation="triton"))(x, w, scale, bias)[: x.rows]
    assert got.dtype == dtype
    # Rounded after the scales and after the bias, as `Fp8Linear` does without kernels.
    tolerance = 1e-6 if dtype == "float32" else 2.0**-7
    assert np.abs(np.asarray(got, np.float64) - exact).max() <= tolerance * np.abs(exact).max()


TAIL = (150, 2 * INPUTS, 4 * COLUMNS)


@pytest.mark.parametrize(
    "dtype,cut",
    [
        ("bfloat16", ProductTiles(2 * COLUMNS, 3, 1)),  # one program for all tiles
        pytest.param("bfloat16", ProductTiles(COLUMNS, 5, 3), marks=slow),  # some have a tile more
        pytest.param("float32", ProductTiles(COLUMNS, 4, 8), marks=slow),
    ],
)
def test_the_product_of_the_hopper_kernel(dtype, cut, monkeypatch):
    """jax 0.10 has no interpreter for it, and says so."""
    x, w, scale, bias, exact = problem(*TAIL, dtype)
    monkeypatch.setattr("lite3r_jax.kernels.fp8.pallas_mosaic.tiles", lambda *_: cut)

    @jax.jit
    def product(x, w, scale, bias):
        return scaled_product(x, w, scale, bias, dtype, interpret=True)

    if jax.__version_info__ < (0, 11):
        with pytest.raises(ValueError, match=r"cannot interpret the Mosaic kernel, 0\.11 can"):
            product(x, w, scale, bias)
        return
    with described_gpu():
        got = product(x, w, scale, bias)
    assert got.shape == (152, TAIL[2]) and got.dtype == dtype
    error = np.abs(np.asarray(got[: x.rows], np.float64) - exact)
    rounding = 2.0**-24 if dtype == "float32" else 2.0**-8
    assert (error <= rounding * np.abs(exact) + 1e-6 * np.abs(exact).max()).all()


@pytest.mark.filterwarnings("ignore:.*Triton.*:DeprecationWarning")
def test_lowers_to_cuda_at_the_sizes_of_many_views():
    rows = 1000 * 1374  # not a multiple of 8, and codes of 4096 inputs above 4 GiB

    def call(x, gamma, w, scale, bias):
        codes = quantize_before(x, Norm(gamma, bias[:1024], 1e-5, jnp.bfloat16))
        y = linear(codes, w, scale, bias, implementation="mosaic")
        return quantize_before(y, Gelu(jnp.bfloat16))

    shapes = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (
            ((rows, 1024), jnp.float32),
            ((1024,), jnp.bfloat16),
            ((4096, 1024), F8),
            ((4096,), jnp.float32),
            ((4096,), jnp.bfloat16),
        )
    ]
    with described_gpu():
        text = jax.jit(call).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
    assert len(re.findall(r"custom_call @mosaic_gpu\w*\(", text)) == 1
    assert len(re.findall(r"custom_call @__gpu\$xla.gpu.triton\(", text)) == 2


def test_codes_of_two_to_four_gigabytes_get_an_array_that_is_addressed_with_64_bits():
    for rows in (2**19 - 8, 2**19 + 8, 2**20, 2**20 + 8):
        x = jax.ShapeDtypeStruct((rows, 4096), jnp.bfloat16)
        held = jax.eval_shape(quantize_rows, x).codes.size
        assert held >= rows * 4096 and not 2**31 < held <= 2**32
        assert held == rows * 4096 or held < 2**32 + 2**17


def test_tiles_fit_and_leave_few_processors_idle():
    for dtype, size in ((jnp.bfloat16, 2), (jnp.float32, 4)):
        for rows in (128, 1374, 2752, 10992, 43968, 1374000):
            for outputs in (128, 384, 1024, 3072, 4096):
                cut = tiles(rows, outputs, dtype)
                assert outputs % cut.columns == 0
                held = cut.stages * (ROWS + cut.columns) * INPUTS + size * ROWS * cut.columns
                assert held + 2 * 4 * (ROWS + 2 * cut.columns) + 512 <= 232448
                number = -(-rows // ROWS) * outputs // cut.columns
                assert cut.programs == min(number, 132)
    assert tiles(1374, 1024, jnp.bfloat16).columns == COLUMNS  # 88 programs and not 44
    assert tiles(10992, 3072, jnp.bfloat16).columns == 2 * COLUMNS


def test_chosen_by_device_sizes_and_formats():
    usual, choose = Product(2748, 1024, 3072, jnp.bfloat16), OPERATOR.choose
    assert choose("auto", usual) == "xla"
    for name in ("triton", "mosaic"):
        with pytest.raises(ValueError, match="for NVIDIA GPUs and this is cpu; xla can"):
            choose(name, usual)
    with proven_gpu():
        assert choose("auto", usual) == "mosaic"
        for name in ("xla", "triton", "mosaic"):
            assert choose(name, usual) == name
        for product, chosen, message in (
            (Product(8, 2048, 1024, jnp.bfloat16), "triton", "8 tokens are fewer than the 128"),
            (Product(2748, 1024, 64, jnp.bfloat16), "triton", "64 outputs are no multiples"),
            (Product(2748, 9, 1024, jnp.bfloat16), "xla", "9 inputs are no multiple of 16"),
            (Product(2748, 1024, 1024, jnp.float16), "xla", "float16 is neither"),
            (
                Product(2748, 1024, 1024, jnp.bfloat16, activations=None),
                "xla",
                "this is e4m3 by None with scales per row",
            ),
            (
                Product(2748, 1024, 1024, jnp.bfloat16, scale="tensor"),
                "xla",
                "with scales per tensor",
            ),
        ):
            assert choose("auto", product) == chosen
            with pytest.raises(ValueError, match=message):
                choose("mosaic", product)
    with proven_gpu("NVIDIA A100-SXM4-80GB"):
        assert choose("auto", usual) == "xla"
        with pytest.raises(ValueError, match="float8 products, which NVIDIA A100-SXM4-80GB has"):
            choose("triton", usual)
    with pytest.raises(ValueError, match=r"unknown implementation 'cuda'.*auto, xla, triton"):
        choose("cuda", usual)


def test_is_left_to_xla_where_it_splits_arrays():
    usual, choose = Product(2748, 1024, 3072, jnp.bfloat16), OPERATOR.choose
    gpu = jax.sharding.AbstractDevice("NVIDIA H200", num_cores=None, platform="cuda")
    mesh = jax.sharding.AbstractMesh(
        (2,), ("data",), (jax.sharding.AxisType.Auto,), abstract_device=gpu
    )
    with proven_gpu(), jax.sharding.use_abstract_mesh(mesh):
        assert choose("auto", usual) == "xla"
        with pytest.raises(ValueError, match="split over several devices"):
            choose("mosaic", usual)
    manual = jax.sharding.AbstractMesh(
        (2,), ("data",), (jax.sharding.AxisType.Manual,), abstract_device=gpu
    )
    with proven_gpu(), jax.sharding.use_abstract_mesh(manual):
        assert choose("auto", usual) == "mosaic"


def test_has_no_gradient_and_says_so():
    x = jnp.ones((4, 16))
    with pytest.raises(ValueError, match="no gradient; deploy the model with implementation='xla'"):
        jax.grad(lambda x: quantize_before(x, None).scale.sum())(x)
    w = jnp.ones((8, 16), F8)
    assert jax.eval_shape(jax.grad(lambda x: fp8_linear(x, w, jnp.ones(8)).sum()), x) is not None
