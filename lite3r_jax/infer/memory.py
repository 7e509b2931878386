"""Plans the memory of a forward pass before it runs, and finds settings that would fit.

Nothing here is a formula fitted to one model: the pass is compiled for its shape, which has to be
done anyway, and XLA says what the program will allocate. Views, size, dtype, attention strategy and
head chunks are all in that figure.
"""

import itertools
import re
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.deploy.manifest import Deployment
from lite3r_jax.errors import InputError
from lite3r_jax.infer.descriptors import describe_views
from lite3r_jax.infer.sharing import Sharing, share_views, without_values
from lite3r_jax.mesh import (
    VIEWS,
    check_split_weights,
    check_views,
    local_size,
    put_views,
    put_weights,
)
from lite3r_jax.processes import every_value
from lite3r_jax.weights.manifest import Manifest

GIB = 2**30
# Matrix products on a CPU pack their operands into buffers that XLA's plan does not know. Measured
# share of the plan's working memory: 0.22 to 0.35 (5 M to 1.1 B parameters, 2 to 24 views).
KERNEL_SCRATCH = {"cpu": 0.3, "gpu": 0.0}
CAMERAS = ("extrinsics", "intrinsics")
Rest = Literal["auto", "device", "host"]
CONTROL_GROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryPlan:
    """Predicted memory of one forward pass, in bytes, on the device that runs it.

    With a mesh of GPUs it is that of one of them; CPU devices of a mesh share the memory of the
    process, so it is that of all of them.

    Attributes:
        views: views of the scene.
        height: of the network images in pixels.
        width: likewise.
        frame_chunk: frames that the dense heads handle at a time.
        held: what is there before the pass: on a GPU the allocator's, that is the weights; on a CPU
            the whole process with weights and compiled programs.
        images: input.
        temporary: working memory, of XLA and of the kernels that it calls.
        outputs: predictions.
        limit: what may be used in all.
        sharing: how several devices share the views; None for one device.
        on_host: whether tokens that dense heads read later rest in the memory of the host, and
            predictions go there.
        resting: how much of them, of all devices of this process; 0 on a CPU.
        room: what the host has left for them; None where nothing rests.
    """

    views: int
    height: int
    width: int
    frame_chunk: int
    held: int
    images: int
    temporary: int
    outputs: int
    limit: int
    sharing: Sharing | None = None
    on_host: bool = False
    resting: int = 0
    room: int | None = None

    @property
    def peak(self) -> int:
        """Predicted peak of the memory in use, in bytes."""
        return self.held + self.images + self.temporary + self.outputs

    @property
    def fits(self) -> bool:
        """Whether the peak is within the limit and the host has room for what is kept there."""
        return self.peak <= self.limit and (self.room is None or self.resting <= self.room)

    def __str__(self) -> str:
        return (
            f"{self.views} views of {self.width}x{self.height}: {self.peak / GIB:.2f} GiB"
            f" (held {self.held / GIB:.2f}, working memory {self.temporary / GIB:.2f}, in and out"
            f" {(self.images + self.outputs) / GIB:.2f}) of {self.limit / GIB:.2f} GiB"
            + self._on_host
        )

    @property
    def _on_host(self) -> str:
        if self.room is None:
            return ""
        return f", and {self.resting / GIB:.2f} of {self.room / GIB:.2f} GiB on the host"


