"""Linear layers with weights stored as float8, and the norm or GELU before them."""

import math
from dataclasses import replace
from typing import Any

import jax
from flax import nnx

from lite3r_jax.kernels.fp8.api import fp8_linear
from lite3r_jax.kernels.fp8.fused import OPERATOR, Product, linear, quantize_before
from lite3r_jax.kernels.fp8.quantized import Before, Gelu, Norm, Quantized
from lite3r_jax.kernels.fp8.reference import FormatName, ScaleName, WeightFormat
from lite3r_jax.layers.gelu import exact_gelu


class StoredWeight(nnx.Variable):
    """Codes or scales of quantized weights: state that is never trained."""


class Fp8Linear(nnx.Module):
    """A Linear with weights as codes [..., N, K] and float32 scales [..., N] or [..., 1].

    Codes are float8 or int8. Leading axes are those of stacked layers.
    `kernels.fp8.api.fp8_linear` is what it computes; `kernels.fp8.fused` computes it in other ways.
    """

    def __init__(
        self,
        codes: Any,
        scale: Any,
        like: nnx.Linear,
        *,
        weights: WeightFormat,
        activations: FormatName | None,
        gradients: FormatName | None,
        granularity: ScaleName,
        implementation: str,
    ):
        """Creates the layer in the place of a Linear.

        Args:
            codes: float8 or int8 [..., N, K], or their shape and dtype.
            scale: float32 [..., N] or [..., 1], likewise.
            like: the Linear whose bias and dtypes it takes over.
            weights: format of the codes.
            activations: format of what comes in, or None.
            gradients: format of what comes back, or None.
            granularity: "row" or "tensor", of all scales.
            implementation: a name in `kernels.fp8.fused.OPERATOR`, or "auto".
        """
        OPERATOR.check_name(implementation)
        self.weight = StoredWeight(codes)
        self.weight_scale = StoredWeight(scale)
        self.bias = like.bias
        self.dtype = like.dtype
        self.precision = like.precision
        self.weights: WeightFormat = weights
        self.activations: FormatName | None = activations
        self.gradients: FormatName | None = gradients
        self.granularity: ScaleName = granularity
        self.implementation = implementation
        # Kernels as plain JAX on any device, for tests.
        self.interpret = False

    @property
    def joins_tokens(self) -> bool:
        """Whether tokens share a scale, and so have to be quantized together."""
        return self.granularity == "tensor" and (self.activations or self.gradients) is not None

    def choose(self, rows: int, dtype: Any) -> str:
        """Returns the implementation for `rows` tokens, on the device that is computed on.

        Raises:
            ValueError: the one that was asked for by name cannot run it.
        """
        outputs, inputs = self.weight.shape[-2:]
        if self.interpret:
            return self.implementation
        formats: Any = (self.weights, self.activations, self.granularity)
        product = Product(rows, inputs, outputs, dtype, *formats)
        return OPERATOR.choose(self.implementation, product)

    def quantized(self, x: jax.Array, before: Before = None) -> Quantized | None:
        """Returns before(x) quantized for `__call__`, or None where quantizing is left to XLA.

        Args:
            x: [..., K] float32 or bfloat16.
            before: what is done to x first.
        """
        dtype = x.dtype if before is None else before.dtype
        if self.dtype not in (None, dtype):
            return None
        if self.choose(math.prod(x.shape[:-1]), dtype) == "xla":
            return None
        return quantize_before(x, before, interpret=self.interpret)

    def product(self, x: Quantized) -> jax.Array:
        """Multiplies quantized tokens by the weights: [P, N], see `kernels.fp8.fused.linear`."""
        return linear(
            x,
            self.weight[...],
            self.weight_scale[...],
            None if self.bias is None else self.bias[...],
            implementation=self.choose(x.rows, x.dtype),
            interpret=self.interpret,
        )

    def __call__(self, x: jax.Array | Quantized) -> jax.Array:
        """Applies the layer to tokens, [..., K] -> [..., N] in the compute dtype."""
        if not isinstance(x, Quantized):
            x = x if self.dtype is None else x.astype(self.dtype)
            codes = self.quantized(x)
            if codes is None:
                return self._by_xla(x)
            x = codes
        # What comes next reads the tokens alone without a copy, unless it is a kernel.
        return self.product(x)[: x.rows].reshape(*x.shape[:-1], -1)

    def _by_xla(self, x: jax.Array) -> jax.Array:
        y = fp8_linear(
            x,
            self.weight[...],
            self.weight_scale[...],
            activations=self.activations,
            gradients=self.gradients,
            scale=self.granularity,
            precision=self.precision,
        )
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


def normed(norm: nnx.LayerNorm, x: jax.Array, to: Any) -> Quantized | None:
    """Returns norm(x) quantized for the Linear `to`, or None where `to` takes an array."""
    if not isinstance(to, Fp8Linear):
        return None
    scale, bias = (None if p is None else p[...] for p in (norm.scale, norm.bias))
    return to.quantized(x, Norm(scale, bias, norm.epsilon, norm.dtype))


def gelu_between(first: Any, x: jax.Array | Quantized, second: Any) -> jax.Array | Quantized:
    """Returns the exact GELU of first(x), quantized if Linear `second` takes quantized tokens."""
    shape = x.shape[:-1]
    # With the rows behind the tokens: a kernel could not read a part without a copy.
    h = first.product(x) if isinstance(x, Quantized) else first(x)
    if isinstance(second, Fp8Linear):
        codes = second.quantized(h, Gelu(h.dtype))
        if codes is not None:
            return replace(codes, shape=(*shape, h.shape[-1]))
    h = h[: math.prod(shape)].reshape(*shape, -1) if isinstance(x, Quantized) else h
    return exact_gelu(h)


def products(model: nnx.Module, tokens: int) -> dict[str, str]:
    """Returns how every Linear with float8 weights runs here for `tokens` tokens, for reports.

    Args:
        model: result of `precision.deploy`, which may be abstract.
        tokens: number of tokens that a Linear gets in one call.

    Returns:
        Path -> name in `kernels.fp8.fused.OPERATOR`.
    """
    return {path: m.choose(tokens, m.dtype) for path, m in _deployed(model).items()}


def describe_products(model: nnx.Module, tokens: int = 1024) -> str:
    """Summarizes `products` in text, stacked layers counted one by one; "" if there are none."""
    deployed, chosen = _deployed(model), products(model, tokens)
    counts = dict.fromkeys(sorted(set(chosen.values())), 0)
    for path, name in chosen.items():
        counts[name] += math.prod(deployed[path].weight.shape[:-2])
    return ", ".join(f"{name} x {count}" for name, count in counts.items())


def _deployed(model: nnx.Module) -> dict[str, Fp8Linear]:
    linears = {
        "/".join(map(str, path)): module
        for path, module in nnx.iter_modules(model)
        if isinstance(module, Fp8Linear)
    }
    return dict(sorted(linears.items()))
