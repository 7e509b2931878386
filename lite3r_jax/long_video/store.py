"""Results of a run on a long video on disk: a folder for each chunk, a file for each loop.

    chunks/000012/predictions.npz   the scene of the chunk in its own world, as npz has it
    chunks/000012/views.npz         cameras and descriptors of its views, some of its points
    chunks/000012/chunk.json        its frames, and how it fits onto the chunk before
    chunks/loops/000003-000017.json a loop that was tried, whether taken or not

A folder or file appears under its name only when it is complete, so whatever exists is valid, and a
run that was killed continues with what is missing.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lite3r_jax.errors import InputError, shown
from lite3r_jax.exports.npz import read_npz, write_npz
from lite3r_jax.files import atomic_write
from lite3r_jax.geometry import Sim3
from lite3r_jax.long_video.chunks import Chunk
from lite3r_jax.long_video.joint import Joint, unprojected
from lite3r_jax.long_video.loops import Candidate, Loop, described
from lite3r_jax.npz_file import open_npz
from lite3r_jax.scene import UNITS, Scene
from lite3r_jax.weights import strict_json

CHUNKS = "chunks"
"""Name of the store's folder in the folder of results."""
_SAMPLE = 2000  # points of a chunk by which the size of the whole is told
_ARRAYS = {
    "extrinsics": ("<f4", 3), "intrinsics": ("<f4", 3), "boxes": ("<f4", 2),
    "source_sizes": ("<i8", 2), "descriptors": ("<f2", 2), "sample": ("<f4", 2),
}  # fmt: skip
_SHAPES = {
    "extrinsics": (3, 4), "intrinsics": (3, 3), "boxes": (4,), "source_sizes": (2,), "sample": (3,),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class ChunkViews:
    """The cameras, descriptors and other small data of a chunk, without its images and depth.

    Attributes:
        extrinsics: float32 [S, 3, 4], see `Scene`, and so are the next three.
        intrinsics: float32 [S, 3, 3].
        boxes: float32 [S, 4].
        source_sizes: int [S, 2].
        size: (height, width) of the network images.
        unit: see `Scene`.
        descriptors: float16 [K, D], unit vectors of the views `loops.described`; K is 0 where there
            are none.
        sample: float32 [N, 3], some points of the chunk.
        depth: median depth of the chunk.
        joint: how the chunk fits onto the one before; None for the first.
        refined: whether the cameras of the chunk were adjusted to matches.
    """

    extrinsics: np.ndarray
    intrinsics: np.ndarray
    boxes: np.ndarray
    source_sizes: np.ndarray
    size: tuple[int, int]
    unit: str
    descriptors: np.ndarray
    sample: np.ndarray
    depth: float
    joint: Joint | None
    refined: bool = False

    @property
    def centers(self) -> np.ndarray:
        """The camera centers float64 [S, 3] in the world of the chunk."""
        rotation = self.extrinsics[..., :3].astype(np.float64).swapaxes(-1, -2)
        return -(rotation @ self.extrinsics[..., 3:].astype(np.float64))[..., 0]


class Store:
    """The chunks and loops that a run has completed, kept in a folder on disk."""

    def __init__(self, results: Path):
        """Opens the store in the folder `CHUNKS` of `results`, the folder of results."""
        self.folder = results / CHUNKS

    def has(self, chunk: Chunk) -> bool:
        """Returns whether a chunk is stored."""
        return self._chunk(chunk).is_dir()

    def write(
        self, chunk: Chunk, scene: Scene, descriptors: np.ndarray | None, joint: Joint | None
    ) -> None:
        """Writes the scene of a chunk, with its descriptors and its joint.

        Args:
            chunk: the chunk.
            scene: the chunk's scene in its own world.
            descriptors: descriptors float [S, D] of its views, or None.
            joint: how the chunk fits onto the one before; None for the first.

        Raises:
            InputError: the chunk cannot be written.
        """
        views = described(scene.views)
        kept = np.zeros((0, 0)) if descriptors is None else descriptors[views]
        sample, depth = _sample(scene)
        lengths = np.linalg.norm(kept, axis=-1, keepdims=True)
        arrays = {
            "descriptors": kept / np.maximum(lengths, 1e-12), "sample": sample
        } | {
            name: getattr(scene, name)
            for name in ("extrinsics", "intrinsics", "boxes", "source_sizes")
        }  # fmt: skip
        typed: dict[str, Any] = {
            name: np.asarray(arrays[name], kind) for name, (kind, _) in _ARRAYS.items()
        }
        facts = {
            "first_frame": scene.names[0], "last_frame": scene.names[-1], "views": scene.views,
            "height": scene.size[0], "width": scene.size[1], "unit": scene.unit, "depth": depth,
            "joint": None if joint is None else _joint_json(joint),
            "refined": scene.tracks is not None,
        }  # fmt: skip
        with atomic_write(self._chunk(chunk)) as partial:
            partial.mkdir()
            write_npz(scene, partial / "predictions.npz")
            with (partial / "views.npz").open("wb") as file:
                np.savez(file, **typed)
            (partial / "chunk.json").write_bytes(strict_json.dump(facts))

    def views(self, chunk: Chunk) -> ChunkViews:
        """Reads the cameras and other small data of a stored chunk.

        Raises:
            InputError: the stored data are damaged.
        """
        with self._checked(chunk) as folder:
            facts = strict_json.read_object(folder / "chunk.json")
            with open_npz(folder / "views.npz") as file:
                arrays = {name: file.read(name, *kind) for name, kind in _ARRAYS.items()}
            shapes = {name: arrays[name].shape[1:] for name in _SHAPES}
            counts = {len(arrays[name]) for name in _SHAPES if name != "sample"}
            if shapes != _SHAPES or counts != {len(chunk)}:
                raise InputError(f"views.npz: its arrays are not those of {len(chunk)} views")
            if not all(np.isfinite(each).all() for each in arrays.values()):
                raise InputError("views.npz: a number is not finite")
            joint = facts["joint"]
            size = (facts["height"], facts["width"])
            if not all(type(side) is int and 0 < side < 1 << 20 for side in size):
                raise InputError(f"chunk.json: {size} is no size of images")
            if facts["unit"] not in UNITS:
                raise InputError("chunk.json: its unit is unknown")
            return ChunkViews(
                **arrays,
                size=size,
                unit=facts["unit"],
                depth=_positive(facts["depth"]),
                joint=None if joint is None else _joint_of(joint),
                refined=facts.get("refined") is True,
            )

    def scene(self, chunk: Chunk) -> Scene:
        """Reads the scene of a stored chunk, in its own world, without photos.

        Raises:
            InputError: the stored data are damaged.
        """
        with self._checked(chunk) as folder:
            return read_npz(folder / "predictions.npz")

    def loop(self, candidate: Candidate) -> Loop | None:
        """Reads the result of a loop candidate that was tried before, or returns None.

        Raises:
            InputError: the stored data are damaged.
        """
        path = self._loop(candidate)
        if not path.is_file():
            return None
        with _Damage(path):
            data = strict_json.read_object(path)
            frames = (data["first_frame"], data["second_frame"])
            if frames != (candidate.first_frame, candidate.second_frame):
                raise InputError(f"{path}: is of the frames {frames}")
            similarity = data["similarity"]
            return Loop(
                candidate,
                None if similarity is None else _sim3_of(similarity),
                _number(data["error"]),
                _number(data["seen"]),
                _text(data["fault"]),
            )

    def write_loop(self, loop: Loop) -> None:
        """Writes the result of a loop candidate, whether taken or not.

        Raises:
            InputError: the file cannot be written.
        """
        data = {
            "first_frame": loop.candidate.first_frame,
            "second_frame": loop.candidate.second_frame,
            "similarity": None if loop.similarity is None else sim3_json(loop.similarity),
            "error": loop.error, "seen": loop.seen, "fault": loop.fault,
        }  # fmt: skip
        with atomic_write(self._loop(loop.candidate)) as partial:
            partial.write_bytes(strict_json.dump(data))

    def remove(self) -> None:
        """Deletes all stored chunks and loops."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _chunk(self, chunk: Chunk) -> Path:
        return self.folder / f"{chunk.index:06d}"

    def _loop(self, candidate: Candidate) -> Path:
        return self.folder / "loops" / f"{candidate.first:06d}-{candidate.second:06d}.json"

    def _checked(self, chunk: Chunk) -> "_Damage":
        return _Damage(self._chunk(chunk))


class _Damage:
    """A context that turns errors of reading stored data into an `InputError` with advice."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> Path:
        return self._path

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, InputError | LookupError | TypeError | ValueError):
            raise InputError(
                f"{self._path}: cannot be used again ({error}); delete it, and the same command"
                " makes it anew"
            ) from error


