"""`python -m lite3r_jax` is the program `lite3r`."""

from typing import NoReturn

from lite3r_jax.allocator import share_one_heap
from lite3r_jax.interrupts import ended_at_once


def program() -> NoReturn:
    """Run the program `lite3r` as a process, which Ctrl-C ends at once."""
    share_one_heap()  # before NumPy is imported
    with ended_at_once():
        from lite3r_jax.cli import lite3r
    lite3r.program()


if __name__ == "__main__":
    program()
