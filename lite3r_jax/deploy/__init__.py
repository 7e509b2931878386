"""Deployed models, to run and not to train: float8 weights and serialized forward passes.

`checkpoint` writes and reads the directory of a deployed model, `manifest` says what is in the
directory, and `program` makes the serialized forward passes in it, which run without this package.
"""
