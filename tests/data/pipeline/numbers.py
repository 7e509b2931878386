"""A source of samples that show which scene and frame they are."""

import os
from collections.abc import Sequence

import numpy as np

from lite3r_jax.data.views import Sample
from lite3r_jax.errors import InputError


class Numbers:
    """Scene 3, frame 5 is an image of brightness 5 / `levels` in red and 3 / `levels` in green.

    Travels to worker processes. Frames in `broken` cannot be read, frame `deadly` kills who reads.
    """

    def __init__(
        self, scenes=5, frames=6, *, pairs=False, depth=True, levels=255, broken=(), deadly=None
    ):
        self.scenes = tuple(str(scene) for scene in range(scenes))
        self.count, self.has_pairs, self.depth = frames, pairs, depth
        self.levels = levels
        self.broken, self.deadly = set(broken), deadly

    def frames(self, scene: str) -> tuple[int, ...]:
        return tuple(range(self.count))

    def pairs(self, scene: str) -> dict[int, dict[int, float]] | None:
        chain = {i: {i + 1: 1.0} for i in range(self.count - 1)} | {self.count - 1: {}}
        return chain if self.has_pairs else None

    def read(self, scene: str, frames: Sequence[int], size: tuple[int, int]) -> Sample:
        for frame in frames:
            if (scene, frame) in self.broken:
                raise InputError(f"/photos/{scene}/{frame}.jpg: cannot be read; copy it again")
            if (scene, frame) == self.deadly:
                os._exit(7)
        maps = (len(frames), *size)
        images = np.zeros((*maps, 3), np.float32)
        images[..., 0] = np.reshape(frames, (-1, 1, 1)) / np.float32(self.levels)
        images[..., 1] = int(scene) / np.float32(self.levels)
        depth = np.ones(maps, np.float32) + np.float32(scene) if self.depth else None
        return Sample(
            dataset="numbers",
            scene=scene,
            frames=tuple(str(frame) for frame in frames),
            images=images,
            extrinsics=np.tile(np.eye(3, 4, dtype=np.float32), (len(frames), 1, 1)),
            intrinsics=np.tile(np.eye(3, dtype=np.float32), (len(frames), 1, 1)),
            depth=depth,
            mask=None if depth is None else depth > 0,
        )
