"""A synthetic world of rooms and corridors in a ring: a walk, exact depth, worse predictions.

The joining of long videos is measured on it apart from any model: `DegradedTruth` gives for every
chunk the true geometry, moved by a random similarity, bent and scaled a little along the chunk (as
models drift), with noise and outliers.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lite3r_jax.geometry import Sim3
from lite3r_jax.long_video.similarity import exp_rotation, moved
from lite3r_jax.scene import Scene

HEIGHT, WIDTH = 18, 24
_LOW, _HIGH = np.array([0.0, -1.2, 0.0]), np.array([24.0, 1.5, 16.0])  # y points down
_MIDDLE = (np.array([4.0, -1.2, 4.0]), np.array([20.0, 1.5, 12.0]))


def _boxes() -> np.ndarray:
    """Returns the boxes in the ring, [N, 2, 3]: block in its middle, door posts and furniture."""
    boxes = [_MIDDLE]
    for x in (6.0, 10.0, 14.0, 18.0):
        for z in ((0.0, 0.9), (15.1, 16.0)):
            boxes.append((np.array([x, -1.2, z[0]]), np.array([x + 0.4, 1.5, z[1]])))
    for z in (6.0, 10.0):
        for x in ((0.0, 0.8), (23.2, 24.0)):
            boxes.append((np.array([x[0], -1.2, z]), np.array([x[1], 1.5, z + 0.4])))
    rng = np.random.default_rng(3)
    for _ in range(12):  # chests along the outer walls
        along, size = rng.uniform(1, 23), rng.uniform(0.3, 0.9, 3)
        z = 0.0 if rng.random() < 0.5 else 16.0 - size[2]
        boxes.append(
            (np.array([along, 1.5 - size[1], z]), np.array([along + size[0], 1.5, z + size[2]]))
        )
    return np.array(boxes)


_BOXES = _boxes()


def name_of(number: int) -> str:
    """Returns the file name of a frame by its number."""
    return f"frame_{number:06d}.jpg"


@dataclass(frozen=True)
class Walk:
    """A walk of a camera along the ring of corridors.

    Attributes:
        frames: how many.
        laps: how often around; a little more than 1 comes back to where it began.
    """

    frames: int
    laps: float = 1.08

    @property
    def names(self) -> tuple[str, ...]:
        """File names of all frames of the walk."""
        return tuple(name_of(number) for number in range(self.frames))

    def poses(self, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Returns camera-to-world rotations [S, 3, 3] and centers [S, 3] of frames."""
        way = np.asarray(numbers, np.float64) / max(self.frames - 1, 1) * self.laps * _length()
        ground, heading = _ring(way)
        sway = 0.15 * np.sin(2 * np.pi * way / 3.1)
        center = np.stack([ground[:, 0], 0.05 * np.sin(way * 4), ground[:, 1]], -1)
        turn = heading + 0.5 * np.sin(2 * np.pi * way / 7.3) + sway
        zero = np.zeros_like(turn)
        yaw = exp_rotation(np.stack([zero, turn, zero], -1))
        pitch = exp_rotation(np.stack([0.1 * np.sin(way), zero, zero], -1))
        return yaw @ pitch, center


def _length() -> float:
    return 2 * (20 - 2 * _RADIUS) + 2 * (12 - 2 * _RADIUS) + 2 * np.pi * _RADIUS


_RADIUS = 1.5


