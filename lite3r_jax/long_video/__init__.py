"""Reconstruction of videos of any length: overlapping chunks are predicted and joined."""
