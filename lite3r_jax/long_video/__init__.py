"""Videos of any length: overlapping chunks through a model, joined into one reconstruction."""
