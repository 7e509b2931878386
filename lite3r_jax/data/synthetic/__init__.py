"""Synthetic dataset: generated textured rooms with cameras in them and exact ground truth."""
