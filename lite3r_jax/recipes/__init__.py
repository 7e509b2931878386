"""Recipes: the settings of runs by name, one module each with a `get_config(variant)`.

`configs/` of a clone is this folder: `--recipe vggt:tiny` and `--config=configs/vggt.py:tiny` are
the same settings.
"""
