"""Converts PyTorch checkpoints to directories of weights, and loads models from these.

Maps of parameter names are written as rules of `lite3r_jax.name_map`, each beside its backbone.
`convert` goes from PyTorch to here, `export` back, and `load` makes a model. Torch is not needed;
`tools/convert_torch_weights` adds the reading of `.pt` files.
"""
