"""Computes from (seed, step) which scenes and frames a step reads, without files and state.

A step has a bucket and takes the next `batch` samples of the run; process p of n takes the p-th of
n equal parts of them. A sample has a number in the run, which gives its part of the mixture and how
many came from there before; that number gives epoch and place in the epoch, an order of all scenes
shuffled anew each time. Frames and augmentation have random numbers of their own, counted by the
number of the sample.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from lite3r_jax.data.pipeline.options import Bucket, Part, PipelineOptions, check_weights
from lite3r_jax.data.sampling import Uniform, choose_frames, scene_order, substream
from lite3r_jax.data.views import RenewableSource, Scores
from lite3r_jax.errors import InputError

ATTEMPTS = 64
"""Number of draws that are tried for one sample before the data counts as unusable."""

_BUCKETS, _PARTS, _FRAMES, _AUGMENTATION, _REPLACEMENTS, _SCENES = range(6)  # purposes of numbers


@dataclass(frozen=True)
class Draw:
    """One choice of a scene for a sample; a faulty one is followed by another attempt.

    Attributes:
        index: number of the sample in the run, over all processes.
        attempt: 0, or how many draws of this sample were faulty before this one.
        epoch: how often all scenes of the part came before.
        part: of the mixture.
        scene: of the part.
    """

    index: int
    attempt: int
    epoch: int
    part: Part
    scene: str


class Schedule:
    """The order in which buckets, datasets, scenes and frames come, for all steps of a run."""

    def __init__(self, parts: Sequence[Part], options: PipelineOptions):
        """Lists the frames of every scene and checks that there are enough for the buckets.

        Args:
            parts: the mixture of datasets.
            options: buckets, seed, augmentation and normalization count.

        Raises:
            InputError: no parts or scenes; a scene with a fault in its inventory or fewer frames
                than the largest bucket has views; a strategy that the first scene of a part does
                not allow.
        """
        if not parts:
            raise InputError("parts: got none; at least one dataset is needed")
        check_weights("parts", [part.weight for part in parts])
        self.parts, self.options = tuple(parts), options
        self._streams = [
            substream(options.seed, purpose) for purpose in range(_SCENES + len(parts))
        ]
        self._pairs: dict[tuple[int, str], Scores | None] = {}
        self.digest = self._check()

    def _check(self) -> str:
        """Checks each scene; returns the SHA-256 of everything that the order depends on."""
        views = max(bucket.views for bucket in self.options.buckets)
        said = [
            [asdict(bucket) for bucket in self.options.buckets],
            [self.options.seed, asdict(self.options.augmentation), self.options.normalization],
        ]
        digest = hashlib.sha256(json.dumps(said).encode())
        for part in self.parts:
            if not part.source.scenes:
                raise InputError(f"parts: {type(part.source).__name__} has no scenes")
            said = [part.weight, part.strategy, *([part.renew] if part.renew else [])]
            digest.update(json.dumps(said).encode())
            for scene in part.source.scenes:
                frames = part.source.frames(scene)
                if len(frames) < views:
                    raise InputError(
                        f"{_name(part, scene)}: has {len(frames)} frames, the buckets ask for"
                        f" {views} views; ask for fewer or leave the scene out"
                    )
                digest.update(json.dumps([scene, *frames]).encode())
            self.frames(Draw(0, 0, 0, part, part.source.scenes[0]), views)
        return digest.hexdigest()

    @property
    def samples_per_epoch(self) -> int:
        """Number of samples until every scene of every part came at least once.

        With a single part each scene comes exactly once.
        """
        cycle, counts = sum(part.weight for part in self.parts), []
        for part in self.parts:
            cycles, rest = divmod(len(part.source.scenes), part.weight)
            others = cycle - part.weight  # may come first in the last cycle
            counts.append(cycles * cycle + (others + rest if rest else 0))
        return max(counts)

    def at(self, step: int) -> tuple[Bucket, int]:
        """Returns the bucket of a step and the number of its first sample."""
        buckets = self.options.buckets
        weights = tuple(bucket.weight for bucket in buckets)
        kind, before = _mixed(weights, self._streams[_BUCKETS], step)
        first = sum(b.batch * count for b, count in zip(buckets, before, strict=True))
        return buckets[kind], first

    def views(self, step: int) -> int:
        """Returns the number of images in all steps before this one."""
        buckets = self.options.buckets
        weights = tuple(bucket.weight for bucket in buckets)
        _, before = _mixed(weights, self._streams[_BUCKETS], step)
        return sum(b.batch * b.views * count for b, count in zip(buckets, before, strict=True))

    def draws(self, index: int) -> Iterator[Draw]:
        """Yields the draw of a sample, then the draws that replace it while there are faults.

        The first draw is the scene that is next in the order of its epoch. Each further one is any
        scene of the same part, with frames of its own.
        """
        weights = tuple(part.weight for part in self.parts)
        kind, before = _mixed(weights, self._streams[_PARTS], index)
        part, scenes = self.parts[kind], self.parts[kind].source.scenes
        epoch, place = divmod(before[kind], len(scenes))
        order = _scene_order(len(scenes), self._streams[_SCENES + kind], epoch)
        yield Draw(index, 0, epoch, part, _current(part, scenes[order[place]], epoch))
        uniform = Uniform(self._streams[_REPLACEMENTS], index)
        for attempt in range(1, ATTEMPTS):
            scene = _current(part, scenes[uniform.below(len(scenes))], epoch)
            yield Draw(index, attempt, epoch, part, scene)

    def frames(self, draw: Draw, views: int) -> tuple[int, ...]:
        """Chooses the frames of a draw, `views` of them.

        Raises:
            InputError: the overlap scores of the scene cannot be read or connect too few frames.
        """
        source, scene = draw.part.source, draw.scene
        return choose_frames(
            source.frames(scene),
            views,
            draw.part.strategy,
            seed=self._streams[_FRAMES],
            index=draw.index * ATTEMPTS + draw.attempt,
            pairs=self._scores(draw.part, scene) if draw.part.strategy == "pairs" else None,
            name=_name(draw.part, scene),
        )

    def uniform(self, draw: Draw) -> Uniform:
        """Returns the random numbers for the augmentation of a draw."""
        return Uniform(self._streams[_AUGMENTATION], draw.index * ATTEMPTS + draw.attempt)

    def _scores(self, part: Part, scene: str) -> Scores | None:
        if part.renew:  # nobody asks for these for long
            return part.source.pairs(scene)
        key = self.parts.index(part), scene
        if key not in self._pairs:
            self._pairs[key] = part.source.pairs(scene)
        return self._pairs[key]


def _current(part: Part, scene: str, epoch: int) -> str:
    """Returns the scene that stands in place of `scene` in an epoch, see `Part.renew`."""
    if not part.renew:
        return scene
    assert isinstance(part.source, RenewableSource)
    return part.source.renewed(scene, epoch // part.renew)


def _name(part: Part, scene: str) -> str:
    return f"{type(part.source).__name__} scene {scene}"


def _mixed(weights: tuple[int, ...], seed: int, position: int) -> tuple[int, tuple[int, ...]]:
    """Returns the kind at a position of a weighted mixture, and each kind's count before it.

    In each cycle of sum(weights) positions a kind comes as often as its weight says, in random
    order. So what came before is counted without going through it.
    """
    cycle, place = divmod(position, sum(weights))
    kinds = _cycle(weights, seed, cycle)
    here = kinds[:place]
    return kinds[place], tuple(cycle * weight + here.count(k) for k, weight in enumerate(weights))


@functools.lru_cache(maxsize=16)
def _cycle(weights: tuple[int, ...], seed: int, cycle: int) -> tuple[int, ...]:
    kinds = [kind for kind, weight in enumerate(weights) for _ in range(weight)]
    return Uniform(seed, cycle).shuffled(kinds)


_scene_order = functools.lru_cache(maxsize=16)(scene_order)
