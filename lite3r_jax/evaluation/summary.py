"""Means over scenes with bootstrap intervals, and counts of scenes without a value."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from lite3r_jax.evaluation.record import Record
from lite3r_jax.metrics import NotAvailable

LEVEL = 0.95

Statistic = Callable[[np.ndarray], np.ndarray]
"""A function of numbers of scenes, [R, N], that gives R values, one for each draw of N scenes."""


@dataclass(frozen=True)
class Estimate:
    """A statistic over scenes, with its bootstrap interval.

    Attributes:
        value: the number; None if no scene defines it.
        low: end of the 95 % bootstrap interval over scenes; None for fewer than two scenes.
        high: its other end.
        scenes: how many scenes it is of.
        missing: reason -> number of scenes that do not define it.
    """

    value: float | None
    low: float | None
    high: float | None
    scenes: int
    missing: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Returns all fields as a JSON object."""
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "scenes": self.scenes,
            "missing": self.missing,
        }


def summarize(
    records: Sequence[Record], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Estimates every metric over all scenes that did not fail.

    Most are means of the scenes' values. rotation_median_deg and direction_median_deg, and those of
    the mean pose, are medians of all pairs of all scenes. wrong_partner_ratio is the mean of
    wrong_partner_abs_rel over that of first_view_abs_rel. Intervals are percentiles of what scenes
    drawn with replacement give (Efron and Tibshirani, 1993, chapter 13).

    Args:
        records: of one protocol; failures do not count.
        resamples: how many draws.
        seed: of the draws.
    """
    done = [record for record in records if not record.failure]
    names = dict.fromkeys(name for record in done for name in record.metrics)
    estimates = {}

    def add(name: str, statistic: Statistic, count: int, missing: dict[str, int]) -> None:
        estimates[name] = _estimate(statistic, count, missing, resamples, seed)

    for name in names:
        values = _numbers(done, name)[:, 0]
        add(name, partial(_mean, values), len(values), _reasons(done, name))
    for name in dict.fromkeys(name for record in done for name in record.pairs):
        errors = [_known(record.pairs.get(name, ())) for record in done]
        errors = [values for values in errors if len(values)]
        median = f"{name.removesuffix('_deg')}_median_deg"
        add(median, partial(_median, errors), len(errors), _reasons(done, name))
    wrong, right = "wrong_partner_abs_rel", "first_view_abs_rel"
    if wrong in estimates:
        values = _numbers(done, wrong, right)
        add("wrong_partner_ratio", partial(_ratio, values), len(values), estimates[wrong].missing)
    return estimates


def paired_difference(
    values: Sequence[float],
    others: Sequence[float],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Estimates the mean of `values` less that of `others`, of the same scenes in the same order.

    Scenes are drawn with both of their values, so that how hard a scene is does not widen the
    interval, which is what tells two models of one table apart.

    Raises:
        ValueError: not as many values.
    """
    if len(values) != len(others):
        raise ValueError(f"expected values of the same scenes, got {len(values)}, {len(others)}")
    differences = np.subtract(values, others, dtype=np.float64)
    return _estimate(partial(_mean, differences), len(differences), {}, resamples, seed)


def _numbers(records: Sequence[Record], *names: str) -> np.ndarray:
    """Returns the values [N, names] of the records that have all the named metrics."""
    rows = ([record.metrics.get(name) for name in names] for record in records)
    rows = [row for row in rows if all(isinstance(value, float) for value in row)]
    return np.array(rows, np.float64).reshape(-1, len(names))


def _mean(values: np.ndarray, draws: np.ndarray) -> np.ndarray:
    return values[draws].mean(-1)


def _ratio(values: np.ndarray, draws: np.ndarray) -> np.ndarray:
    above, below = np.moveaxis(values[draws].mean(-2), -1, 0)
    return above / below


def _median(errors: Sequence[np.ndarray], draws: np.ndarray) -> np.ndarray:
    """Returns the median of all elements of the drawn arrays, for each draw."""
    return np.array([np.median(np.concatenate([errors[n] for n in draw])) for draw in draws])


def _known(values: Sequence[float | None]) -> np.ndarray:
    return np.array([value for value in values if value is not None], np.float64)


def _reasons(records: Sequence[Record], name: str) -> dict[str, int]:
    values = (record.metrics.get(name) for record in records)
    counts = Counter(value.reason for value in values if isinstance(value, NotAvailable))
    return dict(sorted(counts.items()))


def _estimate(
    statistic: Statistic, count: int, missing: dict[str, int], resamples: int, seed: int
) -> Estimate:
    if count == 0:
        return Estimate(None, None, None, 0, missing)
    value = float(statistic(np.arange(count)[None])[0])
    if count < 2 or resamples < 1:
        return Estimate(value, None, None, count, missing)
    # the raw output of PCG64 is the same in every version of NumPy
    bits = np.random.PCG64(np.random.SeedSequence([seed, count]))
    share = (bits.random_raw((resamples, count)) >> np.uint64(11)) * 2.0**-53
    resampled = statistic((share * count).astype(np.intp))
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), count, missing)
