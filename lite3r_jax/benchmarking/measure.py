"""Measures latency and memory of one variant, one number of views after the other."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from lite3r_jax.allocator import give_back_freed_memory
from lite3r_jax.benchmarking.flops import Work
from lite3r_jax.benchmarking.subprocess_runs import Died
from lite3r_jax.errors import InputError
from lite3r_jax.infer.memory import (
    Forward,
    MemoryPlan,
    Rest,
    out_of_memory,
    peak_device,
    peak_process,
    restart_peak,
)
from lite3r_jax.mesh import make_view_mesh
from lite3r_jax.processes import every_value, from_first


@dataclass(frozen=True)
class Protocol:
    """Settings by which a variant of a model is measured.

    Attributes:
        views: numbers of views, ascending.
        height: of the network images in pixels.
        width: likewise.
        warmup: passes before those that are timed.
        runs: passes that are timed.
        seconds: limit of the time that a pass is expected to take; 0: none.
        frame_chunk: frames that the dense heads handle at a time; None: chosen by memory.
        limit: bytes that may be used; None: what the device has.
        seed: of the images.
        mesh: `compute.mesh`: devices that share the views.
        rest: `compute.rest`: where tokens rest.
        weights: `compute.weights`: what each of these devices has of the weights.
    """

    views: tuple[int, ...]
    height: int
    width: int
    warmup: int = 2
    runs: int = 10
    seconds: float = 0.0
    frame_chunk: int | None = None
    limit: int | None = None
    seed: int = 0
    mesh: str = ""
    rest: Rest = "auto"
    weights: Literal["copied", "split"] = "copied"


@dataclass(frozen=True)
class Cell:
    """Measurements of one variant of a model at one number of views.

    Attributes:
        variant: its name.
        views: of the scene.
        missing: why there are no figures; "" if there are.
        seconds: every timed pass, in order; images are on the device, results are computed.
        compile_seconds: tracing and compilation, with head chunks that were tried and did not fit.
        frame_chunk: frames that the dense heads handled at a time.
        weights: bytes of the parameters.
        planned: bytes that the compiled program was expected to need in all, see `MemoryPlan`.
        working: of these, working memory.
        peak: bytes in use at most during the passes, None where that is not known; of the device,
            or on a CPU of the process.
        peak_note: what the peak is of, or why it is not known.
        flops: of `flops.Work`.
        devices: how several devices share the views, see `infer.sharing`; None for one.
        on_host: whether tokens rested on the host.
    """

    variant: str
    views: int
    missing: str = ""
    seconds: tuple[float, ...] = ()
    compile_seconds: float = 0.0
    frame_chunk: int = 0
    weights: int = 0
    planned: int = 0
    working: int = 0
    peak: int | None = None
    peak_note: str = ""
    flops: Mapping[str, Any] = field(default_factory=dict)
    devices: Mapping[str, Any] | None = None
    on_host: bool = False

    @property
    def median(self) -> float:
        """Median of the timed passes, in seconds; NaN without any."""
        return float(np.median(self.seconds)) if self.seconds else float("nan")

    @property
    def p95(self) -> float:
        """95th percentile of timed passes in seconds, linearly interpolated; NaN without any."""
        return float(np.quantile(self.seconds, 0.95)) if self.seconds else float("nan")

    def to_json(self) -> dict[str, Any]:
        """Returns all fields as plain data, with median and p95 of the timed passes, if any."""
        body = asdict(self)
        if self.seconds:
            body |= {"median_seconds": self.median, "p95_seconds": self.p95}
        return body


def measure(
    variant: str,
    model: Any,
    protocol: Protocol,
    *,
    count: Callable[[Any, int, int, int], Work],
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Cell]:
    """Measures a variant at all numbers of views and yields each cell when it is done.

    Sizes go up until one does not fit or would take too long; from there on cells say so. Nothing
    is run that does not fit the memory plan. Several processes call this together: what the first
    one measures decides whether a size would take too long.

    Args:
        variant: its name.
        model: a backbone.
        protocol: how it is measured.
        count: operations of (model, views, height, width), as `flops.count`.
        clock: gives the time in seconds.

    Raises:
        Died: memory ran out in one of several processes, whose computation the others wait for.
    """
    forward = Forward(
        model,
        protocol.limit,
        mesh=make_view_mesh(protocol.mesh),
        rest=protocol.rest,
        split_weights=protocol.weights == "split",
    )
    weights = sum(x.nbytes for x in jax.tree.leaves(nnx.state(model)))
    height, width = protocol.height, protocol.width
    stopped, before = "", None
    for views in protocol.views:
        work = count(model, views, height, width)
        if before is not None and protocol.seconds and not stopped:
            expected = _of_first(before.median) * work.total / before.flops["total"]
            if expected > protocol.seconds:
                stopped = (
                    f"a pass of {views} views is expected to take {expected:.0f} s, more than"
                    f" bench.seconds={protocol.seconds:g}"
                )
        cell = Cell(variant, views, stopped, weights=weights, flops=work.to_json())
        if not stopped:
            ran_out = ""
            try:
                start = clock()
                plan = forward.try_plan(views, height, width, protocol.frame_chunk)
                cell = replace(cell, compile_seconds=clock() - start, **_planned(plan))
                if min(every_value(int(plan.fits))):
                    before = cell = replace(cell, **_run(forward, plan, protocol, clock))
                else:
                    stopped = f"does not fit{' in another process' if plan.fits else f': {plan}'}"
            except InputError as error:
                ran_out = str(error)
            except (MemoryError, jax.errors.JaxRuntimeError) as error:
                if not out_of_memory(error):
                    raise
                ran_out = f"memory ran out while {views} views were compiled or placed"
            if ran_out and jax.process_count() > 1:
                raise Died(ran_out)
            stopped = stopped or ran_out
            if stopped:
                cell = replace(cell, missing=stopped)
        yield cell


def _of_first(value: float) -> float:
    """Returns process 0's value of a number in all processes."""
    return float(from_first(np.array(value, np.float32)))


def _planned(plan: MemoryPlan) -> dict[str, Any]:
    return {
        "frame_chunk": plan.frame_chunk,
        "planned": plan.peak,
        "working": plan.temporary,
        "devices": None if plan.sharing is None else plan.sharing.to_json(),
        "on_host": plan.on_host,
    }


def _run(
    forward: Forward, plan: MemoryPlan, protocol: Protocol, clock: Callable[[], float]
) -> dict[str, Any]:
    """Runs the passes of one plan and returns their times and peak of memory."""
    rng = np.random.default_rng(protocol.seed)
    shape = (1, plan.views, plan.height, plan.width, 3)
    images = jax.block_until_ready(forward.place(rng.random(shape, dtype=np.float32)))
    gc.collect()
    give_back_freed_memory()  # of compiling, which is no part of a pass
    anew = restart_peak()
    earlier = peak_device()
    seconds = []
    for turn in range(protocol.warmup + protocol.runs):
        start = clock()
        forward(images, plan)
        if turn >= protocol.warmup:
            seconds.append(clock() - start)
    if earlier is not None:  # the device's statistics cannot be begun anew
        peak = peak_device()
        known = peak is not None and peak > earlier
        note = "device" if known else f"no more than the {earlier} bytes of a pass before"
    else:
        peak, known = peak_process(), anew
        note = "process" if known else "this system cannot restart the peak of a process"
    return {"seconds": tuple(seconds), "peak": peak if known else None, "peak_note": note}
