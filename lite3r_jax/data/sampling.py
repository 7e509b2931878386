"""Random choice of the frames that make a sample, as pure functions of (seed, index).

The random numbers are the raw output of PCG64, which NumPy guarantees never to change; the methods
of its Generator have no such guarantee. So a seed names the same samples on every machine.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import numpy as np

from lite3r_jax.data.views import CrossViewCheck, Scores
from lite3r_jax.errors import InputError

MIN_VIEWS, MAX_VIEWS = 2, 24

MAX_STEP = 8  # from one frame of "spaced" to the next

Strategy = Literal["pairs", "random", "consecutive", "spaced"]


class Uniform:
    """Stream of random numbers that is fixed by a (seed, index)."""

    def __init__(self, seed: int, index: int):
        """Starts the stream of random numbers at the first one.

        Args:
            seed: 0 or more.
            index: 0 or more; other indices give independent numbers.
        """
        self._bits = np.random.PCG64(np.random.SeedSequence([seed, index]))

    def __call__(self) -> float:
        """Returns the next random number in [0, 1), a multiple of 2^-53."""
        return (int(self._bits.random_raw()) >> 11) * 2.0**-53

    def between(self, low: float, high: float) -> float:
        """Returns a uniform random number in [`low`, `high`]."""
        return low + self() * (high - low)

    def below(self, count: int) -> int:
        """Returns a uniform random integer of 0 to `count` - 1."""
        return int(self() * count)

    def shuffled(self, items: Iterable[int]) -> tuple[int, ...]:
        """Returns the items in random order."""
        order = list(items)
        for last in range(len(order) - 1, 0, -1):  # Fisher-Yates
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return tuple(order)


def substream(seed: int, purpose: int) -> int:
    """Derives a seed for one of several purposes, so that equal indices share no random numbers."""
    low, high = np.random.SeedSequence([seed, purpose]).generate_state(2, np.uint32)
    return int(high) << 32 | int(low)


def choose_frames(
    frames: Sequence[int],
    views: int,
    strategy: Strategy,
    *,
    seed: int,
    index: int,
    pairs: Scores | None = None,
    name: str = "scene",
) -> tuple[int, ...]:
    """Chooses the frames of one sample, each once; the first is the reference view.

    - pairs: a random frame, then one after the other a frame that shares a score with one that is
      chosen already, with probability in proportion to its best such score. Frames whose overlap
      does not connect enough frames are not started from.
    - random: any frames, in random order.
    - consecutive: neighbors in `frames`, from a random start, in order.
    - spaced: every n-th of `frames`, from a random start, in order, with a random n of 1 to 8, as
      far as there are frames for it.

    Args:
        frames: of the scene, in order.
        views: 2 to 24.
        strategy: as above.
        seed: of the run.
        index: of the sample, not negative; other indices give independent samples.
        pairs: overlap scores (pair.txt, or `overlap_scores`), needed for "pairs".
        name: what messages call the scene.

    Raises:
        InputError: an unknown strategy; views beyond the limits; fewer frames than views, or fewer
            that overlap; no scores.
    """
    if strategy not in get_args(Strategy):
        raise InputError(
            f"strategy: expected one of {', '.join(get_args(Strategy))}, got {strategy!r}"
        )
    if not MIN_VIEWS <= views <= MAX_VIEWS:
        raise InputError(f"views: expected {MIN_VIEWS} to {MAX_VIEWS}, got {views}")
    if seed < 0 or index < 0:
        raise InputError(f"seed and index: expected 0 or more, got {seed} and {index}")
    if len(frames) < views:
        raise InputError(
            f"{name}: has {len(frames)} frames, {views} views are asked for; ask for fewer"
        )
    uniform = Uniform(seed, index)
    if strategy == "random":
        return uniform.shuffled(frames)[:views]
    if strategy in ("consecutive", "spaced"):
        step = 1
        if strategy == "spaced":
            step += uniform.below(min(MAX_STEP, (len(frames) - 1) // (views - 1)))
        start = uniform.below(len(frames) - (views - 1) * step)
        return tuple(frames[start::step][:views])
    if pairs is None:
        raise InputError(
            f"{name}: has no overlap scores, which the strategy pairs needs; use random,"
            " consecutive or spaced"
        )
    return _overlapping(frames, views, pairs, uniform, name)


def scene_order(scenes: int, seed: int, epoch: int) -> tuple[int, ...]:
    """Returns a random order of scenes 0 to `scenes` - 1, one for each epoch."""
    return Uniform(seed, epoch).shuffled(range(scenes))


def overlap_scores(check: CrossViewCheck, frames: Sequence[int]) -> dict[int, dict[int, float]]:
    """Computes overlap scores of frames from depth: the share of pixels that both views see.

    Of the two directions the smaller share counts.

    Args:
        check: result of `cross_view_check` for a sample of these frames.
        frames: numbers of the frames, in the order of the sample.
    """
    shared = check.in_view * np.nan_to_num(check.visible)
    shared = np.minimum(shared, shared.T)
    return {
        a: {b: float(shared[i, j]) for j, b in enumerate(frames) if j != i and shared[i, j] > 0}
        for i, a in enumerate(frames)
    }


def _overlapping(
    frames: Sequence[int], views: int, pairs: Scores, uniform: Uniform, name: str
) -> tuple[int, ...]:
    scores = _both_ways(frames, pairs)
    large = [frame for group in _connected(scores) if len(group) >= views for frame in group]
    if not large:
        raise InputError(
            f"{name}: no {views} frames are connected by overlap scores; ask for fewer views or"
            " use random"
        )
    chosen = [sorted(large)[uniform.below(len(large))]]
    best: dict[int, float] = {}
    while len(chosen) < views:
        for frame, score in scores[chosen[-1]].items():
            best[frame] = max(best.get(frame, 0.0), score)
        candidates = sorted(best.keys() - set(chosen))
        total = np.cumsum([best[frame] for frame in candidates])
        at = int(np.searchsorted(total, uniform() * total[-1], side="right"))
        chosen.append(candidates[min(at, len(candidates) - 1)])
    return tuple(chosen)


def _both_ways(frames: Sequence[int], pairs: Scores) -> dict[int, dict[int, float]]:
    """Makes positive scores symmetric by the larger of both ways; pair.txt lists the best ten."""
    scores: dict[int, dict[int, float]] = {frame: {} for frame in frames}
    for a, partners in pairs.items():
        for b, score in partners.items():
            if a in scores and b in scores and score > 0:
                scores[a][b] = scores[b][a] = max(score, scores[a].get(b, 0.0))
    return scores


def _connected(scores: dict[int, dict[int, float]]) -> list[set[int]]:
    groups: list[set[int]] = []
    left = set(scores)
    while left:
        group, edge = set(), [left.pop()]
        while edge:
            frame = edge.pop()
            group.add(frame)
            edge += scores[frame].keys() - group
        left -= group
        groups.append(group)
    return groups
