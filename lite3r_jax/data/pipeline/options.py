"""What batches are made of: shapes, datasets, changes, workers."""

import re
from dataclasses import dataclass, field
from typing import get_args

from lite3r_jax.data.augment import Augmentation
from lite3r_jax.data.sampling import MAX_VIEWS, MIN_VIEWS, Strategy
from lite3r_jax.data.transforms import Normalization
from lite3r_jax.data.views import ViewSource
from lite3r_jax.errors import InputError

_MAX_SHARES = 10_000  # of all kinds together; a cycle of so many is laid out at once


@dataclass(frozen=True)
class Bucket:
    """One fixed shape of batches, and so one compilation of the training step.

    Attributes:
        batch: scenes of a step, over all processes.
        views: of each scene, 2 to 24.
        height: in pixels.
        width: in pixels.
        share: how many of sum(share) steps have this shape.
    """

    batch: int
    views: int
    height: int
    width: int
    share: int = 1

    def __post_init__(self):
        _at_least(1, batch=self.batch, height=self.height, width=self.width, share=self.share)
        if not MIN_VIEWS <= self.views <= MAX_VIEWS:
            raise InputError(f"views: expected {MIN_VIEWS} to {MAX_VIEWS}, got {self.views}")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width


def parse_buckets(text: str) -> tuple[Bucket, ...]:
    """Buckets as settings write them: "8x2x518x518, 4x4x392x518*2".

    Args:
        text: batch x views x height x width, and * share where it is not 1; commas between buckets.

    Raises:
        InputError: naming what is no bucket.
    """
    buckets = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)x(\d+)x(\d+)x(\d+)(?:\*(\d+))?", part.strip(), re.ASCII)
        if match is None:
            raise InputError(
                "buckets: expected BATCHxVIEWSxHEIGHTxWIDTH, such as 8x2x518x518, perhaps with"
                f" *SHARE behind it, and commas between several; got {part.strip()!r}"
            )
        buckets.append(Bucket(*(int(number or 1) for number in match.groups())))
    return tuple(buckets)


@dataclass(frozen=True, eq=False)
class Part:
    """One dataset of a mixture.

    Attributes:
        source: its scenes.
        share: how many of sum(share) samples come from it.
        strategy: how the frames of a sample are chosen, see `data.sampling.choose_frames`.
    """

    source: ViewSource
    share: int = 1
    strategy: Strategy = "random"

    def __post_init__(self):
        _at_least(1, share=self.share)
        if self.strategy not in get_args(Strategy):
            raise InputError(
                f"strategy: expected one of {', '.join(get_args(Strategy))}, got {self.strategy!r}"
            )


@dataclass(frozen=True)
class PipelineOptions:
    """How batches are made.

    Attributes:
        buckets: shapes; in each cycle of sum(share) steps every bucket comes just its share of
            times, in random order.
        seed: of everything that is random here.
        augmentation: random changes; the default changes nothing.
        normalization: see `data.transforms.normalize`; None leaves the unit of the dataset.
        truth: whether batches have cameras and depth. False: images alone, which is all that
            sources without cameras have.
        workers: processes that read, decode and augment; 0 does it in this one. Their batches come
            through shared memory (/dev/shm), of which containers may have little. A program that
            uses them needs `if __name__ == "__main__":`.
        prefetch: batches that are made ahead, by each worker; without workers by one thread. Up to
            twice as many wait in memory. 0, without workers only, makes batches when they are asked
            for, and needs no grain.
        fault_limit: how many different faults of the data are reported and passed over; one more
            stops the run.
    """

    buckets: tuple[Bucket, ...]
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)
    normalization: Normalization | None = None
    truth: bool = True
    workers: int = 0
    prefetch: int = 2
    fault_limit: int = 10

    def __post_init__(self):
        if not self.buckets:
            raise InputError("buckets: got none; at least one shape of batches is needed")
        check_shares("buckets", [bucket.share for bucket in self.buckets])
        if self.normalization not in (None, *get_args(Normalization)):
            raise InputError(
                f"normalization: expected {', '.join(get_args(Normalization))} or None, got"
                f" {self.normalization!r}"
            )
        if self.normalization and not self.truth:
            raise InputError(
                f"normalization: {self.normalization} needs cameras, which batches without truth do"
                " not have; set it to None"
            )
        _at_least(0, seed=self.seed, workers=self.workers, fault_limit=self.fault_limit)
        _at_least(1 if self.workers else 0, prefetch=self.prefetch)


def check_shares(name: str, shares: list[int]) -> None:
    """Refuse shares that are too fine.

    Raises:
        InputError: they sum to more than 10,000.
    """
    if sum(shares) > _MAX_SHARES:
        raise InputError(
            f"{name}: expected shares of {_MAX_SHARES} together at most, got {sum(shares)}; divide"
            " them by a common factor"
        )


def _at_least(low: int, **fields: int) -> None:
    for name, value in fields.items():
        if type(value) is not int or value < low:
            raise InputError(f"{name}: expected an integer of at least {low}, got {value!r}")