class Forward:
    """The forward pass of a model, compiled ahead for the shapes it is asked for.

    Args:
        model: a backbone, `model(images, frame_chunk=...) -> (Prediction, taps)`.
        limit: bytes that may be used; None for what the device has.
        known: whether known cameras go in as well: `model(images, extrinsics=..., intrinsics=...)`.
        arguments: what else the model is called with.
        side: which side of the network images `images.size` stands for, for the advice.
        tokens: tap whose mean over the tokens of each view comes out beside the prediction; "" for
            none.
        mesh: of `mesh.make_view_mesh`: devices that share the views of a scene; None for one.
        split_weights: whether these devices share the weights, see `BackboneModel.__call__`.
        rest: where tokens rest that dense heads read later: "device", "host", or "auto", on the
            host of a GPU where they do not fit on the device otherwise.
    """

    def __init__(
        self,
        model: Any,
        limit: int | None = None,
        *,
        known: bool = False,
        arguments: Mapping[str, Any] = MappingProxyType({}),
        side: Literal["width", "longer", "shorter", "area"] = "width",
        tokens: str = "",
        mesh: Mesh | None = None,
        rest: Rest = "auto",
        split_weights: bool = False,
    ):
        if rest == "host" and not model.rests_on_host:
            raise InputError(
                f"compute.rest: {type(model).__name__} does not let tokens rest on the host; choose"
                " auto or device"
            )
        if tokens and mesh is not None:
            raise InputError("compute.mesh: is not for videos in chunks; leave it out")
        check_split_weights(split_weights, mesh is not None)
        automatic = rest == "auto" and model.rests_on_host and _platform() != "cpu" and not tokens
        self._places = (False, True) if automatic else (rest == "host",)
        graph, self._state = nnx.split(model)
        self._mesh, self._shared = mesh, None
        if mesh is not None:
            model.check_parts()
            self._shared = partial(share_views, without_values(model))
            self._state = put_weights(self._state, mesh, split_weights)
        weights = {"split_weights": True} if split_weights else {}
        self._limit = limit
        self._patch = model.patch_size
        self._known = known
        self._side = side
        self._programs: dict[tuple[int, int, int, int, bool], Any] = {}

        def forward(
            state: Any,
            images: jax.Array,
            cameras: tuple[jax.Array, ...],
            frame_chunk: int,
            views: int | None,
            on_host: bool,
        ) -> Any:
            merged = nnx.merge(graph, state)
            given = dict(zip(CAMERAS, cameras, strict=True)) if cameras else {}
            more = {**given, "frame_chunk": frame_chunk, **arguments}
            more |= {} if views is None else {"views": views} | weights
            more |= {"on_host": True} if on_host else {}
            if not tokens:
                return merged(images, **more)[0]
            prediction, taps = merged(images, **more, taps=(tokens,))
            return prediction, describe_views(taps[tokens])

        self._jitted = jax.jit(forward, static_argnums=(3, 4, 5))

    def plan(
        self, views: int, height: int, width: int, frame_chunk: int | None = None
    ) -> MemoryPlan:
        """Compiles the pass for one scene of this shape and returns its memory plan.

        Args:
            views: number of views.
            height: of the network images.
            width: likewise.
            frame_chunk: frames that the dense heads handle at a time; None: on a GPU the largest
                of 8, 4, 2, 1 that fits, with tokens that rest on the host if none does without;
                1 on a CPU, where more frames at a time are not faster.

        Raises:
            InputError: it does not fit; the message has settings that would.
        """
        plan = self.try_plan(views, height, width, frame_chunk)
        if not plan.fits:
            raise InputError(f"memory: {plan} do not fit; {self.advice(plan, plan.limit)}")
        return plan

    def try_plan(
        self, views: int, height: int, width: int, frame_chunk: int | None = None
    ) -> MemoryPlan:
        """Returns a plan as `plan` does, or one that does not fit and cannot be run."""
        if frame_chunk is not None:
            chunks = [frame_chunk]
        elif _platform() == "cpu":
            chunks = [1]
        else:
            chunks = [chunk for chunk in (8, 4, 2, 1) if chunk <= views]
        shapes = [(views, height, width, c, h) for h, c in itertools.product(self._places, chunks)]
        plans, first = {}, 0
        while True:
            best = first
            for best in range(first, len(shapes)):
                plans[best] = self._plan_of(shapes[best])
                if plans[best].fits:
                    break
            # Several processes run one program: the first that fits in all of them.
            every = every_value(best)
            if min(every) == (first := max(every)):
                return plans[best]

    def _plan_of(self, shape: tuple[int, int, int, int, bool]) -> MemoryPlan:
        """Plans (views, height, width, frame_chunk, on_host); keeps its program if it fits."""
        program = self._programs.get(shape) or self._compile(*shape)
        plan = self._plan(program, *shape)
        if plan.fits:
            self._programs[shape] = program
        return plan

    def place(self, x: Any) -> jax.Array:
        """Puts an array [1, S, ...] of all views on the device, or splits it over the devices.

        The last view is repeated where the devices would not get equally many views.
        """
        if self._mesh is None:
            return jnp.asarray(x)
        return put_views(x, self._mesh, check_views(self._mesh, x.shape[1]))

    def __call__(self, images: Any, plan: MemoryPlan, cameras: tuple[Any, ...] = ()) -> Any:
        """Runs the forward pass that was planned.

        Args:
            images: [1, S, H, W, 3] float32 in [0, 1], of the planned shape; or what `place` made of
                them.
            plan: from `plan`.
            cameras: (extrinsics [1, S, 3, 4], intrinsics [1, S, 3, 3]) float32 of known cameras, or
                empty without.

        Returns:
            The computed prediction; with `tokens` a pair of the prediction and descriptors of the
            views, float32 [1, S, 2 C], see `describe_views`. With a mesh each device has its views,
            and repeated views may follow the S that count; `mesh.fetch_views` brings the S views to
            the host.

        Raises:
            InputError: the device ran out of memory all the same; with settings that need less.
        """
        key = (plan.views, plan.height, plan.width, plan.frame_chunk, plan.on_host)
        try:
            images, given = self.place(images), tuple(map(self.place, cameras))
            return jax.block_until_ready(self._programs[key](self._state, images, given))
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if not out_of_memory(error):
                raise
            # how much there really is nobody says, so ask for clearly less
            limit = min(plan.limit, plan.held + int(0.7 * (plan.peak - plan.held)))
            raise InputError(
                f"memory: {plan} were planned, but the device ran out of it, perhaps because other"
                f" programs use it; {self.advice(plan, limit)}"
            ) from error

    def advice(self, plan: MemoryPlan, limit: int) -> str:
        """Finds settings near those of `plan` that need at most `limit` bytes, by compiling.

        Returns:
            One line for people.
        """
        options = []
        least = 1 if self._mesh is None else self._mesh.size
        on_host = plan.on_host
        views = self._largest(
            plan.views, lambda n: (n, plan.height, plan.width), limit, on_host, least
        )
        if views:
            options.append(f"use at most {views} view{'s'[: views > 1]} of this size")
        patch = self._patch
        rows, columns = plan.height // patch, plan.width // patch

        def smaller(n: int) -> tuple[int, int, int]:
            height = max(1, round(n * rows / columns))
            return plan.views, height * patch, n * patch

        size = self._largest(columns, smaller, limit, on_host)
        if size:
            _, height, width = smaller(size)
            sides = {"width": width, "longer": max(width, height), "shorter": min(width, height)}
            sides["area"] = width * height
            options.append(
                f"keep {plan.views} and make them {width} pixels wide"
                f" (images.size={sides[self._side]})"
            )
        if plan.frame_chunk > 1:
            options.append("set compute.frame_chunk=1")
        if not options:
            return "not even one view does; use a machine with more memory or a smaller dtype"
        return "to fit, " + ", or ".join(options)

    def _largest(
        self,
        end: int,
        shape: Callable[[int], tuple[int, int, int]],
        limit: int,
        on_host: bool,
        start: int = 1,
    ) -> int:
        """Returns the largest n in [start, end) whose pass fits, by a few compilations, or 0."""

        def peak(n: int) -> int:
            key = (*shape(n), 1, on_host)
            plan = self._plan(self._compile(*key), *key)
            return plan.peak if plan.fits or plan.peak > limit else limit + 1

        if end <= start or (least := peak(start)) > limit:
            return 0
        # Memory grows almost linearly: a straight line through two points is a good next guess.
        low, high, known = start, end, [(start, least)]
        while high - low > 1 and len(known) < 4:
            guess = (low + high) // 2
            if len(known) > 1:
                (a, below), (b, above) = sorted(known)[-2:]
                guess = int(a + (limit - below) * (b - a) / max(above - below, 1))
            guess = min(max(guess, low + 1), high - 1)
            known.append((guess, peak(guess)))
            if known[-1][1] <= limit:
                low = guess
            else:
                high = guess
        return low

    def _compile(self, views: int, height: int, width: int, frame_chunk: int, on_host: bool) -> Any:
        shapes = [(1, views, height, width, 3)]
        shapes += [(1, views, 3, 4), (1, views, 3, 3)] if self._known else []
        count, where = None, None
        if self._mesh is not None:
            count, where = views, NamedSharding(self._mesh, PartitionSpec(None, VIEWS))
            filled = check_views(self._mesh, views).filled
            shapes = [(1, filled, *rest) for _, _, *rest in shapes]
        images, *cameras = (
            jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where) for shape in shapes
        )
        with nullcontext() if self._mesh is None else jax.set_mesh(self._mesh):
            arguments = (self._state, images, tuple(cameras), frame_chunk, count, on_host)
            return self._jitted.lower(*arguments).compile()

    def _plan(
        self, program: Any, views: int, height: int, width: int, frame_chunk: int, on_host: bool
    ) -> MemoryPlan:
        memory = program.memory_analysis()
        if memory is None:
            raise InputError(
                f"memory: XLA has no memory plan on {_platform()}; use a CPU or an NVIDIA GPU"
            )
        counted, together, here, sharing = views, 1, 1, None
        if self._mesh is not None and self._shared is not None:
            parts = check_views(self._mesh, views)
            sharing = self._shared(parts, height, width)
            here = local_size(self._mesh)
            together = here if _platform() == "cpu" else 1
            counted = parts.each * together
        temporary = together * memory.temp_size_in_bytes
        return MemoryPlan(
            views,
            height,
            width,
            frame_chunk,
            held=held(),
            images=counted * height * width * 3 * 4,
            temporary=int(temporary * (1 + KERNEL_SCRATCH[_platform()])),
            outputs=together * memory.output_size_in_bytes,
            limit=self._limit or device_limit(),
            sharing=sharing,
            on_host=on_host,
            resting=(memory.host_temp_size_in_bytes + memory.host_output_size_in_bytes) * here,
            room=host_room() if on_host else None,
        )


