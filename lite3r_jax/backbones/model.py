"""Base class of the models of all backbones: attention plan, checks of a call, compiled pass."""

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from lite3r_jax.attention.plan import Plan
from lite3r_jax.attention.strategy import Role, TokenLayout
from lite3r_jax.backbones.base import Choice, ImageInput, Input, Prediction, Tap
from lite3r_jax.backbones.heads import default_frame_chunk
from lite3r_jax.errors import InputError, did_you_mean, unknown_name
from lite3r_jax.mesh import ViewParts, to_host, view_parts


@dataclass(frozen=True)
class Call:
    """The static arguments of a forward pass.

    Attributes:
        choices: (name, value) of every choice that the model has.
        taps: names of intermediates that are returned.
        frame_chunk: frames that the dense heads handle at a time.
        remat: whether gradients compute layers again.
        views: how many of the views count, where they are in parts; see `Backbone.in_parts`.
        on_host: whether tokens that dense heads read later rest on the host.
        split_weights: whether devices that share the views share the weights, too.
    """

    choices: tuple[tuple[str, Any], ...] = ()
    taps: tuple[str, ...] = ()
    frame_chunk: int = 1
    remat: bool = False
    views: int | None = None
    on_host: bool = False
    split_weights: bool = False

    def parts(self, filled: int) -> ViewParts | None:
        """Returns how `filled` views are spread over the devices; see `mesh.view_parts`."""
        return view_parts(filled, self.views, self.split_weights)

    def __getitem__(self, choice: str) -> Any:
        """Returns the value of a choice."""
        return dict(self.choices)[choice]


@dataclass(frozen=True)
class RoleSize:
    """Number and sizes of the attention layers of one role.

    Attributes:
        layers: how many.
        head_dim: size of a head.
        dtype: in which they compute; None for the dtype of the model.
        heads: N, number of heads; 0 where it is not known, which is enough for one device.
    """

    layers: int
    head_dim: int
    dtype: Any = None
    heads: int = 0


_PUBLISHED_TABLE = 518  # side of the images that position tables of published models are for


