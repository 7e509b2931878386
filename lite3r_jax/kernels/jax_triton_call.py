"""Launches kernels written in Triton's own language from JAX, by the package jax-triton.

Neither jax-triton nor triton is needed to import this, nor to ask whether they can be used.
"""

import functools
import importlib.metadata
import importlib.util
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lite3r_jax.kernels import target
from lite3r_jax.kernels.launch import Launch

INSTALL = "pip install 'lite3r_jax[triton]'"
# First two numbers of jax's version -> the jax-triton that was tried with it.
_TRIED = {(0, 10): "0.3.1", (0, 11): "0.4.1"}
_TYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "int32": "i32"}
# The interpreter has one set of program ids for all threads.
_interpreter = threading.Lock()


def unavailable() -> str | None:
    """Returns why jax-triton cannot be used here, with what to do about it, or None."""
    versions = {name: _version(name) for name in ("jax-triton", "triton")}
    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    return why_not(
        jax.__version__,
        {name: version for name, version in versions.items() if version is not None},
        any(importlib.util.find_spec(name) for name in plugins),
    )


def why_not(jax_version: str, installed: Mapping[str, str], cuda_plugin: bool) -> str | None:
    """Returns why jax-triton cannot be used with the given installed packages, or None.

    Args:
        jax_version: of jax.
        installed: versions of the packages jax-triton and triton, where they are installed.
        cuda_plugin: whether jax's CUDA plugin is installed.
    """
    series = _series(jax_version)
    if series not in _TRIED:
        return (
            f"jax-triton, which its kernels go through, does not work with jax {jax_version}: its"
            " newest version, 0.4.1, fails when jax asks it for results that nothing uses"
            " (_triton_kernel_call_dce_rule takes another number of arguments since jax 0.12); with"
            " jax 0.11 or 0.10 it does"
        )
    for name in ("jax-triton", "triton"):
        if name not in installed:
            return f"the package {name} is not installed, which its kernels go through: {INSTALL}"
    version = installed["jax-triton"]
    if _series(version) != _series(_TRIED[series]):
        return (
            f"jax-triton {version} does not work with jax {jax_version}: pip install"
            f" 'jax-triton=={_TRIED[series]}'"
        )
    if not cuda_plugin:
        return (
            "jax-triton needs jax's CUDA plugin, also to compile for a GPU that is not here: pip"
            " install 'lite3r_jax[cuda13]'"
        )
    return None


def call(
    kernel: Any,
    launch: Launch,
    grid: tuple[int, int, int],
    arguments: Sequence[jax.Array | int],
    outputs: Sequence[tuple[tuple[int, ...], Any]],
    *,
    interpret: bool = False,
    **constants: Any,
) -> list[jax.Array]:
    """Run a Triton kernel over a grid.

    Args:
        kernel: decorated with `triton.jit`; its parameters are the arguments, the outputs, and then
            the constants.
        launch: warps and stages.
        grid: programs in each dimension.
        arguments: arrays, of which it gets pointers, and numbers.
        outputs: (shape, dtype), all of which it has to write.
        interpret: run it by Triton's interpreter, on any device and slowly. That has to be chosen
            before triton is imported, by TRITON_INTERPRET=1 in the environment.
        **constants: fixed when it is compiled.

    Raises:
        ValueError: `interpret` differs from what the environment said when triton was imported, or
            jax-triton cannot be used.
    """
    results = [jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for shape, dtype in outputs]
    interpreted = type(kernel).__name__ == "InterpretedFunction"
    if interpreted != interpret:
        raise ValueError(
            "Triton's interpreter runs kernels where TRITON_INTERPRET=1 was in the environment when"
            f" triton was imported, and only there; it was{'' if interpreted else ' not'}"
        )
    if interpret:
        run = functools.partial(_interpret, kernel, launch, grid, arguments, results, constants)
        arrays = [x for x in arguments if not isinstance(x, int)]
        return list(jax.pure_callback(run, tuple(results), *arrays))
    if reason := unavailable():
        raise ValueError(f"{kernel.__name__} cannot run: {reason}")
    import jax_triton  # pyright: ignore[reportMissingImports]

    capability = target.device().compute_capability
    # Renamed in 0.4.
    key = "out_shape" if _series(jax.__version__) == (0, 10) else "out_type"
    return jax_triton.triton_call(
        *arguments,
        kernel=kernel,
        grid=grid,
        name=kernel.__name__,
        num_warps=launch.warps,
        num_stages=launch.stages,
        compute_capability=None if capability is None else round(10 * capability),
        **{key: results},
        **constants,
    )


def _interpret(kernel, launch, grid, arguments, results, constants, *arrays):
    """Runs a kernel in Triton's interpreter on NumPy arrays and returns its outputs.

    Entries that the kernel does not write are NaN, or -1 for integers.
    """
    rest = iter(arrays)
    inputs = [x if isinstance(x, int) else _Buffer(np.asarray(next(rest))) for x in arguments]
    outputs = [np.full(r.shape, np.nan if r.dtype.kind != "i" else -1, r.dtype) for r in results]
    settings = {"num_warps": launch.warps, "num_stages": launch.stages}
    with _interpreter:
        kernel[grid](*inputs, *map(_Buffer, outputs), **settings, **constants)
    return tuple(outputs)


class _Buffer:
    """A NumPy array with those methods of a PyTorch tensor that Triton's interpreter calls."""

    def __init__(self, array: np.ndarray):
        self.array = np.require(array, requirements=["C"])
        self.dtype = _TYPES[array.dtype.name]

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def untyped_storage(self) -> "_Buffer":
        return self

    def cpu(self) -> "_Buffer":
        return self

    def new_empty(self, *shape: Any, **device: Any) -> "_Buffer":
        del shape, device
        return _Buffer(self.array)

    def set_(self, *where: Any) -> None:
        """Does nothing, since the buffer shares the memory of its source already."""

    def copy_(self, other: "_Buffer") -> None:
        """Does nothing, since the buffer shares the memory of its source already."""

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.array.shape

    def stride(self) -> tuple[int, ...]:
        return tuple(s // self.array.itemsize for s in self.array.strides)


def _series(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
