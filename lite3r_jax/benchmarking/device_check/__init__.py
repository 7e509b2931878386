"""Checks the kernels of this package on a GPU and measures everything on it, in one command."""
