"""Reports the results of a bench run as JSON, a Markdown table and charts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lite3r_jax.benchmarking.literature import PublishedFigure
from lite3r_jax.benchmarking.measure import Cell
from lite3r_jax.benchmarking.options import BASELINES
from lite3r_jax.html_report.chart import Chart, Reference, Series
from lite3r_jax.html_report.document import loaded

GIB = 2**30
# metric of an evaluation -> how it is called
QUALITY = {"abs_rel": "AbsRel, lower is better", "auc_30": "AUC@30, higher is better"}


def entries(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Returns the cells as JSON, each compared with the baselines at the same number of views.

    `against` holds, for each baseline that has figures: `speed`, its median time over this one's;
    `memory`, its peak over this one's, None if one of the two is not known; `planned_memory`,
    likewise for the plans; `flops`, likewise for the operations.
    """
    by_key = {(cell.variant, cell.views): cell for cell in cells}
    result = []
    for cell in cells:
        body = cell.to_json() | {"against": {}}
        for variant in BASELINES:
            base = by_key.get((variant.name, cell.views))
            if base is None or not base.seconds or not cell.seconds:
                continue
            memory = None
            if base.peak is not None and cell.peak is not None:
                memory = base.peak / cell.peak
            body["against"][variant.name] = {
                "speed": base.median / cell.median,
                "memory": memory,
                "planned_memory": base.planned / cell.planned,
                "flops": base.flops["total"] / cell.flops["total"],
            }
        result.append(body)
    return result


EXPLANATION = (
    "Median and p95 of passes with images on the device and results computed, without compilation."
    " Peak: bytes in use at most during the passes, weights included, of the device or, on a CPU,"
    " of the process. Planned: what the compiled program needs in all. TFLOP: matrix products and"
    " convolutions, two operations per multiply-add. Speed and memory: how many times less than the"
    " baseline of this run; memory by peaks, with ~ by plans where a peak is not known."
)


def heading(body: Mapping[str, Any]) -> tuple[str, str]:
    """Returns title and subtitle of a report: what was measured, and on what.

    `body` is the content of bench.json, here and in the functions below.
    """
    options, device = body["settings"]["bench"], body["device"]
    return (
        f"{_model(body)}, 1 scene of {options['size']}, {device['kind']}",
        f"{body['date']}; {device['machine']}; jax {body['versions']['jax']}; float32 products:"
        f" {options['matmul']}; {options['runs']} timed passes after {options['warmup']}.",
    )


def _model(body: Mapping[str, Any]) -> str:
    return loaded({"backbone": body["backbone"], **body["settings"]})


def measured(body: Mapping[str, Any]) -> list[list[str]]:
    """Returns the rows of the table of measurements, by number of views, its head first."""
    asked = body["settings"]["bench"]["baselines"].split(",")
    names = [variant.name for variant in BASELINES if variant.name in map(str.strip, asked)]
    head = ["views", "variant", "median ms", "p95 ms", "compile s", "peak GiB", "planned GiB"]
    head += ["TFLOP", "TFLOP/s", *(f"speed / {name}" for name in names)]
    head += [f"memory / {name}" for name in names]
    cells = sorted((c for c in body["cells"] if not c["missing"]), key=lambda c: c["views"])
    return [head, *(_line(cell, names) for cell in cells)]


def published_figures(body: Mapping[str, Any]) -> list[list[str]]:
    """Returns the rows of the table of published figures, its head first."""
    head = ["model", "method", "views", "size", "ms", "GiB", "hardware", "baseline", "source"]
    return [head] + [
        [
            p["model"], p["method"], str(p["views"]), p["size"], f"{p['seconds'] * 1e3:.0f}",
            "" if p["memory"] is None else f"{p['memory'] / GIB:.2f}",
            p["hardware"], p["baseline"], p["source"],
        ]
        for p in body["published"]
    ]  # fmt: skip


def notes(body: Mapping[str, Any]) -> list[str]:
    """Returns notes on what could not be measured, with reasons, and on which kernels ran."""
    kernels = [
        f"{name}: {facts['compute']} compute, weights {facts['weights']}; "
        + "; ".join(f"{role}: {text}" for role, text in facts["attention"].items())
        + (f"; float8 products: {facts['float8_products']}" if facts.get("float8_products") else "")
        for name, facts in body["variants"].items()
    ]
    return [*_missing(body["cells"]), *_unknown(body["cells"]), *kernels]


def markdown(body: Mapping[str, Any]) -> str:
    """Formats the tables and notes of a bench run as a Markdown page."""
    title, run = heading(body)
    lines = [f"# {title}", "", run, "", *_table(measured(body)), "", EXPLANATION, ""]
    lines += [f"- {note}" for note in notes(body)]
    if body["published"]:
        lines += ["", "Published, on other machines, not measured here:", ""]
        lines += _table(published_figures(body))
    return "\n".join(lines) + "\n"


