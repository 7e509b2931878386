"""Times how the kernels of `sla.jax_triton` can be launched on this GPU, and keeps the fastest."""

import dataclasses
import datetime
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lite3r_jax.benchmarking.device_check.attention import HEADS, PRODUCTS
from lite3r_jax.benchmarking.device_check.rows import Figures, Job, Row, done, milliseconds
from lite3r_jax.benchmarking.device_check.sizes import Sizes
from lite3r_jax.kernels import jax_triton_call, target
from lite3r_jax.kernels.block_map.table import BlockTable, block_count
from lite3r_jax.kernels.sla import compile_triton, launches
from lite3r_jax.kernels.sla.check import CAPS
from lite3r_jax.kernels.sla.launches import KERNELS, Launches, RowsLaunch
from lite3r_jax.kernels.sla.limits import HEAD_DIMS, K_BLOCK, Q_BLOCKS, SlaCall
from lite3r_jax.kernels.target import Device

# Of the forward pass two products of all pairs, of dQ three and of dK and dV four.
_PRODUCTS: dict[str, int] = dict(zip(KERNELS, (PRODUCTS["forward"], 3, 4), strict=True))
_FIELDS: dict[str, str] = dict(
    zip(KERNELS, ("forward", "query_gradient", "key_gradient"), strict=True)
)
Compile = Callable[[str, RowsLaunch, str, int, int, float], compile_triton.Usage]


def rows(
    sizes: Sizes,
    end: float,
    *,
    compile_kernel: Compile = compile_triton.compile_kernel,
    device: Device | None = None,
    interpret: bool = False,
) -> Iterator[Row]:
    """Times all kernel launches that fit and spill no registers, against the launch table's own.

    The fastest whose results agree with those of the table's own is written into the table of this
    kind of device, in the user's cache directory (`launches.user_table`), as soon as a kernel is
    through: what is there when time runs out is kept. Views are the first number of `sizes`.

    Args:
        sizes: of what is timed.
        end: as `time.time()`, after which nothing is begun.
        compile_kernel: says what registers and shared memory a launch takes on a device.
        device: the one to tune for; by default that of this machine.
        interpret: run the kernels by Triton's interpreter, whose times say nothing.
    """
    device = target.device() if device is None else device
    reason = target.unfit_for_triton(device)
    reason = reason or (None if interpret else jax_triton_call.unavailable())
    if reason:
        note = f"not measured: {reason}"
        yield Row("tune", 0, "kernels of Sparse Linear Attention", "jax_triton", note=note)
        return
    kept: list[launches.Row] = []
    for q_block, head_dim, dtype in itertools.product(
        sorted(Q_BLOCKS, reverse=True), HEAD_DIMS, ("bfloat16", "float32")
    ):
        call = SlaCall("block", head_dim, dtype, q_block, K_BLOCK)
        if launches.too_little_shared_memory(device, call):
            continue
        for kernel in KERNELS:
            problem = Problem(sizes, kernel, call, launches.launches(device, call), interpret)
            compiled = partial(compile_kernel, kernel)
            candidates = list(_fitting(device, call, kernel, compiled))
            made = partial(_jobs, sizes, problem, candidates)
            timed: list[tuple[launches.Row, float]] = []
            for (_, each), row in zip(candidates, done(made(), end), strict=True):
                yield row
                if row.figures is not None:
                    timed.append((each, row.figures.ms))
            if timed:
                best, ms = min(timed, key=lambda x: x[1])
                kept.append(dataclasses.replace(best, microseconds=round(1000 * ms, 1)))
                _keep(device, kept)


def _fitting(
    device: Device, call: SlaCall, kernel: str, compiled: Callable[..., compile_triton.Usage]
) -> Iterator[tuple[RowsLaunch, launches.Row]]:
    """Yields launches that fit and spill no registers, with rows; the table's own comes first."""
    assert call.q_block is not None and device.compute_capability is not None
    dtype = launches.dtype_class(call.dtype)
    own = getattr(launches.launches(device, call), _FIELDS[kernel])
    others = compile_triton.candidates(kernel, dtype, call.head_dim)
    for launch in dict.fromkeys((own, *(x for x in others if x.rows <= call.q_block))):
        usage = compiled(
            launch, str(call.dtype), call.head_dim, call.q_block, device.compute_capability
        )
        if usage.shared_memory <= device.shared_memory and (launch == own or not usage.spilled):
            yield (
                launch,
                launches.Row(
                    device.kind, kernel, dtype, call.head_dim, call.q_block, launch.rows,
                    launch.warps, launch.stages, usage.registers, usage.spilled,
                    usage.shared_memory,
                ),
            )  # fmt: skip


