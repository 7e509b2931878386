"""Times one attention layer over all views of VGGT-1B: dense, sparse, and block selection."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.sla import SLA
from lite3r_jax.attention.strategy import AttentionInputs, AttentionStrategy, Layouts, TokenLayout
from lite3r_jax.attention.windows import SPECIAL as SPECIAL_BLOCK
from lite3r_jax.attention.windows import blocks
from lite3r_jax.benchmarking.device_check.rows import Figures, Job, Row, done, milliseconds
from lite3r_jax.benchmarking.device_check.sizes import Sizes
from lite3r_jax.kernels.block_map.api import OPERATOR as SELECTION
from lite3r_jax.kernels.block_map.api import block_map, budgets
from lite3r_jax.kernels.sla.api import OPERATOR

HEADS, HEAD_DIM, SPECIAL = 16, 64, 5
# Products of T x T x D per pass, two operations each: 2 forward, 5 backward.
PRODUCTS = {"forward": 2, "gradient": 7}


@dataclass(frozen=True)
class Peer:
    """Sparse attention of another package, which is measured where it is installed.

    No such package has been run here.

    Attributes:
        variant: name of its rows.
        of: its name in `tools.benchmark.attention_torch`.
        module: that is imported.
        install: what makes it importable.
    """

    variant: str
    of: str
    module: str
    install: str


PEERS = (
    Peer(
        "sla, thu-ml/SLA (Triton, PyTorch)",
        "sla",
        "sparse_linear_attention",
        "pip install git+https://github.com/thu-ml/SLA",
    ),
    Peer(
        "block-sparse softmax, cuDNN frontend (PyTorch)",
        "cudnn",
        "cudnn",
        "pip install nvidia-cudnn-frontend",
    ),
)


def rows(sizes: Sizes, end: float) -> Iterator[Row]:
    """Times forward and gradient of every attention, dense and sparse, and the block selection."""
    yield from done(jobs(sizes), end)


def jobs(sizes: Sizes) -> Iterator[Job]:
    """Yields the jobs of `rows`; q, k and v are drawn when they are first needed."""
    first = sizes.views[0], "forward"
    for views in sizes.views:
        layout = TokenLayout(views, SPECIAL, sizes.grid, "global")
        draw = partial(tokens, layout)
        for which, call in (("forward", forward), ("gradient", gradient)):
            for name, spec in strategies(sizes):
                row = Row("attention", views, which, name)
                work = int(pairs(layout, spec) * 2 * HEAD_DIM * HEADS * PRODUCTS[which])
                yield Job(row, partial(_timed, call(spec, layout), draw, work))
            if sizes.platform != "tpu":
                row = Row("attention", views, which, "dense, PyTorch")
                yield Job(row, partial(_by_torch, layout, which))
                yield from _of_peers(layout, which, sizes, named=(views, which) == first)
        for name in filter(sizes.measures, SELECTION.names):
            row = Row("attention", views, "block selection, keep 0.1", name)
            yield Job(row, partial(_timed, partial(selection, name), draw, 0))


def _timed(call: Callable[..., Any], draw: Callable[[], list[jax.Array]], work: int) -> Figures:
    return Figures(milliseconds(call, draw()), work)


def _of_peers(layout: TokenLayout, which: str, sizes: Sizes, *, named: bool) -> Iterator[Job]:
    """Yields jobs of other packages that are installed; `named`: also one for each that is not."""
    for peer in PEERS:
        keeps = sizes.keep if _installed(peer.module) else sizes.keep[:1] if named else ()
        for keep in keeps:
            row = Row("attention", layout.views, which, f"{peer.variant}, keep {keep:g}")
            yield Job(row, partial(_by_torch, layout, which, peer, keep))


def _by_torch(
    layout: TokenLayout, which: str, peer: Peer | None = None, keep: float = 1.0
) -> Figures:
    """Times PyTorch's attention, or a peer's, in a process of its own, so as to import neither.

    Raises:
        ValueError: PyTorch, the peer or the program, which is part of a clone, is not there; or it
            failed.
    """
    where = {"torch": "install it beside", "tools": "run this in a clone of"}
    for name, how in where.items():
        if not _installed(name):
            raise ValueError(f"no {name} here; {how} the package")
    command = [sys.executable, "-m", "tools.benchmark.attention_torch", "--pass", which]
    command += ["--tokens", str(layout.tokens)]
    if peer is not None:
        if not _installed(peer.module):
            raise ValueError(f"no {peer.module} here; {peer.install}")
        command += ["--of", peer.of, "--keep", f"{keep:g}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError((done.stderr.strip() or "it failed without a word").splitlines()[-1])
    work = keep * layout.tokens**2 * 2 * HEAD_DIM * HEADS * PRODUCTS[which]
    return Figures(float(done.stdout.split()[-1]), int(work))


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def strategies(sizes: Sizes) -> Iterator[tuple[str, AttentionStrategy]]:
    """Yields the attention strategies to measure by name, dense attention first."""
    yield "dense", Dense()
    yield "dense, plain JAX", Dense("blocked")
    for name in OPERATOR.names:
        if sizes.measures(name):
            for keep in sizes.keep:
                yield f"sla {name}, keep {keep:g}", SLA(keep=keep, implementation=name)


def selection(name: str, q: jax.Array, k: jax.Array, v: jax.Array, up: jax.Array) -> Any:
    """Chooses key blocks for the tokens in their given order; returns the block map."""
    del v, up
    columns = -(-k.shape[1] // 64)
    top, _ = budgets(columns, 0.1)
    return block_map(q, k, q_block=128, k_block=64, top=top, implementation=name)


def tokens(layout: TokenLayout, dtype: str = "bfloat16") -> list[jax.Array]:
    """Draws random q, k, v and a cotangent of the output."""
    shape = (1, layout.tokens, HEADS, HEAD_DIM)
    return [jax.random.normal(key, shape, dtype) for key in jax.random.split(jax.random.key(0), 4)]


def pairs(layout: TokenLayout, spec: AttentionStrategy) -> float:
    """Counts pairs of query and key that the softmax sees, places without a token included."""
    if not isinstance(spec, SLA):
        return layout.tokens**2
    keys = blocks(layout, spec.block).views
    always = int(((keys == SPECIAL_BLOCK) | (keys == 0)).sum())
    kept = (always + spec.budgets(len(keys) - always)[0]) * spec.block
    special = layout.views * layout.special
    return special * layout.tokens + (layout.tokens - special) * min(kept, layout.tokens)


def forward(spec: AttentionStrategy, layout: TokenLayout) -> Callable[..., Any]:
    """Returns a function (q, k, v, cotangent) -> o, which computes attention."""
    core = spec.build(heads=HEADS, head_dim=HEAD_DIM, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    return lambda q, k, v, _: core(AttentionInputs(q, k, v, Layouts.both(layout)))


def gradient(spec: AttentionStrategy, layout: TokenLayout) -> Callable[..., Any]:
    """Returns a function (q, k, v, cotangent) -> o and gradients of q, k, v and parameters."""
    core = spec.build(heads=HEADS, head_dim=HEAD_DIM, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    graph, params = nnx.split(core)

    def call(q: jax.Array, k: jax.Array, v: jax.Array, up: jax.Array) -> Any:
        def attend(params: Any, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return nnx.merge(graph, params)(AttentionInputs(q, k, v, Layouts.both(layout)))

        o, pull = jax.vjp(attend, params, q, k, v)
        return o, pull(up)

    return call
