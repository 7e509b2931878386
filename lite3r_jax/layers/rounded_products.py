"""Products of Linears with operands rounded to bfloat16 and sums in float32, and their gradients.

What tensor cores, TPUs and the AMX units of CPUs multiply several times as fast as float32.
Activations, norms, residual sums and weights stay float32, as in mixed precision training
(Micikevicius et al., arXiv 1710.03740); bfloat16 has the range of float32, so losses are not
scaled. XLA has the same as `jax.lax.DotAlgorithmPreset.BF16_BF16_F32`, which it ignores on a CPU.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_ACTIVE = ContextVar("rounded_products", default=False)


@contextlib.contextmanager
def rounded_products(active: bool = True) -> Iterator[None]:
    """Context in which Linears of blocks are traced with bfloat16 operands, gradients included."""
    token = _ACTIVE.set(active)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def active() -> bool:
    """Returns whether a Linear that is traced now rounds its operands."""
    return _ACTIVE.get()


def _dot(x: jax.Array, y: jax.Array, of_x: Any, of_y: Any) -> jax.Array:
    return lax.dot_general(x, y, ((of_x, of_y), ((), ())), preferred_element_type=jnp.float32)


def _value(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    operands = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    return _dot(*operands, (x.ndim - 1,), (0,)), operands


def _over_rows(x: jax.Array, y: jax.Array, turn: bool = False) -> jax.Array:
    """Computes x^T y of [N, C] and [N, F]: [C, F], or [F, C] with `turn`; fast for C below F.

    XLA multiplies in bfloat16 on a CPU where the last axis of x meets the first of y, and moves
    transposes into the product where no barrier is in their way.
    """
    sums = _dot(lax.optimization_barrier(x.T), y, (1,), (0,))
    return lax.optimization_barrier(sums).T if turn else sums


def _gradients(kept: Any, g: jax.Array, *, on_cpu: bool) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    g = g.astype(jnp.bfloat16)
    if on_cpu:
        to_kernel = _over_rows(x, g) if x.shape[1] <= g.shape[1] else _over_rows(g, x, turn=True)
        return _dot(g, kernel, (1,), (1,)), to_kernel
    rows = tuple(range(x.ndim - 1))
    return _dot(g, kernel, (g.ndim - 1,), (1,)), _dot(x, g, rows, rows)


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies float32 x [..., C] and kernel [C, F], rounded to bfloat16, to float32 [..., F]."""
    return _value(x, kernel)[0]


product.defvjp(_value, partial(_gradients, on_cpu=False))


@jax.custom_vjp
def product_on_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes `product` of x [N, C] and kernel [C, F], to [N, F], in the form for a CPU.

    Its gradients are fast only where barriers stay, see `cpu_gradients.computed_once`.
    """
    return _value(x, kernel)[0]


product_on_cpu.defvjp(_value, partial(_gradients, on_cpu=True))
