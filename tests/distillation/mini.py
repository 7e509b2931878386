"""The least that is a backbone: one frame and one global stack, compiled in a moment."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from flax import nnx

from lite3r_jax.attention.plan import Plan, build_cores, runs
from lite3r_jax.attention.strategy import TokenLayout
from lite3r_jax.backbones.base import Prediction, Tap
from lite3r_jax.layers.block import Block, BlockConfig, stack
from lite3r_jax.layers.rngs import traced_rngs
from lite3r_jax.layers.stacks import BlockStack, run_stacks

TAPS = {
    f"{role}/{what}": Tap("L B T C", what)
    for role in ("frame", "global")
    for what in ("blocks", "attn")
}


@dataclass(frozen=True)
class MiniConfig:
    dim: int = 16
    heads: int = 2
    depth: int = 2


class Mini(nnx.Module):
    """2x2 images, whose pixels are patches, to a depth and no cameras.

    Frame blocks run before global blocks here.
    """

    taps = TAPS

    def __init__(self, config, *, heads=("depth",), plan=None, dtype=jnp.float32, rngs):
        self.config, self.heads, self.dtype = config, tuple(heads), dtype
        self.plan = Plan() if plan is None else plan
        self.sites = {"frame": config.depth, "global": config.depth}
        self.embed = nnx.Linear(3, config.dim, rngs=rngs)
        block = BlockConfig(config.dim, config.heads, 2.0, qk_norm=True, layer_scale=0.3)

        def make(layer_rngs):
            return Block(block, rngs=layer_rngs)

        site = (config.heads, config.dim // config.heads, jnp.float32, rngs)
        self.frame_blocks = stack(make, config.depth, rngs)
        self.frame_runs = runs(self.plan.specs("frame", config.depth))
        self.frame_cores = build_cores(self.frame_runs, 0, *site)
        self.global_blocks = stack(make, config.depth, rngs)
        self.global_runs = runs(self.plan.specs("global", config.depth))
        self.global_cores = build_cores(self.global_runs, 0, *site)
        self.head = nnx.Linear(config.dim, 1, rngs=rngs)

    def attention(self):
        return {}

    def __call__(self, images, *, taps=(), frame_chunk=1, remat=False):
        del frame_chunk
        b, s = images.shape[:2]
        x = self.embed(images.reshape(b, s * 4, 3))
        outputs = {}

        def run(x, role, layout, remat):
            blocks, cores = getattr(self, f"{role}_blocks"), getattr(self, f"{role}_cores")
            stack, own = BlockStack(role, blocks, cores, layout), getattr(self, f"{role}_runs")
            x, _, ys = run_stacks(x, [stack], own, views=s, taps=taps, remat=remat)
            outputs.update(
                {n: y.reshape(len(y), -1, *stack.sequences(x).shape[1:]) for n, y in ys.items()}
            )
            return x

        x = run(x.reshape(b, s, 4, -1), "frame", TokenLayout(1, 0, (2, 2), "frame"), remat)
        x = run(x, "global", TokenLayout(s, 0, (2, 2), "global"), remat)
        return Prediction(depth=jnp.exp(self.head(x)).reshape(b, s, 2, 2, 1)), outputs


def build(plan=None, seed=0):
    """A mini model with ordinary numbers, by NumPy: thirty little compilations less."""
    graph, state = nnx.split(
        nnx.eval_shape(lambda: Mini(MiniConfig(), plan=plan, rngs=traced_rngs(0)))
    )
    rng = np.random.default_rng(seed)

    def fill(path, variable):
        x = rng.standard_normal(variable.shape, np.float32)
        if path[-1] == "kernel":
            x /= np.sqrt(variable.shape[-2])
        else:
            x = (path[-1] == "scale") + 0.3 * x
        return variable.replace(jnp.asarray(x, jnp.float32))

    flat = [(path, fill(path, variable)) for path, variable in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def images(seed=0, scenes=2, views=3):
    return np.random.default_rng(seed).random((scenes, views, 2, 2, 3), np.float32)