def check_weights(
    manifest: Manifest | Deployment, heads: Sequence[str], dtype: Any, limit: int | None = None
) -> None:
    """Raises an error if weights do not fit into memory, before they are read.

    Args:
        manifest: of the weights.
        heads: heads that will be loaded.
        dtype: in which parameters will be held.
        limit: bytes that may be used; None for what the device has.

    Raises:
        InputError: they do not fit.
    """
    smaller = False
    if isinstance(manifest, Deployment):
        need = manifest.bytes_of(heads)
    else:
        parts = get_backbone(manifest.backbone).parts
        off = {parts[head] for head in manifest.heads if head not in heads}
        count = sum(part.parameters for name, part in manifest.parts.items() if name not in off)
        need = count * np.dtype(dtype).itemsize
        smaller = np.dtype(dtype).itemsize > 2
    limit = limit or device_limit()
    if need > limit:
        remedy = ", or use compute.dtype=bfloat16" if smaller else ""
        raise InputError(
            f"memory: the weights alone need {need / GIB:.2f} GiB of {limit / GIB:.2f} GiB; close"
            f" other programs{remedy}"
        )


def held() -> int:
    """Returns the bytes that are in use now, of the device or process; see `MemoryPlan.held`."""
    stats = jax.local_devices()[0].memory_stats()
    if stats is not None:
        return stats["bytes_in_use"]
    import psutil

    return psutil.Process().memory_info().rss


