"""Attention of windows of an image to the windows that they chose, and to tokens that all see."""
