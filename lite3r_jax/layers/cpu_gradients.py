"""Gradients of convolutions, Linears and residual sums in forms that are fast on a CPU.

XLA computes the weight gradient of a convolution as a convolution whose window is the image, after
it has moved the batch into the channels, and that of a Linear with few outputs as a product that
uses a fraction of a vector. Both are most of a dense head's gradient on a CPU.
`conv_general_dilated` and `dot_general` take the place of JAX's functions in `nnx.Conv` and
`nnx.Linear`. On other devices, on a mesh of several and for other shapes they are JAX's functions,
but for products in bfloat16, see `layers.rounded_products`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lite3r_jax.kernels import target
from lite3r_jax.layers import rounded_products
from lite3r_jax.mesh import split_ways

KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}
"""Compiler options for a CPU with which `computed_once` has an effect in any version of jax."""
_PIXELS = 96 * 96
"""Least pixels of a map whose gradient is computed here; XLA's is as fast for smaller maps."""
_CHANNELS = 16
"""Most input channels of a map whose gradient is computed here; XLA's is as fast for more."""
_OUTPUTS = 4


def _on_cpu() -> bool:
    return target.device().platform == "cpu" and split_ways() == 1


def computed_once(x: jax.Array) -> jax.Array:
    """Returns x such that every use reads it instead of computing it again, on a CPU.

    The same holds for the gradient of x.

    XLA on a CPU fuses a sum into each of its uses. Of a residual stream, each use then computes the
    sums of all blocks before it (after it, for the gradient): a cost of the square of the depth.
    The XLA of jax 0.10 drops the barrier before it fuses, unless a program is compiled with
    `KEEP_BARRIERS`; that of jax 0.11 keeps it.
    """
    return lax.optimization_barrier(x) if _on_cpu() else x


def conv_general_dilated(x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    """Computes `lax.conv_general_dilated` for `nnx.Conv`, with a fast gradient on a CPU.

    Args:
        x: [B, h, w, C].
        kernel: [3, 3, C, F], or any other, which is left to JAX.
        *args: strides and padding, then what JAX's function takes.
        **kwargs: likewise.

    Returns:
        [B, h', w', F].
    """
    strides, padding = args[:2]
    wide = x.shape[1] * x.shape[2] >= _PIXELS and x.shape[-1] <= _CHANNELS
    plain = tuple(strides) == (1, 1) and tuple(padding) == ((1, 1), (1, 1))
    if not (_on_cpu() and wide and plain and kernel.shape == (3, 3, x.shape[-1], kernel.shape[-1])):
        return lax.conv_general_dilated(x, kernel, *args, **kwargs)
    return _conv3x3(x, kernel)


def _plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@jax.custom_vjp
def _conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _plain(x, kernel)


def _conv_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    return _plain(x, kernel), (x, kernel)


def _conv_backward(kept: Any, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes the gradients of a 3x3 convolution for its input and its kernel.

    That of the kernel comes from products of shifted inputs and gradients, image by image, three
    columns together.
    """
    x, kernel = kept
    _, h, w, c = x.shape
    (to_x,) = jax.vjp(lambda x: _plain(x, kernel), x)[1](g)

    def add(total: jax.Array, picture: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        one, slope = picture
        padded = jnp.pad(one, ((1, 1), (1, 1), (0, 0)))
        columns = jnp.concatenate([padded[:, j : j + w] for j in range(3)], -1)
        slope = slope.reshape(h * w, -1)
        rows = [columns[i : i + h].reshape(h * w, 3 * c).T for i in range(3)]
        parts = [jnp.dot(row, slope, preferred_element_type=jnp.float32) for row in rows]
        return total + jnp.stack(parts), None

    zero = jnp.zeros((3, 3 * c, kernel.shape[-1]), jnp.float32)
    total, _ = lax.scan(add, zero, (x, g))
    return to_x, total.reshape(kernel.shape).astype(kernel.dtype)


_conv3x3.defvjp(_conv_forward, _conv_backward)


def dot_general(x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    """Computes `lax.dot_general` for `nnx.Linear`, with a fast gradient on a CPU.

    Args:
        x: [..., C].
        kernel: [C, F].
        *args: dimensions, then what JAX's function takes.
        **kwargs: likewise.

    Returns:
        [..., F].
    """
    y_like = kwargs.get("preferred_element_type") in (None, x.dtype)
    plain = kernel.ndim == 2 and y_like and kwargs.get("precision") is None
    rounded = plain and x.dtype == jnp.float32 and rounded_products.active()
    if not (_on_cpu() and plain):
        if rounded:
            return rounded_products.product(x, kernel)
        return lax.dot_general(x, kernel, *args, **kwargs)
    flat = rounded_products.product_on_cpu if rounded else _flat
    y = flat(x.reshape(-1, x.shape[-1]), kernel)
    return y.reshape(*x.shape[:-1], kernel.shape[1])


@jax.custom_vjp
def _flat(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ kernel


def _flat_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    return x @ kernel, (x, kernel)


def _flat_backward(kept: Any, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    inputs, outputs = kernel.shape
    if outputs <= _OUTPUTS:
        slope = g.astype(jnp.float32)
        to_kernel = jnp.stack([(x * slope[:, i, None]).sum(0) for i in range(outputs)], 1)
    else:  # a product with few rows and many columns is the faster of the two
        to_kernel = x.T @ g if inputs <= outputs else (g.T @ x).T
    return g @ kernel.T, to_kernel.astype(kernel.dtype)


_flat.defvjp(_flat_forward, _flat_backward)
