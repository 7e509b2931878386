"""The training engine: pure step, sharding, checkpoints, loop. Losses are arguments of it."""
