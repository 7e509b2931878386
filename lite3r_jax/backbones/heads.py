"""Cameras by iterative refinement (VGGT), and what dense heads share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from lite3r_jax.attention.core import Layouts, Plan, TokenLayout, build_cores, runs
from lite3r_jax.attention.spread import by_device, by_view, everywhere
from lite3r_jax.layers.block import Block, BlockConfig, scan_stacks, stack
from lite3r_jax.layers.dpt import DPT
from lite3r_jax.layers.mlp import Mlp
from lite3r_jax.layers.norm import layer_norm

POSE_DIM = 9


@dataclass(frozen=True)
class CameraConfig:
    """Sizes of the camera head."""

    trunk_depth: int = 4
    num_heads: int = 16
    num_iterations: int = 4


class CameraHead(nnx.Module):
    """Camera token of every view to a pose encoding (vggt/heads/camera_head.py).

    The trunk attends over the S views of a scene. Sites: role "camera", one per trunk block.
    Always float32: it is small, and upstream keeps it out of autocast.
    """

    def __init__(
        self, config: CameraConfig, dim: int, *, plan: Plan, param_dtype: Any, rngs: nnx.Rngs
    ):
        """Args: config; dim: channels of the camera token (frame and global stream together)."""
        self.config = config
        kinds = {"param_dtype": param_dtype, "rngs": rngs}
        self.empty_pose_tokens = nnx.Param(jnp.zeros((1, 1, POSE_DIM), param_dtype))
        self.token_norm = layer_norm(dim, 1e-5, **kinds)
        self.trunk_norm = layer_norm(dim, 1e-5, **kinds)
        self.adaln_norm = layer_norm(dim, 1e-6, affine=False, **kinds)
        linear = {"dtype": jnp.float32, **kinds}
        self.embed_pose = nnx.Linear(POSE_DIM, dim, **linear)
        self.pose_modulation = nnx.Linear(dim, 3 * dim, **linear)
        self.pose_branch = Mlp(dim, dim // 2, POSE_DIM, **linear)
        block = BlockConfig(dim, config.num_heads)
        self.trunk = stack(
            lambda r: Block(block, param_dtype=param_dtype, rngs=r), config.trunk_depth, rngs
        )
        self.runs = runs(plan.specs("camera", config.trunk_depth))
        self.cores = build_cores(self.runs, 0, block.heads, dim // block.heads, param_dtype, rngs)

    def __call__(self, tokens: jax.Array, iterations: int | None = None) -> jax.Array:
        """Refine the encoding from nothing.

        The unactivated encoding is fed back without gradient, so every iteration is trained
        through its own increment only.

        Args:
            tokens: [B, S, C] camera tokens.
            iterations: K; the config's when None.

        Returns:
            [K, B, S, 9] activated encodings: translation and quaternion linear, fields of view
            rectified.
        """
        return self.attended(tokens, iterations)[0]

    def attended(
        self, tokens: jax.Array, iterations: int | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Refine the encoding, and show what the attention layers gave out.

        Args:
            tokens: as for the call, and so are the iterations.
            iterations: likewise.

        Returns:
            (encodings as of the call, outputs of the attention layers [K, L, B, S, C]).
        """
        b, s, _ = tokens.shape
        t = self.token_norm(tokens.astype(jnp.float32))
        normed = self.adaln_norm(t)
        # A view is one token here, without a patch grid.
        layouts = Layouts.both(TokenLayout(s, 1, (0, 0), "global"))

        def block(x, index, modules, cores):
            del index
            x, attended = modules[0](x, cores[0], layouts)
            return x, attended

        def refine(raw: jax.Array, previous: jax.Array) -> tuple[jax.Array, jax.Array]:
            e = nnx.silu(self.embed_pose(previous))
            shift, scale, gate = jnp.split(self.pose_modulation(e), 3, axis=-1)
            h = gate * (normed * (1 + scale) + shift) + t
            h, outputs = scan_stacks(block, h, [self.trunk], [self.cores], self.runs)
            return raw + self.pose_branch(self.trunk_norm(h)), outputs

        empty = self.empty_pose_tokens[...].astype(jnp.float32)
        first = refine(jnp.zeros((b, s, POSE_DIM)), jnp.broadcast_to(empty, (b, s, POSE_DIM)))

        def step(raw: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            raw = lax.stop_gradient(raw)
            new, outputs = refine(raw, raw)
            return new, (new, outputs)

        count = self.config.num_iterations if iterations is None else iterations
        _, rest = lax.scan(step, first[0], length=count - 1)
        every, outputs = (
            jnp.concatenate([x[None], others]) for x, others in zip(first, rest, strict=True)
        )
        every = jnp.concatenate([every[..., :7], nnx.relu(every[..., 7:])], axis=-1)
        return every, outputs


Activation = Literal[
    "linear", "exp", "relu", "sigmoid", "inv_log", "norm", "norm_exp", "xy_inv_log"
]
ConfActivation = Literal["expp1", "expp0", "sigmoid"]


def inv_log(x: jax.Array) -> jax.Array:
    """sign(x) (exp(|x|) - 1)."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


def _norm(x: jax.Array) -> jax.Array:
    """Euclidean length of the last axis, kept, at least 1e-8."""
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
    """Split off the last channel as confidence and activate both (vggt/heads/head_act.py).

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


def run_frames(
    head: DPT,
    tokens: jax.Array,
    levels: Sequence[int],
    special: int,
    frame_chunk: int,
    grid: tuple[int, int],
    remat: bool = False,
) -> jax.Array:
    """A DPT head over all frames, a chunk at a time.

    Args:
        head: the head.
        tokens: [B, S, K, P, C] tokens of the K kept layers.
        levels: the four of them that the head reads, shallow to deep.
        special: tokens per view before the patches.
        frame_chunk: frames whose maps are in memory together.
        grid: patch grid (h, w).
        remat: see `map_frames`.

    Returns:
        [B, S, H, W, outputs] (or the feature maps).
    """
    graph, state = nnx.split(head)

    def one(state: Any, frame: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)([frame[:, i, special:] for i in levels], grid)[0]

    return map_frames(one, state, tokens, frame_chunk, remat)


def map_frames(
    one: Callable[[Any, jax.Array], Any],
    state: Any,
    tokens: jax.Array,
    frame_chunk: int,
    remat: bool = False,
) -> Any:
    """A function of one frame over all frames, a chunk at a time.

    Args:
        one: (state, [n, K, P, C]) -> arrays [n, ...]; n is `frame_chunk` times the devices that the
            frames are spread over, and once what is left over.
        state: its arrays; every device gets them whole, once.
        tokens: [B, S, K, P, C].
        frame_chunk: frames whose results a device computes together.
        remat: whether a gradient keeps only the tokens and computes the chunks again, instead of
            keeping all that is in them: the maps of a frame are many times as large as its tokens.

    Returns:
        Arrays [B, S, ...].
    """
    if remat:
        one = jax.checkpoint(one)
    state, frames = everywhere(state), by_device(tokens)
    devices, count, *rest = frames.shape
    chunk = min(frame_chunk, count)
    turns = count // chunk

    def together(part: jax.Array) -> Any:
        """[devices, n, ...] -> results [devices, n, ...]."""
        maps = one(state, part.reshape(-1, *rest))
        return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), maps)

    if turns == 1:
        maps = together(frames[:, :chunk])
    else:
        parts = frames[:, : turns * chunk].reshape(devices, turns, chunk, *rest)
        maps = lax.map(together, parts.swapaxes(0, 1))
        maps = jax.tree.map(
            lambda x: x.swapaxes(0, 1).reshape(devices, turns * chunk, *x.shape[3:]), maps
        )
    if turns * chunk < count:
        last = together(frames[:, turns * chunk :])
        maps = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), maps, last)
    return jax.tree.map(lambda x: by_view(x, *tokens.shape[:2]), maps)
