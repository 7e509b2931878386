"""Options of the pipeline of training data: shapes, datasets, augmentation and workers."""

import re
from dataclasses import dataclass, field
from typing import get_args

from lite3r_jax.data.augment import Augmentation
from lite3r_jax.data.sampling import MAX_VIEWS, MIN_VIEWS, Strategy
from lite3r_jax.data.transforms import Normalization
from lite3r_jax.data.views import RenewableSource, ViewSource
from lite3r_jax.errors import InputError

_MAX_BATCH, _MAX_SIDE = 1 << 16, 1 << 14
_NUMBER = r"(\d{1,9})"
_BUCKET = rf"{_NUMBER}x{_NUMBER}x{_NUMBER}x{_NUMBER}(?:\*{_NUMBER})?"
_MAX_WEIGHTS = 10_000  # of all kinds together; a cycle of so many is laid out at once


@dataclass(frozen=True)
class Bucket:
    """One fixed shape of batches, and so one compilation of the training step.

    Attributes:
        batch: scenes of a step, over all processes.
        views: of each scene, 2 to 24.
        height: in pixels.
        width: in pixels.
        weight: how many of sum(weight) steps have this shape.
    """

    batch: int
    views: int
    height: int
    width: int
    weight: int = 1

    def __post_init__(self):
        _at_least(1, batch=self.batch, height=self.height, width=self.width, weight=self.weight)
        for name, most in (("batch", _MAX_BATCH), ("height", _MAX_SIDE), ("width", _MAX_SIDE)):
            if getattr(self, name) > most:
                raise InputError(f"{name}: expected at most {most}, got {getattr(self, name)}")
        if not MIN_VIEWS <= self.views <= MAX_VIEWS:
            raise InputError(f"views: expected {MIN_VIEWS} to {MAX_VIEWS}, got {self.views}")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images in pixels."""
        return self.height, self.width


def parse_buckets(text: str) -> tuple[Bucket, ...]:
    """Parses buckets as settings write them: "8x2x518x518, 4x4x392x518*2".

    Args:
        text: batch x views x height x width, and * weight where it is not 1; commas between
            buckets.

    Raises:
        InputError: naming what is no bucket.
    """
    buckets = []
    for part in text.split(","):
        match = re.fullmatch(_BUCKET, part.strip(), re.ASCII)
        if match is None:
            raise InputError(
                "buckets: expected BATCHxVIEWSxHEIGHTxWIDTH, such as 8x2x518x518, perhaps with"
                f" *WEIGHT behind it, and commas between several; got {part.strip()!r}"
            )
        buckets.append(Bucket(*(int(number or 1) for number in match.groups())))
    return tuple(buckets)


@dataclass(frozen=True, eq=False)
class Part:
    """One dataset of a training mixture, with its weight and its choice of frames.

    Attributes:
        source: its scenes.
        weight: how many of sum(weight) samples come from it.
        strategy: how the frames of a sample are chosen, see `data.sampling.choose_frames`.
        renew: after so many epochs scenes are replaced by `source.renewed`; 0 for never.
    """

    source: ViewSource
    weight: int = 1
    strategy: Strategy = "random"
    renew: int = 0

    def __post_init__(self):
        _at_least(1, weight=self.weight)
        _at_least(0, renew=self.renew)
        if self.renew and not isinstance(self.source, RenewableSource):
            raise InputError(
                f"renew: {type(self.source).__name__} has the scenes that it has; set it to 0"
            )
        if self.strategy not in get_args(Strategy):
            raise InputError(
                f"strategy: expected one of {', '.join(get_args(Strategy))}, got {self.strategy!r}"
            )


@dataclass(frozen=True)
class PipelineOptions:
    """Options of the pipeline of training data: what batches contain and how they are made.

    Attributes:
        buckets: shapes; in each cycle of sum(weight) steps every bucket comes just its share of
            times, in random order.
        seed: of everything that is random here.
        augmentation: random changes; the default changes nothing.
        normalization: see `data.transforms.normalize`; None leaves the unit of the dataset.
        has_ground_truth: whether batches have cameras and depth. False: images alone, which is all
            that sources without cameras have.
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
    has_ground_truth: bool = True
    workers: int = 0
    prefetch: int = 2
    fault_limit: int = 10

    def __post_init__(self):
        if not self.buckets:
            raise InputError("buckets: got none; at least one shape of batches is needed")
        check_weights("buckets", [bucket.weight for bucket in self.buckets])
        if self.normalization not in (None, *get_args(Normalization)):
            raise InputError(
                f"normalization: expected {', '.join(get_args(Normalization))} or None, got"
                f" {self.normalization!r}"
            )
        if self.normalization and not self.has_ground_truth:
            raise InputError(
                f"normalization: {self.normalization} needs cameras, which batches without truth do"
                " not have; set it to None"
            )
        _at_least(0, seed=self.seed, workers=self.workers, fault_limit=self.fault_limit)
        _at_least(1 if self.workers else 0, prefetch=self.prefetch)


def check_weights(name: str, weights: list[int]) -> None:
    """Refuses weights of a mixture that sum to more than 10,000.

    Raises:
        InputError: they sum to more than 10,000.
    """
    if sum(weights) > _MAX_WEIGHTS:
        raise InputError(
            f"{name}: expected weights of {_MAX_WEIGHTS} together at most, got {sum(weights)};"
            " divide them by a common factor"
        )


def _at_least(low: int, **fields: int) -> None:
    for name, value in fields.items():
        if type(value) is not int or value < low:
            raise InputError(f"{name}: expected an integer of at least {low}, got {value!r}")