def _sample(scene: Scene) -> tuple[np.ndarray, float]:
    """Returns some points float32 [N, 3] of a scene, evenly spread, and its median depth."""
    height, width = scene.size
    step = max(1, int(np.sqrt(scene.views * height * width / _SAMPLE)))
    rows, columns = np.arange(step // 2, height, step), np.arange(step // 2, width, step)
    depth = scene.depth[:, rows][:, :, columns].astype(np.float64)
    valid = scene.inside()[:, rows][:, :, columns] & np.isfinite(depth) & (depth > 0)
    points = unprojected(scene, depth, rows, columns)[valid].astype(np.float32)
    return points, float(np.median(depth[valid])) if valid.any() else 1.0


def sim3_json(sim3: Sim3) -> dict[str, Any]:
    """Converts a similarity y = scale * rotation x + translation to plain data for JSON."""
    return {
        "scale": float(sim3.scale),
        "rotation": np.asarray(sim3.rotation).tolist(),
        "translation": np.asarray(sim3.translation).tolist(),
    }


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) < 1e100:
        raise InputError(f"expected a number, got {shown(value)}")
    return float(value)


def _positive(value: Any) -> float:
    if not _number(value) > 0:
        raise InputError(f"expected a number above 0, got {shown(value)}")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"expected a text, got {shown(value)}")
    return value


def _sim3_of(data: Mapping[str, Any]) -> Sim3:
    rotation = np.array([[_number(x) for x in row] for row in data["rotation"]]).reshape(3, 3)
    translation = np.array([_number(x) for x in data["translation"]]).reshape(3)
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-6 or np.linalg.det(rotation) < 0:
        raise InputError("a rotation is none")
    return Sim3(np.float64(_positive(data["scale"])), rotation, translation)


def _joint_json(joint: Joint) -> dict[str, Any]:
    similarity = joint.similarity
    return {
        "similarity": None if similarity is None else sim3_json(similarity),
        "agreeing": joint.agreeing, "error": joint.error, "degrees": joint.degrees,
        "fault": joint.fault,
    }  # fmt: skip


def _joint_of(data: Mapping[str, Any]) -> Joint:
    similarity = data["similarity"]
    return Joint(
        None if similarity is None else _sim3_of(similarity),
        _number(data["agreeing"]),
        _number(data["error"]),
        _number(data["degrees"]),
        _text(data["fault"]),
    )
