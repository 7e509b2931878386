"""Pre-norm transformer block with LayerScale, and stacks of such blocks run by one scan."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from lite3r_jax.attention.core import AttentionCore, Layouts, Run
from lite3r_jax.layers.attention import Attention
from lite3r_jax.layers.fp8 import normed
from lite3r_jax.layers.mlp import Mlp, SwiGlu
from lite3r_jax.layers.norm import layer_norm
from lite3r_jax.layers.rope import RopeTable

_trunc_normal = nnx.initializers.truncated_normal(0.02)


@dataclass(frozen=True)
class BlockConfig:
    """Sizes and constants of one block.

    Attributes:
        dim: C.
        heads: N.
        mlp_ratio: hidden size of the MLP over C.
        ffn: the feed-forward layer, `Mlp` or `SwiGlu`.
        qk_norm: LayerNorm on queries and keys before RoPE.
        eps: of the two LayerNorms.
        qk_eps: of the qk-norm.
        layer_scale: initial LayerScale.
    """

    dim: int
    heads: int
    mlp_ratio: float = 4.0
    ffn: Literal["mlp", "swiglu"] = "mlp"
    qk_norm: bool = False
    eps: float = 1e-5
    qk_eps: float = 1e-5
    layer_scale: float = 0.01


class LayerScale(nnx.Module):
    """Product with a learned vector."""

    def __init__(self, dim: int, init: float, param_dtype: Any):
        self.gamma = nnx.Param(jnp.full((dim,), init, param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., C] -> x * gamma in float32, the dtype of the residual stream."""
        return x.astype(jnp.float32) * self.gamma[...].astype(jnp.float32)


class Block(nnx.Module):
    """x + ls1(attn(norm1(x))), then x + ls2(mlp(norm2(x))) (vggt/layers/block.py).

    The residual stream stays float32; matrix products run in `dtype`.
    """

    def __init__(
        self,
        config: BlockConfig,
        *,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        c = config
        kinds = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm1 = layer_norm(c.dim, c.eps, **kinds)
        self.attn = Attention(
            c.dim, c.heads, qk_norm=c.qk_norm, eps=c.qk_eps, kernel_init=_trunc_normal, **kinds
        )
        self.ls1 = LayerScale(c.dim, c.layer_scale, param_dtype)
        self.norm2 = layer_norm(c.dim, c.eps, **kinds)
        ffn = {"mlp": Mlp, "swiglu": SwiGlu}[c.ffn]
        self.mlp = ffn(c.dim, int(c.dim * c.mlp_ratio), kernel_init=_trunc_normal, **kinds)
        self.ls2 = LayerScale(c.dim, c.layer_scale, param_dtype)

    def __call__(
        self,
        x: jax.Array,
        core: AttentionCore,
        layouts: Layouts,
        rope: RopeTable | None = None,
        shared: Any = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Run the block.

        Args:
            x: [B, T, C] float32.
            core: attention strategy of this site.
            layouts: token layouts of queries and keys.
            rope: table of `rope_table` or None.
            shared: per-forward context of the backbone.

        Returns:
            (x [B, T, C] float32, output of the attention layer [B, T, C] in the compute dtype).
        """
        codes = normed(self.norm1, x, self.attn.qkv)
        attended = self.attn(self.norm1(x), core, layouts, rope, shared, codes)
        return self.finish(x, attended), attended

    def project(
        self, x: jax.Array, rope: RopeTable | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What comes before attention: x [B, T, C] to q, k, v of `Attention.project`."""
        codes = normed(self.norm1, x, self.attn.qkv)
        return self.attn.project(self.norm1(x) if codes is None else codes, rope)

    def finish(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        """What comes after it: x and the output of the attention layer, [B, T, C] both, to x."""
        x = x + self.ls1(attended)
        codes = normed(self.norm2, x, self.mlp.reads)
        return x + self.ls2(self.mlp(self.norm2(x) if codes is None else codes))


def stack(make: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> Any:
    """`depth` modules as one, every parameter with a leading axis of that length."""
    return nnx.vmap(make)(rngs.split(depth))


def scan_stacks(
    body: Callable[..., tuple[Any, Any]],
    carry: Any,
    stacks: Sequence[nnx.Module],
    cores: Sequence[Sequence[AttentionCore]],
    plan_runs: Sequence[Run],
    remat: bool = False,
) -> tuple[Any, Any]:
    """Scan over layers, compiling each run of equal strategies once.

    Args:
        body: (carry, layer index, modules, cores) -> (carry, ys), with one module and one core of
            the current layer for each stack.
        carry: initial carry.
        stacks: stacked modules that advance together, all of the same depth.
        cores: for each stack, its stacked core of every run.
        plan_runs: the runs, covering the whole depth.
        remat: whether a gradient keeps only the carry of every layer and computes the layer again,
            instead of keeping all that is in it.

    Returns:
        (carry, ys stacked over all layers).
    """
    depth = plan_runs[-1].stop
    graphs, params = _split_all(stacks)
    collected = []
    for r, run in enumerate(plan_runs):
        core_graphs, core_params = _split_all([c[r] for c in cores])

        def step(carry: Any, xs: Any, core_graphs: Sequence[Any] = core_graphs) -> Any:
            index, here, here_cores = xs
            modules = [nnx.merge(g, p) for g, p in zip(graphs, here, strict=True)]
            their_cores = [nnx.merge(g, p) for g, p in zip(core_graphs, here_cores, strict=True)]
            return body(carry, index, modules, their_cores)

        if remat:  # CSE stays prevented: XLA opens the loop of a run of one layer
            step = jax.checkpoint(step)
        layers = slice(run.start, run.stop)
        # A slice copies the weights, so a run over all layers goes without.
        here = params if len(plan_runs) == 1 else jax.tree.map(lambda x, i=layers: x[i], params)
        carry, ys = lax.scan(step, carry, (jnp.arange(depth)[layers], here, core_params))
        collected.append(ys)
    return carry, collected[0] if len(collected) == 1 else jax.tree.map(_join, *collected)


def _join(*parts: jax.Array) -> jax.Array:
    return jnp.concatenate(parts)


def _split_all(modules: Sequence[nnx.Module]) -> tuple[list[Any], list[Any]]:
    """Graph definitions and states of several modules."""
    graphs, states = [], []
    for module in modules:
        graph, state = nnx.split(module)
        graphs.append(graph)
        states.append(state)
    return graphs, states
