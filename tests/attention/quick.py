"""Functions that are compiled for one call."""

import functools

import jax

jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)
"""`jax.jit` with little optimization: in less time, with numbers that differ in the last bits."""
