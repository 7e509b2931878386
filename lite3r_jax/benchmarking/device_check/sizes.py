"""Sizes at which `lite3r device-check` measures: those of use, and small ones for a rehearsal."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Sizes of the scenes and models that the device check measures.

    Attributes:
        views: of scenes, in the order in which they are measured.
        grid: rows and columns of patches of a view; the image has 14 times as many pixels.
        keep: fractions of key blocks that sparse attention keeps.
        small: whether models are small ones, with weights of the same kind.
        platform: of the device, "gpu" or "tpu", whose kernels are measured; "cpu" for a rehearsal,
            which has the rows of a GPU.
    """

    views: tuple[int, ...]
    grid: tuple[int, int]
    keep: tuple[float, ...]
    small: bool
    platform: str = "cpu"

    def measures(self, implementation: str) -> bool:
        """Returns whether an implementation has rows: no reference, no other device's kernels."""
        gpu = "triton", "jax_triton", "mosaic"
        kernels = gpu if self.platform == "tpu" else ("tpu",)
        return implementation not in ("reference", *kernels)


REAL = Sizes((8, 32, 2, 100), (37, 37), (0.1, 0.3), False)
REHEARSAL = Sizes((2,), (3, 4), (0.5,), True)
