"""The HTML page of a probe: the loss of quality by layer, and the cost of a plan."""

from collections.abc import Mapping, Sequence
from typing import Any

from lite3r_jax.html_report import document as html
from lite3r_jax.html_report.chart import Chart, Series


def page(body: Mapping[str, Any]) -> str:
    """Returns the page as HTML; equal results give equal text.

    Args:
        body: of probe.json.
    """
    options, layers = body["probe"], body["layers"]
    parts = {"Layers": html.charts(layer_charts(body)) + html.table(_layer_table(layers), ())}
    parts["Layers"] += html.paragraph(
        "Each layer alone had the other attention. Ratio: error over that of dense attention, for"
        f" every measure. Sensitive: a ratio above {options['threshold']:g}. Cosine: of the tokens"
        " behind the last layer over all views with those of dense attention."
    )
    text = (
        f"{body['plan']}: {body['operations']:.1%} of the operations of dense attention in a whole"
        f" pass over {body['views']} views."
    )
    measured = [["protocol", "error", "ratio to dense"]]
    for protocol, ratios in body["measured"].items():
        measured += [[protocol, name, f"{ratio:.3f}"] for name, ratio in ratios.items()]
    parts["Plan"] = html.paragraph(text) + html.charts([curve_chart(body)])
    parts["Plan"] += html.table(measured, ("protocol", "error")) if len(measured) > 1 else ""
    parts["Plan"] += html.paragraph(
        "The curve: layers get the other attention one after the other, those that lose least"
        " first; how much the layer that was added last loses alone. Layers together may lose more,"
        " which the point of the plan says: it was evaluated."
    )
    parts["Settings"] = html.details("Of the probe", html.without(body, "layers", "curve"))
    device, versions = body["device"], body["versions"]
    note = (
        f"Weights {body['weights']}; {device['kind']}, {device['machine']}; jax {versions['jax']}."
    )
    return html.document(f"Probe of {options['plan']}", note, parts)


def layer_charts(body: Mapping[str, Any]) -> list[Chart]:
    """Returns charts of error ratios by layer, and of token cosines where they were measured."""
    layers = body["layers"]
    numbers = [layer["layer"] for layer in layers]
    limit = body["probe"]["threshold"]
    series = [_series("largest of all", [(layer["layer"], layer["worst"]) for layer in layers])]
    names = dict.fromkeys(n for layer in layers for of in layer["ratios"].values() for n in of)
    for name in names:
        points = []
        for layer in layers:
            values = [of[name] for of in layer["ratios"].values() if name in of]
            points += [(layer["layer"], max(values))] if values else []
        series.append(_series(name, points))
    series.append(_series("threshold", [(n, limit) for n in {min(numbers): 0, max(numbers): 0}]))
    charts = [_chart("Error over that of dense attention", "layer", "ratio", series)]
    protocols = dict.fromkeys(p for layer in layers for p in layer["cosine"])
    cosines = [
        _series(p, [(x["layer"], x["cosine"][p]) for x in layers if p in x["cosine"]])
        for p in protocols
    ]
    if cosines:
        charts.append(_chart("Tokens against dense attention", "layer", "cosine", cosines))
    return charts


def curve_chart(body: Mapping[str, Any]) -> Chart:
    """Returns the chart of cost and quality: operations against the largest error ratio of a layer.

    Each point has one layer more replaced, and shows what that layer loses alone; the plan is a
    point of its own.
    """
    points = sorted((step["operations"], step["worst"]) for step in body["curve"])
    series = [_series("one layer more, each alone", points)]
    every = [ratio for of in body["measured"].values() for ratio in of.values()]
    if every:
        series.append(_series("the plan, evaluated", [(body["operations"], max(every))]))
    return _chart(
        "Cost and quality", "operations of a pass, share of dense", "largest error ratio", series
    )


def _chart(title: str, x: str, y: str, series: Sequence[Series]) -> Chart:
    return Chart(title, x, y, tuple(series), log_x=False, log_y=False)


def _series(name: str, points: Sequence[tuple[float, float]]) -> Series:
    return Series(name, tuple(points))


def _layer_table(layers: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = [["layer", "largest ratio", "of", "cosine", "sensitive"]]
    for layer in layers:
        ratios = {
            f"{name}, {protocol}": ratio
            for protocol, of in layer["ratios"].items()
            for name, ratio in of.items()
        }
        cosines = layer["cosine"].values()
        rows.append(
            [
                str(layer["layer"]),
                f"{layer['worst']:.3f}",
                max(ratios, key=lambda name: ratios[name]),
                f"{min(cosines):.5f}" if cosines else "",
                "yes" if layer["sensitive"] else "",
            ]
        )
    return rows
