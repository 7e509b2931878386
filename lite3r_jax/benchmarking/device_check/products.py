"""Times the four Linears of a block of VGGT-1B, with float8 weights beside bfloat16."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lite3r_jax.benchmarking.device_check.rows import Figures, Job, Row, done, milliseconds
from lite3r_jax.benchmarking.device_check.sizes import Sizes
from lite3r_jax.kernels.fp8.check import Case
from lite3r_jax.kernels.fp8.fused import OPERATOR
from lite3r_jax.layers.fp8 import gelu_between, normed
from lite3r_jax.layers.norm import layer_norm
from lite3r_jax.precision import Fp8Rule, deploy

SPECIAL = 5
LINEARS = (
    Case("qkv", "norm", 1024, 3072),
    Case("proj", "nothing", 1024, 1024),
    Case("fc1", "norm", 1024, 4096),
    Case("fc2", "gelu", 4096, 1024),
)


class Net(nnx.Module):
    """A Linear with what comes before it: a LayerNorm, GELU or nothing."""

    def __init__(self, case: Case, rngs: nnx.Rngs):
        kinds = {"dtype": jnp.dtype(case.dtype), "param_dtype": jnp.dtype(case.dtype), "rngs": rngs}
        self.norm = layer_norm(case.inputs, 1e-5, **kinds) if case.before == "norm" else None
        self.linear: Any = nnx.Linear(case.inputs, case.outputs, **kinds)
        self.gelu = case.before == "gelu"

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps inputs [..., K] to outputs [..., N]."""
        if self.norm is not None:
            codes = normed(self.norm, x, self.linear)
            return self.linear(self.norm(x) if codes is None else codes)
        return self.linear(gelu_between(lambda x: x, x, self.linear) if self.gelu else x)


def rows(sizes: Sizes, end: float) -> Iterator[Row]:
    """Times every Linear with what comes before it, in bfloat16 and in each way of float8."""
    yield from done(jobs(sizes), end)


def jobs(sizes: Sizes) -> Iterator[Job]:
    """Yields the jobs that `rows` runs, for every number of views, Linear and kind of weights."""
    for views in sizes.views:
        count = views * (sizes.grid[0] * sizes.grid[1] + SPECIAL)
        for case in LINEARS:
            for name in ("bfloat16", *filter(sizes.measures, OPERATOR.names)):
                row = Row("linears", views, case.name, name)
                yield Job(row, partial(_timed, case, name, count))


def _timed(case: Case, name: str, count: int) -> Figures:
    graph, state = nnx.split(nnx.eval_shape(partial(_network, case, name)))
    dtype = jnp.float32 if case.before == "norm" else jnp.dtype(case.dtype)
    x = jax.random.normal(jax.random.key(0), (1, count, case.inputs), dtype)
    ms = milliseconds(lambda x, state: nnx.merge(graph, state)(x), [x, filled(state)])
    return Figures(ms, 2 * count * case.inputs * case.outputs)


def _network(case: Case, name: str) -> Any:
    """Builds a Linear with what comes before it, in bfloat16 or deployed with float8 weights."""
    model = Net(case, nnx.Rngs(0))
    if name == "bfloat16":
        return model
    rules = [Fp8Rule("linear")]
    return deploy(model, rules, "fp8_dynamic", rest=jnp.dtype(case.dtype), implementation=name)


def filled(state: Any) -> Any:
    """Replaces abstract arrays by random numbers, which are finite in float8, too."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda a: jnp.asarray(rng.standard_normal(a.shape, np.float32) * 0.02, a.dtype), state
    )
