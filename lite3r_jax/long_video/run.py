"""Reconstruction of a long video: runs chunks and loops through a model, and joins the results."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lite3r_jax.data.photos import PhotoSet, SourcePhoto
from lite3r_jax.data.video import VideoOptions
from lite3r_jax.errors import InputError
from lite3r_jax.exports.points import PointOptions
from lite3r_jax.geometry import Sim3
from lite3r_jax.infer.reconstruct import Reconstructor
from lite3r_jax.long_video.chunks import Chunk, plan_chunks
from lite3r_jax.long_video.frames import Frames
from lite3r_jax.long_video.joining import Joined, join, summary
from lite3r_jax.long_video.joint import Joint, fit
from lite3r_jax.long_video.loops import (
    Candidate,
    Loop,
    find_candidates,
    halves,
    judged,
    seen_alike,
)
from lite3r_jax.long_video.outputs import Part
from lite3r_jax.long_video.similarity import compose, inverse, stacked, views_of
from lite3r_jax.long_video.store import ChunkViews, Store, sim3_json
from lite3r_jax.progress import Progress
from lite3r_jax.scene import Scene


class Predictor(Protocol):
    """Interface of what predicts scenes: a model, or ground truth with added errors for tests."""

    def photos(self, photos: Sequence[SourcePhoto]) -> tuple[Scene, np.ndarray | None]:
        """Predicts the scene of S frames; returns it and descriptors float [S, D], or None.

        Raises:
            InputError: a frame cannot be read, or memory does not suffice.
        """
        ...

    def again(self, views: Scene) -> Scene:
        """Predicts a scene of views that were predicted before.

        Args:
            views: scene of which names, images, boxes and sizes of photos are used.
        """
        ...


class ModelPredictor:
    """Implements `Predictor` by a model."""

    def __init__(self, reconstructor: Reconstructor, masks: PointOptions | None = None):
        """Creates the predictor of a model.

        Args:
            reconstructor: the model, with descriptors; where it refines, it refines chunks one by
                one.
            masks: options whose masks leave out pixels from matching; None: no pixel is left out.
        """
        self._reconstructor, self._masks = reconstructor, masks

    def photos(self, photos: Sequence[SourcePhoto]) -> tuple[Scene, np.ndarray | None]:
        """Implements `Predictor.photos`: predicts the scene of a chunk by the model."""
        name = f"chunk from {photos[0].name}"
        scene = self._reconstructor(PhotoSet(name, tuple(photos)), masks=self._masks)
        return scene, self._reconstructor.descriptors

    def again(self, views: Scene) -> Scene:
        """Implements `Predictor.again`: uses the stored network images, so no frame is decoded."""
        images = views.images.astype(np.float32) / np.float32(255)
        boxes = np.concatenate([views.boxes, views.source_sizes.astype(np.float32)], -1)
        photos = tuple(SourcePhoto(name, b"", name) for name in views.names)
        return self._reconstructor.of_images(images, boxes, PhotoSet("loop", photos))


@dataclass(frozen=True, eq=False)
class LongVideo:
    """A reconstructed long video: its chunks, their cameras, and the similarities that join them.

    Attributes:
        chunks: chunks of the video.
        views: cameras and other small data of each chunk.
        loops: loops that were tried, with or without a fault.
        joined: similarities and connected parts of the chunks.
        facts: plain data for the report.
    """

    chunks: tuple[Chunk, ...]
    views: tuple[ChunkViews, ...]
    loops: tuple[Loop, ...]
    joined: Joined
    facts: dict[str, Any]

    def parts(self) -> list[Part]:
        """Returns the connected parts of the video, the largest part first."""
        return [
            Part(
                tuple(self.chunks[i] for i in part),
                tuple(Sim3(*(each[i] for each in self.joined.similarities)) for i in part),
                tuple(self.views[i] for i in part),
            )
            for part in self.joined.parts
        ]


def reconstruct_chunks(
    frames: Frames, predictor: Predictor, options: VideoOptions, store: Store, progress: Progress
) -> LongVideo:
    """Runs all chunks and loops that are not done yet, and joins all of them; exports nothing.

    Args:
        frames: frames of the video, more than `options.chunk`.
        predictor: predicts the scenes of chunks.
        options: `chunk`, `overlap` and `loops` are used.
        store: keeps results; what it has of the same video and settings is not computed again.
        progress: measures the time of the stages "chunks", "loops" and "join".

    Raises:
        InputError: overlap or length do not go with the chunk, a frame cannot be read, memory does
            not suffice, or what is kept is damaged or cannot be written.
    """
    chunks = plan_chunks(len(frames.names), options.chunk, options.shared)
    _run_chunks(frames, chunks, predictor, store, progress)
    views = tuple(store.views(chunk) for chunk in chunks)
    loops = _run_loops(chunks, views, predictor, options.loops, store, progress)
    joints = [view.joint for view in views]
    with progress.stage("join"):
        centers = [view.centers for view in views]
        joined = join(chunks, joints, loops, centers, [view.depth for view in views])
    facts = {
        "frames": len(frames.names),
        "chunk": options.chunk,
        "overlap": options.shared,
        "chunks": [
            {
                "first_frame": frames.names[chunk.start],
                "last_frame": frames.names[chunk.stop - 1],
                **sim3_json(Sim3(*(part[chunk.index] for part in joined.similarities))),
            }
            for chunk in chunks
        ],
        **summary(joined, joints, loops),
    }
    return LongVideo(chunks, views, tuple(loops), joined, facts)


def _run_chunks(
    frames: Frames,
    chunks: Sequence[Chunk],
    predictor: Predictor,
    store: Store,
    progress: Progress,
) -> None:
    done = [store.has(chunk) for chunk in chunks]
    last: tuple[Chunk, Scene] | None = None  # the chunk before and its views at its end
    with progress.stage("chunks", len(chunks), "chunk", initial=sum(done)) as tick:
        for chunk in chunks:
            if done[chunk.index]:
                last = None
                continue
            scene, descriptors = predictor.photos(frames.photos(chunk.start, chunk.stop))
            joint: Joint | None = None
            if chunk.index:
                before = chunks[chunk.index - 1]
                old = last[1] if last is not None else _tail(store.scene(before), before, chunk)
                if old.size != scene.size:
                    raise InputError(
                        f"{scene.names[-1]}: its chunk has images of {scene.size[1]}x"
                        f"{scene.size[0]} pixels, the one before of {old.size[1]}x{old.size[0]};"
                        " use images.mode=pad or square, or photos of one size"
                    )
                joint = fit(views_of(scene, slice(0, before.stop - chunk.start)), old)
            store.write(chunk, scene, descriptors, joint)
            last = None
            if chunk.index + 1 < len(chunks):
                last = chunk, _tail(scene, chunk, chunks[chunk.index + 1])
            tick()


def _tail(scene: Scene, chunk: Chunk, following: Chunk) -> Scene:
    """Copies the views that a chunk shares with the following chunk to a scene of their own."""
    shared = [*range(following.start - chunk.start, len(chunk))]
    return views_of(scene, shared)


def _run_loops(
    chunks: Sequence[Chunk],
    views: Sequence[ChunkViews],
    predictor: Predictor,
    most: int,
    store: Store,
    progress: Progress,
) -> list[Loop]:
    descriptors = [view.descriptors.astype(np.float32) for view in views]
    if not most or any(not len(each) for each in descriptors):
        return []
    candidates = find_candidates(chunks, descriptors, most)
    loops = []
    with progress.stage("loops", len(candidates), "loop") as tick:
        for candidate in candidates:
            loop = store.loop(candidate)
            if loop is None:
                loop = _measured(candidate, chunks, predictor, store)
                store.write_loop(loop)
            loops.append(loop)
            tick()
    return loops


def _measured(
    candidate: Candidate, chunks: Sequence[Chunk], predictor: Predictor, store: Store
) -> Loop:
    """Measures a loop: predicts views around both places, and fits each half onto its chunk."""
    known = []
    for index, half in zip(
        (candidate.first, candidate.second), halves(candidate, chunks), strict=True
    ):
        start = chunks[index].start
        known.append(views_of(store.scene(chunks[index]), [n - start for n in half]))
    both = predictor.again(stacked(known))
    count = known[0].views
    seen = [views_of(both, slice(0, count)), views_of(both, slice(count, both.views))]
    joints = fit(seen[0], known[0]), fit(seen[1], known[1])
    ours = [joint.similarity for joint in joints if not joint.fault]
    if len(ours) < 2 or ours[0] is None or ours[1] is None:
        fault = next(joint.fault for joint in joints if joint.fault)
        return Loop(candidate, None, fault=fault)
    return judged(candidate, compose(ours[0], inverse(ours[1])), joints, seen_alike(*seen))
