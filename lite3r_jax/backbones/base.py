"""The interface of a backbone, the types of what it returns, and the registry of backbones.

A backbone is a folder here (model, config, weight map) and a row of `BUILT_IN`; one from outside
calls `register`. `backbones.model.BackboneModel` keeps most of the promises for a new one. Nothing
outside of its folder knows a backbone by its class: what differs is asked of the model (`Backbone`)
or of its entry (`BackboneEntry`).
"""

import importlib
import math
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import jax

from lite3r_jax.attention.plan import Plan
from lite3r_jax.attention.strategy import Role
from lite3r_jax.errors import InputError, unknown_name
from lite3r_jax.name_map import Checkpoint

Unit = Literal["model", "meter", "known cameras"]
"""Unit of all lengths of a prediction, see `Prediction.unit`."""
POSE_STAGES = "camera/pose_enc"
"""Name of the tap of the pose encodings after every stage of a camera head.

They are [K, B, S, 9], world-to-camera."""
KNOWN_CAMERAS = "known cameras"
"""Name of the input (`Backbone.inputs`) for known cameras: extrinsics and intrinsics."""

CAMERA_POINTS = "depth/points"
"""Name of the tap of predicted points in the camera frame, [B, S, H, W, 3].

Models have it that predict such points and whose intrinsics are fitted to them."""
POINTS = "points"
"""Name of the choice (`Backbone.choices`) of whether `world_points` are returned.

Models have it whose `world_points` need no head of their own."""
AREA = "pixel_limit"
"""Name of the mode of `data.images.fit_image` whose size is the number of pixels of an image."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tracks:
    """Points followed through the views.

    Attributes:
        coords: [B, S, N, 2] (x, y) in pixels of the input images; pixel centers are integers.
        visibility: [B, S, N] in [0, 1].
        confidence: [B, S, N] in [0, 1].
    """

    coords: jax.Array
    visibility: jax.Array
    confidence: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prediction:
    """Cameras, depth and points of S views of B scenes, float32; None where a head is off.

    World coordinates are those of the first view's camera (VGGT, pi^3) or near those of the
    reference view's (Depth Anything 3), in the unit of length that `unit` says.
    Cameras follow OpenCV: x right, y down, z forward; pixel (u, v) has its center at integers, u
    to the right, v down. Everything refers to the images as given to the model (H, W).

    Attributes:
        pose_enc: [B, S, 9] = translation of the world-to-camera extrinsics (3), quaternion
            x, y, z, w of their rotation, not normalized (4), vertical and horizontal field of view
            in radians (2).
        extrinsics: [B, S, 3, 4] world-to-camera [R | t].
        intrinsics: [B, S, 3, 3] in pixels, principal point at (W / 2, H / 2) unless they come from
            rays.
        depth: [B, S, H, W, 1] z in the camera frame, positive.
        depth_conf: [B, S, H, W] confidence of the depth, larger is surer: 1 and more, or from 0 to
            1 (pi^3).
        world_points: [B, S, H, W, 3].
        world_points_conf: [B, S, H, W], likewise.
        tracks: `Tracks` of the query points.
        rays: [B, S, h, w, 6] rays of a coarser grid that covers the image: direction in the world,
            not normalized, and origin.
        rays_conf: [B, S, h, w], 1 and more.
        unit: of all lengths: "model" is the model's own, which differs from scene to scene;
            "meter"; or "known cameras", that of the cameras that were given.
    """

    pose_enc: jax.Array | None = None
    extrinsics: jax.Array | None = None
    intrinsics: jax.Array | None = None
    depth: jax.Array | None = None
    depth_conf: jax.Array | None = None
    world_points: jax.Array | None = None
    world_points_conf: jax.Array | None = None
    tracks: Tracks | None = None
    rays: jax.Array | None = None
    rays_conf: jax.Array | None = None
    unit: Unit = field(default="model", metadata={"static": True})


@dataclass(frozen=True)
class Tap:
    """Description of an intermediate result that a forward pass returns on request.

    Attributes:
        shape: names of its axes with spaces between; L counts the layers of a role.
        text: what it is.
        head: the head that computes it; None for none.
        given: the input that it needs; None for none.
    """

    shape: str
    text: str
    head: str | None = None
    given: str | None = None

    @property
    def layer_axis(self) -> int:
        """Index of the axis of `shape` that counts layers (L)."""
        return self.shape.split().index("L")


@dataclass(frozen=True)
class Choice:
    """An option of the forward pass: its allowed values, and the head that each of them needs.

    Attributes:
        values: allowed value -> the head that it needs, or None. The first is the default.
        text: what is chosen.
        without: an input beside which the choice has no effect; None for none.
    """

    values: Mapping[str | bool, str | None]
    text: str
    without: str | None = None

    @property
    def default(self) -> str | bool:
        """Value of the option where the call does not give one."""
        return next(iter(self.values))


@dataclass(frozen=True)
class Input:
    """Description of optional arrays that a call takes beside the images, all of them or none.

    Attributes:
        arrays: their names as arguments of the call.
        head: the head that reads them.
        text: shapes and units.
    """

    arrays: tuple[str, ...]
    head: str
    text: str


@dataclass(frozen=True)
class ImageInput:
    """The mode and size in which photos become the images that a network takes.

    Attributes:
        mode: see `data.images.fit_image`.
        size: in pixels: of the side that the mode sets, or in mode pixel_limit of a whole image.
    """

    mode: str
    size: int

    def __str__(self) -> str:
        return f"{self.size} pixels ({self.mode})"

    def size_in(self, mode: str, patch: int) -> int:
        """Returns the size that makes images about as large in another mode.

        Args:
            mode: the other one.
            patch: the patch size; sides are multiples of it.
        """
        if (mode == AREA) == (self.mode == AREA):
            return self.size
        return self.size**2 if mode == AREA else math.isqrt(self.size) // patch * patch


class Backbone(Protocol):
    """The interface of a model that maps views of scenes to cameras, depth and points.

    What every backbone promises, and everything around models relies on:

    - `prediction, taps = model(images, taps=..., frame_chunk=..., remat=..., **more)`, compiled
      once per shape and choice. Images are [B, S, H, W, 3] float32 RGB in [0, 1], H and W multiples
      of `patch_size`; scenes of a batch do not see each other. `more` are arrays of `inputs` and
      values of `choices`; whatever the model does not have is an `InputError`. `frame_chunk` frames
      at a time go through the dense heads, `remat` is for gradients: both are memory against speed
      and change no value.
    - `Prediction` is in the conventions of its docstring and says its unit of length. There may be
      no reference view: then permuting views permutes all of it but the world frame.
    - The tap `camera/pose_enc` (`POSE_STAGES`), where there is a camera head, is [K, B, S, 9]: the
      encoding after each of its K stages, world-to-camera, the last one that of the prediction.
    - The taps `ROLE/attn`, for roles that run in every pass, are the outputs of a role's attention
      layers after the output projection, with an axis L of `sites[ROLE]` layers. They are what a
      distillation compares.
    - Blocks are `layers.block.Block`, stacked by `layers.block.stack` under the name `blocks` or
      `NAME_blocks`; beside them stand the strategies of their layers, `cores` or `NAME_cores` from
      `build_cores`, and the runs of these, `runs` or `NAME_runs`.
    - All parameters are `nnx.Param`; the class can be built under `nnx.eval_shape` and takes
      `(config, *, heads, plan, dtype, param_dtype, rngs)`. Other plans change parameters of
      strategies only. Compute dtypes are float32 and bfloat16, with float32 residual streams,
      norms, softmax, position tables and heads.
    - `images_for(config)` says for which images weights of a config were made: what photos become
      unless the user says otherwise.
    - Parts (the first names in the paths of parameters) are files of converted weights; `parts`
      says which of them exist only with a head.

    Attributes:
        config: sizes; a frozen dataclass.
        heads: which heads this model has, in the order of `parts`.
        dtype: compute dtype of encoder and trunk.
        parts: every head there can be -> the part that is there only with it.
        taps: intermediates by name.
        choices: see `Choice`; argument of the call -> what it may be.
        inputs: see `Input`; by what they are called in messages.
        camera_outputs: paths of the Linears whose outputs are cameras, which float8 leaves out by
            default.
        view_tokens: the tap, [B, S, ..., C], whose tokens tell what a view shows, by which views of
            one place are found; "" where there is none.
        in_parts: whether the views of a scene may lie on several devices (`mesh.ViewParts`); the
            call then takes `views`, how many of them count.
        rests_on_host: whether tokens that dense heads read later may rest in the memory of the
            host; the call then takes `on_host`.
    """

    parts: ClassVar[Mapping[str, str]]
    taps: ClassVar[Mapping[str, Tap]]
    choices: ClassVar[Mapping[str, Choice]]
    inputs: ClassVar[Mapping[str, Input]]
    camera_outputs: ClassVar[tuple[str, ...]]
    view_tokens: ClassVar[str]
    in_parts: ClassVar[bool]
    rests_on_host: ClassVar[bool]
    config: Any
    heads: tuple[str, ...]
    dtype: Any

    def __call__(
        self,
        images: jax.Array,
        *,
        taps: Collection[str] = (),
        frame_chunk: int | None = None,
        remat: bool = False,
    ) -> tuple[Prediction, dict[str, jax.Array]]:
        """Reconstructs scenes; the class describes arguments and results."""
        ...

    @classmethod
    def images_for(cls, config: Any) -> ImageInput:
        """Returns the mode and size of the images that models of this config were made for."""
        ...

    @property
    def plan(self) -> Plan:
        """Plan that assigns an attention strategy to every attention layer."""
        ...

    @property
    def sites(self) -> dict[Role, int]:
        """Number of attention layers of every role."""
        ...

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels, of which height and width of images are multiples."""
        ...

    def attention(self) -> dict[str, str]:
        """Describes the attention strategy and kernel of each role on this machine, for reports."""
        ...

    def operations(self, views: int, grid: tuple[int, int]) -> Mapping[str, Mapping[str, int]]:
        """Counts the operations of a forward pass over one scene.

        The pass has no inputs beside the images, and default choices.

        Args:
            views: S.
            grid: patches (h, w).

        Returns:
            encoder, frame, global and every head that is there -> kind -> operations, see
            `backbones.operations`.
        """
        ...

    @staticmethod
    def normalize_cameras(extrinsics: Any) -> Any:
        """Returns known cameras [S, 3, 4] of one scene in the frame that the call takes.

        They are world-to-camera before and after.
        """
        ...


