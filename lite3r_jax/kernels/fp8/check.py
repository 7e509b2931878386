"""Self-check of float8 products and the quantization before them: against float64, in two runs."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from lite3r_jax.kernels.fp8.fused import Product, linear, quantize_before
from lite3r_jax.kernels.fp8.quantize import quantize
from lite3r_jax.kernels.fp8.quantized import Before, Gelu, Norm, Quantized
from lite3r_jax.kernels.fp8.reference import gelu_reference, norm_reference
from lite3r_jax.kernels.registry import Check

# Half a step of e4m3 and a little; how many codes may be another one than XLA's, by rounding of
# what comes before; and the error of a product over the sum of the magnitudes that were added up,
# which leaves room for partial sums of 128 products with 14 bits.
HALF_STEP, OTHER_CODES, PRODUCT = 2.0**-4 + 1e-4, 0.01, 2.0**-12


@dataclass(frozen=True)
class Case:
    """Sizes of a Linear, and the operation before it, in one self-check case.

    Attributes:
        name: says what is special about it.
        before: what is done to the tokens first.
        inputs: K.
        outputs: N.
        rows: tokens.
        dtype: in which it is computed.
    """

    name: str
    before: Literal["norm", "gelu", "nothing"]
    inputs: int
    outputs: int
    rows: int = 0
    dtype: str = "bfloat16"

    @property
    def product(self) -> Product:
        """Properties of the case's product by which implementations are chosen."""
        return Product(self.rows, self.inputs, self.outputs, jnp.dtype(self.dtype))


CASES = (
    Case("one tile", "nothing", 128, 128, 128),
    Case("short last tile", "gelu", 1024, 384, 131),
    Case("one view", "norm", 1024, 3072, 1374),
    Case("wide, two views", "gelu", 4096, 1024, 2748),
    Case("float32", "norm", 1024, 1024, 2748, "float32"),
    Case("deep", "nothing", 4096, 4096, 5496),
    Case("many tiles of each program", "norm", 1024, 4096, 43968),
)
# For a model that waits, of either dtype.
QUICK = "short last tile", "one view", "float32"


@dataclass(frozen=True)
class Outcome:
    """Errors that were found in one self-check case.

    Attributes:
        other_codes: fraction of codes that are not those of XLA.
        of_codes: error of what codes stand for, over what is allowed.
        of_product: error of the product with these codes, over the sum of magnitudes.
        same: whether two runs gave the same bits.
    """

    other_codes: float
    of_codes: float
    of_product: float
    same: bool

    @property
    def wrong(self) -> str | None:
        """What is wrong with the outcome, as text, or None."""
        wrong = [
            sentence
            for fine, sentence in (
                (self.other_codes < OTHER_CODES, f"{self.other_codes:.1e} of the codes differ"),
                (self.of_codes <= 1, f"codes are off by {self.of_codes:.2f} of what is allowed"),
                (self.of_product <= PRODUCT, f"the product is off by {self.of_product:.1e}"),
                (self.same, "two runs gave different bits"),
            )
            if not fine
        ]
        return "; ".join(wrong) or None


def checks(name: str) -> Iterator[Check[Product]]:
    """Yields all cases, for an implementation's name in `fused.OPERATOR`."""
    for case in CASES:
        run = functools.partial(_wrong, case, name)
        yield Check(f"{case.name}, {case.dtype}", case.product, run, case.name in QUICK)


def _wrong(case: Case, name: str) -> str | None:
    return outcome(case, name).wrong


def outcome(case: Case, name: str, *, interpret: bool = False) -> Outcome:
    """Compares codes with the definition, and the product with float64 for the same codes.

    Args:
        case: what is computed.
        name: in `fused.OPERATOR`; with "xla" tokens are quantized in plain JAX.
        interpret: run the code of kernels on any device, slowly.
    """
    rng = np.random.default_rng(0)
    dtype = jnp.dtype(case.dtype)
    size = np.exp2(rng.uniform(-6, 6, (case.rows, 1)))
    x = jnp.asarray(
        rng.standard_normal((case.rows, case.inputs)) * size,
        jnp.float32 if case.before == "norm" else dtype,
    )
    scale, bias = (jnp.asarray(rng.normal(loc, 0.1, case.inputs), dtype) for loc in (1, 0))
    before: Before = {
        "norm": Norm(scale, bias, 1e-5, dtype), "gelu": Gelu(dtype), "nothing": None
    }[case.before]  # fmt: skip
    w = jnp.asarray(rng.standard_normal((case.outputs, case.inputs)) * 0.02, jnp.float32)
    codes, weight_scale = jax.jit(quantize)(w)
    offset = jnp.asarray(rng.standard_normal(case.outputs) * 0.1, dtype)

    @jax.jit
    def plain(x: jax.Array) -> Quantized:
        codes, scale = quantize(_layer(x, before))
        return Quantized(codes, scale[:, 0], x.shape, dtype)

    @jax.jit
    def both(x, w, weight_scale, offset):
        tokens = plain(x) if name == "xla" else quantize_before(x, before, interpret=interpret)
        settings = {"implementation": name, "interpret": interpret}
        return tokens, linear(tokens, w, weight_scale, offset, **settings)

    wanted = plain(x)
    runs = [both(x, codes, weight_scale[:, 0], offset) for _ in range(2)]
    same = all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(*map(jax.tree.leaves, runs), strict=True)
    )
    tokens, y = runs[0]
    got, got_scale = (np.asarray(a)[: case.rows] for a in (tokens.codes, tokens.scale))
    other = np.mean(got.view(np.uint8) != np.asarray(wanted.codes).view(np.uint8))
    values = got.astype(np.float64) * got_scale[:, None].astype(np.float64)
    source = np.asarray(x, np.float64)
    if case.before == "norm":
        source = norm_reference(source, scale, bias, 1e-5)
    elif case.before == "gelu":
        source = gelu_reference(source)
    allowed = HALF_STEP * np.abs(source) + got_scale[:, None] * 2.0**-10
    of_codes = (np.abs(values - source) / allowed).max()
    # A part of the rows is enough for float64 on a CPU: the first, the last, and some between.
    some = np.unique(np.linspace(0, case.rows - 1, min(case.rows, 300)).astype(int))
    w64 = np.asarray(codes, np.float64) * np.asarray(weight_scale, np.float64)
    shift = np.asarray(offset, np.float64)
    exact = values[some] @ w64.T + shift
    added = np.abs(values[some]) @ np.abs(w64).T + np.abs(shift)
    rounding = float(jnp.finfo(dtype).eps) * (np.abs(exact) + np.abs(exact - shift))
    error = np.abs(np.asarray(y[: case.rows], np.float64)[some] - exact)
    of_product = (np.maximum(error - rounding, 0) / added).max()
    return Outcome(float(other), float(of_codes), float(of_product), same)


def _layer(x: jax.Array, before: Before) -> jax.Array:
    """Computes the operation before the product in float32, as the model's own layers do."""
    x = x.astype(jnp.float32)
    if isinstance(before, Gelu):
        return jax.nn.gelu(x, approximate=False)
    if before is None:
        return x
    assert before.scale is not None and before.bias is not None
    x = x - x.mean(-1, keepdims=True)
    y = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + before.eps)
    return y * before.scale.astype(jnp.float32) + before.bias.astype(jnp.float32)
