"""Weights: PyTorch checkpoints in, converted directories out, models loaded from them.

Maps are in the language of `lite3r_jax.name_map`, each beside its backbone; `convert` and `export`
are the two directions, `load` the way into a model. Torch is not needed here;
`tools/convert_torch_weights` adds the reading of `.pt` files.
"""
