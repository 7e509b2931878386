"""Sentences that compare a student with its teacher, from the results of an evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any

from lite3r_jax.evaluation.summary import LEVEL
from lite3r_jax.evaluation.variants import STUDENT

# metric -> (heading, decimals, 1 if more is better)
_METRICS = {"abs_rel": ("AbsRel", 4, -1), "auc_30": ("AUC@30", 3, 1)}


def verdicts(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a sentence for every student variant and protocol evaluated beside its teacher.

    A difference counts where the teacher's figure lies outside of the student's bootstrap interval.

    Args:
        entries: of `evaluation.table.to_json`; the first dense entry of a protocol is the teacher.
    """
    teachers: dict[tuple[str, int], Mapping[str, Any]] = {}
    for entry in entries:
        if entry["variant"].startswith("dense-"):
            teachers.setdefault((entry["protocol"], entry["views"]), entry)
    return [
        _sentence(entry, teachers[where])
        for entry in entries
        if entry["variant"].startswith(f"{STUDENT}-")
        and (where := (entry["protocol"], entry["views"])) in teachers
    ]


def _sentence(entry: Mapping[str, Any], teacher: Mapping[str, Any]) -> str:
    said, better, worse = [], 0, 0
    for metric, (heading, decimals, sign) in _METRICS.items():
        mine, theirs = (each["metrics"].get(metric) or {} for each in (entry, teacher))
        if mine.get("value") is None or theirs.get("value") is None:
            continue
        said.append(
            f"{heading} {mine['value']:.{decimals}f} (teacher {theirs['value']:.{decimals}f})"
        )
        if mine.get("low") is not None and mine.get("high") is not None:
            better += sign * theirs["value"] < min(sign * mine["low"], sign * mine["high"])
            worse += sign * theirs["value"] > max(sign * mine["low"], sign * mine["high"])
    if not said:
        outcome = "nothing could be compared"
    elif worse and better:
        outcome = "better in one, worse in the other"
    elif worse or better:
        outcome = f"{'worse' if worse else 'better'} than its teacher"
    else:
        outcome = f"no difference that {entry['samples']} samples show at {LEVEL:.0%}"
    figures = f": {', '.join(said)}" if said else ""
    return f"verdict: {entry['variant']}, {entry['views']} views, {outcome}{figures}."
