"""The training engine: pure step, sharding, checkpoints and loop; losses are its arguments."""