def _ring(way: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns places (x, z) and headings (0 along z, towards x) on a rounded rectangle."""
    sides = [20 - 2 * _RADIUS, 12 - 2 * _RADIUS] * 2
    place, heading = np.array([2 + _RADIUS, 2.0]), np.pi / 2  # begins along x
    left = np.mod(way, _length())
    xz, angle = np.zeros((len(way), 2)), np.zeros(len(way))
    offset = 0.0
    for side in sides:
        ahead = np.array([np.sin(heading), np.cos(heading)])
        on = (left >= offset) & (left < offset + side)
        xz[on], angle[on] = place + (left[on] - offset)[:, None] * ahead, heading
        offset, place = offset + side, place + side * ahead
        arc = np.pi / 2 * _RADIUS
        inward = np.array([np.sin(heading - np.pi / 2), np.cos(heading - np.pi / 2)])
        middle = place + _RADIUS * inward
        on = (left >= offset) & (left < offset + arc)
        turned = heading - (left[on] - offset) / _RADIUS
        outward = -np.stack([np.sin(turned - np.pi / 2), np.cos(turned - np.pi / 2)], -1)
        xz[on], angle[on] = middle + _RADIUS * outward, turned
        offset, heading = offset + arc, heading - np.pi / 2
        place = middle - _RADIUS * np.array(
            [np.sin(heading - np.pi / 2), np.cos(heading - np.pi / 2)]
        )
    return xz, angle


def intrinsics() -> np.ndarray:
    """Returns the intrinsics [3, 3] that all frames have."""
    return np.array(
        [[0.7 * WIDTH, 0, WIDTH / 2 - 0.5], [0, 0.7 * WIDTH, HEIGHT / 2 - 0.5], [0, 0, 1]]
    )


def depth_maps(rotation: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Returns z of the first surface that the ray of each pixel meets, float64 [S, H, W]."""
    k = intrinsics()
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u)], -1)
    depth = np.empty((len(center), HEIGHT, WIDTH))
    for s, (turn, origin) in enumerate(zip(rotation, center, strict=True)):
        direction = rays.reshape(-1, 3) @ turn.T
        with np.errstate(divide="ignore"):
            inverse = 1 / direction
        near, far = (_LOW - origin) * inverse, (_HIGH - origin) * inverse
        nearest = np.maximum(near, far).min(-1)  # out of the ring, from inside
        for low, high in _BOXES:
            a, b = (low - origin) * inverse, (high - origin) * inverse
            enter, leave = np.minimum(a, b).max(-1), np.maximum(a, b).min(-1)
            hit = (enter < leave) & (enter > 0)
            nearest = np.where(hit & (enter < nearest), enter, nearest)
        depth[s] = nearest.reshape(HEIGHT, WIDTH)  # rays have z = 1
    return depth


@dataclass(frozen=True)
class Faults:
    """Sizes of the errors by which predictions are worse than the truth.

    Attributes:
        drift: what is wrong in the same way in every chunk, as it is of models: growth of the
            logarithm of the unit of length from its first to its last view.
        turn: likewise, degrees that it turns too much around the vertical.
        scale: random growth beside `drift`, standard deviation.
        bend: random degrees around a random axis, likewise.
        depth: noise of depth over depth.
        outliers: share of pixels whose depth means nothing.
    """

    drift: float = 0.02
    turn: float = 0.75
    scale: float = 0.01
    bend: float = 0.5
    depth: float = 0.02
    outliers: float = 0.03


