"""Attention of image windows to the windows chosen for each, and to tokens that all queries see."""
