"""Which matrix products run with few bits: rules by path, applied to a model that is built.

`apply_precision` simulates: weights and activations are quantised and dequantised where they are
used, gradients go straight through, and the model's parameters stay what and where they were.
`freeze_quantised` then stores what is not trained as float8, once. `deploy` stores everything, for
running without training. All three compute the same numbers but for the order of summation.

A *site* is an `nnx.Linear` or the matrix `proj_lin` of an attention core, named by its path, "/"
between the parts: `aggregator/global_blocks/attn/qkv`, `aggregator/global_cores/0/proj_lin`. Layers
that are stacked are one site, each layer with scales of its own. The presets leave the Linears of
dense heads alone, which upstream has as convolutions of one pixel and does not quantise.
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from lite3r_jax.errors import InputError
from lite3r_jax.kernels.fp8.api import fp8_dot_general
from lite3r_jax.kernels.fp8.fused import check_name
from lite3r_jax.kernels.fp8.quantise import fake_quantise, fake_quantise_int, quantise
from lite3r_jax.kernels.fp8.reference import FORMATS, FormatName, ScaleName
from lite3r_jax.layers.fp8 import Fp8Linear

# Matrices of attention strategies that upstream has as Linears.
_MATRICES = ("proj_lin",)

Kind = Literal["fp8_weight_only", "fp8_dynamic"]


@dataclass(frozen=True)
class Fp8Rule:
    """Float8 at the sites in whose path `path` is found (`re.search`).

    With weights and activations both None the sites keep full precision, which is how a rule makes
    exceptions from the rules behind it.

    Attributes:
        path: regular expression.
        weights: "e4m3", "e5m2", or None to leave them.
        activations: likewise, for what comes in. With None at `proj_lin` the operator folds the
            matrix into its state; otherwise it computes its linear part apart, one scale for every
            token of a head.
        gradients: likewise, for what comes back; None is straight-through in full precision.
        scale: "row" (float32, one per output of a weight and one per token) or "tensor" (one each;
            not for the input of `proj_lin`, whose heads are computed in turns).
        optional: whether the rule may find nothing: for lists that serve several models.
    """

    path: str
    weights: FormatName | None = "e4m3"
    activations: FormatName | None = "e4m3"
    gradients: FormatName | None = None
    scale: ScaleName = "row"
    optional: bool = False

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for name in ("weights", "activations", "gradients"):
            if getattr(self, name) not in (None, *FORMATS):
                raise InputError(
                    f"precision rule {self.path!r}: {name} must be one of {', '.join(FORMATS)} or"
                    f" None, got {getattr(self, name)!r}"
                )
        if self.scale not in ("row", "tensor"):
            raise InputError(
                f"precision rule {self.path!r}: scale must be row or tensor, got {self.scale!r}"
            )
        if self.gradients is not None and self.full:
            raise InputError(
                f"precision rule {self.path!r}: gradients alone cannot be quantised; name weights"
                " or activations"
            )

    @property
    def full(self) -> bool:
        """Whether the sites keep full precision."""
        return self.weights is None and self.activations is None

    @property
    def joins_tokens(self) -> bool:
        """Whether tokens share a scale, and so have to be quantised together."""
        return self.scale == "tensor" and (self.activations or self.gradients) is not None

    def dot_general(self, x: Any, w: Any, dimensions: Any, **settings: Any) -> jax.Array:
        """In the place of `lax.dot_general`."""
        return fp8_dot_general(
            x, w, dimensions, weights=self.weights, activations=self.activations,
            gradients=self.gradients, scale=self.scale, **settings,
        )  # fmt: skip

    def matrix(self, w: jax.Array) -> jax.Array:
        """[..., K, N] as the operator gets to see it."""
        if self.weights is None:
            return w
        return fake_quantise(w, self.weights, -2 if self.scale == "row" else (-2, -1))


@dataclass(frozen=True)
class Int4Rule:
    """Four-bit integer weights in groups of inputs, the first stage of Lite3R's recipe.

    Simulated only. Where `group` does not divide the inputs of a Linear, all of them are one group
    (lite3r_kit/fake_quant.py).

    Attributes:
        path: as for `Fp8Rule`.
        group: neighbouring inputs of one output that share a scale.
        activation_bits: of activations, one scale per token, 2 to 8; None leaves them.
        optional: as for `Fp8Rule`.
    """

    path: str
    group: int = 128
    activation_bits: int | None = None
    optional: bool = False

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        bits = self.activation_bits
        if self.group < 1 or not (bits is None or 2 <= bits <= 8):
            raise InputError(
                f"precision rule {self.path!r}: expected a group of at least 1 and 2 to 8"
                f" activation bits or None, got {self.group} and {bits}"
            )

    full = False
    joins_tokens = False

    @property
    def activations(self) -> int | None:
        """Whether activations are quantised."""
        return self.activation_bits

    def dot_general(self, x: Any, w: Any, dimensions: Any, **settings: Any) -> jax.Array:
        """In the place of `lax.dot_general`."""
        if self.activation_bits is not None:
            x = fake_quantise_int(x, self.activation_bits, None)
        return lax.dot_general(x, self.matrix(w).astype(x.dtype), dimensions, **settings)

    def matrix(self, w: jax.Array) -> jax.Array:
        """[..., K, N] as the operator gets to see it."""
        flat = w.reshape(-1, *w.shape[-2:])
        return jax.vmap(lambda m: fake_quantise_int(m, 4, self.group))(flat).reshape(w.shape)


Rule = Fp8Rule | Int4Rule

_PARTS = r"^(aggregator|trunk|camera_head|prior_head)/"
_TRUNK = Fp8Rule(r"^(aggregator|trunk)/")
_HEADS = Fp8Rule(r"^(camera_head|prior_head)/", optional=True)
_LAST = r"/proj_lin$|^camera_head/(pose_branch/fc2|translation|quaternion|field_of_view)$"

PRESETS: Mapping[str, tuple[Rule, ...]] = MappingProxyType(
    {
        "none": (),
        "default": (
            Fp8Rule(_LAST, weights=None, activations=None, optional=True), _TRUNK, _HEADS,
        ),
        "paper": (_TRUNK, _HEADS),
        "paper_w4a16": (Int4Rule(_PARTS + r"(?!(.*/)?attn/)(?!.*/proj_lin$)"),),
        "paper_w4a8": (Int4Rule(_PARTS + r"(?!.*/proj_lin$)", activation_bits=8),),
    }
)  # fmt: skip


def preset(name: str) -> tuple[Rule, ...]:
    """Rules by name; they fit VGGT and Depth Anything 3 with any heads and plan.

    `none`: full precision.

    `default`: every Linear of the trunk, of the camera head and of the head for known cameras, but
    not `proj_lin` and the layers whose outputs are cameras.

    `paper`: those as well, which are all that Lite3R wraps (lite3r_kit/fp8_fake_quant.py): 384 of
    VGGT-1B with camera and depth heads and the plan "sla_paper", 147 of DA3-Large.

    `paper_w4a16` and `paper_w4a8`: the first stage of Lite3R's recipe for VGGT (four-bit weights
    outside of attention, 156 Linears; its 16-bit activations are finer than bfloat16 and are left)
    and for Depth Anything 3 (with attention, but not `proj_lin`, and 8-bit activations; 119).

    Raises:
        InputError: there is none of that name.
    """
    if name not in PRESETS:
        raise InputError(f"precision {name!r} is not known; choose one of: {', '.join(PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True)
class Site:
    """A place with a matrix product, and what a list of rules makes of it.

    Attributes:
        path: see the module.
        layers: how many Linears of upstream it is.
        rule: the first that fits, or None. It may say to leave the site in full precision.
    """

    path: str
    layers: int
    rule: Rule | None

    @property
    def wrapped(self) -> bool:
        """Whether it is quantised."""
        return self.rule is not None and not self.rule.full


def match(model: nnx.Module, rules: Sequence[Rule]) -> tuple[Site, ...]:
    """All sites of a model, which may be abstract, each with its rule. For reports.

    Raises:
        InputError: a rule is no expression, finds no site, or only sites of rules before it.
    """
    layers = {path: site.layers for path, site in _places(model).items()}
    chosen: dict[str, Rule] = {}
    for rule in rules:
        found = [path for path in layers if _found(rule.path, path)]
        left = [path for path in found if path not in chosen]
        if not left and not rule.optional:
            near = difflib.get_close_matches(rule.path, layers, 3, 0)
            raise InputError(
                f"precision rule {rule.path!r} finds "
                + ("only sites of rules before it; put it first" if found else "no Linear")
                + f"; nearest are: {', '.join(near) or 'none, the model has no Linear'}"
            )
        chosen |= dict.fromkeys(left, rule)
    return tuple(Site(path, n, chosen.get(path)) for path, n in layers.items())


def apply_precision(model: Any, rules: Sequence[Rule], *, count: int | None = None) -> Any:
    """The model with simulated quantisation.

    The parameters keep path, shape, dtype and value, so checkpoints, weight maps and selectors of
    trained parameters do not know. Quantisation happens at every use, from the parameter as it is
    held, and in float32.

    Args:
        model: a built model, before `nnx.split`; abstract will do. It is not changed; the result
            shares its arrays.
        rules: the first that fits counts; see `preset`. None at all gives an equal model.
        count: how many Linears have to be quantised, stacked layers counted one by one; None if it
            does not matter.

    Raises:
        InputError: see `match`; one scale for all of the input of `proj_lin`; another count; a
            model that is quantised already.
    """
    sites = match(model, rules)
    total = sum(site.layers for site in sites if site.wrapped)
    if count is not None and total != count:
        raise InputError(
            f"precision: the rules quantise {total} Linears, expected {count}; correct the rules or"
            " the count"
        )
    model = nnx.merge(*nnx.split(model))
    places = _places(model)
    for site in sites:
        rule, place = site.rule, places[site.path]
        if rule is None or rule.full:
            continue
        if place.quantised:
            raise InputError(
                f"precision: {site.path} is quantised already; start from the model as it was built"
            )
        if isinstance(place.held, nnx.Linear):
            place.held.promote_dtype = _promote
            place.held.dot_general = _Dot(rule)
            continue
        if rule.activations is None:
            old = place.held
            place.put(QuantisedParam(old.get_value(), **old.get_metadata(), rule=rule))
            continue
        if rule.joins_tokens:
            raise InputError(
                f"precision rule {rule.path!r}: the heads of {site.path} are computed in turns and"
                " cannot share a scale; use scale='row' or activations=None there"
            )
        place.owner.dot_general = _Dot(rule)
    return model


def freeze_quantised(model: Any, trainable: Sequence[str] = ()) -> Any:
    """Store the weights that are not trained as float8 and scales, once.

    For a model of `apply_precision`. A Linear under an `Fp8Rule` with weights becomes an
    `Fp8Linear`, whose gradient flows to its input only; kernel paths change from `kernel` to
    `weight` and `weight_scale`, neither of which is an `nnx.Param`. Everything else stays: what is
    trained, `proj_lin`, and `Int4Rule`s are quantised at use as before.

    Memory: one byte per weight, against none for a student that shares its teacher's arrays and
    quantises at use. So where the teacher is in memory as well, do not call this on a GPU, where
    quantising at use costs little; call it where time counts (a CPU) or where there is no teacher.

    Args:
        model: from `apply_precision`; abstract will do. It is not changed.
        trainable: regular expressions of the parameters that are trained, as for
            `train.parameters.split`.

    Raises:
        InputError: an expression that is none.
    """
    model = nnx.merge(*nnx.split(model))
    for path, place in _places(model).items():
        rule, trained = place.rule, any(_found(p, f"{path}/kernel") for p in trainable)
        linear = isinstance(place.held, nnx.Linear)
        if linear and not trained and isinstance(rule, Fp8Rule) and rule.weights is not None:
            place.put(_stored(place.held, rule, rule.activations, "xla"))
    return model


def deploy(
    model: Any,
    rules: Sequence[Rule],
    kind: Kind,
    *,
    count: int | None = None,
    rest: Any = None,
    implementation: str = "auto",
) -> Any:
    """The model with its weights stored as float8, to run and not to train.

    The numbers are those of the simulation: what was trained is what runs. `proj_lin` keeps its
    dtype and has the values of its codes.

    Args:
        model: a built model in full precision; abstract will do. It is not changed.
        rules: as for `apply_precision`, but only `Fp8Rule`s. Their formats for gradients are not
            used.
        kind: "fp8_weight_only": activations stay as they are, whatever the rules say.
            "fp8_dynamic": activations get scales per token at run time, and float8 is multiplied by
            float8; on devices without such a product XLA converts, which is right but slow.
        count: as for `apply_precision`.
        rest: dtype in which parameters are held that no rule is for; None: as they are.
        implementation: of products with quantised activations, see `kernels.fp8.fused.choose`.
            "auto" is chosen for every call when it is traced, by device and sizes, and
            `layers.fp8.products` says what it is; another name holds everywhere, and a call that
            it cannot run is a ValueError.

    Raises:
        InputError: see `apply_precision`; an unknown kind; a rule that cannot be deployed.
        ValueError: an unknown implementation.
    """
    check_name(implementation)
    if kind not in ("fp8_weight_only", "fp8_dynamic"):
        raise InputError(f"deploy: kind {kind!r} is not known; choose fp8_weight_only, fp8_dynamic")
    for rule in rules:
        if not isinstance(rule, Fp8Rule) or not (rule.full or rule.weights):
            raise InputError(f"deploy: {rule} stores no float8 weights; it can only be simulated")
    model = apply_precision(model, rules, count=count)
    for place in _places(model).values():
        rule = place.rule
        if not isinstance(rule, Fp8Rule):
            continue
        activations = None if kind == "fp8_weight_only" else rule.activations
        if isinstance(place.held, nnx.Linear):
            place.put(_stored(place.held, rule, activations, implementation))
        else:
            metadata = {k: v for k, v in place.held.get_metadata().items() if k != "rule"}
            matrix = _compute(jax.jit(rule.matrix), place.held.get_value())
            place.put(nnx.Param(matrix, **metadata))
            inputs = replace(rule, weights=None) if activations else None
            place.owner.dot_general = inputs and _Dot(inputs)
    if rest is not None:
        graph, held, others = nnx.split(model, nnx.Param, ...)
        cast = partial(_compute, lambda x: x.astype(rest))
        model = nnx.merge(graph, jax.tree.map(cast, held), others)
    return model


class QuantisedParam(nnx.Param):
    """A matrix that its module reads quantised: `param[...]`, with a straight-through gradient.

    `get_value` gives what is stored and trained. Metadata: rule.
    """

    def __getitem__(self, key: Any) -> Any:
        """The quantised value."""
        value = self.get_metadata("rule").matrix(self.get_value())
        return value if key is Ellipsis else value[key]


@dataclass(frozen=True)
class _Dot:
    """A rule as the `dot_general` of a Linear. Equal rules are equal, so nothing recompiles."""

    rule: Rule

    @property
    def joins_tokens(self) -> bool:
        """See `Fp8Rule`."""
        return self.rule.joins_tokens

    def __call__(self, x: Any, w: Any, dimensions: Any, **settings: Any) -> jax.Array:
        if settings.pop("out_sharding", None) is not None:
            raise ValueError("out_sharding is not supported where a Linear is quantised")
        return self.rule.dot_general(x, w, dimensions, **settings)


def _promote(arrays: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
    """The `promote_dtype` of a Linear, without rounding the kernel before it is quantised."""
    del inexact
    x, kernel, bias = arrays
    dtype = jnp.result_type(x, kernel) if dtype is None else dtype
    return jnp.asarray(x, dtype), kernel, None if bias is None else jnp.asarray(bias, dtype)


@dataclass(frozen=True)
class _Place:
    """A Linear or a matrix, who has the `dot_general` of its product, how to replace it."""

    held: Any
    layers: int
    owner: Any
    put: Callable[[Any], None]

    @property
    def rule(self) -> Rule | None:
        """What it is quantised by now."""
        if isinstance(dot := self.owner.dot_general, _Dot):
            return dot.rule
        return None if isinstance(self.held, nnx.Linear) else self.held.get_metadata("rule", None)

    @property
    def quantised(self) -> bool:
        """Whether it is."""
        return self.rule is not None


def _places(model: nnx.Module) -> dict[str, _Place]:
    """All sites by path, in the order of their paths."""
    found = {}
    modules = dict(nnx.iter_modules(model))
    for path, module in modules.items():
        if isinstance(module, nnx.Linear):
            put = _putter(modules[path[:-1]], path[-1]) if path else _nowhere
            found["/".join(map(str, path))] = _Place(module, _layers(module.kernel), module, put)
        for name in _MATRICES:
            if isinstance(matrix := getattr(module, name, None), nnx.Param):
                place = _Place(matrix, _layers(matrix), module, _putter(module, name))
                found["/".join(map(str, (*path, name)))] = place
    return dict(sorted(found.items()))


def _putter(parent: Any, name: Any) -> Callable[[Any], None]:
    def put(value: Any) -> None:
        if isinstance(name, int):
            parent[name] = value
        else:
            setattr(parent, name, value)

    return put


def _nowhere(value: Any) -> None:
    raise ValueError("a Linear by itself cannot be replaced; put it into a module")


def _layers(matrix: nnx.Variable) -> int:
    return math.prod(np.shape(matrix.get_value())[:-2])


def _stored(
    linear: nnx.Linear, rule: Fp8Rule, activations: FormatName | None, implementation: str
) -> Fp8Linear:
    """In the place of a Linear."""
    assert rule.weights is not None
    axis = -1 if rule.scale == "row" else (-2, -1)
    kernel = linear.kernel.get_value()
    codes, scale = _compute(partial(_codes, form=rule.weights, axis=axis), kernel)
    return Fp8Linear(
        codes,
        scale,
        linear,
        weights=rule.weights,
        activations=activations,
        gradients=rule.gradients,
        granularity=rule.scale,
        implementation=implementation,
    )


@partial(jax.jit, static_argnames=("form", "axis"))  # compiled for a shape, not for a layer
def _codes(kernel: jax.Array, form: FormatName, axis: Any) -> tuple[jax.Array, jax.Array]:
    codes, scale = quantise(jnp.swapaxes(kernel, -1, -2), form, axis)
    return codes, scale[..., 0]


def _compute(function: Callable[..., Any], value: Any) -> Any:
    """The function of an array, or the shapes of it of a shape."""
    if isinstance(value, jax.ShapeDtypeStruct):
        return jax.eval_shape(function, value)
    return function(value)


def _found(pattern: str, path: str) -> bool:
    try:
        return re.search(pattern, path) is not None
    except re.error as error:
        raise InputError(f"precision: {pattern!r} is no regular expression ({error})") from error
