"""Scenes that cost nothing, and predictors that know them."""

import numpy as np

from lite3r_jax.data.views import Sample, validate
from lite3r_jax.errors import InputError
from lite3r_jax.evaluation.predictor import Output
from lite3r_jax.evaluation.protocols import Item, Protocol
from tests.metrics.test_pose import some_cameras

SIZE = (6, 8)


class Scenes:
    """Tilted planes seen from random places; the images say which scene they are of."""

    def __init__(self, count=4, views=3, *, depth=True, broken=()):
        self.scenes = tuple(f"scene{k}" for k in range(count))
        self.views, self.depth, self.broken, self.reads = views, depth, broken, 0

    def frames(self, scene):
        return tuple(range(self.views))

    def pairs(self, scene):
        return None

    def read(self, scene, frames, size):
        self.reads += 1
        number = int(scene[5:])
        if number in self.broken:
            raise InputError(f"{scene}: is damaged")
        v, u = np.mgrid[0 : size[0], 0 : size[1]]
        depth = (3 + number + 0.1 * u + 0.2 * v * (1 + np.arange(len(frames))[:, None, None])) * 2.0
        depth = depth.astype(np.float32)
        depth[:, 0, 0] = 0
        k = np.array([[8, 0, size[1] / 2], [0, 8, size[0] / 2], [0, 0, 1]], np.float32)
        return validate(
            Sample(
                dataset="planes",
                scene=scene,
                frames=tuple(map(str, frames)),
                images=np.full((len(frames), *size, 3), number / 255, np.float32),
                extrinsics=some_cameras(number, self.views)[list(frames)].astype(np.float32),
                intrinsics=np.tile(k, (len(frames), 1, 1)),
                depth=depth if self.depth else None,
                mask=depth > 0 if self.depth else None,
            )
        )

    def protocol(self):
        frames = tuple(range(self.views))
        items = tuple(Item(scene, frames) for scene in self.scenes)
        return Protocol("planes", self.views, SIZE, items)


def oracle(source, *, unit=3.0, partner=False, cameras=True, wrong=()):
    """The truth in another unit, but not finite for the scenes in `wrong`.

    With `partner`, depth is nonsense if the second view is of another scene.
    """
    clean = Scenes(len(source.scenes), source.views)

    def predict(images):
        outputs = []
        for views in images:
            number, other = (int(np.rint(255 * view[0, 0, 0])) for view in views[:2])
            sample = clean.read(f"scene{number}", range(source.views), SIZE)
            depth = unit * sample.depth
            if partner and other != number:
                depth = depth * np.linspace(0.5, 2, SIZE[1], dtype=np.float32)
            if number in wrong:
                depth = depth * np.nan
            moved = sample.extrinsics.copy()
            moved[..., 3] *= unit
            given = (moved, sample.intrinsics) if cameras else (None, None)
            outputs.append(Output(depth, *given))
        predict.calls += len(outputs)
        return outputs

    predict.calls = 0
    return predict
