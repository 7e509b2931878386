"""Softmax attention over all keys: definition, plain JAX in bounded memory, cuDNN."""
