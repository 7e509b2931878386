"""Depth Anything 3: views, with cameras or without, to depth and cameras (arXiv 2511.10647)."""

from lite3r_jax.backbones.da3.model import BACKBONE

__all__ = ["BACKBONE"]
