"""Operators: one folder each, with the definition, a plain JAX form and kernels for GPUs."""
