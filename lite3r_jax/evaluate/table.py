"""The results of an evaluation as a Markdown table and as JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

from lite3r_jax.evaluate.evaluator import Report
from lite3r_jax.evaluate.summary import LEVEL, Estimate

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
    "AbsRel to first row": ("teacher_abs_rel", 4),
    "AUC@30 to first row": ("teacher_auc_30", 3),
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
BASELINES = {"baseline: constant depth": "constant_depth_", "baseline: mean pose": "mean_pose_"}


def to_json(reports: Mapping[str, Report]) -> list[dict[str, Any]]:
    """Every row of one protocol: summary, failures, per-scene files excepted."""
    return [
        {
            "row": row,
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
        for row, report in reports.items()
    ]


def markdown(reports: Mapping[str, Report]) -> str:
    """Tables of one protocol with a number of views.

    Args:
        reports: row -> report, at least one.
    """
    first = next(iter(reports.values()))
    protocol = first.protocol
    height, width = protocol.size
    lines = [
        f"## {protocol.name}, {protocol.views} views of {width}x{height}, {len(first.records)}"
        " samples",
        "",
    ]
    rows = {name: (report.summary, "", len(report.failures)) for name, report in reports.items()}
    for name, prefix in BASELINES.items():
        rows[name] = (first.summary, prefix, len(first.failures))
    columns = {**COLUMNS, **(AGREEMENT if len(reports) > 1 else {})}
    lines += _table(columns, rows)
    models = {name: row for name, row in rows.items() if name in reports}
    if any("lite3r_abs_rel" in report.summary for report in reports.values()):
        lines += ["", "By Lite3R's own definitions, faults included:", "", *_table(LITE3R, models)]
    lines += [
        "",
        "Pose AUC by the definition of published tables (a direction and its opposite are equal):",
        "",
        *_table(PUBLISHED, models),
    ]
    notes = _missing(first.summary, columns)
    lines += ["", *notes] if notes else []
    for name, report in reports.items():
        lines += [
            f"- {name}: {record.scene} failed: {record.failure}" for record in report.failures
        ]
    return "\n".join(lines) + "\n"


def legend(score: Mapping[str, Any]) -> str:
    """What the columns mean.

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


def _table(
    columns: Mapping[str, tuple[str, int]],
    rows: Mapping[str, tuple[Mapping[str, Estimate], str, int]],
) -> Sequence[str]:
    cells = [["row", *columns, "failed"]]
    for name, (summary, prefix, failures) in rows.items():
        values = [_cell(summary.get(prefix + metric), d) for metric, d in columns.values()]
        cells.append([name, *values, str(failures)])
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    cells.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(w) for cell, w in zip(row, widths, strict=True)] for row in cells)
    return ["| " + " | ".join(row) + " |" for row in padded]


def _cell(estimate: Estimate | None, decimals: int) -> str:
    if estimate is None:
        return ""
    if estimate.value is None:
        return "n/a"
    text = f"{estimate.value:.{decimals}f}"
    if estimate.low is not None and estimate.high is not None:
        text += f" [{estimate.low:.{decimals}f}, {estimate.high:.{decimals}f}]"
    return text


def _missing(summary: Mapping[str, Estimate], columns: Mapping[str, tuple[str, int]]) -> list[str]:
    notes = []
    for heading, (metric, _) in columns.items():
        estimate = summary.get(metric)
        if estimate is not None:
            notes += [
                f"- {heading}: not available for {count} samples: {reason}"
                for reason, count in estimate.missing.items()
            ]
    return notes
