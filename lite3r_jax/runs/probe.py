"""`--mode=probe`: finds layers that lose quality with cheaper attention, and proposes a plan."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from flax import nnx

from lite3r_jax.attention.plan import Plan, Rule, plan_to_json
from lite3r_jax.attention.presets import parse_plan, plan_name
from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.benchmarking.flops import count
from lite3r_jax.errors import InputError
from lite3r_jax.evaluation.probe_page import page
from lite3r_jax.evaluation.protocols import open_protocol
from lite3r_jax.evaluation.results import SETTINGS, folder_name
from lite3r_jax.evaluation.token_cosine import TRUNK, mean_cosine, trunk_tokens
from lite3r_jax.evaluation.variants import HEADS, Variant, build_variant
from lite3r_jax.experiment import Experiment, refuse_devices, refuse_model_settings, require
from lite3r_jax.files import atomic_write
from lite3r_jax.infer.report import environment
from lite3r_jax.layers.rngs import traced_rngs
from lite3r_jax.models import CheckedModel, ModelSpec, check_model
from lite3r_jax.progress import Progress
from lite3r_jax.runs.evaluate import Evaluation, evaluate
from lite3r_jax.weights import strict_json

ERRORS = ("abs_rel", "rotation_median_deg", "direction_median_deg", "ate")
"""Metrics of an evaluation by which layers are judged; smaller is better."""
_DENSE = "dense-float32"
_TOKENS = "tokens.json"


@dataclass(frozen=True)
class ProbedLayer:
    """Error ratios of the model when one layer alone has the probed attention, not dense.

    Attributes:
        layer: its number among those of the role.
        ratios: protocol -> metric -> error over that of dense attention.
        sensitive: whether one of the ratios is above the threshold.
        cosine: protocol -> mean cosine between the tokens behind the last layer over all views and
            those of dense attention; empty where it was not measured.
    """

    layer: int
    ratios: Mapping[str, Mapping[str, float]]
    sensitive: bool
    cosine: Mapping[str, float] = field(default_factory=dict)

    @property
    def worst(self) -> float:
        """The largest of the error ratios."""
        return max(value for of in self.ratios.values() for value in of.values())


@dataclass(frozen=True)
class Step:
    """A plan with the probed attention in some layers: its cost and largest error ratio.

    Attributes:
        layers: numbers of these layers, in order.
        operations: of a whole pass, as a share of those with dense attention.
        worst: the largest error ratio of the layer among them that loses most, alone.
    """

    layers: tuple[int, ...]
    operations: float
    worst: float


@dataclass(frozen=True)
class Probing:
    """The result of a probe.

    Attributes:
        folder: of probe.json, plan.json, probe.html and what `evaluate` writes.
        layers: all that were probed.
        plan: the attention that was tried, in those of them that are not sensitive or that the
            budget takes; dense if it is none of them.
        operations: of a whole pass with this plan, as a share of those with dense attention.
        measured: protocol -> metric -> error of this plan over that of dense attention.
        curve: plans with none of the layers, one, two and so on, those that lose least first.
    """

    folder: Path
    layers: Sequence[ProbedLayer]
    plan: Plan
    operations: float
    measured: Mapping[str, Mapping[str, float]]
    curve: Sequence[Step]


def run(experiment: Experiment) -> int:
    """Runs `--mode=probe`; exit code 0; see `probe`."""
    result = probe(experiment)
    for layer in () if experiment.quiet else result.layers:
        note = "sensitive" if layer.sensitive else ""
        cosine = f"  token cosine {min(layer.cosine.values()):.5f}" if layer.cosine else ""
        line = f"layer {layer.layer:2d}  largest error ratio {layer.worst:.3f}{cosine}  {note}"
        print(line.rstrip())
    ratios = [value for of in result.measured.values() for value in of.values()]
    print(
        f"{result.folder / 'plan.json'}: {plan_name(result.plan)}, {result.operations:.1%} of the"
        f" operations, largest error ratio {max(ratios):.3f}"
    )
    print(f"open {result.folder / 'probe.html'}")
    return 0


def probe(experiment: Experiment) -> Probing:
    """Evaluates the model with another attention in one layer at a time, and proposes a plan.

    A layer is sensitive if one of `ERRORS` grows by more than the threshold, as Spark3R finds its
    layers (arXiv 2605.06270). The plan has the other attention in all layers that are not
    sensitive, or in as few layers as a budget of operations takes, and is evaluated as well.
    Samples that are done already are not done again, so that a probe that was stopped goes on.

    Args:
        experiment: `weights`, `output`, `probe`, and of `evaluate` all but the variants.

    Returns:
        Also written: probe.json, probe.html, plan.json, which every entrance takes as a plan, and
        the report of the evaluation.

    Raises:
        InputError: as `evaluate`; the plan is not of one role, or names layers that are not there;
            no plan is within the budget; samples failed.
    """
    require(experiment, "weights", "output")
    if experiment.precision:
        raise InputError("config.precision: a probe compares models in float32; leave it out")
    refuse_model_settings(experiment, {"student": "weights", "attention.plan": "probe.plan"})
    alone = "leave it out, as a probe takes scenes one by one with all views on each device"
    refuse_devices(experiment, "a probe", mesh=alone, rest=alone, weights=alone, processes=alone)
    options = experiment.probe
    rule = _rule(options.plan)
    checked = check_model(ModelSpec(experiment.weights), experiment.backbone)
    layers = _layers(_abstract(checked, Plan((rule,))), rule, options.layers)
    cost, views = _cost(experiment, checked)
    if options.budget and (least := cost(_with(rule, layers))) > options.budget:
        raise InputError(
            f"probe.budget: {options.budget:g} of the operations of dense attention, but with"
            f" {options.plan} in all layers that are probed {least:.3f} of them are left at"
            f" {views} views; choose a larger budget, more layers, more views"
            " (probe.budget_views) or attention that costs less"
        )
    rows = {layer: f"{plan_name(_with(rule, [layer]))}-float32" for layer in layers}
    evaluation = _evaluated(experiment, list(rows.values()))
    cosines = _cosines(experiment, checked, rule, rows)
    probed = [
        replace(layer, cosine=cosines.get(layer.layer, {}))
        for layer in compare(evaluation.results, rows, options.threshold)
    ]
    curve = cost_curve(probed, lambda chosen: cost(_with(rule, chosen)))
    left = tuple(layer.layer for layer in probed if not layer.sensitive)
    if options.budget:
        left = next(step.layers for step in curve if step.operations <= options.budget)
    plan, measured = _with(rule, left), {protocol: {} for protocol in probed[0].ratios}
    row = f"{plan_name(plan)}-float32"
    if left:
        if row not in rows.values():
            evaluation = _evaluated(experiment, [*rows.values(), row])
        measured = compare(evaluation.results, {-1: row}, options.threshold)[0].ratios
    else:
        measured = {p: dict.fromkeys(of, 1.0) for p, of in probed[0].ratios.items()}
    result = Probing(evaluation.folder, probed, plan, cost(plan), measured, curve)
    body = {
        "weights": str(experiment.weights),
        **environment(),
        "probe": asdict(options),
        "plan": plan_name(plan),
        "views": views,
        "operations": result.operations,
        "measured": measured,
        "curve": [asdict(step) for step in curve],
        "layers": [asdict(layer) | {"worst": layer.worst} for layer in probed],
    }
    files = {
        "probe.json": strict_json.dump(body),
        "plan.json": strict_json.dump(plan_to_json(plan)),
        "probe.html": page(body).encode("utf-8", "backslashreplace"),
    }
    for name, data in files.items():
        _write(evaluation.folder / name, data)
    return result


def cost_curve(
    probed: Sequence[ProbedLayer], cost: Callable[[tuple[int, ...]], float]
) -> list[Step]:
    """Returns plans with the probed attention in more and more layers, least harmful ones first.

    Args:
        probed: the layers.
        cost: layers -> operations of their plan, as a share of those with dense attention.

    Returns:
        From no layer to all of them.
    """
    chosen: tuple[int, ...] = ()
    curve = [Step((), cost(()), 1.0)]
    for layer in sorted(probed, key=lambda layer: layer.worst):
        chosen = tuple(sorted((*chosen, layer.layer)))
        curve.append(Step(chosen, cost(chosen), layer.worst))
    return curve


def compare(
    results: Sequence[Mapping[str, Any]], rows: Mapping[int, str], threshold: float
) -> list[ProbedLayer]:
    """Computes the ratios of every layer's errors to those of dense attention.

    Args:
        results: of `evaluate`, with the row dense-float32 among them.
        rows: layer -> name of its row.
        threshold: ratio above which a layer is sensitive.

    Raises:
        InputError: the data defines none of the errors.
    """
    values: dict[tuple[str, str], Mapping[str, float | None]] = {}
    for entry in results:
        protocol = f"{entry['protocol']}@{entry['views']}"
        metrics = {name: entry["metrics"].get(name, {}).get("value") for name in ERRORS}
        values[entry["variant"], protocol] = metrics
    protocols = dict.fromkeys(protocol for _, protocol in values)
    probed = []
    for layer, row in rows.items():
        ratios: dict[str, dict[str, float]] = {}
        for protocol in protocols:
            before, after = values[_DENSE, protocol], values[row, protocol]
            pairs = {name: (before[name], after[name]) for name in ERRORS}
            ratios[protocol] = {n: b / a for n, (a, b) in pairs.items() if a and b is not None}
        every = [value for of in ratios.values() for value in of.values()]
        if not every:
            raise InputError("evaluate.protocols: the data defines no error; choose other data")
        probed.append(ProbedLayer(layer, ratios, max(every) > threshold))
    return probed


def _rule(text: str) -> Rule:
    plan = parse_plan(text, "probe.plan")
    if len(plan.rules) != 1 or plan.default != Plan().default or plan.rules[0].layers is not None:
        raise InputError(
            "probe.plan: expected the attention of one role, such as key_views or sla_global, and"
            f" no layers, got {text!r}"
        )
    return plan.rules[0]


def _with(rule: Rule, layers: Sequence[int]) -> Plan:
    return Plan((replace(rule, layers=tuple(layers)),)) if layers else Plan()


def _abstract(checked: CheckedModel, plan: Plan) -> Any:
    entry, config = get_backbone(checked.manifest.backbone), checked.config
    return nnx.eval_shape(lambda: entry.build(config, heads=HEADS, plan=plan, rngs=traced_rngs(0)))


def _layers(model: Any, rule: Rule, text: str) -> tuple[int, ...]:
    """Returns the layers to probe: all of the rule's role, or those that the settings name."""
    depth = model.sites.get(rule.role, 0)
    asked = [part.strip() for part in text.split(",") if part.strip()]
    if wrong := [part for part in asked if not part.isdecimal() or int(part) >= depth]:
        raise InputError(
            f"probe.layers: {wrong[0]!r} is no {rule.role} layer of this model; choose from 0 to"
            f" {depth - 1}, with commas between"
        )
    return tuple(sorted({int(part) for part in asked})) or tuple(range(depth))


