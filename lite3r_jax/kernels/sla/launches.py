"""Launch parameters of the kernels of `jax_triton`: tables by device, compiled or timed.

A table is a JSON file:

    {"format": "lite3r_jax kernel launches 1", "made": "2026-12-01, triton 3.7.1, by ...",
     "rows": [{"device": "compute capability 9.0", "kernel": "sla_forward", "dtype": "half",
               "head_dim": 64, "q_block": 128, "rows": 128, "warps": 8, "stages": 4,
               "registers": 119, "spilled": 0, "shared_memory": 66056, "microseconds": null}, ...]}

`launches.json` beside this file has what compiling shows, for compute capabilities, and no time
(`python -m tools.tune_kernels`). A table in the user's cache directory is for a kind of device and
was timed there (`lite3r device-check tune`); it comes first. This module imports no kernel.
"""

import dataclasses
import functools
import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from lite3r_jax.files import atomic_write
from lite3r_jax.kernels import proofs
from lite3r_jax.kernels.launch import Launch
from lite3r_jax.kernels.sla.limits import SlaCall
from lite3r_jax.kernels.target import Device

FORMAT = "lite3r_jax kernel launches 1"
COMPILED = Path(__file__).with_name("launches.json")
KERNELS: tuple[str, ...] = ("sla_forward", "sla_query_gradient", "sla_key_gradient")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RowsLaunch(Launch):
    """Launch parameters of one kernel, with its rows of queries.

    Attributes:
        rows: queries of one program, or of one step of the key gradient; no more than a block has.
    """

    rows: int


@dataclass(frozen=True)
class Launches:
    """Launch parameters of the three kernels of `jax_triton`.

    Attributes:
        forward: output and log-sum-exp.
        query_gradient: gradient of queries.
        key_gradient: gradients of keys and values.
    """

    forward: RowsLaunch
    query_gradient: RowsLaunch
    key_gradient: RowsLaunch


@dataclass(frozen=True)
class Row:
    """One row of a table: a kernel, what it is compiled for, and how it is launched there.

    Attributes:
        device: "compute capability 9.0", or a kind of device, as "NVIDIA H200".
        kernel: of `KERNELS`.
        dtype: "half" (bfloat16 and float16) or "float32".
        head_dim: D.
        q_block: queries per block.
        rows: see `RowsLaunch`.
        warps: per program.
        stages: of the pipeline.
        registers: per thread.
        spilled: bytes of local memory per thread, of registers that were too few.
        shared_memory: bytes per program.
        microseconds: of the kernel at the size that was timed; None where it was only compiled.
    """

    device: str
    kernel: str
    dtype: str
    head_dim: int
    q_block: int
    rows: int
    warps: int
    stages: int
    registers: int
    spilled: int
    shared_memory: int
    microseconds: float | None = None

    @property
    def launch(self) -> RowsLaunch:
        """Launch parameters of the kernel."""
        return RowsLaunch(self.warps, self.stages, self.rows)

    @property
    def capability(self) -> float | None:
        """Compute capability of a row that is for one; None for a kind of device."""
        match = re.fullmatch(r"compute capability (\d+\.\d)", self.device)
        return float(match[1]) if match else None


def launches(device: Device, call: SlaCall) -> Launches:
    """Returns the launch parameters of the kernels on a device for a kind of calls.

    Raises:
        ValueError: none of the tables has a row that fits the device.
    """
    rows = [_find(device, call, kernel) for kernel in KERNELS]
    if None in rows:
        raise ValueError(too_little_shared_memory(device, call))
    return Launches(*(row.launch for row in rows if row is not None))


def too_little_shared_memory(device: Device, call: SlaCall) -> str | None:
    """Returns why no launch of the kernels fits on a device, or None."""
    if all(_find(device, call, kernel) for kernel in KERNELS):
        return None
    return (
        f"no launch of its kernels for {jnp.dtype(call.dtype)} and head dim {call.head_dim} fits"
        f" into the {device.shared_memory // 1024} KiB of shared memory that a block has on"
        f" {device.kind}"
    )


def _find(device: Device, call: SlaCall, kernel: str) -> Row | None:
    """Returns a kernel's row for this kind of device, else for the closest lower capability.

    For a device whose capability is below all, or not known, or that has none, returns the lowest.
    """
    wanted = kernel, dtype_class(call.dtype), call.head_dim, call.q_block
    own = read(user_table(device)) if user_table(device).exists() else ()
    for row in own:
        if row.device == device.kind and _key(row) == wanted:
            return row
    fitting = [
        row
        for row in compiled()
        if _key(row) == wanted and row.shared_memory <= device.shared_memory
    ]
    capability = device.compute_capability or 0.0
    lower = [row for row in fitting if (row.capability or 0) <= capability]
    if lower:
        return max(lower, key=lambda row: row.capability or 0)
    return min(fitting, key=lambda row: row.capability or 0, default=None)


def dtype_class(dtype: Any) -> str:
    """Returns the name of a dtype's rows; dtypes of two bytes are launched alike."""
    return "half" if jnp.dtype(dtype).itemsize == 2 else "float32"


def user_table(device: Device) -> Path:
    """Returns the path of the table of launches that were timed on this machine's device."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", f"launches-{device.kind}")
    return proofs.folder() / f"{name}.json"


@functools.cache
def compiled() -> tuple[Row, ...]:
    """Returns the rows of the table that comes with the package."""
    return read(COMPILED)


def read(path: Path) -> tuple[Row, ...]:
    """Returns a table's rows; none, and a warning, if it cannot be read or is something else."""
    try:
        table = json.loads(path.read_text())
        if table["format"] != FORMAT:
            raise ValueError(f"its format is {table['format']!r} and not {FORMAT!r}")
        return tuple(_row(values) for values in table["rows"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        _log.warning("%s: no table of kernel launches (%s); it is ignored", path, error)
        return ()


def write(path: Path, rows: Iterable[Row], made: str) -> None:
    """Writes a table of launches, in place of an existing one.

    Args:
        path: of the file.
        rows: of the table.
        made: when, with what and by which command.

    Raises:
        InputError: the file cannot be written.
    """
    lines = ",\n  ".join(json.dumps(dataclasses.asdict(row)) for row in rows)
    head = f'{{"format": {json.dumps(FORMAT)}, "made": {json.dumps(made)}'
    with atomic_write(path, overwrite=True) as partial:
        partial.write_text(f'{head}, "rows": [\n  {lines}\n]}}\n')


def _row(values: dict[str, Any]) -> Row:
    row = Row(**values)
    whole = row.head_dim, row.q_block, row.rows, row.warps, row.stages, row.registers
    if not all(type(x) is int and x > 0 for x in (*whole, row.shared_memory)):
        raise ValueError(f"expected whole numbers above 0 in {values}")
    if type(row.spilled) is not int or row.spilled < 0 or not isinstance(row.device, str):
        raise ValueError(f"expected a number of bytes that are spilled and a device in {values}")
    powers = row.rows, row.warps
    if any(x & (x - 1) for x in powers) or row.rows > row.q_block or row.kernel not in KERNELS:
        raise ValueError(f"cannot be launched: {values}")
    return row


def _key(row: Row) -> Sequence[Any]:
    return row.kernel, row.dtype, row.head_dim, row.q_block
