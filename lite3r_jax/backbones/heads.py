"""Common parts of dense heads: activations, and running a head on a few frames at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from lite3r_jax.kernels import target
from lite3r_jax.layers.dpt import DPT
from lite3r_jax.mesh import ViewParts, everywhere, shard_major, to_device, to_host, unshard

Activation = Literal[
    "linear", "exp", "relu", "sigmoid", "inv_log", "norm", "norm_exp", "xy_inv_log"
]
ConfActivation = Literal["expp1", "expp0", "sigmoid"]

_MOST_FRAMES = 8
# That a frame's maps take in a DPT head of 256 features, compiled for an H200.
_BYTES_PER_PIXEL = 850


def inv_log(x: jax.Array) -> jax.Array:
    """Inverts a signed logarithm: returns sign(x) (exp(|x|) - 1)."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


def _norm(x: jax.Array) -> jax.Array:
    """Returns the Euclidean length over the last axis, which is kept; at least 1e-8."""
    return jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-16))


def _norm_exp(x: jax.Array) -> jax.Array:
    d = _norm(x)
    return x / d * jnp.expm1(d)


def _xy_inv_log(x: jax.Array) -> jax.Array:
    z = inv_log(x[..., 2:])
    return jnp.concatenate([x[..., :2] * z, z], axis=-1)


_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "linear": lambda x: x,
    "exp": jnp.exp,
    "relu": nnx.relu,
    "sigmoid": nnx.sigmoid,
    "inv_log": inv_log,
    "norm": lambda x: x / _norm(x),
    "norm_exp": _norm_exp,
    "xy_inv_log": _xy_inv_log,
}
_CONF_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "expp1": lambda x: 1 + jnp.exp(x),
    "expp0": jnp.exp,
    "sigmoid": nnx.sigmoid,
}


def activate(
    logits: jax.Array, activation: Activation, conf_activation: ConfActivation
) -> tuple[jax.Array, jax.Array]:
    """Splits off the last channel as confidence and activates both (vggt/heads/head_act.py).

    Args:
        logits: [..., n + 1].
        activation: of the n channels.
        conf_activation: of the confidence.

    Returns:
        (values [..., n], confidence [...]).
    """
    values, conf = logits[..., :-1], logits[..., -1]
    return _ACTIVATIONS[activation](values), _CONF_ACTIVATIONS[conf_activation](conf)


@dataclass(frozen=True)
class DPTConfig:
    """Sizes of the dense heads, and the trunk layers that they read."""

    features: int = 256
    out_channels: tuple[int, ...] = (256, 512, 1024, 1024)
    intermediate_layer_idx: tuple[int, ...] = (4, 11, 17, 23)


def default_frame_chunk(height: int, width: int, limit: int | None = None) -> int:
    """Returns how many frames the dense heads process at a time where a call does not say.

    On a CPU one. On a GPU or TPU eight, as all commands take, or 4, 2 or 1 where the maps of more
    would take over an eighth of the device's memory: convolutions of one frame leave most of a
    large device idle.

    Args:
        height: of the images, in pixels.
        width: likewise.
        limit: bytes that the process may use of the device; None: what the device says, and room
            for eight frames where it does not say or is only described.
    """
    device = target.device()
    if device.platform == "cpu":
        return 1
    if limit is None and not device.described:
        stats = jax.local_devices()[0].memory_stats()
        limit = None if stats is None else stats["bytes_limit"]
    chunk, frame = _MOST_FRAMES, _BYTES_PER_PIXEL * height * width
    while limit is not None and chunk > 1 and chunk * frame > limit // 8:
        chunk //= 2
    return chunk


