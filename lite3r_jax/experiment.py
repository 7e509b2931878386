"""The settings of a run: frozen dataclasses here, an ml_collections ConfigDict in a recipe.

`recipes/*.py` return `to_config(Experiment(...))`; `from_config` turns that back, and `changed`
takes values by dotted name, as `--images.size=392` gives them. What is unknown or of the wrong type
is refused with its dotted name.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import jax.numpy as jnp

from lite3r_jax.benchmarking.options import BenchOptions
from lite3r_jax.data.video import VideoOptions
from lite3r_jax.deploy.manifest import find_deployment
from lite3r_jax.distillation.options import DistillOptions
from lite3r_jax.errors import InputError, did_you_mean
from lite3r_jax.evaluation.options import EvaluateOptions, ProbeOptions
from lite3r_jax.exports import ExportOptions
from lite3r_jax.infer.cameras import CameraOptions
from lite3r_jax.infer.options import ComputeOptions, ImageOptions
from lite3r_jax.models import AttentionChoice, ModelSpec, Precision
from lite3r_jax.processes import ProcessOptions
from lite3r_jax.refine import RefineOptions
from lite3r_jax.service import ServeOptions
from lite3r_jax.setting_bounds import check_number
from lite3r_jax.small_teacher.options import SmallTeacherOptions
from lite3r_jax.training.options import TrainOptions
from lite3r_jax.viewer import ViewerOptions

if TYPE_CHECKING:
    from ml_collections import ConfigDict

T = TypeVar("T")


@dataclass(frozen=True)
class Experiment:
    """The settings of one run: input, weights, output, and a group of options for every mode.

    Attributes:
        backbone: registry name; the weights must be of it.
        input: photos: a folder, a folder of folders (a scene each), a glob pattern, a video, or
            several of these with commas between them.
        weights: directory of converted weights or of a deployed model, or a hub repository such as
            facebook/VGGT-1B.
        student: folder of a distilled student of these weights, for reconstructions; evaluations
            and benchmarks have one of their own.
        attention: the attention of the model, for reconstructions; see `models.ModelSpec`.
        precision: of the model that reconstructs; "" for that of `compute.dtype`.
        output: folder for the results; of several scenes each gets a folder in it. "" in a
            reconstruction: `lite3r_output`, where every scene gets a folder.
        overwrite: whether results that exist may be replaced.
        quiet: whether neither progress nor tables are shown, only errors and the last lines.
        open: whether the page of a reconstruction, of several scenes the first one's, or that of
            the service is opened in the browser.
        formats: what to write, with commas between; see `lite3r_jax.exports.FORMATS`.
        images: how photos become images of the network's size.
        video: which frames of a video.
        cameras: known cameras, and how others are found.
        compute: dtype, chunks, memory, devices.
        processes: several processes that reconstruct, evaluate, measure or train together.
        refine: predicted cameras adjusted to matches between the photos.
        export: points and pictures in the results.
        view: `--mode=view`: what the viewer starts with.
        serve: `--mode=serve`: models to choose from, and limits.
        host: address that viewer and service listen on; the default can be reached from this
            machine only.
        port: of viewer and service; 0 takes a free one.
        train: `--mode=train`, whose `weights` are those to go on from.
        small_teacher: settings of `train.task=small_teacher`.
        distill: a `plan` in it makes `--mode=train` a distillation, whose `weights` are the
            teacher's.
        evaluate: `--mode=eval`, whose `weights` are those of the teacher, or of the model.
        probe: `--mode=probe`, on the data of `evaluate`.
        bench: `--mode=bench`, whose `weights` are those of the teacher, or of the model.
    """

    backbone: str = "vggt"
    input: str = ""
    weights: str = ""
    student: str = ""
    attention: AttentionChoice = field(default_factory=AttentionChoice)
    precision: Precision = ""
    output: str = ""
    overwrite: bool = False
    quiet: bool = False
    open: bool = False
    formats: str = "npz,ply,glb,colmap,html"
    images: ImageOptions = field(default_factory=ImageOptions)
    video: VideoOptions = field(default_factory=VideoOptions)
    cameras: CameraOptions = field(default_factory=CameraOptions)
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    processes: ProcessOptions = field(default_factory=ProcessOptions)
    refine: RefineOptions = field(default_factory=RefineOptions)
    export: ExportOptions = field(default_factory=ExportOptions)
    view: ViewerOptions = field(default_factory=ViewerOptions)
    serve: ServeOptions = field(default_factory=ServeOptions)
    host: str = "127.0.0.1"
    port: int = 8080
    train: TrainOptions = field(default_factory=TrainOptions)
    small_teacher: SmallTeacherOptions = field(default_factory=SmallTeacherOptions)
    distill: DistillOptions = field(default_factory=DistillOptions)
    evaluate: EvaluateOptions = field(default_factory=EvaluateOptions)
    probe: ProbeOptions = field(default_factory=ProbeOptions)
    bench: BenchOptions = field(default_factory=BenchOptions)

    def model_spec(self) -> ModelSpec:
        """Returns which model reconstructs: weights, student, attention, precision and dtype."""
        dtype, precision = self.compute.jax_dtype, self.precision
        if not precision and find_deployment(Path(self.weights)) is None:
            precision = cast(Precision, str(jnp.dtype(dtype)))
        named = precision in ("float32", "bfloat16") and self.compute.dtype == "auto"
        return ModelSpec(
            self.weights,
            self.student,
            self.attention.plan,
            precision,
            dtype=None if named else dtype,
        )


def to_config(settings: Any) -> "ConfigDict":
    """Converts a settings dataclass to a ConfigDict with the same keys and nesting."""
    from ml_collections import ConfigDict

    values = {}
    for entry in dataclasses.fields(settings):
        value = getattr(settings, entry.name)
        values[entry.name] = to_config(value) if dataclasses.is_dataclass(value) else value
    return ConfigDict(values)


def from_config(config: Any, cls: type[T] = Experiment, where: str = "config") -> T:
    """Builds a settings dataclass from a ConfigDict or a dict.

    Args:
        config: values; keys that are absent keep their defaults.
        cls: a frozen dataclass of bool, int, float, str, Literal and further such dataclasses.
        where: dotted name of this place, for messages.

    Raises:
        InputError: unknown keys, wrong types, values that are not among the choices; by name.
    """
    if not hasattr(config, "items"):
        raise InputError(f"{where}: expected a group of settings, got {config!r}")
    hints = typing.get_type_hints(cls)
    known = {entry.name for entry in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    unknown = sorted(set(config) - known)
    if unknown:
        raise InputError(
            f"{where}: unknown settings {', '.join(unknown)}; expected some of"
            f" {', '.join(sorted(known))}{did_you_mean(unknown[0], known)}"
        )
    dot = "" if not where or where.endswith("-") else "."
    values = {
        name: _value(value, hints[name], f"{where}{dot}{name}") for name, value in config.items()
    }
    return cls(**values)


def setting_types(cls: Any = Experiment) -> dict[str, Any]:
    """Returns dotted name -> type of every setting that is a value and not a group."""
    types: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            types |= {f"{name}.{inner}": kind for inner, kind in setting_types(hint).items()}
        else:
            types[name] = hint
    return types


def changed(settings: T, values: Mapping[str, Any], prefix: str = "config.") -> T:
    """Returns settings with new values for some dotted names, all set before they are checked.

    Args:
        settings: a frozen dataclass, see `from_config`.
        values: dotted name -> value, or the text of one, as "true" for bool or "1e-3" for float.
        prefix: what names begin with in messages.

    Raises:
        InputError: no such setting, with the nearest one, or a value of the wrong type.
    """
    kinds = setting_types(type(settings))
    body = dataclasses.asdict(typing.cast(Any, settings))
    for name, value in values.items():
        if name not in kinds:
            raise InputError(f"{prefix}{name}: there is no such setting{did_you_mean(name, kinds)}")
        *groups, last = name.split(".")
        group = body
        for each in groups:
            group = group[each]
        text = isinstance(value, str)
        group[last] = _from_text(value, kinds[name], f"{prefix}{name}") if text else value
    return from_config(body, type(settings), prefix.rstrip("."))


def _from_text(text: str, hint: Any, where: str) -> Any:
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise InputError(f"{where}: expected true or false, got {text!r}")
        return text.lower() == "true"
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            raise InputError(f"{where}: expected {hint.__name__}, got {text!r}") from None
    return text


def require(experiment: Experiment, *names: str) -> None:
    """Raises if one of the named settings is empty, or if any setting has an impossible value.

    A command line was checked as it was read; what was put together in Python is checked here.

    Raises:
        InputError: naming the first.
    """
    from_config(dataclasses.asdict(experiment), type(experiment))
    for name in names:
        if not getattr(experiment, name):
            raise InputError(f"config.{name}: not set; add --config.{name}=...")


def refuse_model_settings(experiment: Experiment, instead: Mapping[str, str] | None = None) -> None:
    """Raises if `student`, `attention.plan` or `precision` is set where it has no effect.

    Args:
        experiment: the settings.
        instead: student, attention.plan and precision -> the setting to use in its place; None
            where a scene that exists already is read, and no model at all.

    Raises:
        InputError: one is set.
    """
    settings = (experiment.student, experiment.attention.plan, experiment.precision)
    for name, value in zip(("student", "attention.plan", "precision"), settings, strict=True):
        if value:
            remedy = (
                f"set --config.{instead[name]} here"
                if instead
                else f"leave it out, as {experiment.input} is a scene already"
            )
            raise InputError(f"config.{name}: is for reconstructions; {remedy}")


def refuse_devices(experiment: Experiment, what: str, **instead: str) -> None:
    """Raises if settings of devices or processes are set where they have no effect.

    Args:
        experiment: the settings.
        what: what is run, for the message.
        **instead: `mesh`, `rest`, `weights`, `processes`: what to do in place of each of them that
            has no effect there; the others may be set.

    Raises:
        InputError: one is set.
    """
    compute = experiment.compute
    for name, setting, value, usual in (
        ("mesh", "compute.mesh", compute.mesh, ""),
        ("rest", "compute.rest", compute.rest, "auto"),
        ("weights", "compute.weights", compute.weights, "copied"),
        ("processes", "processes.coordinator", experiment.processes.coordinator, ""),
    ):
        if name in instead and value != usual:
            raise InputError(f"{setting}={value}: has no effect on {what}; {instead[name]}")


def _value(value: Any, hint: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_config(value, typing.cast(type, hint), where)
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            names = [str(choice) for choice in choices if choice != ""]
            raise InputError(
                f"{where}: expected one of {', '.join(names)}, got {value!r}"
                f"{did_you_mean(str(value), names)}"
            )
        return value
    if hint is float and type(value) is int and abs(value) < 1e300:
        value = float(value)
    if isinstance(hint, types.UnionType):
        raise TypeError(f"{where}: settings have one type, not {hint}")
    if type(value) is not hint:
        raise InputError(f"{where}: expected {hint.__name__}, got {value!r}")
    if hint in (int, float):
        check_number(where.removeprefix("config.").lstrip("-"), value, where)
    if isinstance(value, str) and "\0" in value:
        raise InputError(f"{where}: expected a text without zero bytes, got {value!r}")
    return value
