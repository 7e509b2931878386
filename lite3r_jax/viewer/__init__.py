"""A live viewer of one scene in the browser (viser, optional extra `viewer`)."""

from lite3r_jax.viewer.server import Viewer, ViewerOptions, serve

__all__ = ["Viewer", "ViewerOptions", "serve"]