class BackboneModel(nnx.Module):
    """Base class of the models of all backbones; it implements `backbones.base.Backbone`.

    A subclass declares `parts` and `taps`, and `choices`, `inputs`, `camera_outputs` and
    `view_tokens` where it has some; its `__init__` calls this one's first; it defines `roles`,
    `forward` and `operations`.
    """

    parts: ClassVar[Mapping[str, str]] = {}
    taps: ClassVar[Mapping[str, Tap]] = {}
    choices: ClassVar[Mapping[str, Choice]] = {}
    inputs: ClassVar[Mapping[str, Input]] = {}
    camera_outputs: ClassVar[tuple[str, ...]] = ()
    view_tokens: ClassVar[str] = ""
    in_parts: ClassVar[bool] = False
    rests_on_host: ClassVar[bool] = False
    published_images: ClassVar[ImageInput] = ImageInput("crop", 518)

    def __init__(self, config: Any, *, heads: Sequence[str], plan: Plan | None, dtype: Any):
        """Checks and stores config, heads, attention plan and compute dtype of a model.

        Args:
            config: sizes.
            heads: which heads to have, of `parts`.
            plan: attention strategy of every site; dense everywhere when None.
            dtype: compute dtype of encoder and trunk.

        Raises:
            InputError: an unknown head.
            ValueError: the plan has a rule without a site.
        """
        self.heads = check_heads(heads, self.parts)
        self.config = config
        self.dtype = jnp.dtype(dtype)
        plan = Plan() if plan is None else plan
        sites: dict[Role, int] = {role: size.layers for role, size in self.roles().items()}
        plan.check(sites)
        self._sites = plan, tuple(sites.items())

    @classmethod
    def images_for(cls, config: Any) -> ImageInput:
        """Implements `Backbone.images_for`: the authors' images for a model with their table.

        A table for other images (`config.img_size`) is of a model that was trained here, and is
        taken to be for squares of that side.
        """
        side = getattr(config, "img_size", _PUBLISHED_TABLE)
        return cls.published_images if side == _PUBLISHED_TABLE else ImageInput("pad", side)

    def roles(self) -> dict[Role, RoleSize]:
        """Returns the sizes of the attention layers of every role, for `config` and `heads`."""
        raise NotImplementedError(f"{type(self).__name__} does not define roles")

    def scene_tokens(self, views: int, grid: tuple[int, int]) -> TokenLayout:
        """Returns the layout of the tokens of all views, which attend together over the views.

        Args:
            views: S.
            grid: patches (h, w) of a view.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define scene_tokens")

    def forward(
        self, images: jax.Array, given: Mapping[str, jax.Array], call: Call
    ) -> tuple[Prediction, dict[str, jax.Array]]:
        """Computes the forward pass; called while `jax.jit` traces it.

        Args:
            images: checked.
            given: arrays of `inputs` that went in, by their names.
            call: the static arguments of the pass.

        Returns:
            (`Prediction`, intermediates by name, those of `call.taps` among them; what is not asked
            for costs nothing).
        """
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def operations(self, views: int, grid: tuple[int, int]) -> Mapping[str, Mapping[str, int]]:
        """Counts the operations of a pass over one scene, see `Backbone.operations`."""
        raise NotImplementedError(f"{type(self).__name__} does not define operations")

    @property
    def plan(self) -> Plan:
        """Plan that assigns an attention strategy to every attention layer."""
        return self._sites[0]

    @property
    def sites(self) -> dict[Role, int]:
        """Number of attention layers of every role."""
        return dict(self._sites[1])

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels, of which height and width of images are multiples."""
        return self.config.patch_size

    def attention(self) -> dict[str, str]:
        """Describes the attention strategy and kernel of each role on this machine, for reports."""
        roles = self.roles()
        dtypes: dict[Role, Any] = {role: x.dtype or self.dtype for role, x in roles.items()}
        head_dims: dict[Role, int] = {role: x.head_dim for role, x in roles.items()}
        return self.plan.describe(self.sites, dtypes, head_dims)

    @staticmethod
    def normalize_cameras(extrinsics: Any) -> Any:
        """Implements `Backbone.normalize_cameras`: returns cameras [S, 3, 4] as they are."""
        return extrinsics

    def check_given(
        self, given: dict[str, jax.Array], batch: int, views: int
    ) -> dict[str, jax.Array]:
        """Checks arrays given beside the images and returns them in the form the model uses."""
        del batch, views
        return given

    def __call__(
        self,
        images: jax.Array,
        *,
        taps: Collection[str] = (),
        frame_chunk: int | None = None,
        remat: bool = False,
        views: int | None = None,
        on_host: bool = False,
        split_weights: bool = False,
        **more: Any,
    ) -> tuple[Prediction, dict[str, jax.Array]]:
        """Reconstructs scenes; the pass is compiled once per shape and set of choices.

        Args:
            images: [B, S, H, W, 3] float32 RGB in [0, 1]; H and W multiples of `patch_size`.
            taps: names of intermediates to return.
            frame_chunk: frames that the dense heads handle at a time: memory against speed, the
                result is the same. None: what `heads.default_frame_chunk` takes.
            remat: for training: whether the gradient computes layers and dense heads again instead
                of keeping all that is in them. Memory against about a third more time; values are
                the same.
            views: how many of the views count, the first ones, where those of the only scene are in
                parts (`mesh.ViewParts`) on the devices of the mesh in use; outputs of the others
                mean nothing. None: all, and not in parts.
            on_host: whether tokens that dense heads read later rest in the memory of the host until
                then, and the prediction is there: memory of the device against time. Not for
                gradients.
            split_weights: with `views`, whether every device has a part of the parameters
                (`mesh.put_weights`) and gets those of a layer over views or of the encoder when
                its turn comes: memory against what is sent.
            **more: arrays of `inputs`, None counting as not given, and values of `choices`.

        Returns:
            (`Prediction`, {tap: array}).

        Raises:
            InputError: images of wrong rank, dtype, size or range; an input, choice or tap that is
                unknown or that this model has no head for; frame_chunk below 1.
        """
        check_images(images, self.patch_size)
        if frame_chunk is None:
            frame_chunk = default_frame_chunk(*images.shape[2:4])
        if frame_chunk < 1:
            raise InputError(f"frame_chunk: expected at least 1, got {frame_chunk}")
        arrays = [name for each in self.inputs.values() for name in each.arrays]
        for name in more:
            if name not in (*arrays, *self.choices):
                known = (*arrays, *self.choices)
                raise InputError(
                    f"{name}: {type(self).__name__} takes no such argument"
                    f"{did_you_mean(name, known)}"
                )
        given = {name: more[name] for name in arrays if more.get(name) is not None}
        choices = {name: more.get(name, each.default) for name, each in self.choices.items()}
        self._check_heads_of(given, choices, taps)
        given = self.check_given(given, *images.shape[:2])
        if views is not None:
            self.check_parts()
            if len(images) > 1 or taps or remat:
                raise InputError(
                    "views in parts: expected one scene, without taps and remat; leave out `views`"
                )
        if on_host and not self.rests_on_host:
            raise InputError(
                f"on_host: {type(self).__name__} does not let tokens rest there; leave it out"
            )
        graph, state = nnx.split(self)
        call = Call(
            tuple(choices.items()),
            tuple(sorted(taps)),
            frame_chunk,
            bool(remat),
            views,
            on_host,
            split_weights,
        )
        return _forward(graph, state, images, given, call)

    def check_parts(self) -> None:
        """Raises an error if this model does not support views spread over several devices.

        Raises:
            InputError: the model does not support them.
        """
        if not self.in_parts:
            raise InputError(
                f"compute.mesh: {type(self).__name__} does not say how its views lie on several"
                " devices; leave it out"
            )

    def _check_heads_of(
        self, given: Collection[str], choices: Mapping[str, Any], taps: Collection[str]
    ) -> None:
        """Raises an error for unknown values and taps, and for what lacks a head or an input."""
        needs: dict[str, str | None] = {}
        for name, value in choices.items():
            values = self.choices[name].values
            if value not in values:
                raise unknown_name(f"{name}:", str(value), map(str, values))
            needs[f"{name}={value}"] = values[value]
        there = {n for n, each in self.inputs.items() if set(each.arrays) & set(given)}
        needs |= {name: self.inputs[name].head for name in there}
        if unknown := sorted(set(taps) - set(self.taps)):
            raise unknown_name("tap", unknown[0], self.taps)
        needs |= {f"tap {name}": self.taps[name].head for name in taps}
        for what, head in needs.items():
            if head is not None and head not in self.heads:
                raise InputError(f"{what}: needs the head {head}, which this model is without")
        for name in taps:
            wanted = self.taps[name].given
            if wanted is not None and wanted not in there:
                raise InputError(f"tap {name}: needs {wanted}; give them or drop the tap")