def device_limit() -> int:
    """Returns the bytes that this process may use: its allocator's limit, or what is free.

    On a GPU the allocator has a limit; on a CPU it is what the process holds and what is left.
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats is not None:
        return stats["bytes_limit"]
    import psutil

    return psutil.Process().memory_info().rss + host_room()


def host_room() -> int:
    """Returns the free bytes of the machine's memory, at most what a container's limit leaves."""
    import psutil

    free = psutil.virtual_memory().available
    group = _control_group()
    return free if group is None else min(free, group)


def peak_process() -> int:
    """Returns the largest resident size of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the process that started this one, if it was larger
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def restart_peak() -> bool:
    """Resets `peak_process` to what is resident now; returns False if that cannot be done."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_device() -> int | None:
    """Returns the largest memory in use on the device so far, in bytes; None on a CPU."""
    stats = jax.local_devices()[0].memory_stats()
    return None if stats is None else stats.get("peak_bytes_in_use")


def _platform() -> str:
    return jax.default_backend()


def _control_group() -> int | None:
    """Returns the bytes that a container's limit leaves free (cgroup v2 or v1), or None."""
    root = CONTROL_GROUPS
    for folder, limit, usage, cache in (
        (root, "memory.max", "memory.current", "inactive_file"),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most = (folder / limit).read_text().strip()
            used = int((folder / usage).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except OSError:
            continue
        if most.isdigit() and int(most) < 1 << 60:  # v1 writes a huge number for "no limit"
            # cached files count as used but are given up when memory is needed
            return max(0, int(most) - used + int(stat.get(cache, 0)))
    return None


def out_of_memory(error: Exception) -> bool:
    """Returns whether an exception, of Python or of JAX, says that memory ran out."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
