"""What every backbone gives back, and the registry of backbones."""

import dataclasses
import importlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from lite3r_jax.errors import InputError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tracks:
    """Points followed through the views.

    Attributes:
        coords: [B, S, N, 2] (x, y) in pixels of the input images; pixel centres are integers.
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

    World coordinates are those of the first view's camera (VGGT) or near those of the reference
    view's (Depth Anything 3), up to the model's own unit of length.
    Cameras follow OpenCV: x right, y down, z forward; pixel (u, v) has its centre at integers, u
    to the right, v down. Everything refers to the images as given to the model (H, W).

    Attributes:
        pose_enc: [B, S, 9] = translation of the world-to-camera extrinsics (3), quaternion
            x, y, z, w of their rotation, not normalised (4), vertical and horizontal field of view
            in radians (2).
        extrinsics: [B, S, 3, 4] world-to-camera [R | t].
        intrinsics: [B, S, 3, 3] in pixels, principal point at (W / 2, H / 2) unless they come from
            rays.
        depth: [B, S, H, W, 1] z in the camera frame, positive.
        depth_conf: [B, S, H, W] confidence of the depth, 1 and more.
        world_points: [B, S, H, W, 3].
        world_points_conf: [B, S, H, W], 1 and more.
        tracks: `Tracks` of the query points.
        rays: [B, S, h, w, 6] rays of a coarser grid that covers the image: direction in the world,
            not normalised, and origin.
        rays_conf: [B, S, h, w], 1 and more.
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


@dataclass(frozen=True)
class Backbone:
    """A family of models that can be built from a config and filled with converted weights.

    Attributes:
        name: registry name.
        default_config: the published model.
        heads: names of all heads.
        config_from_json: JSON form (a dict) to config; raises `InputError`.
        config_to_json: its inverse.
        build: (config, *, heads, plan, dtype, param_dtype, rngs) -> model.
        taps: intermediates that its models can be asked for -> what they are.
    """

    name: str
    default_config: Any
    heads: tuple[str, ...]
    config_from_json: Callable[[dict[str, Any]], Any]
    config_to_json: Callable[[Any], dict[str, Any]]
    build: Callable[..., nnx.Module]
    taps: Mapping[str, str] = field(default_factory=dict)


_MODULES = {"da3": "lite3r_jax.backbones.da3", "vggt": "lite3r_jax.backbones.vggt"}


def get_backbone(name: str) -> Backbone:
    """The backbone of that name.

    Raises:
        InputError: there is none.
    """
    if name not in _MODULES:
        known = ", ".join(sorted(_MODULES))
        raise InputError(f"backbone {name!r} is not known; choose one of: {known}")
    return importlib.import_module(_MODULES[name]).BACKBONE


def check_images(images: Any, patch: int) -> None:
    """Refuse what no backbone can read.

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


def check_heads(heads: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The heads in the order of `known`.

    Raises:
        InputError: one of them is unknown.
    """
    if unknown := sorted(set(heads) - set(known)):
        raise InputError(f"heads {unknown} are not known; choose from {', '.join(known)}")
    return tuple(head for head in known if head in heads)


def check_call(taps: Collection[str], known: Collection[str], frame_chunk: int) -> None:
    """Refuse what no backbone can be asked for.

    Raises:
        InputError: a tap that is not `known`, or frame_chunk below 1.
    """
    if unknown := sorted(set(taps) - set(known)):
        raise InputError(f"taps {unknown} are not known; choose from {', '.join(known)}")
    if frame_chunk < 1:
        raise InputError(f"frame_chunk: expected at least 1, got {frame_chunk}")


def count_parameters(model: nnx.Module) -> int:
    """Number of scalars in all parameters; the model may be abstract."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


def from_json(cls: type, data: Any, where: str) -> Any:
    """Read a frozen dataclass of numbers, bools, tuples of integers and further such dataclasses.

    Args:
        cls: the dataclass; all its fields have defaults.
        data: what `json.load` gave.
        where: dotted name of this place, for messages.

    Raises:
        InputError: unknown keys or wrong types, named with `where`.
    """
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected an object, got {type(data).__name__}")
    default = cls()
    known = {f.name: getattr(default, f.name) for f in dataclasses.fields(cls)}
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise InputError(f"{where}: unknown keys {unknown}; expected some of {sorted(known)}")
    values = {}
    for key, value in data.items():
        name, was = f"{where}.{key}", known[key]
        if dataclasses.is_dataclass(was):
            values[key] = from_json(type(was), value, name)
        elif isinstance(was, tuple):
            if not isinstance(value, list) or not all(type(v) is int and v >= 0 for v in value):
                raise InputError(f"{name}: expected a list of integers, got {value!r}")
            values[key] = tuple(value)
        elif isinstance(was, bool):
            if type(value) is not bool:
                raise InputError(f"{name}: expected true or false, got {value!r}")
            values[key] = value
        else:
            number = type(value) is int or (isinstance(was, float) and type(value) is float)
            if not number or not 0 < value < 1 << 20:
                raise InputError(f"{name}: expected a positive {type(was).__name__}, got {value!r}")
            values[key] = type(was)(value)
    return cls(**values)