def _jobs(sizes, problem, candidates) -> Iterator[Job]:
    call = problem.call
    what = f"{problem.kernel}, {call.dtype}, head dim {call.head_dim}, blocks of {call.q_block}"
    for launch, _ in candidates:
        name = f"{launch.rows} rows, {launch.warps} warps, {launch.stages} stages"
        yield Job(Row("tune", sizes.views[0], what, name), partial(problem.time, launch))


def _keep(device: Device, kept: list[launches.Row]) -> None:
    """Writes the launches that were found, and those of an older table for other kernels."""
    path = launches.user_table(device)
    done = {(row.kernel, row.dtype, row.head_dim, row.q_block) for row in kept}
    older = launches.read(path) if path.exists() else ()
    rest = [r for r in older if (r.kernel, r.dtype, r.head_dim, r.q_block) not in done]
    made = f"{datetime.date.today()}, jax {jax.__version__}, by lite3r device-check tune"
    launches.write(path, [*kept, *rest], made)


class Problem:
    """One kernel at a realistic size: a layer over all views that keeps 0.1 of the key blocks."""

    def __init__(
        self, sizes: Sizes, kernel: str, call: SlaCall, own: Launches, interpret: bool
    ) -> None:
        self.kernel, self.call, self.own, self.interpret = kernel, call, own, interpret
        self.tokens = sizes.views[0] * (sizes.grid[0] * sizes.grid[1])
        self.heads = 1 if sizes.small else HEADS
        self.wanted: list[np.ndarray] | None = None

    def time(self, launch: RowsLaunch) -> Figures:
        """Times one call of the kernel with a launch.

        Raises:
            ValueError: its results are not those of the table's own launch.
        """
        arrays, pairs = self._arrays()
        got = [np.asarray(x, np.float32) for x in jax.jit(self._run(launch))(*arrays)]
        if self.wanted is None:  # the table's own comes first
            self.wanted = got
        cap = CAPS[str(self.call.dtype)]
        for x, y in zip(got, self.wanted, strict=True):
            error = np.abs(x - y).max() / max(np.abs(y).max(), 1)
            if not error <= cap:
                raise ValueError(f"its results are off by {error:.1e}")
        work = 2 * pairs * K_BLOCK * (self.call.q_block or 0) * self.call.head_dim
        work *= _PRODUCTS[self.kernel]
        return Figures(milliseconds(self._run(launch), arrays), work)

    def _run(self, launch: RowsLaunch) -> Callable[..., tuple[jax.Array, jax.Array]]:
        from lite3r_jax.kernels.sla.jax_triton import softmax_kernels

        with_it = dataclasses.replace(self.own, **{_FIELDS[self.kernel]: launch})
        q_block = self.call.q_block or 0
        kernels = softmax_kernels(q_block, with_it, self.interpret)

        def run(q, k, v, bias, table, do, o, lse):
            if self.kernel == "sla_forward":
                return kernels.forward(q, k, v, bias, table, q.dtype)
            if self.kernel == "sla_query_gradient":
                return kernels.query_gradient(q, k, v, bias, table, do, o, lse)
            return kernels.key_gradient(q, k, v, bias, table, do, lse, lse)

        return run

    def _arrays(self) -> tuple[list[Any], int]:
        """Draws the arguments of what `_run` returns, and counts their pairs of blocks."""
        call, rng = self.call, np.random.default_rng(0)
        q_block = call.q_block or 0
        q_blocks, k_blocks = (block_count(self.tokens, size) for size in (q_block, K_BLOCK))
        keep = max(1, k_blocks // 10)
        listed = rng.random((1, self.heads, q_blocks, k_blocks)).argsort(-1)[..., :keep]
        ids = np.sort(listed, -1).astype(np.int32)

        def draw(blocks, size, dtype):
            shape = (1, blocks * size, self.heads, call.head_dim)
            return jnp.asarray(rng.standard_normal(shape, np.float32), dtype)

        q, do = (draw(q_blocks, q_block, call.dtype) for _ in range(2))
        k, v = (draw(k_blocks, K_BLOCK, call.dtype) for _ in range(2))
        o = draw(q_blocks, q_block, "float32")
        bias = jnp.zeros((1, k_blocks * K_BLOCK), jnp.float32)
        # Above all logits, so that probabilities are small numbers.
        lse = jnp.full((1, self.heads, q_blocks * q_block), 16.0, jnp.float32)
        table: Any = BlockTable(jnp.asarray(ids), k_blocks)
        if self.kernel == "sla_key_gradient":
            table = table.transpose()
        return [q, k, v, bias, table, do, o, lse], ids.size
