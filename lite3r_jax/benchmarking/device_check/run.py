"""Runs self-checks of all kernels, then all measurements, each part in its own process."""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax

from lite3r_jax.benchmarking.device_check import attention, models, products, tuning
from lite3r_jax.benchmarking.device_check.rows import COLUMNS, Row, cells, line, table
from lite3r_jax.benchmarking.device_check.sizes import REAL, REHEARSAL, Sizes
from lite3r_jax.benchmarking.subprocess_runs import Died, in_subprocess
from lite3r_jax.errors import InputError, unknown_name
from lite3r_jax.files import check_writable
from lite3r_jax.kernels import proofs, target
from lite3r_jax.kernels.operators import CHECKS, OPERATORS
from lite3r_jax.kernels.proofs import Proof
from lite3r_jax.kernels.self_check import Unavailable, in_process, one_line, self_check
from lite3r_jax.kernels.target import Device

Part = Callable[[Sizes, float], Iterator[Row]]
CHECK = "kernels"
# Name -> what measures it, in the order in which that is done.
PARTS: Mapping[str, tuple[Part, ...]] = MappingProxyType(
    {
        "attention": (attention.rows,),
        "linears": (products.rows,),
        "heads": (models.camera_rows, models.depth_rows),
        "models": tuple(
            partial(models.model_rows, backbone, variant)
            for backbone in ("vggt", "da3")
            for variant in models.VARIANTS
        ),
        "tune": (tuning.rows,),
    }
)
# Parts that are done only where they are asked for.
ON_REQUEST = ("tune",)
# Platforms that kernels of this package are for.
_CHECKED = ("gpu", "tpu")
REHEARSES = (
    "There is no GPU and no TPU: kernels are not checked, and what follows is a rehearsal at small"
    " sizes, whose times say nothing about a GPU or TPU."
)


@dataclass(frozen=True)
class Outcome:
    """Results of a device check: proofs of kernels, and rows of measurements.

    Attributes:
        proofs: records of the self-checks that could be made.
        rows: of what was measured, and of what was not.
    """

    proofs: tuple[Proof, ...]
    rows: tuple[Row, ...]

    @property
    def failed(self) -> int:
        """Number of kernel cases in which something was wrong."""
        return sum(len(proof.failures) for proof in self.proofs)

    @property
    def missing(self) -> int:
        """Number of rows without figures."""
        return sum(row.figures is None for row in self.rows)


def device_check(
    *,
    minutes: float = 8.0,
    record: Path | None = None,
    parts: Sequence[str] = (),
    report: Callable[[str], None] = print,
) -> Outcome:
    """Check the kernels of this package on this machine's GPU or TPU, and measure on it.

    Everything runs in processes of their own, one after the other, since a TPU can be used by one
    process at a time. The calling process must not have used it before.

    What is done is kept if time runs out or a process dies: self-checks in the user's cache
    directory, and all of it in `record`, which is written anew after each part.

    Args:
        minutes: after which nothing more is begun; at most half of them for the self-checks, if
            there is more to do.
        record: JSON file for the proofs and the table; in `lite3r_jax/kernels/proven/` it makes
            kernels proven on such devices. What is there is replaced.
        parts: of `PARTS`, or "kernels" for the self-checks; by default all but `ON_REQUEST`.
        report: gets every line of the report, in Markdown, as soon as it is known.

    Raises:
        InputError: an unknown part, or a place that cannot be written; before anything is measured.
    """
    for name in parts:
        if name not in (CHECK, *PARTS):
            raise unknown_name("part", name, (CHECK, *PARTS))
    if not minutes >= 0:
        raise InputError(f"minutes: expected a number that is not negative, got {minutes}")
    if record is not None:
        check_writable(record)
    end = time.time() + 60 * minutes
    device = found_device()
    real = device.platform in _CHECKED
    sizes = dataclasses.replace(REAL if real else REHEARSAL, platform=device.platform)
    if real:
        proofs.check_folder()
    report(f"lite3r_jax {proofs.package_version()}, jax {jax.__version__}, {device}")
    if not real:
        report(REHEARSES)
    outcome = Outcome((), ())
    if not parts or CHECK in parts:
        # What is left of the time goes to measurements.
        until = end if set(parts) == {CHECK} else end - 30 * minutes
        outcome = Outcome(tuple(_checks(device, until, report)), ())
        _keep(record, outcome)
    parts = parts or [name for name in PARTS if name not in ON_REQUEST]
    wanted = [p for name, each in PARTS.items() if name in parts for p in each]
    if not real:  # the small model is VGGT's
        wanted = [p for p in wanted if not isinstance(p, partial) or p.args[0] == "vggt"]
    if wanted:
        report("")
        report(line(COLUMNS))
        report("|" + "---|" * len(COLUMNS))
    first: dict[tuple[str, int, str], Any] = {}
    for part in wanted:
        for row in _rows(part, sizes, end):
            key = row.part, row.views, row.what
            report(line(cells(row, first.setdefault(key, row.figures))))
            outcome = dataclasses.replace(outcome, rows=(*outcome.rows, row))
        _keep(record, outcome)
    report("")
    report(
        f"{outcome.failed} cases of kernels failed, {outcome.missing} of {len(outcome.rows)}"
        " measurements are missing"
    )
    return outcome


def found_device() -> Device:
    """Returns the device that a new process finds, so that this process does not occupy it.

    Raises:
        InputError: jax finds none.
    """
    try:
        [device] = in_subprocess(_device)
    except (Died, RuntimeError) as error:
        raise InputError(f"jax finds no device: {one_line(error)[-200:]}") from error
    return device


def _device() -> Iterator[Device]:
    yield target.device()


def _checks(device: Device, end: float, report: Callable[[str], None]) -> Iterator[Proof]:
    """Checks all kernels and yields their proofs; reports which could not be checked."""
    run = partial(in_process, end=time.monotonic() + end - time.time())
    for name in CHECKS:
        for row in OPERATORS[name].implementations:
            if not row.needs_proof:
                continue
            if device.platform not in _CHECKED:
                report(f"{name} {row.name}: not checked, its kernels are for GPUs or TPUs")
                continue
            try:
                yield self_check(OPERATORS[name], row.name, run, device=device, report=report)
            except (InputError, Unavailable) as error:
                report(f"{name} {row.name}: not checked: {error}")


def _rows(part: Part, sizes: Sizes, end: float) -> Iterator[Row]:
    """Yields the rows of a part, measured in a process of its own while there is time."""
    if time.time() >= end:
        yield from part(sizes, end)
        return
    seen = 0
    try:
        for row in in_subprocess(part, sizes, end):
            seen += 1
            yield row
    except (Died, RuntimeError, InputError) as error:
        print(f"a part of the check ended: {error}", file=sys.stderr)
        for row in list(part(sizes, 0.0))[seen:]:
            yield dataclasses.replace(row, note=f"not measured: {one_line(error)[-200:]}")


def _keep(record: Path | None, outcome: Outcome) -> None:
    if record is not None:
        proofs.write_record(
            record,
            [proof.passed for proof in outcome.proofs],
            failed=[dataclasses.asdict(proof) for proof in outcome.proofs if proof.failures],
            rows=[dataclasses.asdict(row) for row in outcome.rows],
            table=table(outcome.rows),
        )
