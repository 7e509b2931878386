"""Rules that map names and layouts of checkpoint tensors to parameters here, and back.

A rule pairs two templates. `{word}` stands for a *field*: a finite one-to-one table of spellings,
upstream -> here. The one open slot is the stack index: a number upstream, a position on the
leading axis here. Every template can therefore be read and written in both directions, and a map
that converts also exports.

    NameMap(
        fields={"norm": {"weight": "scale", "bias": "bias"}},
        rules=(TensorRule("blocks.{i}.norm1.{norm}", "blocks/norm1/{norm}", stack="i"),),
    )
"""

import enum
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from lite3r_jax.errors import InputError, shown

Shape = tuple[int, ...]

_SLOT = re.compile(r"\{(\w+)\}")
_NUMBER = "0|[1-9][0-9]{0,5}"


class Transform(enum.Enum):
    """Layout changes from PyTorch's tensors to the arrays here; each has an exact inverse."""

    IDENTITY = "as is"
    LINEAR = "[out, in] -> [in, out]"
    CONV = "[out, in, kh, kw] -> [kh, kw, in, out]"
    CONV1X1 = "[out, in, 1, 1] -> [in, out]"
    DECONV = "[in, out, kh, kw] -> [in, kh, kw, out], where stride equals kernel"


_AXES = {
    Transform.LINEAR: (1, 0),
    Transform.CONV: (2, 3, 1, 0),
    Transform.DECONV: (0, 2, 3, 1),
}


def forward(transform: Transform, tensor: np.ndarray) -> np.ndarray:
    """Brings a PyTorch tensor into the layout used here (a view)."""
    if transform is Transform.IDENTITY:
        return tensor
    if transform is Transform.CONV1X1:
        return tensor[:, :, 0, 0].T
    return tensor.transpose(_AXES[transform])


def inverse(transform: Transform, tensor: np.ndarray) -> np.ndarray:
    """Brings a tensor from the layout used here back into PyTorch's (a view)."""
    if transform is Transform.IDENTITY:
        return tensor
    if transform is Transform.CONV1X1:
        return tensor.T[:, :, None, None]
    return tensor.transpose(tuple(np.argsort(_AXES[transform])))


def upstream_shape(transform: Transform, shape: Shape) -> Shape | None:
    """Returns the PyTorch shape of a tensor of `shape` here; None where the rank does not fit."""
    if transform is Transform.IDENTITY:
        return shape
    if transform is Transform.CONV1X1:
        return (shape[1], shape[0], 1, 1) if len(shape) == 2 else None
    axes = _AXES[transform]
    return (
        tuple(shape[axes.index(a)] for a in range(len(axes))) if len(shape) == len(axes) else None
    )


@dataclass(frozen=True)
class TensorRule:
    """A rule that maps one upstream tensor, or a family of them, to a parameter path here.

    Attributes:
        source: template of the upstream name.
        target: template of the parameter path here, "/" between parts.
        transform: from the upstream layout to the one here.
        stack: the slot of `source` that is the index on the leading axis of the target.
        layers: the numbers that this slot takes, in the order of the leading axis; None: 0, 1, 2
            and so on.
    """

    source: str
    target: str
    transform: Transform = Transform.IDENTITY
    stack: str | None = None
    layers: range | None = None


@dataclass(frozen=True)
class Skip:
    """An upstream tensor that no parameter here takes; it is kept for conversion back.

    Attributes:
        source: the upstream name.
        reason: why nothing needs it.
        like: the target whose sizes it shares, and which of them make its shape.
        axes: see `like`; None stands for a size of 1.
        copy: whether it is a second name of another tensor, which published files do without.
        values: the numbers that it has to hold, in order; None for any.
    """

    source: str
    reason: str
    like: str
    axes: tuple[int | None, ...]
    copy: bool = False
    values: tuple[float, ...] | None = None


@dataclass(frozen=True)
class SkipPart:
    """A part of an upstream model that is not implemented here; it is kept for conversion back.

    Attributes:
        source: the part; its tensors are named `source.*`.
        reason: why nothing needs it.
    """

    source: str
    reason: str


@dataclass(frozen=True)
class Pair:
    """One upstream tensor and its place: a whole leaf, or position `index` of a stacked one."""

    source: str
    target: str
    index: int | None
    transform: Transform


@dataclass(frozen=True)
class NamePlan:
    """A complete correspondence between a checkpoint and a model.

    Attributes:
        leaves: target -> the upstream tensors that fill it, in the order of the leading axis.
        skipped: upstream name -> reason.
    """

    leaves: dict[str, tuple[Pair, ...]]
    skipped: dict[str, str]


