"""Checks all kernels on a GPU or TPU and measures everything on it, in one command."""
