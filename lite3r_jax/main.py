"""The command line: python -m lite3r_jax.main --config=configs/vggt.py --mode=reconstruct ..."""

from collections.abc import Sequence

from lite3r_jax.allocator import share_one_heap
from lite3r_jax.interrupts import ended_at_once, run_as_process


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the flags and run one mode; see `lite3r_jax.cli.by_config`.

    Args:
        arguments: without the program's name; None for those of the process.

    Returns:
        Exit code: 0; 1 if some scenes failed; 2 for bad input; 3 if training diverged; 75 if it was
        terminated in its steps with everything saved; 130 when interrupted, of a training with
        everything saved; 143 when terminated otherwise.
    """
    from lite3r_jax.cli import by_config

    return by_config.main(arguments)


if __name__ == "__main__":
    share_one_heap()  # before NumPy is imported
    with ended_at_once():
        from lite3r_jax.cli import by_config
    run_as_process(by_config.main)
