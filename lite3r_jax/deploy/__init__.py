"""Models to run and not to train: float8 weights in a directory, and programs without the code.

`checkpoint` writes and reads the directory, `manifest` says what is in one, `program` makes the
serialized forward pass that lies in it where it was asked for.
"""
