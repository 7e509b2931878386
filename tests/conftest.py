"""Settings of the whole suite."""

import jax

# Parity gates are set for full float32 products; GPUs would take TF32.
jax.config.update("jax_default_matmul_precision", "highest")