@functools.partial(jax.jit, static_argnums=(0, 4))
def _forward(graph, state, images, given, call):
    prediction, taps = nnx.merge(graph, state).forward(images, given, call)
    if call.on_host:
        # Outputs of a program have memory of their own while it runs, also before they are made.
        prediction = jax.tree.map(to_host, prediction)
    return prediction, {name: taps[name] for name in call.taps}


def check_images(images: Any, patch: int) -> None:
    """Raises an error for images whose type, shape, dtype or values no backbone can read.

    Values are looked at only where they are known, that is outside of jit.

    Args:
        images: expected [B, S, H, W, 3] float32 in [0, 1].
        patch: patch size that H and W must be multiples of.

    Raises:
        InputError: wrong type, rank, channels, dtype, size or range.
    """
    wanted = "images: expected [B, S, H, W, 3] float32 in [0, 1]"
    if not isinstance(images, (jax.Array, np.ndarray)):
        raise InputError(f"{wanted}, got {type(images).__name__}; convert to a NumPy or JAX array")
    if images.ndim != 5:
        hint = "; add a batch axis with images[None]" if images.ndim == 4 else ""
        raise InputError(f"{wanted}, got rank {images.ndim} {images.shape}{hint}")
    if images.shape[-1] != 3:
        hint = "; move channels last" if images.shape[2] == 3 else ""
        raise InputError(f"{wanted}, got shape {images.shape}{hint}")
    if images.dtype != jnp.float32:
        hint = " / 255" if images.dtype == jnp.uint8 else ""
        raise InputError(f"{wanted}, got {images.dtype}; use images.astype('float32'){hint}")
    height, width = images.shape[2:4]
    if 0 in images.shape or height % patch or width % patch:
        raise InputError(
            f"{wanted} with H and W multiples of {patch}, got {images.shape}; resize or pad, for "
            f"example to {max(1, round(height / patch)) * patch} x "
            f"{max(1, round(width / patch)) * patch}"
        )
    if not isinstance(images, Tracer):
        low, high = float(images.min()), float(images.max())
        # Not (0 <= low): a NaN must fail too.
        if not (low >= 0 and high <= 1):
            hint = "; divide by 255" if high > 1 else ""
            raise InputError(f"{wanted}, got values from {low:g} to {high:g}{hint}")


def check_heads(heads: Sequence[str], known: Collection[str]) -> tuple[str, ...]:
    """Returns the heads in the order of `known`.

    Raises:
        InputError: one of them is unknown.
    """
    if unknown := sorted(set(heads) - set(known)):
        raise InputError(f"heads {unknown} are not known; choose from {', '.join(known)}")
    return tuple(head for head in known if head in heads)


def count_parameters(model: nnx.Module) -> int:
    """Returns the number of scalars in all parameters; the model may be abstract."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