def run_frames(
    head: DPT,
    tokens: jax.Array,
    levels: Sequence[int],
    special: int,
    frame_chunk: int,
    grid: tuple[int, int],
    remat: bool = False,
    parts: ViewParts | None = None,
    on_host: bool = False,
    finish: Callable[[jax.Array], Any] | None = None,
) -> Any:
    """Runs a DPT head on all frames, `frame_chunk` frames at a time.

    Args:
        head: the head.
        tokens: [B, S, K, P, C] tokens of the K kept layers.
        levels: the four of them that the head reads, shallow to deep.
        special: tokens per view before the patches.
        frame_chunk: frames whose maps are in memory together.
        grid: patch grid (h, w).
        remat: see `map_frames`.
        parts: likewise.
        on_host: likewise.
        finish: what is made of the head's maps of n frames; with `on_host` that leaves the device
            at once. None: the maps as they are, on the device.

    Returns:
        [B, S, H, W, outputs] (or the feature maps), or arrays [B, S, ...] of what `finish` gives.
    """
    graph, state = nnx.split(head)

    def one(state: Any, frame: jax.Array) -> Any:
        maps, _ = nnx.merge(graph, state)([frame[:, i, special:] for i in levels], grid)
        if finish is None:
            return maps
        finished = finish(maps)
        return jax.tree.map(to_host, finished) if on_host else finished

    return map_frames(one, state, tokens, frame_chunk, remat, parts, on_host)


def map_frames(
    one: Callable[[Any, jax.Array], Any],
    state: Any,
    tokens: jax.Array,
    frame_chunk: int,
    remat: bool = False,
    parts: ViewParts | None = None,
    on_host: bool = False,
) -> Any:
    """Applies a function of frames to the tokens of all frames, `frame_chunk` frames at a time.

    Args:
        one: (state, [n, K, P, C]) -> arrays [n, ...]; n is `frame_chunk` times the devices that the
            frames are spread over, and once what is left over.
        state: its arrays; every device gets them whole, once.
        tokens: [B, S, K, P, C].
        frame_chunk: frames whose results a device computes together.
        remat: whether a gradient keeps only the tokens and computes the chunks again, instead of
            keeping all that is in them: the maps of a frame are many times as large as its tokens.
        parts: the devices that the views of the only scene are on, each of which goes over its own;
            `one` may then take no arrays but its arguments. None: as the mesh in use splits them.
        on_host: whether the tokens rest on the host. The number of frames at a time is then the
            largest one up to `frame_chunk` that divides the number of frames of a device.

    Returns:
        Arrays [B, S, ...].
    """
    if parts is not None:

        def of_device(state: Any, tokens: jax.Array) -> Any:
            return map_frames(one, state, tokens, frame_chunk, on_host=on_host)

        return parts.on_each(of_device, (None, 1), 1)(state, tokens)
    if on_host:
        return _map_resting(one, state, tokens, frame_chunk)
    if remat:
        one = jax.checkpoint(one)
    state, frames = everywhere(state), shard_major(tokens)
    devices, count, *rest = frames.shape
    chunk = min(frame_chunk, count)
    turns = count // chunk

    def together(part: jax.Array) -> Any:
        """Applies the function to n frames of every device: [devices, n, ...] -> the same."""
        maps = one(state, part.reshape(-1, *rest))
        return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), maps)

    if turns == 1:
        maps = together(frames[:, :chunk])
    else:
        in_turn = frames[:, : turns * chunk].reshape(devices, turns, chunk, *rest)
        maps = lax.map(together, in_turn.swapaxes(0, 1))
        maps = jax.tree.map(
            lambda x: x.swapaxes(0, 1).reshape(devices, turns * chunk, *x.shape[3:]), maps
        )
    if turns * chunk < count:
        last = together(frames[:, turns * chunk :])
        maps = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), maps, last)
    return jax.tree.map(lambda x: unshard(x, *tokens.shape[:2]), maps)


def _map_resting(
    one: Callable[[Any, jax.Array], Any], state: Any, tokens: jax.Array, frame_chunk: int
) -> Any:
    """Implements `map_frames` on one device for tokens that are copied from host memory by chunks.

    The tokens are not sliced outside of the loop, which XLA would do on the host.
    """
    b, s, *rest = tokens.shape
    chunk = max(n for n in range(1, min(frame_chunk, b * s) + 1) if b * s % n == 0)
    frames = tokens.reshape(-1, chunk, *rest)
    maps = lax.map(lambda part: one(state, to_device(part)), frames)
    return jax.tree.map(lambda x: x.reshape(b, s, *x.shape[2:]), maps)