@dataclass(frozen=True)
class NameMap:
    """All rules that map checkpoints of one backbone to its parameters, and back.

    Attributes:
        fields: slot -> {upstream spelling: spelling here}, one to one.
        rules: every upstream tensor matches exactly one of them or of `skips`.
        skips: see `Skip`.
        skip_parts: see `SkipPart`.
    """

    fields: Mapping[str, Mapping[str, str]]
    rules: Sequence[TensorRule]
    skips: Sequence[Skip] = ()
    skip_parts: Sequence[SkipPart] = ()

    def __post_init__(self):
        for name, table in self.fields.items():
            if len(set(table.values())) != len(table):
                raise ValueError(f"field {name}: two spellings map to the same one")
        for rule in self.rules:
            source = sorted(_SLOT.findall(rule.source))
            target = sorted(_SLOT.findall(rule.target) + ([rule.stack] if rule.stack else []))
            known = [p == rule.stack or p in self.fields for p in source]
            if source != target or len(set(source)) != len(source) or not all(known):
                raise ValueError(f"rule {rule.source} -> {rule.target} cannot be read both ways")

    @cached_property
    def _compiled(self) -> list[tuple[re.Pattern[str], re.Pattern[str], TensorRule]]:
        return [(self._regex(r, r.source, 0), self._regex(r, r.target, 1), r) for r in self.rules]

    def _regex(self, rule: TensorRule, template: str, side: int) -> re.Pattern[str]:
        def alternatives(slot: str) -> str:
            if slot == rule.stack:
                return _NUMBER
            return "|".join(re.escape(pair[side]) for pair in self.fields[slot].items())

        parts = _SLOT.split(template)
        for i, part in enumerate(parts):
            parts[i] = f"(?P<{part}>{alternatives(part)})" if i % 2 else re.escape(part)
        return re.compile("".join(parts))

    def to_here(self, source: str) -> list[Pair]:
        """Returns where an upstream tensor goes: one place, unless the map itself is at fault."""
        pairs = []
        for regex, _, rule in self._compiled:
            if matched := regex.fullmatch(source):
                groups = matched.groupdict()
                index = int(groups.pop(rule.stack)) if rule.stack else None
                if rule.layers is not None and index is not None:
                    if index not in rule.layers:
                        continue
                    index = rule.layers.index(index)
                words = {k: self.fields[k][v] for k, v in groups.items()}
                pairs.append(Pair(source, _fill(rule.target, words), index, rule.transform))
        return pairs

    def to_upstream(self, target: str, shape: Shape) -> list[tuple[Pair, Shape]]:
        """Returns the upstream tensors that make up a parameter of this shape, and their shapes."""
        pairs = []
        for _, regex, rule in self._compiled:
            if not (matched := regex.fullmatch(target)):
                continue
            words = {
                k: next(s for s, here in self.fields[k].items() if here == v)
                for k, v in matched.groupdict().items()
            }
            inner = shape[1:] if rule.stack else shape
            upstream = upstream_shape(rule.transform, inner)
            if upstream is None or (rule.stack and not shape):
                continue
            if rule.stack is None:
                named = [(None, words)]
            else:
                layers = range(shape[0]) if rule.layers is None else rule.layers
                if len(layers) != shape[0]:
                    continue
                named = [(i, {**words, rule.stack: str(n)}) for i, n in enumerate(layers)]
            for index, numbered in named:
                name = _fill(rule.source, numbered)
                pairs.append((Pair(name, target, index, rule.transform), upstream))
        return pairs

    def upstream_shapes(self, targets: Mapping[str, Shape]) -> dict[str, Shape]:
        """Returns the upstream state dict of a model: name -> shape, as a published file has it.

        Skipped tensors are included, but no copies and no skipped parts, whose shapes are unknown.

        Args:
            targets: path -> shape of every leaf of the model.

        Raises:
            ValueError: a leaf that no rule fills, or a name that comes up twice.
        """
        shapes: dict[str, Shape] = {}
        for target, shape in targets.items():
            pairs = self.to_upstream(target, shape)
            if not pairs:
                raise ValueError(f"no rule fills {target} {list(shape)}")
            for pair, upstream in pairs:
                if pair.source in shapes:
                    raise ValueError(f"{pair.source} comes up twice")
                shapes[pair.source] = upstream
        for skip in self.skips:
            if skip.like in targets and not skip.copy:
                shapes[skip.source] = self.skip_shape(skip, targets)
        return shapes

    def _skipped_part(self, source: str) -> SkipPart | None:
        return next((p for p in self.skip_parts if source.startswith(p.source + ".")), None)

    @staticmethod
    def skip_shape(skip: Skip, targets: Mapping[str, Shape]) -> Shape:
        """Returns the shape that a skipped tensor must have beside a model of these leaves."""
        return tuple(1 if axis is None else targets[skip.like][axis] for axis in skip.axes)

    def match(
        self,
        sources: Mapping[str, Shape],
        targets: Mapping[str, Shape],
        label: str,
        ignore: Collection[str] = (),
    ) -> NamePlan:
        """Matches a checkpoint's tensors with a model's leaves; raises unless both are complete.

        Args:
            sources: upstream name -> shape of everything in the checkpoint.
            targets: path -> shape of every leaf of the model.
            label: the checkpoint, for the message.
            ignore: names in `sources` that no rule knows, which are to be skipped.

        Raises:
            InputError: one line that names what is missing, unknown, misshapen or filled twice, or
                to be ignored without need.
        """
        skips = {skip.source: skip for skip in self.skips}
        expected: dict[str, Shape] = {}
        places: dict[str, tuple[str, int | None]] = {}
        unfilled: list[str] = []
        for target, shape in targets.items():
            pairs = self.to_upstream(target, shape)
            for pair, upstream in pairs:
                expected[pair.source] = upstream
                places[pair.source] = (target, pair.index)
            if not pairs:
                unfilled.append(target)
        placed: dict[tuple[str, int | None], list[Pair]] = {}
        unknown, misshapen, skipped, left_out = [], [], {}, {}
        for source, shape in sources.items():
            pairs = [p for p in self.to_here(source) if p.source in expected]
            if len(pairs) > 1:
                raise ValueError(f"{source}: two rules take it")
            if skip := skips.get(source):
                skipped[source] = skip.reason
                want = self.skip_shape(skip, targets) if skip.like in targets else shape
            elif part := self._skipped_part(source):
                skipped[source] = part.reason
                continue
            elif pairs:
                want = expected[source]
            elif source in ignore:
                left_out[source] = "not known here, left out on request"
                continue
            else:
                unknown.append(source)
                continue
            for pair in pairs:
                placed.setdefault((pair.target, pair.index), []).append(pair)
            if shape != want:
                misshapen.append(f"{shown(source)} {list(shape)} instead of {list(want)}")
        several = [(place, pairs) for place, pairs in placed.items() if len(pairs) > 1]
        twice = [
            f"{target}{'' if index is None else f'[{index}]'} by {first.source} and {second.source}"
            for (target, index), (first, second, *_) in several
        ]
        # A leaf that several rules could fill is not missing once one of them has filled it.
        missing = [source for source, place in places.items() if place not in placed]
        problems = [
            _listing("missing", missing),
            _listing("not known here", [shown(name) for name in unknown]),
            _listing("of another shape", misshapen),
            _listing("filled twice", twice),
            _listing("without a rule", unfilled),
        ]
        if any(problems):
            remedy = (
                "; what is not known can be left out with --ignore NAME of"
                " lite3r convert, if you know that inference does not read it"
            )
            raise InputError(
                f"{label}: does not fit the model: {'; '.join(filter(None, problems))}"
                f"{remedy if unknown else ''}"
            )
        needless = [name for name in ignore if name not in left_out]
        if needless:
            raise InputError(
                f"{label}: --ignore is for tensors that are there and not known; remove"
                f" {', '.join(shown(name) for name in needless)}"
            )
        leaves: dict[str, list[Pair]] = {target: [] for target in targets}
        for (target, _), (pair,) in placed.items():
            leaves[target].append(pair)
        ordered = {
            target: tuple(sorted(pairs, key=lambda pair: pair.index or 0))
            for target, pairs in leaves.items()
        }
        return NamePlan(ordered, skipped | left_out)


