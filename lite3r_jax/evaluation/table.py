"""The results of an evaluation as JSON, as tables, and as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lite3r_jax.errors import printable
from lite3r_jax.evaluation.evaluator import Report
from lite3r_jax.evaluation.summary import LEVEL

# heading -> (metric, decimals)
COLUMNS: Mapping[str, tuple[str, int]] = {
    "AbsRel": ("abs_rel", 4),
    "delta1": ("delta1", 3),
    "AUC@5": ("auc_5", 3),
    "AUC@30": ("auc_30", 3),
    "rot. med. deg": ("rotation_median_deg", 2),
    "dir. med. deg": ("direction_median_deg", 2),
    "ATE": ("ate", 4),
    "Chamfer": ("chamfer", 4),
    "F@0.05": ("fscore_0.05", 3),
    "wrong partner": ("wrong_partner_ratio", 3),
}
AGREEMENT: Mapping[str, tuple[str, int]] = {
    "AbsRel to first variant": ("teacher_abs_rel", 4),
    "delta1 to first variant": ("teacher_delta1", 4),
    "AUC@5 to first variant": ("teacher_auc_5", 3),
    "AUC@30 to first variant": ("teacher_auc_30", 3),
}
LITE3R: Mapping[str, tuple[str, int]] = {
    "AbsRel": ("lite3r_abs_rel", 4),
    "delta1": ("lite3r_delta1", 4),
    "Rot": ("lite3r_rot_err_deg", 4),
    "Trans": ("lite3r_trans_err", 4),
    "CD": ("lite3r_chamfer", 4),
    "F5cm": ("lite3r_fscore_5cm", 4),
}
PUBLISHED: Mapping[str, tuple[str, int]] = {
    f"AUC@{t}": (f"published_auc_{t}", 4) for t in (3, 5, 15, 30)
}
_HIGHER = ("delta1", "AUC", "F@", "F5cm", "wrong partner")
HIGHER_IS_BETTER = frozenset(
    heading
    for columns in (COLUMNS, AGREEMENT, LITE3R, PUBLISHED)
    for heading in columns
    if heading.startswith(_HIGHER)
)
"""Columns that are better the higher they are; the others the lower they are."""
BASELINES = {"baseline: constant depth": "constant_depth_", "baseline: mean pose": "mean_pose_"}


def to_json(reports: Mapping[str, Report]) -> list[dict[str, Any]]:
    """Returns the results of every variant on one protocol as JSON: summary and failures.

    Per-scene records are not included.
    """
    return [
        {
            "variant": variant,
            "protocol": report.protocol.name,
            "views": report.protocol.views,
            "size": {"height": report.protocol.size[0], "width": report.protocol.size[1]},
            "samples": len(report.records),
            "failures": [
                {"scene": r.scene, "frames": list(r.frames), "reason": r.failure}
                for r in report.failures
            ],
            "metrics": {name: value.to_json() for name, value in report.summary.items()},
        }
        for variant, report in reports.items()
    ]


@dataclass(frozen=True)
class Block:
    """The tables of one protocol with one number of views.

    Attributes:
        title: the protocol, with views, size and number of samples.
        tables: what a table is of, "" for the main one -> its cells, the head first.
        notes: what is missing and what failed, with reasons.
    """

    title: str
    tables: Mapping[str, Sequence[Sequence[str]]]
    notes: Sequence[str]


def blocks(entries: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Makes the tables of all results, one block for each protocol and number of views.

    Args:
        entries: of `to_json`, of any protocols.
    """
    kinds = dict.fromkeys((entry["protocol"], entry["views"]) for entry in entries)
    return [
        _block([entry for entry in entries if (entry["protocol"], entry["views"]) == kind])
        for kind in kinds
    ]


def markdown(reports: Mapping[str, Report]) -> str:
    """Returns the tables of one protocol with a number of views as Markdown.

    Args:
        reports: variant -> report, at least one.
    """
    (block,) = blocks(to_json(reports))
    lines = [f"## {block.title}"]
    for heading, cells in block.tables.items():
        lines += ["", f"{heading}:"] if heading else []
        lines += ["", *_rows(cells)]
    lines += ["", *(f"- {note}" for note in block.notes)] if block.notes else []
    return "\n".join(lines) + "\n"


