"""A model, a loss and data that train in milliseconds, and a program that does so.

python -m tests.training.toy FOLDER STEPS [--name=value ...]
"""

import argparse
import functools
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lite3r_jax.training.checkpoint import CheckpointOptions
from lite3r_jax.training.loop import LoopOptions, train
from lite3r_jax.training.optimizer import OptimizerOptions
from lite3r_jax.training.sharding import MeshOptions
from lite3r_jax.training.step import StepOptions
from lite3r_jax.training.trainer import make_trainer


class Toy(nnx.Module):
    """Three stacked residual layers that mix views, and a projection. 2,068 parameters."""

    def __init__(self, dim=24, seed=0):
        rngs = nnx.Rngs(seed)
        self.blocks = nnx.vmap(lambda r: nnx.Linear(dim, dim, rngs=r))(rngs.split(3))
        self.proj_lin = nnx.Linear(dim, 8, rngs=rngs)
        self.scale = nnx.Param(jnp.ones(dim))

    def __call__(self, x):
        graph, params = nnx.split(self.blocks)

        def layer(x, params):
            y = nnx.merge(graph, params)(x + x.mean(1, keepdims=True))
            return x + jnp.tanh(y), None

        x, _ = jax.lax.scan(layer, x, params)
        return self.proj_lin(x * self.scale[...])


def loss_fn(model, batch, key):
    """Squared error with a little noise, so that random keys matter."""
    got = model(batch["x"] + 1e-3 * jax.random.normal(key, batch["x"].shape))
    error = got - batch["y"]
    return (error**2).mean(), {"abs": jnp.abs(error).mean(), "nonfinite_x": batch["nan"].sum()}


@dataclass(frozen=True)
class ToyBatch:
    step: int
    scenes: range
    bad: bool = False

    @property
    def samples(self):
        return [f"toy {self.step}/{i}" for i in self.scenes]

    def arrays(self):
        rows = [np.random.default_rng([self.step, i]) for i in self.scenes]
        x = np.stack([row.standard_normal((4, 24), np.float32) for row in rows])
        if self.bad:
            x[0, 0, 0] = np.nan
        y = np.tanh(x[..., ::3]) + 0.1 * x.sum(-1, keepdims=True)
        return {"x": x, "y": y, "nan": np.zeros(len(rows), np.float32)}


class ToyBatches:
    """Batches of 8 scenes of 4 views; those of the steps in `bad` have a NaN."""

    def __init__(self, bad=(), scenes=range(8)):
        self.step, self.bad, self.scenes = 0, frozenset(bad), scenes

    def __next__(self):
        self.step += 1
        return ToyBatch(self.step, self.scenes, self.step in self.bad)

    def get_state(self):
        return json.dumps({"step": self.step}).encode()

    def set_state(self, state):
        self.step = json.loads(state)["step"]


@functools.cache
def _toy():
    return Toy()


def toy_trainer(steps=20, model=None, **more):
    defaults = {
        "loss_fn": loss_fn,
        "mesh": MeshOptions(),
        "optimizer": OptimizerOptions(learning_rate=1e-2, warmup=3),
        "options": StepOptions(),
    }
    return make_trainer(_toy() if model is None else model, steps=steps, **defaults | more)


def toy_evaluate(model):
    batch = ToyBatch(10**6, range(4)).arrays()
    error = _run(*nnx.split(model), batch["x"]) - batch["y"]
    return {"error": float(abs(error).mean())}


@functools.partial(jax.jit, static_argnums=0)
def _run(graph, state, x):
    return nnx.merge(graph, state)(x)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--until", type=int)
    parser.add_argument("--every", type=int, default=7)
    parser.add_argument("--data", type=int, default=0)
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--view", type=int, default=1)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--plain", type=int, default=0, help="no evaluation")
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    scenes = range(8)
    if given.port:
        jax.distributed.initialize(f"localhost:{given.port}", 2, given.process)
        scenes = range(4 * given.process, 4 * given.process + 4)
    trainer = toy_trainer(
        given.steps,
        mesh=MeshOptions(given.data, given.fsdp, given.view),
        options=StepOptions(accumulate=given.accumulate),
    )
    evaluates = not (given.plain or given.port)
    outcome = train(
        trainer,
        ToyBatches(scenes=scenes),
        given.folder,
        options=LoopOptions(given.steps, log_every=3, evaluate_every=5 if evaluates else 0),
        checkpoint=CheckpointOptions(given.every),
        evaluate=toy_evaluate if evaluates else None,
        until=given.until,
    )
    print(outcome.reason, int(outcome.state.step), flush=True)
    if given.port:
        jax.distributed.shutdown()
    return 75 if outcome.reason == "terminated" else 0


if __name__ == "__main__":
    sys.exit(main())
