"""A web page and a JSON API to reconstruct with: uploads, a queue, results on disk."""

from lite3r_jax.service.options import ServeOptions

__all__ = ["ServeOptions"]
