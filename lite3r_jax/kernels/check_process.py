"""The process of a self-check: runs cases on this machine's GPU or TPU and prints a line for each.

    python -m lite3r_jax.kernels.check_process OPERATOR IMPLEMENTATION --device KIND
        [--quick] [--scopes SCOPE ...]

Lines are JSON: `{"cases": {scope: number}}` first, then `{"case", "scope"}` before a case is run
and all of `proofs.Result` afterwards; or only `{"unavailable"}`. See `self_check.in_process`.
"""

import argparse
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lite3r_jax.kernels import target
from lite3r_jax.kernels.operators import CHECKS, OPERATORS
from lite3r_jax.kernels.self_check import one_line, run_case


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the self-check cases that are asked for; returns 0 even where some failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("operator", choices=CHECKS)
    parser.add_argument("implementation")
    parser.add_argument("--device", required=True, help="kind of device that has to be here")
    parser.add_argument("--quick", action="store_true", help="only the few of a model's loading")
    parser.add_argument("--scopes", nargs="+", help="only of these kinds of calls")
    args = parser.parse_args(argv)
    try:
        device = target.device()
    except RuntimeError as error:
        return _say(unavailable=one_line(error))
    if device.kind != args.device:
        return _say(unavailable=f"a second process finds {device.kind} and not {args.device}")
    operator = OPERATORS[args.operator]
    checks = [
        (operator.scope(check.call), check)
        for check in CHECKS[args.operator](args.implementation)
        if check.quick or not args.quick
    ]
    checks = [x for x in checks if args.scopes is None or x[0] in args.scopes]
    _say(cases=Counter(scope for scope, _ in checks))
    for scope, check in checks:
        _say(case=check.name, scope=scope)
        result = run_case(operator, args.implementation, check, device)
        _say(**dataclasses.asdict(result))
        if "CUDA_ERROR" in result.detail:  # after which every other case would fail as well
            return 0
    return 0


def _say(**values: Any) -> int:
    print(json.dumps(values), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
