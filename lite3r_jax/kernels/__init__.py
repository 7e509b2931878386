"""Operators with several implementations each: definition, plain JAX, GPU and TPU kernels."""
