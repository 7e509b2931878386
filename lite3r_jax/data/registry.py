"""Registry of data sources by name, for training, evaluation and the check of datasets.

    NAME[:ARGUMENT][@OPTION=VALUE ...]     synthetic:sky   blendedmvs:FOLDER   photos:FOLDER,VIDEO
    FOLDER                                 a folder whose layout is that of one dataset
    SOURCE*2,SOURCE*1                      a mixture; weights are how many samples come from each

A dataset joins by one call of `register_source`; the ones of the package are in `sources.py`.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from lite3r_jax.data.subset import hold_out
from lite3r_jax.data.video import VideoOptions
from lite3r_jax.data.views import ViewSource
from lite3r_jax.errors import InputError, unknown_name

Split = Literal["train", "validation", "evaluation"]
"""Use of scenes: to train on, to evaluate during a training, or to report results on."""
GroundTruth = Literal["none", "cameras", "cameras, perhaps depth", "cameras and depth"]
Rule = Callable[[Any, int], Sequence[tuple[str, tuple[int, ...]]]]
"""Function (source, views) -> samples of an evaluation: scene and frames, reference view first."""


@dataclass(frozen=True)
class SourceOptions:
    """Options for the reader of a source, of which each reader uses those that concern it.

    Attributes:
        views: frames that every scene must have; photos leave out scenes with fewer.
        scenes: number of generated scenes.
        frames: of each generated scene.
        cache: whether frames of generated scenes stay in memory.
        video: which frames of videos are taken; None: one per second.
    """

    views: int = 2
    scenes: int = 1000
    frames: int = 8
    cache: bool = False
    video: VideoOptions | None = None


Opener = Callable[..., ViewSource]
"""Function (argument, split or None for all, SourceOptions, **named options) -> reader."""


def evenly_spaced(source: ViewSource, views: int) -> list[tuple[str, tuple[int, ...]]]:
    """Returns one sample of each scene, with evenly spaced frames."""
    return [(scene, spaced(source.frames(scene), views)) for scene in source.scenes]


def spaced(frames: Sequence[int], views: int, lead: int = 0) -> tuple[int, ...]:
    """Returns `views` frames: the first `lead` of them, and evenly spaced ones of the others.

    Raises:
        InputError: there are fewer frames than `views`.
    """
    if views > len(frames):
        raise InputError(f"views: the scene has {len(frames)} frames, {views} views are asked for")
    rest, wanted = frames[lead:], views - lead
    return (*frames[:lead], *(rest[k * len(rest) // wanted] for k in range(wanted)))


@dataclass(frozen=True)
class DataSource:
    """One row of the registry: how a dataset is opened, and what is known of it beforehand.

    Attributes:
        name: in front of the colon.
        open: makes the reader, see `Opener`. It is called with the splits that `splits` names, and
            with None for all scenes.
        argument: what stands behind the colon, for messages ("FOLDER"); "" for nothing.
        splits: for which the dataset has scenes of its own. Without "train" all scenes are trained
            on; without "validation" some of these are held out by rule (`subset.hold_out`); without
            "evaluation" all scenes are evaluated on.
        ground_truth: what samples have beside images.
        unit: of lengths in samples, see `data.views.Sample`.
        license: a line about the terms of the data, for people.
        evaluation: rule that chooses the samples of an evaluation. Rules of published or frozen
            lists are named here; results of such a source go by its name alone.
        size: (height, width) of images in an evaluation that asks for none.
        detect: whether a folder has this layout; None: it cannot be told.
        options: names that may stand behind "@".
        commas: whether the argument may be a list with commas.
    """

    name: str
    open: Opener = field(repr=False)
    argument: str = ""
    splits: tuple[Split, ...] = ()
    ground_truth: GroundTruth = "cameras and depth"
    unit: str = "scene"
    license: str = ""
    evaluation: Rule = field(default=evenly_spaced, repr=False)
    size: tuple[int, int] = (518, 518)
    detect: Callable[[Path], bool] | None = field(default=None, repr=False)
    options: tuple[str, ...] = ()
    commas: bool = False

    @property
    def has_ground_truth(self) -> bool:
        """Whether the cameras of the samples are known."""
        return self.ground_truth != "none"


_SOURCES: dict[str, DataSource] = {}
SOURCES: Mapping[str, DataSource] = MappingProxyType(_SOURCES)
"""All registered sources by name."""


def register_source(name: str, open: Opener, **row: Any) -> DataSource:
    """Add a dataset to the registry.

    Args:
        name: letters, digits, "_" and "-".
        open: see `Opener`.
        **row: further fields of `DataSource`.

    Raises:
        InputError: the name is taken, or is no name.
    """
    if not re.fullmatch(r"[A-Za-z][\w-]*", name):
        raise InputError(f"data source {name!r}: expected letters, digits, _ and -")
    if name in _SOURCES:
        raise InputError(f"data source {name!r}: is registered already; choose another name")
    _SOURCES[name] = DataSource(name, open, **row)
    return _SOURCES[name]


@dataclass(frozen=True)
class SourceSpec:
    """One parsed source: a row of the registry, its argument and options, and its weight.

    Attributes:
        row: of the registry.
        argument: what stands behind the colon.
        options: name -> value of what stands behind "@".
        weight: how many samples of a mixture come from it.
    """

    row: DataSource
    argument: str = ""
    options: tuple[tuple[str, str], ...] = ()
    weight: int = 1

    def __str__(self) -> str:
        return self.row.name + (f":{self.argument}" if self.argument else "")

    @property
    def label(self) -> str:
        """Name of the source in results: no path of this machine, but distinct for own captures."""
        if not self.argument or self.row.argument == "SPLIT":
            return str(self) + "".join(f"@{name}={value}" for name, value in self.options)
        listed = "evaluation" in self.row.splits
        return self.row.name if listed else f"{self.row.name}:{Path(self.argument).resolve().name}"

    def open(self, split: Split | None = None, options: SourceOptions = SourceOptions()) -> Any:
        """Opens the reader of a split, or of everything where the dataset has no such split.

        Raises:
            InputError: the data is not there, or wrong.
        """
        role = split if split in self.row.splits else None
        return self.row.open(self.argument, role, options, **dict(self.options))

    def has_depth(self, source: ViewSource) -> bool:
        """Returns whether samples have depth; reads a frame where the registry does not know."""
        if self.row.ground_truth != "cameras, perhaps depth":
            return self.row.ground_truth == "cameras and depth"
        scene = source.scenes[0]
        sample = source.read(scene, source.frames(scene)[:1], (14, 14))
        return getattr(sample, "depth", None) is not None


def split_sources(text: str) -> list[str]:
    """Splits a comma-separated list of sources, whose arguments may have commas too.

    After a source whose argument may have commas, such as photos, a part that does not begin with
    the name of a source belongs to that argument.
    """
    parts: list[str] = []
    taking = False
    for part in filter(None, (part.strip() for part in text.split(","))):
        row = _SOURCES.get(re.split(r"[:@*]", part, maxsplit=1)[0])
        if taking and row is None:
            parts[-1] += f",{part}"
            continue
        parts.append(part)
        taking = row is not None and row.commas
    return parts


def parse_source(text: str) -> SourceSpec:
    """Parses one source, with *WEIGHT behind it where the weight is not 1.

    Raises:
        InputError: an unknown name, with the nearest one; an argument that is missing or too much;
            an unknown option.
    """
    match = re.fullmatch(r"(.*?)(?:\*(\d+))?", text.strip(), re.DOTALL)
    assert match is not None
    whole, weight = match[1], int(match[2] or 1)
    if weight < 1:
        raise InputError(f"{text}: expected a weight of at least 1")
    name, *options = re.split(r"@(?=[A-Za-z_]+=)", whole)
    name, _, argument = name.partition(":")
    if name not in _SOURCES:
        row, argument = _detect(whole), whole
        return SourceSpec(row, argument, (), weight)
    row = _SOURCES[name]
    if argument and not row.argument:
        raise InputError(f"{text}: {name} takes nothing behind a colon")
    if not argument and row.argument not in ("", "SPLIT"):
        raise InputError(f"{text}: say where the data is, {name}:{row.argument}")
    pairs = tuple((key, value) for key, _, value in (option.partition("=") for option in options))
    for key, _ in pairs:
        if key not in row.options:
            raise unknown_name(f"{text}: option", key, row.options or ["none"])
    return SourceSpec(row, argument, pairs, weight)


def parse_sources(text: str) -> tuple[SourceSpec, ...]:
    """Parses the sources of a mixture.

    Raises:
        InputError: as `parse_source`; there is no source.
    """
    specs = tuple(parse_source(part) for part in split_sources(text))
    if not specs:
        raise InputError(f"data source: not set; expected one of {', '.join(_SOURCES)}")
    return specs


def _detect(text: str) -> DataSource:
    """Returns the dataset whose layout a folder has."""
    path = Path(text)
    if not os.path.isdir(path):  # pathlib raises for names that are too long
        if "/" in text and not re.match(r"[A-Za-z][\w-]*:", text):
            raise InputError(f"{text}: no such folder; expected one, or {_usage()}")
        raise unknown_name("data source", text.partition(":")[0], _SOURCES)
    rows = [row for row in _SOURCES.values() if row.detect is not None and row.detect(path)]
    if len(rows) == 1:
        return rows[0]
    problem = "has the layouts of several datasets" if rows else "has the layout of no dataset"
    raise InputError(
        f"{path}: {problem}; expected {_usage()}; for photos without cameras say photos:{path}"
    )


def _usage() -> str:
    rows = _SOURCES.values()
    return ", ".join(row.name + (f":{row.argument}" if row.argument else "") for row in rows)


@dataclass(frozen=True, eq=False)
class TrainingSource:
    """One source of a training mixture, divided into scenes to train on and held-out ones.

    Attributes:
        spec: the source.
        training: scenes to train on.
        held_out: scenes, or frames of scenes, that are not trained on.
        report: a line for people, where scenes or frames were held out or left out by rule; or "".
    """

    spec: SourceSpec
    training: ViewSource
    held_out: ViewSource
    report: str = ""


def open_training(
    text: str, options: SourceOptions = SourceOptions(), *, hold_out_views: bool = True
) -> tuple[TrainingSource, ...]:
    """Opens the sources of a training mixture, each with what is held out of it.

    Args:
        text: the mixture, in the form that the module describes.
        options: of the readers.
        hold_out_views: whether datasets without a split for validation give up some of their
            scenes or frames; False: evaluations would see what is trained on.

    Raises:
        InputError: as `parse_sources` and the readers; too few views to hold any out.
    """
    opened = []
    for spec in parse_sources(text):
        training = spec.open("train", options)
        if "validation" in spec.row.splits:
            opened.append(TrainingSource(spec, training, spec.open("validation", options)))
            continue
        kept, held = hold_out(training, options.views) if hold_out_views else (training, training)
        count, other = (sum(len(s.frames(x)) for x in s.scenes) for s in (training, held))
        report = f"{spec}: {count} frames in {len(training.scenes)} scenes"
        if held is not training:
            report += f", {other} of them held out"
        if left_out := getattr(training, "left_out", None):
            names = ", ".join(f"{name} ({n})" for name, n in left_out.items())
            report += f"; left out, with fewer than {options.views} photos: {names}"
        opened.append(TrainingSource(spec, kept, held, report))
    return tuple(opened)