def legend(score: Mapping[str, Any]) -> str:
    """Returns a text on what the columns of the tables mean.

    Args:
        score: the settings `ScoreOptions`.
    """
    return (
        f"Means over samples with {LEVEL:.0%} bootstrap intervals. Depth after alignment"
        f" {score['alignment']!r} per {score['scope']}. AUC over all pairs of views, the sign of"
        " the direction counts; rot. and dir. are medians over all pairs. Lengths (ATE, Chamfer,"
        " thresholds of F): the mean distance of the true points from the first camera is 1;"
        " without true depth the farthest camera is at 1. wrong partner: AbsRel of the first view"
        " with the other views of another scene, over that with the right ones. Baselines: depth 1"
        " everywhere; the mean relative poses of the other scenes of the same list. n/a: not"
        " available, with the reason below.\n"
    )


def _block(entries: Sequence[Mapping[str, Any]]) -> Block:
    first = entries[0]
    size = first["size"]
    name = printable(first["protocol"])
    title = f"{name}, {first['views']} views of {size['width']}x{size['height']}"
    rows = [(entry["variant"], entry, "") for entry in entries]
    baselines = [(name, first, prefix) for name, prefix in BASELINES.items()]
    tables = {
        "": _cells(COLUMNS, rows + baselines),
        "The first variant's prediction in place of the truth": _cells(AGREEMENT, rows[1:]),
        "By Lite3R's own definitions, faults included": _cells(LITE3R, rows),
        "Pose AUC by the definition of published tables (a direction and its opposite are equal)":
            _cells(PUBLISHED, rows),
    }  # fmt: skip
    tables = {
        heading: cells for heading, cells in tables.items() if not heading or len(cells[0]) > 2
    }
    return Block(f"{title}, {first['samples']} samples", tables, _notes(entries))


def _cells(
    columns: Mapping[str, tuple[str, int]], rows: Sequence[tuple[str, Mapping[str, Any], str]]
) -> list[list[str]]:
    """Makes a table of rows (name, entry, prefix of metrics), without columns that no row has."""
    table = []
    for name, entry, prefix in rows:
        values = [_cell(entry["metrics"].get(prefix + m), d) for m, d in columns.values()]
        if any(values) or not prefix:
            table.append([name, *values, str(len(entry["failures"]))])
    table.insert(0, ["variant", *columns, "failed"])
    kept = [k for k in range(len(table[0])) if any(row[k] for row in table[1:])]
    return [[row[k] for k in kept] for row in table]


def _cell(estimate: Mapping[str, Any] | None, decimals: int) -> str:
    if estimate is None:
        return ""
    if estimate["value"] is None:
        return "n/a"
    text = f"{estimate['value']:.{decimals}f}"
    if estimate["low"] is not None and estimate["high"] is not None:
        text += f" [{estimate['low']:.{decimals}f}, {estimate['high']:.{decimals}f}]"
    return text


def _notes(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns notes on missing values and on failures, with the reasons.

    Variants are named unless a value is missing in all that have the column.
    """
    missing: dict[str, list[str]] = {}
    having: dict[str, int] = {}
    for entry in entries:
        for heading, (metric, _) in {**COLUMNS, **AGREEMENT}.items():
            if metric in entry["metrics"]:
                having[heading] = having.get(heading, 0) + 1
                for reason, count in entry["metrics"][metric]["missing"].items():
                    text = f"{heading}: not available for {count} samples: {reason}"
                    missing.setdefault(text, []).append(entry["variant"])
    notes = [
        text if len(rows) == having[text.partition(":")[0]] else f"{', '.join(rows)}: {text}"
        for text, rows in missing.items()
    ]
    return notes + [
        printable(f"{entry['variant']}: {failure['scene']} failed: {failure['reason']}")
        for entry in entries
        for failure in entry["failures"]
    ]


def _rows(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    lines = [[cell.ljust(w) for cell, w in zip(row, widths, strict=True)] for row in cells]
    lines.insert(1, ["-" * width for width in widths])
    return ["| " + " | ".join(line) + " |" for line in lines]
