"""How a GPU kernel through Pallas' Triton lowering is launched; importing this needs no kernel."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """Of one kernel.

    Attributes:
        warps: warps of 32 threads per program.
        stages: depth of the software pipeline of its loop.
    """

    warps: int
    stages: int
