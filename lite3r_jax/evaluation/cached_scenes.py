"""A cache of samples in memory, for data that is read more than once."""

from collections.abc import Sequence

from lite3r_jax.data.views import Sample, SceneSource, Scores


class CachedScenes:
    """A data source that keeps the samples it has read in memory, up to a limit of bytes."""

    def __init__(self, source: SceneSource, limit: int = 1 << 30):
        """Wraps a data source, with nothing kept yet.

        Args:
            source: where they come from.
            limit: bytes; what would go beyond is read again whenever it is asked for.
        """
        self.scenes = source.scenes
        self._source, self._free = source, limit
        self._kept: dict[tuple[str, tuple[int, ...], tuple[int, int]], Sample] = {}

    def frames(self, scene: str) -> tuple[int, ...]:
        """Implements `SceneSource.frames`: numbers of a scene's frames, from the wrapped source."""
        return self._source.frames(scene)

    def pairs(self, scene: str) -> Scores | None:
        """Implements `SceneSource.pairs`: a scene's pair scores, from the wrapped source."""
        return self._source.pairs(scene)

    def read(self, scene: str, frames: Sequence[int], size: tuple[int, int]) -> Sample:
        """Implements `SceneSource.read`: returns a sample, the same object each time if it is kept.

        Raises:
            InputError: as the source does, each time.
        """
        key = scene, tuple(frames), size
        if key in self._kept:
            return self._kept[key]
        sample = self._source.read(scene, frames, size)
        need = sum(0 if x is None else x.nbytes for x in (sample.images, sample.depth, sample.mask))
        if need <= self._free:
            self._free -= need
            self._kept[key] = sample
        return sample
