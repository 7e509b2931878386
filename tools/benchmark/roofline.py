"""Estimates the time of a pass of VGGT-1B on an H200 from what it computes; nothing is run.

Rates are what kernels of each kind are assumed to reach on that device, below its peaks (989
TFLOP/s in bfloat16, 1,979 in float8, 4.8 TB/s). A pass takes the sum of its parts, since they
follow one another, and every launch takes its time as well. So the figures say by what factor two
models differ, as far as the rates hold. None of them is a measurement, and kernels of this package
have not run on a GPU.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar
from unittest import mock

import jax
import jax.numpy as jnp
from flax import nnx

from lite3r_jax import InputError
from lite3r_jax.attention import window_selection
from lite3r_jax.attention.dense import Dense, DenseCore
from lite3r_jax.attention.plan import strategies_of
from lite3r_jax.attention.presets import parse_plan
from lite3r_jax.attention.speed3r import Speed3R
from lite3r_jax.attention.strategy import AttentionInputs, TokenLayout
from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.benchmarking.flops import Work
from lite3r_jax.evaluation.variants import Variant

TERA = 10**12
# Operations a second.
PRODUCTS = {"bfloat16": 620 * TERA, "fp8_weight_only": 620 * TERA, "fp8_dynamic": 1000 * TERA}
WITHIN_VIEWS = 350 * TERA  # flash attention of short sequences
OVER_VIEWS = 450 * TERA  # likewise of long ones
SPARSE = 300 * TERA  # the kernel of kept blocks of keys
CONVOLUTIONS = 200 * TERA  # TF32, several frames at a time
CHOICE_OF_BLOCKS = 1.75 * TERA  # passes over scores of pairs of blocks
LINEAR_PART = 45 * TERA  # with the order of tokens into blocks and back
# Seconds.
BY_ELEMENT = 1.18e-6  # float32 residual stream, norms, RoPE: all layers, of a token
LAUNCH = 4e-6
MEMORY = 4 * TERA  # bytes a second
MERGED_BYTES = 24  # of each query and channel: unit length, float32 sums, back to all tokens

SIDE, TOKENS, LAYERS = 518, 1374, 24  # of an image, of a view, over all views
KNOWN = ("dense", "sla", "key_views", "merge_queries", "spark3r")
# Of windows of 4 x 4, whose 16 queries share what is loaded: 16 operations a byte of a cache.
GATHERED = 85 * TERA
CACHE = 5.5 * TERA  # bytes a second
WINDOW_PASSES = 10  # over q, k, v and the output: orders of windows, two softmaxes, gates


def check_row(row: Variant) -> None:
    """Raises an error if there are no rates for the attention or precision of a row.

    Raises:
        InputError: with what there are rates for.
    """
    names = {spec.name for spec in strategies_of(parse_plan(row.attention))}
    alone = names <= {"dense", "speed3r"}
    if row.precision not in PRODUCTS or not (names <= {*KNOWN} or alone):
        raise InputError(
            f"{row.name}: no rates are known for it; attention of {', '.join(KNOWN)}, or speed3r"
            f" with nothing around it, and precision of {', '.join(PRODUCTS)} have some"
        )


def estimate(work: Work, row: Variant, views: int, number: int) -> float:
    """Estimates the seconds of a pass of VGGT-1B with camera and depth heads, 518 x 518.

    Args:
        work: its operations.
        row: attention and precision.
        views: S.
        number: of launches.

    Raises:
        InputError: see `check_row`.
    """
    check_row(row)
    specs = strategies_of(parse_plan(row.attention))
    sparse = "sla" in {spec.name for spec in specs}
    channels = get_backbone("vggt").default_config.embed_dim
    tokens = views * TOKENS
    trunk = [work.parts[part] for part in ("encoder", "frame", "global")]
    seconds = sum(kinds["layers"] for kinds in trunk) / PRODUCTS[row.precision]
    seconds += sum(kinds["softmax"] for kinds in trunk[:2]) / WITHIN_VIEWS
    seconds += work.parts["depth"]["layers"] / CONVOLUTIONS
    seconds += BY_ELEMENT * tokens + LAUNCH * number
    if gated := [spec for spec in specs if isinstance(spec, Speed3R)]:
        return seconds + LAYERS * _speed3r(gated[0], views, channels)
    attention = trunk[2]
    seconds += attention["softmax"] / (SPARSE if sparse else OVER_VIEWS)
    seconds += attention.get("linear", 0) / LINEAR_PART
    chosen = attention.get("selection", 0)
    if sparse:
        seconds += chosen / CHOICE_OF_BLOCKS
    elif chosen:  # queries are compared: products, whose float32 results are written and read
        seconds += chosen / PRODUCTS["bfloat16"] + 8 * chosen / (2 * channels) / MEMORY
        seconds += LAYERS * MERGED_BYTES * tokens * channels / MEMORY
    return seconds


def _speed3r(spec: Speed3R, views: int, channels: int) -> float:
    """Estimates the seconds of Speed3R between q, k and v in one layer over all views.

    Launches are not included.
    """
    layout = TokenLayout(views, 5, (37, 37), "global")
    of = spec.selection(layout, layout)
    places, windows, tokens = of.query.places, len(of.query.tokens), layout.tokens
    seen_by_all = int((of.key.tokens[of.always] < tokens).sum()) + layout.special * views
    pairs = 4 * channels  # operations of a query and a key
    seconds = pairs * (windows**2 + layout.special * views * tokens) / OVER_VIEWS
    seconds += pairs * tokens * seen_by_all / SPARSE
    seconds += pairs * windows * of.chosen * places**2 / (SPARSE if places == 64 else GATHERED)
    candidates = windows - len(of.always)
    scores = 2 * channels * windows * candidates
    if candidates > 64 * of.chosen:  # one pass over them, and rows of 64 looked at again
        seconds += scores / SPARSE + windows * of.chosen * 64 * 2 * channels / CACHE
    else:
        seconds += scores / CHOICE_OF_BLOCKS
    return seconds + WINDOW_PASSES * 2 * tokens * channels / MEMORY


@dataclass(frozen=True)
class OneLaunch(Dense):
    """A stand-in for cuDNN's flash attention: one kernel that takes q, k and v and gives o.

    What it gives is not attention. It is for programs that are compiled and not run; in float32,
    which cuDNN does not take, it is the blocked form.
    """

    name: ClassVar[str] = "one_launch"
    implementation: Any = "blocked"

    def build(self, *, heads: int, head_dim: int, param_dtype: Any, rngs: nnx.Rngs) -> DenseCore:
        """Implements `AttentionStrategy.build`: returns a core without parameters."""
        del heads, head_dim, param_dtype, rngs
        return OneLaunchCore(self)


class OneLaunchCore(DenseCore):
    """The core of `OneLaunch`, which runs one kernel in the place of attention."""

    def __call__(self, inputs: AttentionInputs) -> jax.Array:
        """Returns an array [B, Tq, N, D] of no meaning, or in float32 blocked attention."""
        if inputs.q.dtype == jnp.float32:
            return super().__call__(inputs)
        return _stand_in(inputs.q, inputs.k, inputs.v)


@contextlib.contextmanager
def dense_in_one_launch() -> Iterator[None]:
    """Replaces dense attention in Speed3R's branches by one kernel, within a `with` block."""

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, *_: Any) -> jax.Array:
        return _stand_in(q, k, v)

    with mock.patch.object(window_selection, "dense_attention", attend):
        yield


def _stand_in(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plt

    def kernel(q: Any, k: Any, v: Any, o: Any) -> None:
        o[...] = q[...] + k[...] + v[...]

    d = q.shape[3]
    one = pl.BlockSpec((None, 1, None, d), lambda n, b: (b, 0, n, 0))
    return pl.pallas_call(
        kernel,
        grid=(q.shape[2], q.shape[0]),
        in_specs=[one] * 3,
        out_specs=one,
        out_shape=jax.ShapeDtypeStruct(q.shape, v.dtype),
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=1),
    )(q, k, v)
