"""Training a VGGT from random weights: where it starts, and what helps it to compare views.

The published models start from a pretrained encoder, whose tokens say where they are; their own
initial values are made for that. Without it, patches have to carry their place in their content,
blocks have to pass something on, and attention over views has to be shown what to look for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lite3r_jax.attention.core import TokenLayout
from lite3r_jax.backbones.vggt import VGGT
from lite3r_jax.errors import InputError
from lite3r_jax.layers.rope import rope_table, view_positions
from lite3r_jax.losses import matching
from lite3r_jax.losses.multitask import Targets

TAPS = ("frame/blocks", "global/blocks")
"""What the helpers read of the model."""


@dataclass(frozen=True)
class HelperOptions:
    """Losses on tokens that vanish with the training; 0 leaves one out.

    Attributes:
        flow: weight of where patches of further views lie in the first.
        points: weight of the places of patches in space.
        contrast: weight of finding the same place by descriptors of patches.
        attention: weight of finding it by the first head of early global blocks.
        width: channels of the descriptors.
    """

    flow: float = 1.0
    points: float = 1.0
    contrast: float = 0.1
    attention: float = 0.1
    width: int = 64


@dataclass(frozen=True)
class ScratchOptions:
    """How a model with random weights is trained.

    Attributes:
        content: root mean square of patches and of their place at the input of the encoder.
        special: standard deviation of camera and register tokens.
        output: factor of the last layer of attention and MLP in every block, whose LayerScale is 1.
        sharpness: factor of queries, and of keys, after their norm.
        helpers: see `HelperOptions`.
    """

    content: float = 0.8
    special: float = 0.5
    output: float = 0.3
    sharpness: float = 2**0.5
    helpers: HelperOptions = field(default_factory=HelperOptions)


class Helped(nnx.Module):
    """A VGGT and the linear maps of its helpers.

    Attributes:
        model: the VGGT, which is what is kept in the end.
    """

    def __init__(self, model: nnx.Module, options: ScratchOptions, seed: int):
        """Give the model its initial values; it is changed.

        Args:
            model: with random weights, float32.
            options: see there.
            seed: of the initial values.

        Raises:
            InputError: the model is no VGGT, or has fewer than two pairs of blocks.
        """
        if not isinstance(model, VGGT):
            raise InputError(f"train.scratch: expected a VGGT, got a {type(model).__name__}")
        if model.config.aggregator.depth < 2:
            raise InputError("train.scratch: expected 2 or more pairs of blocks in the aggregator")
        rngs = nnx.Rngs(seed)
        initialise(model, options, rngs)
        c = model.config.embed_dim
        kinds = {"use_bias": False, "rngs": rngs}
        self.options = options.helpers
        self.model = model
        self.descriptor = nnx.Linear(c, options.helpers.width, **kinds)
        self.flow = nnx.Linear(c, 2, kernel_init=_linear(0.1), **kinds)
        self.points = nnx.Linear(2 * c, 3, kernel_init=_linear(0.1), **kinds)

    def losses(
        self, taps: Mapping[str, jax.Array], targets: Targets
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The weighted sum of the helpers, and each by its name.

        Args:
            taps: of the model, `TAPS` among them.
            targets: as for `losses.matching.matches`.
        """
        options, special = self.options, self.model.aggregator.special
        side = self.model.config.patch_size
        truth = matching.matches(targets, side)
        height, width = targets.depth.shape[2:]
        grid = (height // side, width // side)
        frame, scene = (taps[name].astype(jnp.float32) for name in TAPS)  # [L, B, S, P, C]
        patches = scene[:, :, :, special:]
        last = jnp.concatenate([frame[-1, :, :, special:], patches[-1]], -1)
        found = {
            "flow": matching.flow_loss(self.flow(_unit(patches[1:, :, 1:])), truth),
            "points": matching.point_loss(self.points(_unit(last)), truth),
            "contrast": matching.match_loss(
                self._descriptors(frame[1, :, :, special:]), truth.patch
            ),
            "attention": self.attention_loss(frame, grid, truth.patch),
        }
        total = sum(getattr(options, name) * value for name, value in found.items())
        return jnp.asarray(total), {f"loss_{name}": value for name, value in found.items()}

    def _descriptors(self, patches: jax.Array) -> jax.Array:
        found = self.descriptor(_unit(patches))
        return 0.3 * jnp.einsum("bnc,bsmc->bsnm", found[:, 0], found[:, 1:])

    def attention_loss(
        self, frame: jax.Array, grid: tuple[int, int], patch: jax.Array
    ) -> jax.Array:
        """Mean over the second and third global block of the loss of their first head.

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
        found = []
        for layer in range(1, min(3, len(frame))):
            block = nnx.merge(graph, jax.tree.map(lambda x, i=layer: x[i], state))
            x = block.norm1(frame[layer].reshape(b * s, p, c))
            q, k, _ = block.attn.project(x, rope)
            q, k = (y.reshape(b, s, *y.shape[1:])[:, :, aggregator.special :, 0] for y in (q, k))
            logits = jnp.einsum("bnd,bsmd->bsnm", q[:, 0], k[:, 1:]) * aggregator.head_dim**-0.5
            found.append(matching.match_loss(logits, patch))
        return jnp.stack(found).mean()


def initialise(model: VGGT, options: ScratchOptions, rngs: nnx.Rngs) -> None:
    """Set the initial values that `ScratchOptions` describes, in place.

    Besides: the position embedding is a table of sines over the image, and a camera starts as the
    first one with a field of view of one radian.

    Args:
        model: with random weights.
        options: see there.
        rngs: random streams.
    """
    aggregator, encoder = model.aggregator, model.aggregator.patch_embed
    kernel = encoder.proj.kernel
    inputs = np.prod(kernel.shape[:-1])  # of normalised colours, whose mean square is about 1
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
    """Places of patches as sines and cosines, the slowest over half of the image.

    Args:
        side: patches along height and width.
        channels: C, a multiple of 4.

    Returns:
        [side * side, C] float32 with mean square 1, row by row; one half says y, the other x.
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
    """Root mean square 1 over the last axis."""
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)