def _cost(experiment: Experiment, checked: CheckedModel) -> tuple[Callable[[Plan], float], int]:
    """Returns a function from a plan to its share of dense operations, and the number of views."""
    options = experiment.evaluate
    (source, views), *_ = sorted(options.tasks(), key=lambda task: -task[1])
    size = open_protocol(source, views=views, size=options.pixels(), scenes=1)[0].size
    views = experiment.probe.budget_views or views
    dense = count(_abstract(checked, Plan()), views, *size).total
    return lambda plan: count(_abstract(checked, plan), views, *size).total / dense, views


def _evaluated(experiment: Experiment, rows: Sequence[str]) -> Evaluation:
    """Evaluates dense attention and the named variants.

    Raises:
        InputError: see `probe`.
    """
    variants = ",".join([_DENSE, *rows])
    options = replace(experiment.evaluate, variants=variants)
    evaluation = evaluate(replace(experiment, evaluate=options))
    if evaluation.failed:
        raise InputError(
            f"{evaluation.folder / 'report.json'}: {evaluation.failed} samples failed, so layers"
            " cannot be compared; see the reasons there, and run the same command again"
        )
    return evaluation


def _cosines(
    experiment: Experiment, checked: CheckedModel, rule: Rule, rows: Mapping[int, str]
) -> dict[int, dict[str, float]]:
    """Computes layer -> protocol -> mean cosine of tokens, as far as samples are asked for.

    Cosines that are done are kept in a file of the folder, row by row.
    """
    options, folder = experiment.evaluate, Path(experiment.output)
    wanted = experiment.probe.tokens
    behind = rule.role in ("patch", "frame", "global")  # the tokens that are compared
    if not (wanted and behind and TRUNK in get_backbone(checked.manifest.backbone).model.taps):
        return {}
    settings = strict_json.read_object(folder / SETTINGS)
    path = folder / _TOKENS
    done = strict_json.read_object(path) if path.exists() else {}
    if done.get("settings") != settings:
        done = {"settings": settings, "rows": {}}
    samples: dict[str, dict[str, Any]] = {}
    for source, views in options.tasks():
        protocol, reader = open_protocol(
            source, views=views, size=options.pixels(), scenes=options.scenes
        )
        samples[f"{protocol.name}@{protocol.views}"] = {
            f"{folder_name(protocol)}-{n}": (reader, item, protocol.size)
            for n, item in enumerate(protocol.items[:wanted])
        }
    names = {name for of in samples.values() for name in of}
    todo = [row for row in rows.values() if names - done["rows"].get(row, {}).keys()]
    if not todo:
        return _means(done["rows"], rows, samples)
    images: dict[str, Any] = {}
    reference: dict[str, Any] = {}
    with Progress(not experiment.quiet).stage(
        "tokens against dense", len(todo) * len(names), "sample"
    ) as tick:
        dense = trunk_tokens(build_variant(Variant("dense", "float32"), experiment.weights))
        for row in todo:
            model = build_variant(
                Variant(row.removesuffix("-float32"), "float32"), experiment.weights
            )
            tokens = trunk_tokens(model)
            values = {}
            for of in samples.values():
                for name, (reader, item, size) in of.items():
                    if name not in images:
                        images[name] = reader.read(item.scene, item.frames, size).images
                        reference[name] = dense(images[name])
                    values[name] = mean_cosine(tokens(images[name]), reference[name])
                    tick()
            done["rows"][row] = done["rows"].get(row, {}) | values
            _write(path, strict_json.dump(done))
    return _means(done["rows"], rows, samples)


def _means(
    done: Mapping[str, Mapping[str, float]],
    rows: Mapping[int, str],
    samples: Mapping[str, Collection[str]],
) -> dict[int, dict[str, float]]:
    """Averages row -> sample -> value to layer -> protocol -> mean over its samples."""
    return {
        layer: {
            protocol: sum(done[row][name] for name in names) / len(names)
            for protocol, names in samples.items()
        }
        for layer, row in rows.items()
    }


def _write(path: Path, data: bytes) -> None:
    with atomic_write(path, overwrite=True) as part:
        part.write_bytes(data)
