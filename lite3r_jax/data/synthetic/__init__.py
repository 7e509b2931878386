"""A generated world: textured rooms with cameras in them and exact ground truth."""
