"""Strict reader and writer of MVSNet's pair.txt, which scores how much views overlap.

A file has the number of views; then for each view a line with its number and a line "k view score
view score ..." with its k best partners (github.com/YoYo000/MVSNet, README: file formats).
BlendedMVS has ten partners a view, or fewer.
"""

import os
from pathlib import Path

from lite3r_jax.data.text_file import count, number, read_text
from lite3r_jax.data.views import Scores
from lite3r_jax.errors import InputError

_MAX_BYTES = 16_000_000  # 10,000 views with 100 partners each


def read_pairs(path: str | os.PathLike[str]) -> dict[int, dict[int, float]]:
    """Reads the overlap scores of views from one pair.txt.

    Returns:
        view -> partner -> score, partners in the order of the file.

    Raises:
        InputError: with line and expectation, for numbers that are missing, left over, negative or
            not finite, a view or partner twice, a view that is its own partner, and partners that
            are no views of the file.
    """
    lines = read_text(path, _MAX_BYTES).rstrip().split("\n")
    views = count(lines[0].strip(), f"{path}: line 1")
    if views < 1 or len(lines) != 1 + 2 * views:
        raise InputError(
            f"{path}: line 1: {views} views need {1 + 2 * views} lines, got {len(lines)}"
        )
    pairs: dict[int, dict[int, float]] = {}
    for at in range(1, len(lines), 2):
        view = count(lines[at].strip(), f"{path}: line {at + 1}")
        if view in pairs:
            raise InputError(f"{path}: line {at + 1}: view {view} comes twice, expected once")
        pairs[view] = _partners(lines[at + 1].split(), view, f"{path}: line {at + 2}")
    for at, partners in zip(range(3, len(lines) + 1, 2), pairs.values(), strict=True):
        if unknown := partners.keys() - pairs.keys():
            raise InputError(
                f"{path}: line {at}: expected partners among the views of this file, got"
                f" {min(unknown)}"
            )
    return pairs


def write_pairs(path: str | os.PathLike[str], pairs: Scores, *, partners: int = 10) -> None:
    """Writes one pair.txt, with the best partners of each view first.

    Args:
        path: the file; it is written directly, not atomically: stage it where that matters.
        pairs: of all views; scores are written with six decimals, those of 0 are left out.
        partners: how many of each view at most.
    """
    lines = [str(len(pairs))]
    for view, scores in pairs.items():
        best = sorted((-score, other) for other, score in scores.items() if score > 0)[:partners]
        words = [f"{other} {-score:.6f}" for score, other in best]
        lines += [str(view), " ".join([str(len(best)), *words])]
    Path(path).write_text("\n".join(lines) + "\n", "ascii")


def _partners(words: list[str], view: int, place: str) -> dict[int, float]:
    if not words or len(words) != 1 + 2 * count(words[0], place):
        raise InputError(
            f"{place}: expected the number of partners, and that many pairs of view and score"
        )
    partners: dict[int, float] = {}
    for name, score in zip(words[1::2], words[2::2], strict=True):
        other, value = count(name, place), number(score, place)
        if other == view or other in partners:
            raise InputError(
                f"{place}: expected partners of view {view} that are different, got {other} again"
            )
        if not 0 <= value <= 1e9:
            raise InputError(f"{place}: expected scores of 0 or more, got {value:g}")
        partners[other] = value
    return partners
