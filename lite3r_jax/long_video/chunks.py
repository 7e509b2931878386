"""Division of a video into overlapping chunks of frames, each run through the model in one pass."""

import itertools
from dataclasses import dataclass

from lite3r_jax.errors import InputError


@dataclass(frozen=True)
class Chunk:
    """Consecutive frames that one forward pass sees.

    Attributes:
        index: index of the chunk, from 0.
        start: number of its first frame among those that are taken of the video.
        stop: one more than the number of its last frame.
        own_start: number of the first frame that the result takes from this chunk and no other.
        own_stop: one more than the number of the last such frame.
    """

    index: int
    start: int
    stop: int
    own_start: int
    own_stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def plan_chunks(frames: int, chunk: int, overlap: int) -> tuple[Chunk, ...]:
    """Returns chunks of equal length that cover all frames.

    The last chunk starts early enough to be as long as the others, so that one compiled program
    serves all chunks. Of the frames that two chunks share, each chunk owns those that are nearer to
    its middle.

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