def charts(
    body: Mapping[str, Any], published: Sequence[PublishedFigure] = (), evaluation: Any = None
) -> dict[str, Chart]:
    """Returns charts by file name without suffix; charts without any point are left out.

    Args:
        body: of bench.json.
        published: reference points.
        evaluation: of an evaluation's report.json, or None.
    """
    size, kind = body["settings"]["bench"]["size"], body["device"]["kind"]
    of = f"{_model(body)}, {size}, {kind}"
    cells = [cell for cell in body["cells"] if not cell["missing"]]
    # also of what was not measured; they do not depend on the precision
    work: dict[str, dict[int, float]] = {}
    for cell in body["cells"]:
        if cell["flops"]:
            attention = work.setdefault(cell["variant"].partition("-")[0], {})
            attention[cell["views"]] = cell["flops"]["total"] / 1e12
    styles = {name: i for i, name in enumerate(dict.fromkeys(c["variant"] for c in body["cells"]))}
    peaks = all(cell["peak"] is not None for cell in cells)
    memory = "peak" if peaks else "planned"
    charts = {
        "latency": Chart(
            f"Latency: {of}", "views", "seconds, median",
            _series(cells, styles, lambda c: c["median_seconds"]),
            tuple(Reference(str(p), p.views, p.seconds) for p in published),
        ),
        "memory": Chart(
            f"Memory, {'measured' if peaks else 'planned'}: {of}", "views", f"GiB, {memory}",
            _series(cells, styles, lambda c: c[memory] / GIB),
            tuple(
                Reference(str(p), p.views, p.memory / GIB) for p in published if p.memory
            ),
        ),
        "work": Chart(
            f"Operations: {body['backbone']}, {size}", "views", "TFLOP",
            tuple(Series(name, tuple(sorted(points.items()))) for name, points in work.items()),
        ),
    }  # fmt: skip
    if evaluation is not None:
        charts |= _quality(cells, styles, evaluation, of)
    return {name: chart for name, chart in charts.items() if chart.series}


def in_common(evaluation: Mapping[str, Any], variants: Sequence[str], views: Sequence[int]) -> bool:
    """Whether an evaluation has one of these variants at one of these numbers of views."""
    return any(e["variant"] in variants and e["views"] in views for e in evaluation["results"])


def _quality(
    cells: Sequence[Any], styles: Mapping[str, int], evaluation: Any, of: str
) -> dict[str, Chart]:
    charts = {}
    results = evaluation["results"]
    for protocol, views in dict.fromkeys((e["protocol"], e["views"]) for e in results):
        seconds = {c["variant"]: c["median_seconds"] for c in cells if c["views"] == views}
        for metric, label in QUALITY.items():
            points = []
            for e in results:
                value = e["metrics"].get(metric, {}).get("value")
                same = (e["protocol"], e["views"]) == (protocol, views)
                if same and value is not None and e["variant"] in seconds:
                    point = (seconds[e["variant"]], value)
                    points.append(Series(e["variant"], (point,), styles[e["variant"]]))
            name = f"quality-{protocol.replace(':', '-')}-{views}-{metric}"
            charts[name] = Chart(
                f"{protocol}, {views} views: quality against time ({of})",
                "seconds, median", label, tuple(points), log_y=False,
            )  # fmt: skip
    return charts


def _series(
    cells: Sequence[Any], styles: Mapping[str, int], value: Callable[[Any], float]
) -> tuple[Series, ...]:
    points: dict[str, list[tuple[float, float]]] = {}
    for cell in cells:
        points.setdefault(cell["variant"], []).append((cell["views"], value(cell)))
    return tuple(Series(name, tuple(line), styles[name]) for name, line in points.items())


def _line(cell: Mapping[str, Any], baselines: Sequence[str]) -> list[str]:
    work = cell["flops"]["total"] / 1e12
    against = [cell["against"].get(name) for name in baselines]

    def memory(other: Any) -> str:
        if other is None:
            return ""
        measured = other["memory"]
        return f"~{other['planned_memory']:.2f}" if measured is None else f"{measured:.2f}"

    return [
        str(cell["views"]),
        cell["variant"],
        f"{cell['median_seconds'] * 1e3:.1f}",
        f"{cell['p95_seconds'] * 1e3:.1f}",
        f"{cell['compile_seconds']:.1f}",
        "" if cell["peak"] is None else f"{cell['peak'] / GIB:.2f}",
        f"{cell['planned'] / GIB:.2f}",
        f"{work:.3g}",
        f"{work / cell['median_seconds']:.3g}",
        *("" if other is None else f"{other['speed']:.2f}" for other in against),
        *(memory(other) for other in against),
    ]


def _table(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    lines = [[cell.ljust(w) for cell, w in zip(row, widths, strict=True)] for row in cells]
    lines.insert(1, ["-" * width for width in widths])
    return ["| " + " | ".join(line) + " |" for line in lines]


def _missing(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns one line for each variant that was not measured and each reason."""
    first: dict[tuple[str, str], int] = {}
    for cell in cells:
        if cell["missing"]:
            first.setdefault((cell["variant"], cell["missing"]), cell["views"])
    return [
        f"{name}, from {views} views on: not measured: {why}"
        for (name, why), views in first.items()
    ]


def _unknown(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"{cell['variant']}, {cell['views']} views: peak not known: {cell['peak_note']}"
        for cell in cells
        if not cell["missing"] and cell["peak"] is None
    ]
