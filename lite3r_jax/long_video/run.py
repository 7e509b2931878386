"""A long video through a model, chunk by chunk, and all that was made of it joined and written."""

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
    """What makes scenes of views: a model, or truth that was made worse, for tests."""

    def photos(self, photos: Sequence[SourcePhoto]) -> tuple[Scene, np.ndarray | None]:
        """The scene of some frames, and descriptors of its views, float [S, D], if there are any.

        Raises:
            InputError: a frame cannot be read, or memory does not suffice.
        """
        ...

    def again(self, views: Scene) -> Scene:
        """A scene of views that were seen before.

        Args:
            views: names, images, boxes and sizes of photos count.
        """
        ...


class ModelPredictor:
    """A model as a `Predictor`."""

    def __init__(self, reconstructor: Reconstructor, masks: PointOptions | None = None):
        """Take a model.

        Args:
            reconstructor: with descriptors; where it refines, chunks are refined one by one.
            masks: what gives no matches; None: nothing.
        """
        self._reconstructor, self._masks = reconstructor, masks

    def photos(self, photos: Sequence[SourcePhoto]) -> tuple[Scene, np.ndarray | None]:
        """See `Predictor`."""
        name = f"chunk from {photos[0].name}"
        scene = self._reconstructor(PhotoSet(name, tuple(photos)), masks=self._masks)
        return scene, self._reconstructor.descriptors

    def again(self, views: Scene) -> Scene:
        """See `Predictor`; from the images that the network saw, so no frame is decoded again."""
        images = views.images.astype(np.float32) / np.float32(255)
        boxes = np.concatenate([views.boxes, views.source_sizes.astype(np.float32)], -1)
        photos = tuple(SourcePhoto(name, b"", name) for name in views.names)
        return self._reconstructor.of_images(images, boxes, PhotoSet("loop", photos))


@dataclass(frozen=True, eq=False)
class LongVideo:
    """A long video that was reconstructed.

    Attributes:
        chunks: of it.
        views: what is small of each chunk.
        loops: that were tried.
        joined: similarities and parts.
        facts: for the report.
    """

    chunks: tuple[Chunk, ...]
    views: tuple[ChunkViews, ...]
    loops: tuple[Loop, ...]
    joined: Joined
    facts: dict[str, Any]

    def parts(self) -> list[Part]:
        """What hangs together, the largest part first."""
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
    """Run all chunks and loops that are not done, and join them; nothing is exported.

    Args:
        frames: more than `options.chunk`.
        predictor: what makes scenes of chunks.
        options: `chunk`, `overlap` and `loops` count.
        store: keeps what is done; what it has of the same video and settings is not done again.
        progress: takes the time of the stages "chunks", "loops" and "join".

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
    """The views that the chunk shares with the following one, without the arrays of the others."""
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
    """Run the views around both places in one pass, and fit each half onto its chunk."""
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
