"""Training batches: their arrays, the record of their samples, and how they are made."""

from dataclasses import dataclass

import numpy as np

from lite3r_jax.data.augment import augment
from lite3r_jax.data.pipeline.options import Bucket
from lite3r_jax.data.pipeline.schedule import ATTEMPTS, Draw, Schedule
from lite3r_jax.data.transforms import normalize
from lite3r_jax.data.views import Sample, Views
from lite3r_jax.errors import InputError


@dataclass(frozen=True)
class SampleId:
    """Identity of the sample in one row of a batch, for messages and records.

    Attributes:
        index: number of the sample in the run, over all processes.
        epoch: how often all scenes of its dataset came before.
        dataset: see `data.views.Sample`, and so are `scene` and `frames`.
        scene: likewise.
        frames: likewise.
    """

    index: int
    epoch: int
    dataset: str
    scene: str
    frames: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.dataset} {self.scene} frames {' '.join(self.frames)}"


@dataclass(frozen=True)
class Record:
    """Metadata of a batch that never goes to a device: its step, samples and faults.

    Attributes:
        step: number of the batch.
        samples: one for each row.
        faults: of the data, met while the batch was made; each a message that names the file.
    """

    step: int
    samples: tuple[SampleId, ...]
    faults: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Batch:
    """A training batch: this process's rows of a step, B scenes with S views each.

    Conventions are those of `Sample`. Without ground truth (see `PipelineOptions`) there are images
    alone, and the other arrays are None.

    Attributes:
        record: number of the step, names of the samples, faults.
        images: float32 [B, S, H, W, 3], RGB in [0, 1].
        extrinsics: float32 [B, S, 3, 4] world-to-camera.
        intrinsics: float32 [B, S, 3, 3] in pixels.
        depth: float32 [B, S, H, W], 0 where there is none, which is everywhere in samples of
            datasets without depth.
        mask: bool [B, S, H, W], depth > 0.
    """

    record: Record
    images: np.ndarray
    extrinsics: np.ndarray | None = None
    intrinsics: np.ndarray | None = None
    depth: np.ndarray | None = None
    mask: np.ndarray | None = None

    @property
    def step(self) -> int:
        """Number of the batch."""
        return self.record.step

    @property
    def samples(self) -> tuple[SampleId, ...]:
        """Identities of the samples, one for each row."""
        return self.record.samples

    @property
    def faults(self) -> tuple[str, ...]:
        """Messages of the faults of the data that were met while the batch was made."""
        return self.record.faults

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays that go to devices by name, without those that are None."""
        names = ("images", "extrinsics", "intrinsics", "depth", "mask")
        arrays = {name: getattr(self, name) for name in names}
        return {name: array for name, array in arrays.items() if array is not None}


class BatchMaker:
    """Callable that makes any batch of a process from its step; can be sent to worker processes."""

    def __init__(self, schedule: Schedule, process_index: int, process_count: int):
        """Stores the schedule and which share of each step's rows this process makes.

        Args:
            schedule: what is in a step.
            process_index: 0 to `process_count` - 1.
            process_count: how many processes share each step.

        Raises:
            InputError: a process index out of range; a batch that cannot be divided evenly.
        """
        if not 0 <= process_index < process_count:
            raise InputError(
                f"process_index: expected 0 to {process_count - 1}, got {process_index}"
            )
        for bucket in schedule.options.buckets:
            if bucket.batch % process_count:
                raise InputError(
                    f"buckets: a batch of {bucket.batch} cannot be divided among {process_count}"
                    " processes; choose a multiple"
                )
        self.schedule = schedule
        self.process_index, self.process_count = process_index, process_count

    def rows(self, step: int) -> tuple[Bucket, range]:
        """Returns the bucket of a step, and the numbers of the samples this process has in it."""
        bucket, first = self.schedule.at(step)
        count = bucket.batch // self.process_count
        first += self.process_index * count
        return bucket, range(first, first + count)

    def __call__(self, step: int) -> Batch:
        """Reads, decodes and augments the batch of one step.

        Raises:
            InputError: a sample for which all draws are faulty.
        """
        bucket, rows = self.rows(step)
        maps = (len(rows), bucket.views, *bucket.size)
        arrays = {"images": np.empty((*maps, 3), np.float32)}
        if self.schedule.options.has_ground_truth:
            arrays |= {
                "extrinsics": np.empty((*maps[:2], 3, 4), np.float32),
                "intrinsics": np.empty((*maps[:2], 3, 3), np.float32),
                "depth": np.zeros(maps, np.float32),
                "mask": np.zeros(maps, np.bool_),
            }
        ids: list[SampleId] = []
        faults: list[str] = []
        for row, index in enumerate(rows):
            draw, sample = self._first_sound(index, bucket, faults)
            for name, array in arrays.items():
                if (values := getattr(sample, name)) is not None:
                    array[row] = values
            ids.append(SampleId(index, draw.epoch, sample.dataset, sample.scene, sample.frames))
        return Batch(Record(step, tuple(ids), tuple(faults)), **arrays)

    def _first_sound(self, index: int, bucket: Bucket, faults: list[str]) -> tuple[Draw, Views]:
        """Returns a sample's first draw that can be read; appends earlier faults to `faults`."""
        met = []
        for draw in self.schedule.draws(index):
            try:
                return draw, self._sample(draw, bucket)
            except InputError as error:
                met.append(str(error))
                faults.append(str(error))
        raise InputError(
            f"sample {index}: {ATTEMPTS} draws from {len(draw.part.source.scenes)} scenes were all"
            f" faulty: {'; '.join(dict.fromkeys(met))}"
        )

    def _sample(self, draw: Draw, bucket: Bucket) -> Views:
        options = self.schedule.options
        frames = self.schedule.frames(draw, bucket.views)
        read_size = options.augmentation.read_size(bucket.size)
        sample = draw.part.source.read(draw.scene, frames, read_size)
        if sample.size != read_size:
            raise ValueError(f"{sample.name}: gave views of {sample.size}, {read_size} are needed")
        sample = augment(sample, options.augmentation, self.schedule.uniform(draw), bucket.size)
        if not options.has_ground_truth:
            return sample
        if not isinstance(sample, Sample):
            raise ValueError(
                f"{sample.name}: has no cameras; make batches with has_ground_truth=False"
            )
        return normalize(sample, options.normalization) if options.normalization else sample
