"""Weights: PyTorch checkpoints in, converted directories out, models loaded from them.

`name_map` is the language of the maps, `vggt_map` the one for VGGT, `convert` and `export` the two
directions, `load` the way into a model. Torch is not needed here; `tools/convert_torch_weights`
adds the reading of `.pt` files.
"""
