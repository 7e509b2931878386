"""Compiles programs for TPUs that are only described, on machines without one.

XLA's compiler for TPUs is libtpu, in the version that `jax[tpu]` names for this jax. `make
test-tpu-compile` puts it into a folder of its own, since with it among the packages jax looks for
TPUs; that folder goes into PYTHONPATH, with JAX_PLATFORMS=cpu.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from lite3r_jax import InputError
from lite3r_jax.kernels import proofs


@dataclass(frozen=True)
class Chip:
    """A kind of TPU chip.

    Attributes:
        kind: as jax names it.
        slices: number of chips -> shape, from the smallest slice that libtpu describes, one host's.
        cores: of one device of jax.
        memory: bytes that the chip has (cloud.google.com/tpu/docs, 2026-11).
    """

    kind: str
    slices: Mapping[int, str]
    cores: int
    memory: int


_FLAT = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8"}
_CUBE = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4"}
CHIPS = MappingProxyType(
    {
        "v5e": Chip("TPU v5 lite", _FLAT, 1, 16 * 2**30),
        "v5p": Chip("TPU v5", _CUBE, 2, 95 * 2**30),
        "v6e": Chip("TPU v6 lite", _FLAT, 1, 32 * 2**30),
    }
)


def devices(chip: str, count: int) -> list[Any]:
    """Returns described TPUs of the smallest slice that has `count` chips.

    Args:
        chip: name in `CHIPS`.
        count: how many of its chips.

    Raises:
        InputError: no slice that is listed has so many, or there is no libtpu.
    """
    slices = CHIPS[chip].slices
    shape = next((shape for chips, shape in slices.items() if chips >= count), None)
    if shape is None:
        raise InputError(f"{count} chips of {chip}: expected at most {max(slices)}")
    from jax.experimental import topologies

    library = _library()
    # What it would ask a TPU machine's metadata server for, and that others may have loaded it too,
    # which it refuses by a lock file; none of them holds a chip.
    for name, value in {
        "TPU_LIBRARY_PATH": str(library),
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(name, value)
    topology = topologies.get_topology_desc(platform="tpu", topology_name=f"{chip}:{shape}")
    return list(topology.devices[:count])


def mesh(chip: str) -> jax.sharding.Mesh:
    """Returns one described TPU as a mesh of one axis, "x"; see `devices`."""
    return jax.sharding.Mesh(np.array(devices(chip, 1)), ("x",))


def _library() -> Path:
    spec = importlib.util.find_spec("libtpu")
    places = [] if spec is None else spec.submodule_search_locations or []
    for place in places:
        if (Path(place) / "libtpu.so").exists():
            return Path(place) / "libtpu.so"
    raise InputError(
        "libtpu is not there, which compiles for TPUs: `make test-tpu-compile` installs it into "
        ".venv/tpu; then set PYTHONPATH=.venv/tpu and JAX_PLATFORMS=cpu"
    )


@contextmanager
def traced_for(chip: str) -> Iterator[None]:
    """Makes a `with` block trace for a described TPU, on which all kernels count as proven."""
    row = CHIPS[chip]
    device = jax.sharding.AbstractDevice(row.kind, num_cores=row.cores, platform="tpu")
    with (
        proofs.assumed(),
        jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)),
    ):
        yield


def lower(chip: str, call: Callable[..., Any], *args: Any) -> jax.stages.Lowered:
    """Lowers `call`, or a jitted function, of described arguments on a `mesh`, for a chip."""
    jitted: Any = call if hasattr(call, "trace") else jax.jit(call)
    with traced_for(chip):
        return jitted.trace(*args).lower(lowering_platforms=("tpu",))
