"""Point tracker of VGGT: follows query points of view 0 through all views of a scene.

An iterative estimator in the manner of CoTracker: every iteration looks up correlations around
the current positions, and a transformer over time and over tracks refines positions and features
(vggt/heads/track_head.py, vggt/heads/track_modules/). The feature maps come from a DPT head, which
is a separate module.
"""

from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from lite3r_jax.errors import InputError
from lite3r_jax.layers.block import stack
from lite3r_jax.layers.mlp import Mlp
from lite3r_jax.layers.norm import layer_norm
from lite3r_jax.layers.sampling import bilinear_sample, correlation_windows, pyramid

EPS = 1e-5
_xavier = nnx.initializers.xavier_uniform()


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


@dataclass(frozen=True)
class TrackConfig:
    """Sizes of the track head; the defaults are those of VGGT-1B.

    Attributes:
        features: channels of the feature maps, a multiple of 4.
        iters: refinement iterations.
        corr_levels: levels of the correlation pyramid.
        corr_radius: r of the correlation window, (2r+1)^2 positions on every level.
        hidden_size: width of the update transformer.
        depth: its layers.
        num_heads: its attention heads.
        num_virtual_tracks: tokens through which the tracks see each other.
        stride: image pixels per pixel of the feature maps.
        max_scale: feature pixels by which displacements are divided.
        dpt_out_channels: channels per level of the feature extractor.

    Raises:
        InputError: a size that cannot be built.
    """

    features: int = 128
    iters: int = 4
    corr_levels: int = 7
    corr_radius: int = 4
    hidden_size: int = 384
    depth: int = 6
    num_heads: int = 8
    num_virtual_tracks: int = 64
    stride: int = 2
    max_scale: int = 518
    dpt_out_channels: tuple[int, ...] = (256, 512, 1024, 1024)

    def __post_init__(self):
        """Raises an error for sizes that cannot be built."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "dpt_out_channels":
                fits = isinstance(value, tuple) and all(_is_positive(each) for each in value)
                expected = "a tuple of positive integers"
            else:
                fits, expected = _is_positive(value), "a positive integer"
            if not fits:
                raise InputError(f"TrackConfig.{field.name}={value!r}: expected {expected}")
        if self.features % 4:
            raise InputError(f"TrackConfig.features={self.features}: expected a multiple of 4")
        if self.hidden_size % self.num_heads:
            raise InputError(
                f"TrackConfig.hidden_size={self.hidden_size}: expected a multiple of "
                f"num_heads={self.num_heads}"
            )

    @property
    def token_size(self) -> int:
        """Channels of one token: flow embedding, flow twice, correlation feature, feature."""
        return 3 * self.features + 4

    @property
    def corr_size(self) -> int:
        """Number of correlations of one point: one window per pyramid level."""
        return self.corr_levels * (2 * self.corr_radius + 1) ** 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RefinedTracks:
    """Positions of the query points in every view, after every iteration.

    Attributes:
        coords: [I, B, S, N, 2] float32 (x, y) in image pixels; the last of the I iterations is the
            estimate, view 0 always holds the query itself.
        visibility: [B, S, N] float32 in [0, 1].
        confidence: [B, S, N] float32 in [0, 1].
    """

    coords: jax.Array
    visibility: jax.Array
    confidence: jax.Array


def flow_embedding(flow: jax.Array, channels: int) -> jax.Array:
    """Computes a sinusoidal embedding of displacements.

    Source: `get_2d_embedding`, vggt/heads/track_modules/utils.py. Always float32: arguments reach
    10^5 rad, and `jnp.sin` reduces float32 arguments exactly.

    Args:
        flow: [..., 2] in feature pixels.
        channels: per axis, even.

    Returns:
        [..., 2 * channels] float32, x then y, each sin (even channels) and cos (odd channels) of
        2k * 1000 / channels rad per feature pixel.
    """
    frequency = np.arange(0, channels, 2, dtype=np.float32) * np.float32(1000.0 / channels)
    angle = flow.astype(jnp.float32)[..., None] * frequency  # [..., 2, channels / 2]
    waves = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    return waves.reshape(*flow.shape[:-1], 2 * channels)


def position_embedding(points: jax.Array, size: tuple[int, int], channels: int) -> jax.Array:
    """Computes a sinusoidal code of positions on a map, interpolated linearly between its pixels.

    With w_k = 10000^(-4k / channels) the code of pixel (x, y) is [sin x w_k, cos x w_k, sin y w_k,
    cos y w_k], a quarter of the channels each (`get_2d_sincos_pos_embed`,
    vggt/heads/track_modules/utils.py). Upstream samples a [h, w, channels] map of it; half of the
    channels depend on x alone and half on y alone, so one row and one column hold the same.

    Args:
        points: [B, N, 2] (x, y) in pixels of the map; beyond the border they get its code.
        size: (h, w) of the map.
        channels: a multiple of 4.

    Returns:
        [B, N, channels] float32, from tables made in float64.
    """
    quarter = channels // 4
    frequency = 10000.0 ** -(np.arange(quarter, dtype=np.float64) / quarter)

    def code(coordinate: jax.Array, length: int) -> jax.Array:
        angle = np.arange(length, dtype=np.float64)[:, None] * frequency
        row = np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)
        at = coordinate.reshape(1, -1)
        at = jnp.stack([at, jnp.zeros_like(at)], axis=-1)
        sampled = bilinear_sample(jnp.asarray(row)[None, None], at, outside="border")
        return sampled.reshape(*coordinate.shape, 2 * quarter)

    return jnp.concatenate([code(points[..., 0], size[1]), code(points[..., 1], size[0])], axis=-1)


class MultiheadAttention(nnx.Module):
    """Softmax attention with the parameters of `torch.nn.MultiheadAttention`.

    `in_proj` holds the columns of q, k and v side by side.
    """

    def __init__(self, dim: int, num_heads: int, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        """Builds attention with N = `num_heads` heads over C = `dim` channels.

        `dtype` is that of products, `param_dtype` that of parameters.
        """
        self.num_heads = num_heads
        linear = {
            "kernel_init": _xavier,
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.in_proj = nnx.Linear(dim, 3 * dim, **linear)
        self.out_proj = nnx.Linear(dim, dim, **linear)

    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        """Lets x [..., T, C] attend to context [..., K, C], or to itself; returns [..., T, C]."""
        if context is None:
            q, k, v = jnp.split(self.in_proj(x), 3, axis=-1)
        else:
            dim = x.shape[-1]
            q = self._project(x, 0, dim)
            k, v = jnp.split(self._project(context, dim, 3 * dim), 2, axis=-1)
        q = q.reshape(*q.shape[:-1], self.num_heads, -1)  # [..., T, N, D]
        k = k.reshape(*k.shape[:-1], self.num_heads, -1)
        v = v.reshape(*v.shape[:-1], self.num_heads, -1)
        q = q * q.shape[-1] ** -0.5
        scores = jnp.einsum("...qnd,...knd->...nqk", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        o = jnp.einsum("...nqk,...knd->...qnd", weights, v)
        return self.out_proj(o.reshape(x.shape))

    def _project(self, x: jax.Array, start: int, stop: int) -> jax.Array:
        """Applies columns [start, stop) of `in_proj`: q and k, v come from different inputs."""
        linear = self.in_proj
        assert linear.bias is not None
        kernel, bias = linear.kernel[...][:, start:stop], linear.bias[...][start:stop]
        x, kernel, bias = linear.promote_dtype((x, kernel, bias), dtype=linear.dtype)
        last_with_first = (((x.ndim - 1,), (0,)), ((), ()))
        return linear.dot_general(x, kernel, last_with_first, precision=linear.precision) + bias


class SelfBlock(nnx.Module):
    """A block of self attention and MLP (`AttnBlock`, vggt/heads/track_modules/modules.py).

    The residual stream, float32, restarts from the normalized input: x = norm1(x), then
    x = x + attn(x), where a textbook block adds to the input as it came.
    """

    def __init__(self, dim: int, num_heads: int, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        """Builds a block with N = `num_heads` heads over C = `dim` channels.

        `dtype` is that of products, `param_dtype` that of parameters.
        """
        matmul = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        norm = {"param_dtype": param_dtype, "rngs": rngs}
        self.norm1 = layer_norm(dim, EPS, **norm)
        self.attn = MultiheadAttention(dim, num_heads, **matmul)
        self.norm2 = layer_norm(dim, EPS, **norm)
        self.mlp = Mlp(dim, 4 * dim, kernel_init=_xavier, **matmul)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Runs the block on x [..., T, C] float32; the result has the same shape and dtype."""
        x = self.norm1(x)
        x = x + self.attn(x)
        return x + self.mlp(self.norm2(x))


