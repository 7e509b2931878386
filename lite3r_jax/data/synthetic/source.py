"""Source of the synthetic dataset, whose samples are made on demand."""

from collections.abc import Sequence

import numpy as np

from lite3r_jax.data.synthetic.drawing import Renderer, check_renderer, cut, draw
from lite3r_jax.data.synthetic.scene import Scene, make_scene
from lite3r_jax.data.synthetic.splits import SEEDS, Split, seeds_of
from lite3r_jax.data.transforms import Frame
from lite3r_jax.data.views import Sample, validate
from lite3r_jax.errors import InputError


class SyntheticScenes:
    """Source of the generated scenes of a split; implements `data.views.SceneSource`."""

    def __init__(
        self,
        split: Split = "train",
        count: int = 1000,
        frames: int = 8,
        *,
        first: int = 0,
        samples: int = 1,
        renderer: Renderer = "numpy",
        cache: bool = False,
    ):
        """Names the scenes of a split; they are made only on demand.

        Args:
            split: which seeds, and so what scenes are like.
            count: how many scenes.
            frames: of each scene, 2 or more. Scenes with other numbers of frames are others.
            first: number of the first scene in its split; other ranges have other scenes.
            samples: color is the mean of samples x samples rays a pixel.
            renderer: see `drawing.draw`.
            cache: keep scenes and frames in memory once they are made, 7 bytes a pixel.

        Raises:
            InputError: no such split or renderer, or numbers out of range.
        """
        seeds = seeds_of(split)
        if not (count >= 1 and first >= 0 and first + count <= SEEDS):
            raise InputError(
                f"count and first: expected 1 or more scenes of {SEEDS}, got {count} from {first}"
            )
        if frames < 2 or samples < 1:
            raise InputError(
                f"frames and samples: expected at least 2 and 1, got {frames} and {samples}"
            )
        check_renderer(renderer)
        self.split: Split = split
        self.samples = samples
        self.renderer: Renderer = renderer
        self.scenes = tuple(f"{split}-{first + i:09d}" for i in range(count))
        self._count, self._first = frames, seeds.start + first
        self._generation = 0
        self._scenes: dict[str, Scene] | None = {} if cache else None
        self._drawn: dict[tuple[str, int, tuple[int, int]], tuple[np.ndarray, np.ndarray]] = {}

    def seed(self, scene: str) -> int:
        """Returns the seed of one of `scenes`, or of a scene that replaces one.

        Raises:
            InputError: it is none of these.
        """
        split, _, number = scene.rpartition("-")
        if split == self.split and len(number) == 9 and number.isdecimal():
            seed = seeds_of(self.split).start + int(number)
            if 0 <= seed - self._first < len(self.scenes) * (self._generation + 1):
                return seed
        raise InputError(
            f"scene: expected one of {self.scenes[0]} to {self.scenes[-1]}, got {scene!r}"
        )

    def renewed(self, scene: str, generation: int) -> str:
        """Implements `RenewableSource.renewed`: each generation is `len(scenes)` seeds further on.

        Raises:
            InputError: the split has not so many scenes.
        """
        count = len(self.scenes)
        last = self._first - seeds_of(self.split).start + count * (generation + 1)
        if last > SEEDS:
            raise InputError(f"renew: generation {generation} of {count} scenes passes {SEEDS}")
        split, _, number = scene.rpartition("-")
        if generation > self._generation:
            self._generation = generation
            self._forget(generation - 1)
        return f"{split}-{int(number) + generation * count:09d}"

    def _forget(self, before: int) -> None:
        """Drops cached scenes and frames of generations before the generation `before`."""
        first = self._first - seeds_of(self.split).start + before * len(self.scenes)
        old = {scene for scene in self._scenes or () if int(scene.rpartition("-")[2]) < first}
        if self._scenes is not None:
            self._scenes = {k: v for k, v in self._scenes.items() if k not in old}
            self._drawn = {k: v for k, v in self._drawn.items() if k[0] not in old}

    def frames(self, scene: str) -> tuple[int, ...]:
        """Returns the numbers of a scene's frames, from 0."""
        self.seed(scene)
        return tuple(range(self._count))

    def scene(self, scene: str) -> Scene:
        """Returns world, cameras and overlap, for ground truth beyond depth (see `oracle`)."""
        if self._scenes is None:
            return make_scene(self.seed(scene), self._count)
        if scene not in self._scenes:
            self._scenes[scene] = make_scene(self.seed(scene), self._count)
        return self._scenes[scene]

    def pairs(self, scene: str) -> dict[int, dict[int, float]]:
        """Returns the overlap scores of a scene's frames, counted by rays.

        A score is the share of what one view sees that both see, the smaller of both ways.
        """
        shared = self.scene(scene).overlap
        shared = np.minimum(shared, shared.T)
        frames = range(self._count)
        return {a: {b: float(shared[a, b]) for b in frames if b != a} for a in frames}

    def read_frame(self, scene: str, frame: int) -> Frame:
        """Renders one frame at the full image size of its scene."""
        from PIL import Image

        sample = self.read(scene, (frame,), self.scene(scene).cameras.size)
        assert sample.depth is not None
        return Frame(
            sample.frames[0],
            Image.fromarray(np.rint(sample.images[0] * 255).astype(np.uint8)),
            sample.extrinsics[0].astype(np.float64),
            sample.intrinsics[0].astype(np.float64),
            sample.depth[0],
        )

    def read(self, scene: str, frames: Sequence[int], size: tuple[int, int]) -> Sample:
        """Renders frames of a scene at (height, width), cropped from the center of the full size.

        Raises:
            InputError: no such scene or frame, or a size below 1.
        """
        if min(size) < 1:
            raise InputError(f"size: expected height and width of 1 or more, got {size}")
        if wrong := [frame for frame in frames if not 0 <= frame < self._count]:
            raise InputError(f"{scene}: expected frames 0 to {self._count - 1}, got {wrong[0]}")
        whole = self.scene(scene)
        cameras = cut(whole.cameras, frames, size)
        images, depth = self._draw(scene, whole, frames, (size[0], size[1]))
        return validate(
            Sample(
                dataset="synthetic",
                scene=scene,
                frames=tuple(f"{frame:08d}" for frame in frames),
                images=images / np.float32(255),
                extrinsics=cameras.extrinsics(float(whole.world.scale)).astype(np.float32),
                intrinsics=cameras.intrinsics.astype(np.float32),
                depth=depth,
                mask=depth > 0,
            )
        )

    def _draw(
        self, scene: str, whole: Scene, frames: Sequence[int], size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns images and depth as `draw` does, from the cache where there is one."""
        how = {"samples": self.samples, "renderer": self.renderer}
        if self._scenes is None:
            return draw(whole.world, cut(whole.cameras, frames, size), **how)
        for frame in frames:
            if (scene, frame, size) not in self._drawn:
                images, depth = draw(whole.world, cut(whole.cameras, [frame], size), **how)
                self._drawn[scene, frame, size] = images[0], depth[0]
        images, depth = zip(*(self._drawn[scene, frame, size] for frame in frames), strict=True)
        return np.stack(images), np.stack(depth)
