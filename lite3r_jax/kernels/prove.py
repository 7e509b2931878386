"""The self-check: kernels against their definitions on the device that is here, and its record.

    lite3r prove-kernels                         # every kernel that can run here
    lite3r prove-kernels sla --implementation triton

Afterwards "auto" takes what passed (see `registry`). Exit status 1 if a kernel failed, 2 for bad
input.
"""

import argparse
import datetime
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from lite3r_jax.errors import InputError
from lite3r_jax.kernels import proofs, target
from lite3r_jax.kernels.operators import CHECKS, OPERATORS, Checks
from lite3r_jax.kernels.proofs import Proof
from lite3r_jax.kernels.registry import Operator
from lite3r_jax.kernels.target import Device


def self_check(
    operator: Operator[Any],
    implementation: str,
    checks: Checks,
    *,
    device: Device | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Proof:
    """Run all cases of an implementation on the device that is here, and keep the record.

    Args:
        operator: one of `operators.OPERATORS`.
        implementation: one of its implementations that needs a proof.
        checks: those of the operator in `operators.CHECKS`.
        device: what is recorded; the device that is here by default.
        report: gets a line for each case.

    Raises:
        InputError: it needs no proof, refuses every case here, or the record cannot be written.
    """
    device = target.device() if device is None else device
    if device.described:
        raise InputError(f"{device.kind} is only described here: run the self-check on a real one")
    row = operator[implementation]
    if operator.sources is None or not row.needs_proof:
        raise InputError(f"{operator.name} {implementation!r} is plain JAX and needs no proof")
    proofs.check_folder()
    passed, refused, failures, why = [], [], [], None
    for check in checks(implementation):
        if reason := row.refuses(device, check.call):
            refused.append(check.name)
            why = why or reason
            continue
        try:
            wrong = check.run()
        except Exception as error:  # whatever a compiler or a driver raises: it is not proven
            wrong = f"{type(error).__name__}: {one_line(error)}"
        if wrong is None:
            passed.append(check.name)
        else:
            failures.append(f"{check.name}: {wrong}")
        report(f"{operator.name} {implementation}, {check.name}: {wrong or 'fine'}")
    if not passed and not failures:
        raise InputError(f"{operator.name} {implementation!r} cannot run on {device.kind}: {why}")
    from lite3r_jax import __version__

    proof = Proof(
        operator=operator.name,
        implementation=implementation,
        device_kind=device.kind,
        compute_capability=device.compute_capability,
        jax=jax.__version__,
        package=__version__,
        sources=proofs.digest(operator.sources),
        date=datetime.date.today().isoformat(),
        command=f"lite3r prove-kernels {operator.name} --implementation {implementation}",
        passed=tuple(passed),
        refused=tuple(refused),
        failures=tuple(failures),
    )
    path = proofs.write(proof)
    report(f"{'FAILED' if failures else 'proven'} on {device.kind}: {path}")
    return proof


def prove(
    names: Sequence[str] = (),
    implementation: str | None = None,
    report: Callable[[str], None] = print,
) -> list[Proof]:
    """`self_check` of several operators; what cannot run here is named and left out.

    Args:
        names: of operators; all of them by default.
        implementation: only this one; then it is an error that it cannot run.
        report: gets a line for each case.

    Raises:
        InputError: an unknown name, or see `self_check`.
    """
    for name in names:
        if name not in OPERATORS:
            raise InputError(f"{name}: expected an operator: {', '.join(OPERATORS)}")
    operators = [OPERATORS[name] for name in names or OPERATORS]
    wanted = [
        (operator, row.name)
        for operator in operators
        for row in operator.implementations
        if (row.needs_proof if implementation is None else row.name == implementation)
    ]
    if not wanted:
        known = "; ".join(f"{o.name}: {', '.join(o.names)}" for o in operators)
        raise InputError(f"implementation {implementation}: expected one of {known}")
    results = []
    for operator, name in wanted:
        try:
            checks = CHECKS.get(operator.name, lambda name: ())
            results.append(self_check(operator, name, checks, report=report))
        except InputError as error:
            if implementation is not None:
                raise
            report(str(error))
    return results


def one_line(error: Exception) -> str:
    """Its message, for a cell of a table."""
    return " ".join(str(error).split()).replace("|", "/")[:300]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and prove; the exit status."""
    parser = argparse.ArgumentParser(
        prog="lite3r prove-kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("operators", nargs="*", metavar="OPERATOR", help=", ".join(OPERATORS))
    parser.add_argument("--implementation", help="only this one")
    parser.add_argument("--records", type=Path, help="folder of records in place of the user's")
    args = parser.parse_args(argv)
    try:
        with proofs.kept_in(args.records or proofs.folder()):
            made = prove(args.operators, args.implementation)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(any(proof.failures for proof in made))