class DegradedTruth:
    """The true geometry of a walk with errors added, as a `long_video.run.Predictor`."""

    def __init__(
        self, walk: Walk, faults: Faults = Faults(), *, seed: int = 0, broken: Sequence[int] = ()
    ):
        """Takes the walk and the errors of the predictions.

        Args:
            walk: that is seen.
            faults: how much is wrong.
            seed: of what is random.
            broken: frames; chunks that begin with one of them are not of this world at all.
        """
        self.walk, self.faults, self.seed, self.broken = walk, faults, seed, frozenset(broken)
        self.calls: list[tuple[int, ...]] = []

    def photos(self, photos: Sequence[Any]) -> tuple[Scene, np.ndarray | None]:
        """Implements `Predictor.photos`: returns the predicted scene and descriptors of frames."""
        numbers = [int(photo.name[6:12]) for photo in photos]
        self.calls.append(tuple(numbers))
        return self.scene(numbers), self.descriptors(numbers)

    def again(self, views: Scene) -> Scene:
        """Implements `Predictor.again`: returns another prediction of views seen before."""
        return self.scene([int(name[6:12]) for name in views.names])

    def scene(self, numbers: Sequence[int]) -> Scene:
        """Returns the predicted scene of some frames, the same for the same frames."""
        rng = np.random.default_rng([self.seed, zlib.crc32(repr(list(numbers)).encode())])
        faults, count = self.faults, len(numbers)
        rotation, center = self.walk.poses(numbers)
        depth = depth_maps(rotation, center)
        along = np.linspace(0, 1, count)
        grown = np.exp((faults.drift + faults.scale * rng.standard_normal()) * along)
        axis = rng.standard_normal(3)
        axis *= np.radians(faults.bend) * rng.standard_normal() / np.linalg.norm(axis)
        axis[1] += np.radians(faults.turn)
        bent = exp_rotation(along[:, None] * axis)
        steps = np.diff(center, axis=0, prepend=center[:1])
        walked = np.cumsum(grown[:, None] * (bent @ steps[..., None])[..., 0], 0) + center[0]
        turned = bent @ rotation
        conf = np.exp(rng.uniform(0, 2, depth.shape))
        noise = faults.depth * rng.standard_normal(depth.shape) * 2 / (1 + conf)
        seen = depth * grown[:, None, None] * np.exp(noise)
        wild = rng.random(depth.shape) < faults.outliers
        seen = np.where(wild, rng.uniform(0.2, 10, depth.shape), seen)
        if numbers[0] in self.broken:
            seen = rng.uniform(0.2, 10, depth.shape)
        back = turned.swapaxes(-1, -2)
        extrinsics = np.concatenate([back, -(back @ walked[..., None])], -1)
        shade = np.clip(255 * np.exp(-depth / 6), 0, 255).astype(np.uint8)
        scene = Scene(
            names=tuple(name_of(n) for n in numbers),
            images=np.repeat(shade[..., None], 3, -1),
            depth=seen.astype(np.float32),
            depth_conf=conf.astype(np.float32),
            extrinsics=extrinsics.astype(np.float32),
            intrinsics=np.tile(intrinsics().astype(np.float32), (count, 1, 1)),
            boxes=np.tile(np.array([0, 0, WIDTH, HEIGHT], np.float32), (count, 1)),
            source_sizes=np.tile(np.array([WIDTH, HEIGHT]), (count, 1)),
        )
        random = Sim3(
            np.exp(0.5 * rng.standard_normal()),
            exp_rotation(rng.standard_normal(3)),
            rng.standard_normal(3),
        )
        return moved(scene, random)

    def descriptors(self, numbers: Sequence[int]) -> np.ndarray:
        """Returns descriptors of frames, float64 [S, 128]: alike where place and direction are."""
        rotation, center = self.walk.poses(numbers)
        rng = np.random.default_rng(11)
        where = np.concatenate([center / 1.5, 1.5 * rotation[..., 2]], -1)
        waves = rng.standard_normal((6, 128))
        noise = np.random.default_rng([self.seed, *numbers[:1]]).standard_normal((len(where), 128))
        return np.cos(where @ waves + rng.uniform(0, 2 * np.pi, 128)) + 0.1 * noise


class WalkFrames:
    """The frames of a walk as `long_video.frames.Frames`, whose photos are names alone."""

    def __init__(self, walk: Walk):
        """Takes the walk whose frames are to be listed."""
        self.name, self.names = "corridors", walk.names
        self.ignored: tuple[str, ...] = ()

    def photos(self, start: int, stop: int) -> tuple[Any, ...]:
        """Implements `Frames.photos`: returns photos that have names and no pixels."""
        from lite3r_jax.data.photos import SourcePhoto

        return tuple(SourcePhoto(name, b"", name) for name in self.names[start:stop])


def trajectory_error(walk: Walk, centers: np.ndarray) -> tuple[float, float]:
    """Returns the absolute trajectory error after a similarity, and the length of the path.

    Args:
        walk: the truth.
        centers: [frames, 3] in any world.

    Returns:
        (root mean square distance, length of the path), both in the unit of the truth.
    """
    from lite3r_jax.geometry import apply_sim3, fit_sim3

    truth = walk.poses(range(walk.frames))[1]
    fitted = apply_sim3(fit_sim3(centers, truth, xp=np), centers, xp=np)
    error = float(np.sqrt(((fitted - truth) ** 2).sum(-1).mean()))
    return error, float(np.linalg.norm(np.diff(truth, axis=0), axis=-1).sum())
