"""Launch parameters of a Triton kernel on a GPU; importing this needs no kernel compiler."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """Launch parameters of one GPU kernel.

    Attributes:
        warps: warps of 32 threads per program.
        stages: depth of the software pipeline of its loop.
    """

    warps: int
    stages: int
