"""Initial values and auxiliary losses for training a VGGT from random weights.

The published models start from a pretrained encoder, whose tokens encode their position in the
image; their own initial values are made for that. Without it, the tokens of patches have to carry
their position, blocks have to add something to the residual stream, and attention over views has to
be shown what to look for.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lite3r_jax.attention.strategy import TokenLayout
from lite3r_jax.backbones.heads import activate, run_frames
from lite3r_jax.backbones.vggt import VGGT
from lite3r_jax.errors import InputError
from lite3r_jax.layers.rope import rope_table, view_positions
from lite3r_jax.losses.multitask import Targets
from lite3r_jax.small_teacher import matching
from lite3r_jax.small_teacher.options import SmallTeacherOptions

TAPS = ("frame/blocks", "global/blocks")
"""Taps of the model that the auxiliary losses read."""


class WithAuxiliaryLosses(nnx.Module):
    """A VGGT with the linear layers of its auxiliary losses.

    Attributes:
        model: the VGGT, which is what is kept in the end.
    """

    def __init__(self, model: nnx.Module, options: SmallTeacherOptions, seed: int):
        """Sets the initial values of the model, in place, and makes the auxiliary layers.

        Args:
            model: with random weights, float32.
            options: see `SmallTeacherOptions`.
            seed: of the initial values.

        Raises:
            InputError: the model is no VGGT, or has fewer than two pairs of blocks.
        """
        if not isinstance(model, VGGT):
            raise InputError(
                f"train.task=small_teacher: expected a VGGT, got a {type(model).__name__}"
            )
        if model.config.aggregator.depth < 2:
            raise InputError(
                "train.task=small_teacher: expected 2 or more pairs of blocks in the aggregator"
            )
        rngs = nnx.Rngs(seed)
        initialize(model, options, rngs)
        c = model.config.embed_dim
        kinds = {"use_bias": False, "rngs": rngs}
        self.options = options.auxiliary
        self.dense_fraction = options.dense_fraction
        self.model = model
        model.aggregator.unroll = model.aggregator.patch_embed.unroll = options.unroll
        self.descriptor = nnx.Linear(c, options.auxiliary.width, **kinds)
        self.flow = nnx.Linear(c, 2, kernel_init=_linear(0.1), **kinds)
        self.points = nnx.Linear(2 * c, 3, kernel_init=_linear(0.1), **kinds)

    def losses(
        self, taps: Mapping[str, jax.Array], targets: Targets, step: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the weighted sum of the auxiliary losses, and each loss by name.

        Args:
            taps: of the model, with those in `TAPS`.
            targets: as for `small_teacher.matching.matches`.
            step: int32 number of the step, by which the losses fade, see
                `AuxiliaryOptions.fade_from`; None: the end of the run, when they have faded.
        """
        options, special = self.options, self.model.aggregator.special
        side = self.model.config.patch_size
        truth = matching.matches(targets, side)
        height, width = targets.depth.shape[2:]
        grid = (height // side, width // side)
        frame, scene = (taps[name].astype(jnp.float32) for name in TAPS)  # [L, B, S, P, C]
        patches = scene[:, :, :, special:]
        last = jnp.concatenate([frame[-1, :, :, special:], patches[-1]], -1)
        losses = {
            "flow": matching.flow_loss(self.flow(_unit(patches[1:, :, 1:])), truth),
            "points": matching.point_loss(self.points(_unit(last)), truth),
            "contrast": matching.match_loss(
                self._descriptors(frame[1, :, :, special:]), truth.patch
            ),
            "attention": self.attention_loss(frame, grid, truth.patch),
        }
        total = sum(getattr(options, name) * value for name, value in losses.items())
        if options.fade_steps:
            faded = 1 if step is None else (step - options.fade_from) / options.fade_steps
            total *= jnp.clip(1 - faded, 0, 1)
        return jnp.asarray(total), {f"loss_{name}": value for name, value in losses.items()}

    def predict(
        self, images: jax.Array, frame_chunk: int, key: jax.Array
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array], jax.Array]:
        """Predicts the cameras of all views, and the depth of a random part of the views.

        The part is `SmallTeacherOptions.dense_fraction`.

        Args:
            images: [B, S, H, W, 3] in [0, 1].
            frame_chunk: frames that the dense head handles at a time.
            key: random key.

        Returns:
            (depth [B, n, H, W, 1] and depth_conf [B, n, H, W]; taps, those in `TAPS` and
            camera/pose_enc; indices of the n views, int32).
        """
        model, config = self.model, self.model.config
        count = images.shape[1]
        grid = (images.shape[2] // config.patch_size, images.shape[3] // config.patch_size)
        kept, taps = model.aggregator(images, TAPS)
        taps["camera/pose_enc"] = model.camera_head.attended(kept[:, :, -1, 0])[0]
        wanted = max(1, round(self.dense_fraction * count))
        views = jnp.sort(jax.random.permutation(key, count)[:wanted])
        read = [model.aggregator.read.index(layer) for layer in config.dpt.intermediate_layer_idx]
        logits = run_frames(
            model.depth_head, kept[:, views], read, model.aggregator.special, frame_chunk, grid
        )
        depth, conf = activate(logits, "exp", "expp1")
        return {"depth": depth, "depth_conf": conf}, taps, views

    def _descriptors(self, patches: jax.Array) -> jax.Array:
        descriptors = self.descriptor(_unit(patches))
        return 0.3 * jnp.einsum("bnc,bsmc->bsnm", descriptors[:, 0], descriptors[:, 1:])

    def attention_loss(
        self, frame: jax.Array, grid: tuple[int, int], patch: jax.Array
    ) -> jax.Array:
        """Computes the mean matching loss of the first head of the second and third global block.

        Queries and keys are made again from the input of the block, which is the output of the
        frame block before it.

        Args:
            frame: [L, B, S, P, C], the tap `frame/blocks`, of the first L pairs.
            grid: patches (h, w).
            patch: of `matching.Matches`.
        """
        aggregator = self.model.aggregator
        b, s, p, c = frame.shape[1:]
        layout = TokenLayout(1, aggregator.special, grid, "frame")
        rope = rope_table(view_positions(layout), aggregator.head_dim)
        graph, state = nnx.split(aggregator.global_blocks)
        losses = []
        for layer in range(1, min(3, len(frame))):
            block = nnx.merge(graph, jax.tree.map(lambda x, i=layer: x[i], state))
            x = block.norm1(frame[layer].reshape(b * s, p, c))
            q, k, _ = block.attn.project(x, rope)
            q, k = (y.reshape(b, s, *y.shape[1:])[:, :, aggregator.special :, 0] for y in (q, k))
            logits = jnp.einsum("bnd,bsmd->bsnm", q[:, 0], k[:, 1:]) * aggregator.head_dim**-0.5
            losses.append(matching.match_loss(logits, patch))
        return jnp.stack(losses).mean()


def initialize(model: VGGT, options: SmallTeacherOptions, rngs: nnx.Rngs) -> None:
    """Set the initial values that `SmallTeacherOptions` describes, in place.

    Besides, the position embedding is a table of sines over the image, and every predicted camera
    starts at the pose of the first camera, with a field of view of one radian.

    Args:
        model: with random weights.
        options: see `SmallTeacherOptions`.
        rngs: random streams.
    """
    aggregator, encoder = model.aggregator, model.aggregator.patch_embed
    kernel = encoder.proj.kernel
    inputs = np.prod(kernel.shape[:-1])  # of normalized colors, whose mean square is about 1
    kernel[...] = options.content * inputs**-0.5 * jax.random.normal(rngs.params(), kernel.shape)
    table = encoder.pos_embed
    side = round((table.shape[1] - 1) ** 0.5)
    places = options.content * sine_table(side, table.shape[-1])
    table[...] = jnp.asarray(np.concatenate([np.zeros_like(places[:1]), places]))[None]
    tokens = [aggregator.camera_token, aggregator.register_token, encoder.cls_token]
    for token in [*tokens, encoder.register_tokens]:
        if token is not None:
            token[...] = options.special * jax.random.normal(rngs.params(), token.shape)

    stacks = [encoder.blocks, aggregator.frame_blocks, aggregator.global_blocks]
    if "camera" in model.heads:
        stacks.append(model.camera_head.trunk)
        branch, count = model.camera_head.pose_branch.fc2, model.config.camera_head.num_iterations
        assert branch.bias is not None
        branch.kernel[...] = 0.1 * branch.kernel[...]
        # every iteration adds to the encoding: translation, quaternion with w last, fields of view
        branch.bias[...] = jnp.array([0, 0, 0, 0, 0, 0, 1, 1, 1], jnp.float32) / count
    for blocks in stacks:
        for scale in (blocks.ls1, blocks.ls2):
            scale.gamma[...] = jnp.ones_like(scale.gamma[...])
        for linear, factor in (
            (blocks.attn.qkv, 1.0),
            (blocks.mlp.fc1, 1.0),
            (blocks.attn.proj, options.output),
            (blocks.mlp.fc2, options.output),
        ):
            shape = linear.kernel.shape
            draw = jax.random.normal(rngs.params(), shape)
            linear.kernel[...] = factor * shape[-2] ** -0.5 * draw
        for norm in (blocks.attn.q_norm, blocks.attn.k_norm):
            if norm is not None:
                norm.scale[...] = options.sharpness * jnp.ones_like(norm.scale[...])


def sine_table(side: int, channels: int) -> np.ndarray:
    """Returns the positions of patches as sines and cosines of several frequencies.

    The lowest frequency turns by pi / 2 over the image.

    Args:
        side: patches along height and width.
        channels: C, a multiple of 4.

    Returns:
        [side * side, C] float32 with mean square 1, row by row; the first half of C
        encodes y, the other x.
    """
    frequency = np.pi * 2.0 ** np.linspace(-1, np.log2(max(side / 2, 1)), channels // 4)
    place = (np.arange(side) + 0.5) / side
    angles = place[:, None] * frequency
    axis = 2**0.5 * np.concatenate([np.sin(angles), np.cos(angles)], -1)
    y, x = np.broadcast_arrays(axis[:, None], axis[None])
    return np.concatenate([y, x], -1).reshape(side * side, -1).astype(np.float32)


def _linear(factor: float) -> nnx.Initializer:
    return nnx.initializers.variance_scaling(factor**2, "fan_in", "normal")


def _unit(x: jax.Array) -> jax.Array:
    """Scales x to a root mean square of 1 over the last axis."""
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)
