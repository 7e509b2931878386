"""The settings of a run: frozen dataclasses here, an ml_collections ConfigDict on the command line.

`configs/*.py` return `to_config(Experiment(...))`; flags such as `--config.images.size=392` change
it; `from_config` turns it back and refuses what is unknown or of the wrong type.
"""

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from lite3r_jax.bench.options import BenchOptions
from lite3r_jax.data.video import VideoOptions
from lite3r_jax.distill.options import DistillOptions
from lite3r_jax.errors import InputError
from lite3r_jax.evaluate.options import EvaluateOptions
from lite3r_jax.export import ExportOptions
from lite3r_jax.infer.cameras import CameraOptions
from lite3r_jax.infer.reconstruct import ComputeOptions, ImageOptions
from lite3r_jax.train.options import TrainOptions
from lite3r_jax.viewer import ViewerOptions

if TYPE_CHECKING:
    from ml_collections import ConfigDict

T = TypeVar("T")


@dataclass(frozen=True)
class Experiment:
    """One run.

    Attributes:
        backbone: registry name; the weights must be of it.
        input: photos: a folder, a folder of folders (a scene each), a glob pattern, a video, or
            several of these with commas between them.
        weights: directory of converted weights, or a hub repository such as facebook/VGGT-1B.
        output: folder for the results; of several scenes each gets a folder in it.
        overwrite: whether results that exist may be replaced.
        formats: what to write, with commas between; see `lite3r_jax.export.FORMATS`.
        images: photos to network images.
        video: which frames of a video.
        cameras: known cameras, and how others are found.
        compute: dtype, chunks, memory.
        export: points and pictures in the results.
        view: `--mode=view`: what the viewer starts with.
        host: address that the viewer listens on; the default can be reached from this machine only.
        port: of the viewer; 0 takes a free one.
        train: `--mode=train`, whose `weights` are those to go on from.
        distill: a `plan` in it makes `--mode=train` a distillation, whose `weights` are the
            teacher's.
        evaluate: `--mode=eval`, whose `weights` are those of the teacher, or of the model.
        bench: `--mode=bench`, whose `weights` are likewise.
    """

    backbone: str = "vggt"
    input: str = ""
    weights: str = ""
    output: str = ""
    overwrite: bool = False
    formats: str = "npz,ply,glb,colmap,html"
    images: ImageOptions = field(default_factory=ImageOptions)
    video: VideoOptions = field(default_factory=VideoOptions)
    cameras: CameraOptions = field(default_factory=CameraOptions)
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    export: ExportOptions = field(default_factory=ExportOptions)
    view: ViewerOptions = field(default_factory=ViewerOptions)
    host: str = "127.0.0.1"
    port: int = 8080
    train: TrainOptions = field(default_factory=TrainOptions)
    distill: DistillOptions = field(default_factory=DistillOptions)
    evaluate: EvaluateOptions = field(default_factory=EvaluateOptions)
    bench: BenchOptions = field(default_factory=BenchOptions)


def to_config(settings: Any) -> "ConfigDict":
    """A ConfigDict with the keys of the dataclass, nested alike."""
    from ml_collections import ConfigDict

    values = {}
    for entry in dataclasses.fields(settings):
        value = getattr(settings, entry.name)
        values[entry.name] = to_config(value) if dataclasses.is_dataclass(value) else value
    return ConfigDict(values)


def from_config(config: Any, cls: type[T] = Experiment, where: str = "config") -> T:
    """The dataclass of a ConfigDict or of a dict.

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
            f" {', '.join(sorted(known))}"
        )
    values = {name: _value(value, hints[name], f"{where}.{name}") for name, value in config.items()}
    return cls(**values)


def require(experiment: Experiment, *names: str) -> None:
    """Refuse an experiment in which one of these settings is empty.

    Raises:
        InputError: naming the first.
    """
    for name in names:
        if not getattr(experiment, name):
            raise InputError(f"config.{name}: not set; add --config.{name}=...")


def _value(value: Any, hint: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_config(value, typing.cast(type, hint), where)
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise InputError(
                f"{where}: expected one of {', '.join(map(str, choices))}, got {value!r}"
            )
        return value
    if hint is float and type(value) is int:
        return float(value)
    if isinstance(hint, types.UnionType):
        raise TypeError(f"{where}: settings have one type, not {hint}")
    if type(value) is not hint:
        raise InputError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value
