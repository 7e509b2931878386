"""Samples kept in memory, for data that is looked at more than once."""

from collections.abc import Sequence

from lite3r_jax.data.views import Sample, SceneSource, Scores


class CachedScenes:
    """A source that reads every sample once, as long as all that it keeps stays below a limit."""

    def __init__(self, source: SceneSource, limit: int = 1 << 30):
        """Keep samples of a source.

        Args:
            source: where they come from.
            limit: bytes; what would go beyond is read again whenever it is asked for.
        """
        self.scenes = source.scenes
        self._source, self._free = source, limit
        self._kept: dict[tuple[str, tuple[int, ...], tuple[int, int]], Sample] = {}

    def frames(self, scene: str) -> tuple[int, ...]:
        """Those of the source."""
        return self._source.frames(scene)

    def pairs(self, scene: str) -> Scores | None:
        """Those of the source."""
        return self._source.pairs(scene)

    def read(self, scene: str, frames: Sequence[int], size: tuple[int, int]) -> Sample:
        """The sample, the same object each time.

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
