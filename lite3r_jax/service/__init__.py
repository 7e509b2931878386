"""A reconstruction service: web page, JSON API, uploads, a queue of scenes, results on disk."""

from lite3r_jax.service.options import ServeOptions

__all__ = ["ServeOptions"]
