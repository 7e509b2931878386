"""Which frames of a video go through the model together, and which chunk each frame is taken of."""

import itertools
from dataclasses import dataclass

from lite3r_jax.errors import InputError


@dataclass(frozen=True)
class Chunk:
    """Consecutive frames that one forward pass sees.

    Attributes:
        index: of the chunk, from 0.
        start: number of its first frame among those that are taken of the video.
        stop: one more than its last.
        own_start: of the frames that the result takes of this chunk and no other, the first.
        own_stop: one more than the last of these.
    """

    index: int
    start: int
    stop: int
    own_start: int
    own_stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def plan_chunks(frames: int, chunk: int, overlap: int) -> tuple[Chunk, ...]:
    """Chunks of equal length that cover all frames.

    The last one reaches back as far as it takes to be as long as the others, so that one compiled
    program serves all. Where chunks share frames, each takes those that are nearer to its middle.

    Args:
        frames: number of frames, more than `chunk`.
        chunk: frames of a chunk.
        overlap: frames that neighbors share, at least.

    Raises:
        InputError: overlap is not below chunk, either is below 1, or the video is no longer than a
            chunk.
    """
    if not 1 <= overlap < chunk:
        raise InputError(
            f"video.overlap: expected 1 to {chunk - 1} frames, fewer than video.chunk={chunk};"
            f" got {overlap}"
        )
    if frames <= chunk:
        raise InputError(
            f"video.chunk: {frames} frames are no more than one chunk of {chunk}; run them in one"
            " pass"
        )
    step = chunk - overlap
    starts = [*range(0, frames - chunk, step), frames - chunk]
    edges = [0]
    for before, start in itertools.pairwise(starts):
        edges.append((before + chunk + start) // 2)
    edges.append(frames)
    return tuple(
        Chunk(i, start, start + chunk, edges[i], edges[i + 1]) for i, start in enumerate(starts)
    )
