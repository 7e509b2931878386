"""`python -m tools.convert_torch_weights`: PyTorch checkpoints to weights for JAX and back."""
