"""Reconstruction of scenes from photos: memory plan, forward pass and run report."""