@dataclass(frozen=True)
class Published:
    """A model that its authors have published.

    Attributes:
        size: what they call it; published models of one size differ in training only.
        repo: hub repository.
        config: its sizes.
        license: of the weights.
        download: size of the file, for messages.
        file: in the repository.
    """

    size: str
    repo: str
    config: Any
    license: str
    download: str
    file: str = "model.safetensors"


def _dense(config: Any) -> Plan:
    """Returns the plan of dense attention, for weights that were trained with no other."""
    del config
    return Plan()


@dataclass(frozen=True)
class BackboneEntry:
    """A row of the registry: what is known about a backbone before a model of it is built.

    Attributes:
        name: in settings, manifests and on the command line.
        model: its class, a `Backbone`.
        default_config: sizes of the published model that is meant where none is named.
        config_from_json: JSON form (a dict) to config; raises `InputError`.
        config_to_json: its inverse.
        checkpoint: names in its published files, and where they go.
        published: see `Published`.
        own_plan: config -> the attention that weights of it were trained with.
    """

    name: str
    model: type[Any]
    default_config: Any
    config_from_json: Callable[[dict[str, Any]], Any]
    config_to_json: Callable[[Any], dict[str, Any]]
    checkpoint: Checkpoint
    published: tuple[Published, ...] = ()
    own_plan: Callable[[Any], Plan] = _dense

    @property
    def build(self) -> Callable[..., Any]:
        """Constructor of a model: (config, *, heads, plan, dtype, param_dtype, rngs) -> model."""
        return self.model

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of all heads that a model of this backbone can have."""
        return tuple(self.parts)

    @property
    def parts(self) -> Mapping[str, str]:
        """Every head -> the part of the parameters that only it needs, see `Backbone.parts`."""
        return self.model.parts


BUILT_IN = ("vggt", "da3", "pi3")
"""Names of the built-in backbones: subpackages of this package that define an `ENTRY`."""
_REGISTERED: dict[str, BackboneEntry] = {}


def register(entry: BackboneEntry) -> BackboneEntry:
    """Registers a backbone under its name and returns its entry.

    Everything that takes the name of a backbone then knows it.

    Raises:
        InputError: the name is taken.
    """
    if entry.name in backbone_names():
        raise InputError(f"backbone {entry.name!r} is registered already; choose another name")
    _REGISTERED[entry.name] = entry
    return entry


def unregister(name: str) -> None:
    """Removes a backbone that `register` added from the registry."""
    del _REGISTERED[name]


def registered_places() -> tuple[tuple[str, str], ...]:
    """Returns module and variable name of the entry of every backbone that `register` added.

    A new process finds the entries by these names.
    """
    return tuple(
        (module, name)
        for entry in _REGISTERED.values()
        for module in (entry.model.__module__,)
        for name, value in vars(sys.modules[module]).items()
        if value is entry
    )


def register_places(places: Iterable[tuple[str, str]]) -> None:
    """Registers in this process the backbones that another process has registered.

    Args:
        places: from `registered_places`.

    Raises:
        InputError: a module cannot be imported here.
    """
    for module, name in places:
        try:
            entry = getattr(importlib.import_module(module), name)
        except ImportError as error:
            raise InputError(
                f"backbone {module}.{name}: a new process cannot import it ({error}); install the"
                " package that it is in, or set bench.isolate=False"
            ) from error
        if entry.name not in backbone_names():
            register(entry)


def backbone_names() -> tuple[str, ...]:
    """Returns all names that `get_backbone` takes."""
    return (*BUILT_IN, *_REGISTERED)


def get_backbone(name: str) -> BackboneEntry:
    """Returns the registry entry of the backbone with this name.

    Raises:
        InputError: no backbone has this name.
    """
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name not in BUILT_IN:
        raise unknown_name("backbone", name, backbone_names())
    return importlib.import_module(f"{__package__}.{name}").ENTRY