@dataclass(frozen=True)
class Checkpoint:
    """Facts about the checkpoints of one backbone: names, heads, licenses and variants.

    Attributes:
        title: name of the model, for messages.
        names: config -> the map of names.
        trunk: the part that every such checkpoint has, however few heads; its tensors are named
            `trunk.*`.
        heads: head, as arguments call it -> the part that exists only with it.
        license: config -> license of the published weights of that size, None if none are.
        relatives: config -> names (regular expressions) that no such checkpoint has, but one of a
            related model -> what that is, and what to do.
        signs: names (regular expressions) that only checkpoints of this model, or a form of them
            that is not converted, have -> what such a checkpoint is, for messages.
        variants: checkpoints of the same backbone under other names.
    """

    title: str
    names: Callable[[Any], NameMap]
    trunk: str
    heads: Mapping[str, str]
    license: Callable[[Any], str | None] = lambda config: None
    relatives: Callable[[Any], Mapping[str, str]] = lambda config: {}
    signs: Mapping[str, str] = field(default_factory=dict)
    variants: tuple["Variant", ...] = ()

    def of(self, config: Any) -> "Checkpoint":
        """Returns the facts about checkpoints of models of this config."""
        fitting = (v.checkpoint for v in self.variants if v.fits(config))
        return next(fitting, self)

    def config_of(self, names: Collection[str], default: Any) -> Any:
        """Returns the config of a checkpoint with these tensor names, where none is given."""
        for variant in self.variants:
            if any(re.fullmatch(variant.sign, name) for name in names):
                return variant.config
        return default


@dataclass(frozen=True)
class Variant:
    """Checkpoints of a backbone whose tensors have other names than those of most.

    Attributes:
        sign: names (a regular expression) that only they have.
        fits: whether a config is of such a model.
        config: of the published one.
        checkpoint: the facts about these checkpoints.
    """

    sign: str
    fits: Callable[[Any], bool]
    config: Any
    checkpoint: Checkpoint


def _fill(template: str, words: Mapping[str, str]) -> str:
    return _SLOT.sub(lambda slot: words[slot[1]], template)


def _listing(kind: str, names: Sequence[str], limit: int = 10) -> str:
    if not names:
        return ""
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return f"{len(names)} {kind} ({', '.join(names[:limit])}{more})"