class CrossBlock(nnx.Module):
    """A block of cross attention and MLP (`CrossAttnBlock`, vggt/heads/track_modules/modules.py).

    The residual stream is as in `SelfBlock`.
    """

    def __init__(self, dim: int, num_heads: int, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        """Builds a block with N = `num_heads` heads over C = `dim` channels.

        `dtype` is that of products, `param_dtype` that of parameters.
        """
        matmul = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        norm = {"param_dtype": param_dtype, "rngs": rngs}
        self.norm1 = layer_norm(dim, EPS, **norm)
        self.norm_context = layer_norm(dim, EPS, **norm)
        self.cross_attn = MultiheadAttention(dim, num_heads, **matmul)
        self.norm2 = layer_norm(dim, EPS, **norm)
        self.mlp = Mlp(dim, 4 * dim, kernel_init=_xavier, **matmul)

    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """Runs the block on x [..., T, C] and context [..., K, C], both float32.

        The result is [..., T, C] float32.
        """
        x = self.norm1(x)
        x = x + self.cross_attn(x, self.norm_context(context))
        return x + self.mlp(self.norm2(x))


class UpdateFormer(nnx.Module):
    """Transformer over times and tracks (`EfficientUpdateFormer`, track_modules/blocks.py).

    Each layer attends over time within a track, then over tracks at each time: virtual tracks read
    the points, attend to each other, and the points read them back, which is linear in the points.
    """

    def __init__(self, config: TrackConfig, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        """Builds the transformer with random weights.

        `dtype` is that of products, `param_dtype` that of parameters.
        """
        dim = config.hidden_size
        matmul = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        exact = matmul | {"dtype": jnp.float32}
        draw = nnx.initializers.normal(1.0)
        shape = (1, config.num_virtual_tracks, 1, dim)
        self.virtual_tracks = nnx.Param(draw(rngs.params(), shape, param_dtype))
        self.input_norm = layer_norm(config.token_size, EPS, **exact)
        self.input_transform = nnx.Linear(config.token_size, dim, kernel_init=_xavier, **matmul)
        self.output_norm = layer_norm(dim, EPS, **exact)
        # float32 whatever the model computes in: bfloat16 leaves a displacement 8 bits.
        self.flow_head = nnx.Linear(
            dim,
            2 + config.features,
            kernel_init=nnx.initializers.truncated_normal(1e-3),
            **exact,
        )

        def blocks(kind: type[SelfBlock] | type[CrossBlock]) -> Any:
            def make(rngs: nnx.Rngs) -> nnx.Module:
                return kind(dim, config.num_heads, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

            return stack(make, config.depth, rngs)

        self.time_blocks = blocks(SelfBlock)
        self.space_virtual2point_blocks = blocks(CrossBlock)
        self.space_virtual_blocks = blocks(SelfBlock)
        self.space_point2virtual_blocks = blocks(CrossBlock)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Computes the update of position and feature of every track at every time.

        Args:
            x: [B, N, S, 3C+4] tokens of N tracks at S times.

        Returns:
            [B, N, S, 2+C] float32, displacement in feature pixels and raw change of the feature.
        """
        b, n, s, _ = x.shape
        start = self.input_transform(self.input_norm(x)).astype(jnp.float32)
        virtual = self.virtual_tracks[...].astype(jnp.float32)
        virtual = jnp.broadcast_to(virtual, (b, virtual.shape[1], s, virtual.shape[3]))
        tokens = jnp.concatenate([start, virtual], axis=1)  # [B, N + virtual, S, C]
        graph, layers = nnx.split(
            (
                self.time_blocks,
                self.space_virtual2point_blocks,
                self.space_virtual_blocks,
                self.space_point2virtual_blocks,
            )
        )

        def layer(tokens: jax.Array, parameters: Any) -> tuple[jax.Array, None]:
            over_time, virtual2point, over_virtual, point2virtual = nnx.merge(graph, parameters)
            tokens = over_time(tokens).swapaxes(1, 2)  # [B, S, N + virtual, C]
            points, virtual = tokens[:, :, :n], tokens[:, :, n:]
            virtual = over_virtual(virtual2point(virtual, points))
            points = point2virtual(points, virtual)
            return jnp.concatenate([points, virtual], axis=2).swapaxes(1, 2), None

        # For the gradient only the tokens between layers are stored.
        tokens, _ = lax.scan(jax.checkpoint(layer, prevent_cse=False), tokens, layers)
        return self.flow_head(self.output_norm(tokens[:, :n] + start))


class Tracker(nnx.Module):
    """Tracks points of view 0 through all views (`BaseTrackerPredictor`, base_track_predictor.py).

    Parameters are stored in `param_dtype`. Matrix products run in `dtype`; positions, embeddings,
    norms, softmax, residual streams and the layers that produce numbers are float32.
    """

    def __init__(
        self,
        config: TrackConfig,
        *,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the tracker with random weights.

        `dtype` is that of products, `param_dtype` that of parameters.
        """
        self.config = config
        self.dtype = dtype
        c = config.features
        matmul = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        exact = matmul | {"dtype": jnp.float32}
        draw = nnx.initializers.normal(1.0)
        self.query_ref_token = nnx.Param(
            draw(rngs.params(), (1, 2, config.token_size), param_dtype)
        )
        self.corr_mlp = Mlp(config.corr_size, config.hidden_size, c, **matmul)
        self.updateformer = UpdateFormer(config, **matmul)
        self.fmap_norm = layer_norm(c, EPS, **exact)
        # Upstream has a GroupNorm of one group on [tokens, channels], which is a LayerNorm.
        self.ffeat_norm = layer_norm(c, EPS, **exact)
        self.ffeat_updater = nnx.Linear(c, c, **matmul)
        self.vis_predictor = nnx.Linear(c, 1, **exact)
        self.conf_predictor = nnx.Linear(c, 1, **exact)

    def __call__(
        self, query_points: jax.Array, fmaps: jax.Array, iters: int | None = None
    ) -> tuple[RefinedTracks, dict[str, jax.Array]]:
        """Tracks query points of view 0 through all views.

        The points of one call see each other through the virtual tracks: a track depends on which
        other points are asked for, not on their order.

        Gradients reach parameters and fmaps through sampled values only: positions are detached at
        every iteration, and sampling never differentiates positions.

        Args:
            query_points: [B, N, 2] float32 (x, y) in pixels of the image of view 0, pixel centers
                at integers; a point outside the image starts with features of its border.
            fmaps: [B, S, h, w, C] feature maps, one pixel per `stride` image pixels, each side at
                least 2^(corr_levels - 1) pixels.
            iters: I, refinement iterations; the config's when None.

        Returns:
            (tracks, out), where out has query_features [B, N, C]; per iteration correlation
            [I, B, S, N, corr_size], update_input [I, B, N, S, 3C+4] and update [I, B, N, S, 2+C];
            finally features [B, S, N, C] and the logits of visibility and confidence
            [B, S, N] as visibility_logits and confidence_logits. All float32.

        Raises:
            InputError: wrong rank, dtype or size.
        """
        config = self.config
        iters = config.iters if iters is None else iters
        query_points, fmaps = _checked(config, query_points, fmaps, iters)
        b, s, h, w, c = fmaps.shape
        n = query_points.shape[1]

        fmaps = self.fmap_norm(fmaps)
        query = query_points / config.stride  # feature pixels
        query_features = bilinear_sample(fmaps[:, 0], query, outside="border")
        maps = fmaps.astype(self.dtype).reshape(b * s, h, w, c)
        levels = pyramid(maps, config.corr_levels)

        # Slot 0 of the token marks view 0, slot 1 all others. View 0 never moves, so the position
        # code, sampled there, is the same in every iteration.
        slots = self.query_ref_token[0].astype(jnp.float32)
        token = jnp.concatenate([slots[:1], jnp.broadcast_to(slots[1:], (s - 1, slots.shape[1]))])
        position = position_embedding(query, (h, w), config.token_size)
        constant = position[:, :, None] + token  # [B, N, S, 3C+4]

        def refine(carry: tuple[jax.Array, jax.Array], _: None) -> tuple[Any, Any]:
            coords, features = carry  # [B, S, N, 2] feature pixels, [B, S, N, C]
            coords = lax.stop_gradient(coords)
            correlation = correlation_windows(
                features.reshape(b * s, n, c),
                levels,
                coords.reshape(b * s, n, 2),
                config.corr_radius,
            ).reshape(b, s, n, -1)
            flow = (coords - coords[:, :1]).swapaxes(1, 2)  # [B, N, S, 2]
            scaled = flow / config.max_scale
            matches = self.corr_mlp(correlation).astype(jnp.float32).swapaxes(1, 2)
            parts = [flow_embedding(flow, c // 2), scaled, scaled, matches, features.swapaxes(1, 2)]
            update_input = jnp.concatenate(parts, axis=-1) + constant
            update = self.updateformer(update_input)
            step, change = update[..., :2].swapaxes(1, 2), update[..., 2:].swapaxes(1, 2)
            change = self.ffeat_updater(self.ffeat_norm(change))
            features = features + jax.nn.gelu(change, approximate=False)
            coords = (coords + step).at[:, 0].set(query)
            return (coords, features), (coords * config.stride, correlation, update_input, update)

        carry = (
            jnp.broadcast_to(query[:, None], (b, s, n, 2)),
            jnp.broadcast_to(query_features[:, None], (b, s, n, c)),
        )
        (_, features), iterations = lax.scan(refine, carry, length=iters)
        coords, correlation, update_input, update = iterations
        visibility = self.vis_predictor(features)[..., 0]
        confidence = self.conf_predictor(features)[..., 0]
        tracks = RefinedTracks(coords, nnx.sigmoid(visibility), nnx.sigmoid(confidence))
        return tracks, {
            "query_features": query_features,
            "correlation": correlation,
            "update_input": update_input,
            "update": update,
            "features": features,
            "visibility_logits": visibility,
            "confidence_logits": confidence,
        }


def _checked(
    config: TrackConfig, query_points: Any, fmaps: Any, iters: Any
) -> tuple[jax.Array, jax.Array]:
    """Checks the arguments and returns the arrays, points in float32; or raises InputError."""
    query_points, fmaps = jnp.asarray(query_points), jnp.asarray(fmaps)
    if query_points.ndim != 3 or query_points.shape[-1] != 2 or query_points.shape[1] == 0:
        raise InputError(
            f"query_points of shape {query_points.shape}: expected [B, N, 2], scenes x points x "
            "(x, y) in pixels, with at least one point"
        )
    if query_points.dtype not in (jnp.float32, jnp.float64):
        raise InputError(
            f"query_points of dtype {query_points.dtype}: expected float32 pixels; convert them "
            "with astype('float32')"
        )
    if fmaps.ndim != 5 or fmaps.shape[-1] != config.features or fmaps.shape[1] == 0:
        raise InputError(
            f"fmaps of shape {fmaps.shape}: expected [B, S, h, w, {config.features}], channels last"
        )
    if not jnp.issubdtype(fmaps.dtype, jnp.floating):
        raise InputError(f"fmaps of dtype {fmaps.dtype}: expected a floating point type")
    if query_points.shape[0] != fmaps.shape[0]:
        raise InputError(
            f"query_points of {query_points.shape[0]} scenes, fmaps of {fmaps.shape[0]}: expected "
            "one set of points per scene"
        )
    if not _is_positive(iters):
        raise InputError(f"iters={iters!r}: expected a positive integer")
    return query_points.astype(jnp.float32), fmaps
