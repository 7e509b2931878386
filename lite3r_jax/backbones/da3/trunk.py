"""The encoder of Depth Anything 3: a DINOv2 whose later blocks also attend over views."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lite3r_jax.attention.plan import Plan, Run, build_cores, runs
from lite3r_jax.attention.strategy import TokenLayout
from lite3r_jax.backbones.da3.config import DA3Config
from lite3r_jax.backbones.da3.reference_view import (
    LEAST_VIEWS,
    Strategy,
    move_views,
    reference_first,
    restore_views,
    select_reference,
)
from lite3r_jax.backbones.dinov2 import TokenEmbed
from lite3r_jax.layers.block import Block, BlockConfig, stack
from lite3r_jax.layers.norm import layer_norm
from lite3r_jax.layers.rope import rope_table, view_positions
from lite3r_jax.layers.stacks import (
    BLOCK_TAPS,
    FIRST_TOKENS,
    BlockStack,
    Slots,
    first_tokens,
    run_stacks,
)
from lite3r_jax.mesh import ViewParts, views_of_all


@dataclass(frozen=True)
class Encoded:
    """The tokens that heads read, and what restores the order of the views.

    Attributes:
        kept: [B, S, K, P, 2C] in the compute dtype, frame and global stream side by side, of the
            pairs of blocks that are read; the reference view first. It may rest on the host.
        first: [B, S, K, 2C] the first token of every view in `kept`, on the device.
        reference: [B] the view that was put first; None where the views kept their order.
        taps: intermediates, views in the order of the images.
        parts: the devices that the views are on, or None.
    """

    kept: jax.Array
    first: jax.Array
    reference: jax.Array | None
    taps: dict[str, jax.Array]
    parts: ViewParts | None = None

    def restore(self, x: jax.Array) -> jax.Array:
        """Returns x [B, S, ...], computed from `kept`, with its views in the order of the images.

        With views in parts, x has the views of `kept`, spread over the devices, or the views that
        count, whole on every device.
        """
        if self.reference is None:
            return x
        in_parts = self.parts is not None and x.shape[1] == self.kept.shape[1]
        return move_views(x, self.reference, self.parts if in_parts else None, back=True)


class Trunk(TokenEmbed):
    """Encodes views as tokens (depth_anything_3/model/dinov2/vision_transformer.py).

    Attention layers: roles "frame" and "global", each numbered in the order of execution. Block i
    is global if i is odd and not before `alt_start`. Blocks before `alt_start` know neither RoPE
    nor the other views; their class tokens choose the reference view, which comes first from
    `alt_start` on, and are then replaced by camera tokens. In global blocks all patches have the
    same position.
    """

    def __init__(
        self,
        config: DA3Config,
        *,
        plan: Plan,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        c, n = config.embed_dim, config.num_heads
        kinds = {"dtype": dtype, "param_dtype": param_dtype}
        super().__init__(
            dim=c,
            patch=config.patch_size,
            image=config.img_size,
            registers=0,
            resampling="offset",
            rngs=rngs,
            **kinds,
        )
        self.config = config
        self.dtype = dtype
        small = nnx.initializers.normal(1e-6)
        # One for the reference view, one for all others.
        self.camera_token = nnx.Param(small(rngs.params(), (1, 2, c), param_dtype))
        sizes = {"mlp_ratio": config.mlp_ratio, "ffn": "swiglu" if config.swiglu else "mlp"}
        plain = BlockConfig(c, n, eps=1e-6, layer_scale=1.0, **sizes)
        late = BlockConfig(c, n, qk_norm=True, eps=1e-6, layer_scale=1.0, **sizes)

        def blocks(block: BlockConfig, depth: int) -> Any:
            return stack(lambda r: Block(block, rngs=r, **kinds), depth, rngs)

        early, lead = len(config.early_blocks), len(config.lead_blocks)
        pairs = len(config.frame_blocks)
        self.early_blocks = blocks(plain, early)
        self.lead_blocks = blocks(late, lead) if lead else None
        self.frame_blocks = blocks(late, pairs)
        self.global_blocks = blocks(late, pairs)

        frame = plan.specs("frame", early + pairs)
        scene = plan.specs("global", lead + pairs)
        self.depths = (early + pairs, lead + pairs)  # of frame and global blocks
        site = (n, c // n, param_dtype, rngs)
        self.early_runs = runs(frame[:early])
        self.early_cores = build_cores(self.early_runs, 0, *site)
        self.lead_runs: tuple[Run, ...] = runs(scene[:lead])
        self.lead_cores = build_cores(self.lead_runs, 0, *site)
        self.runs = runs(frame[early:], scene[lead:])
        self.frame_cores = build_cores(self.runs, 0, *site)
        self.global_cores = build_cores(self.runs, 1, *site)

        # Several out layers may lie in one pair, whose frame block is the first half of its slot.
        where = [divmod(layer - config.first_pair, 2) for layer in config.out_layers]
        self.read = tuple(sorted({pair for pair, _ in where}))
        self.levels = tuple((self.read.index(pair), odd == 1) for pair, odd in where)
        self.norm = layer_norm(c, 1e-5, param_dtype=param_dtype, rngs=rngs)

    def level(self, tokens: jax.Array, index: int) -> jax.Array:
        """Returns the tokens of an out layer: [..., K, P, 2C] of `Encoded.kept` -> [..., P, 2C]."""
        slot, is_global = self.levels[index]
        tokens = tokens[..., slot, :, :]
        if is_global:
            return tokens
        first = tokens[..., : tokens.shape[-1] // 2]
        return jnp.concatenate([first, first], axis=-1)

    def features(self, tokens: jax.Array, index: int, norm: Any = None) -> jax.Array:
        """Returns the features of an out layer that the dense heads read.

        Only the second half of the channels is normed.

        Args:
            tokens: [..., K, P, 2C] of `Encoded.kept`.
            index: of the out layer, 0 to 3.
            norm: this trunk's norm, from a caller that takes it as an argument; None: `self.norm`.

        Returns:
            [..., h*w, 2C].
        """
        tokens = self.level(tokens, index)[..., self.special :, :]
        first, second = jnp.split(tokens, 2, axis=-1)
        return jnp.concatenate([first.astype(jnp.float32), (norm or self.norm)(second)], axis=-1)

    def __call__(
        self,
        images: jax.Array,
        camera_tokens: jax.Array | None,
        reference: Strategy,
        taps: Collection[str] = (),
        remat: bool = False,
        parts: ViewParts | None = None,
        on_host: bool = False,
    ) -> Encoded:
        """Encodes views as tokens.

        Args:
            images: [B, S, H, W, 3], normalized.
            camera_tokens: [B, S, C] of known cameras, or None. With known cameras the views keep
                their order.
            reference: strategy of choice; scenes of less than 3 views keep their order.
            taps: names of intermediates to return.
            remat: see `run_stacks`.
            parts: likewise.
            on_host: see `Slots`.

        Returns:
            See `Encoded`. Taps: `trunk/tokens` [B, S, P, C], input of the first block;
            `trunk/reference` [B], position of the reference view in the images; `frame/blocks`,
            `frame/attn`, `global/blocks`, `global/attn` [L, B, S, P, C], outputs of blocks and
            their attention layers.
        """
        b, s, height, width, _ = images.shape
        grid = (height // self.patch, width // self.patch)
        _, x = self.embed(images.reshape(b * s, height, width, 3))
        _, p, c = x.shape
        out = {"trunk/tokens": x.reshape(b, s, p, c)}
        frame = TokenLayout(1, self.special, grid, "frame")
        count = s if parts is None else parts.views
        scene = TokenLayout(count, self.special, grid, "global")
        head_dim = c // self.config.num_heads
        frame_rope = rope_table(view_positions(frame), head_dim)
        scene_rope = rope_table(view_positions(scene, spatial=False), head_dim)
        taken = [name for name in BLOCK_TAPS if name in taps]
        choose = camera_tokens is None and reference != "first" and count >= LEAST_VIEWS

        x, _, early_ys = run_stacks(
            x.reshape(b, s, p, c),
            [BlockStack("frame", self.early_blocks, self.early_cores, frame,
                        depth=self.depths[0])],
            self.early_runs,
            views=count,
            taps=taken,
            also=(lambda x: {"class": x[:, :, 0]}) if choose else None,
            remat=remat,
            parts=parts,
        )  # fmt: skip

        # Upstream chooses and reorders before the last of these blocks. It attends within views, so
        # that the order may as well change after it.
        first_view = None
        out["trunk/reference"] = jnp.zeros(b, jnp.int32)
        if choose:
            classes = views_of_all(early_ys.pop("class")[-2], parts)
            first_view = out["trunk/reference"] = select_reference(classes, reference)
            x = move_views(x, first_view, parts)
        if camera_tokens is None:
            table = self.camera_token[...].astype(jnp.float32)[0]
            camera_tokens = jnp.broadcast_to(table[(np.arange(s) > 0).astype(int)], (b, s, c))
        x = x.at[:, :, 0].set(camera_tokens)

        ys = [early_ys]
        if self.lead_blocks is not None:
            x, _, lead_ys = run_stacks(
                x,
                [BlockStack("global", self.lead_blocks, self.lead_cores, scene, scene_rope,
                            depth=self.depths[1])],
                self.lead_runs,
                views=count,
                taps=taken,
                remat=remat,
                parts=parts,
            )  # fmt: skip
            ys.append(self._original_order(lead_ys, first_view))
        first = [depth - self.runs[-1].stop for depth in self.depths]
        stacks = [
            BlockStack("frame", self.frame_blocks, self.frame_cores, frame, frame_rope,
                       first[0], self.depths[0]),
            BlockStack("global", self.global_blocks, self.global_cores, scene, scene_rope,
                       first[1], self.depths[1]),
        ]  # fmt: skip
        _, kept, pair_ys = run_stacks(
            x,
            stacks,
            self.runs,
            views=count,
            taps=taken,
            slots=Slots(self.read, self.dtype, on_host),
            remat=remat,
            parts=parts,
        )
        assert kept is not None
        tokens = first_tokens(kept, pair_ys)
        pair_ys.pop(FIRST_TOKENS, None)
        ys.append(self._original_order(pair_ys, first_view))
        for name in taken:
            out[name] = jnp.concatenate([y[name] for y in ys if name in y])
        return Encoded(kept, tokens, first_view, {n: y for n, y in out.items() if n in taps}, parts)

    @staticmethod
    def _original_order(
        ys: dict[str, jax.Array], first_view: jax.Array | None
    ) -> dict[str, jax.Array]:
        """Returns taps [L, B, S, ...] with their views in the order of the images."""
        if first_view is None or not ys:
            return ys
        order = reference_first(first_view, next(iter(ys.values())).shape[2])
        every = jax.vmap(restore_views, in_axes=(0, None))
        return {name: every(y, order) for name, y in ys.items()}
