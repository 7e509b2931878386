"""Self-check of kernels: compares them with their definitions on this device, keeps a record.

`check_model_kernels` is what a model does when it is loaded on a GPU, `self_check` what
`lite3r device-check` does. Cases run in a process of their own: a kernel that hangs is ended after
some time, and one that reads memory it must not ends no other work.
"""

import contextlib
import datetime
import json
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import IO, Any, cast

import jax

from lite3r_jax.errors import InputError
from lite3r_jax.interrupts import kept_from_children
from lite3r_jax.kernels import proofs, target
from lite3r_jax.kernels.proofs import Proof, Result
from lite3r_jax.kernels.registry import Check, Decision, Operator, decisions
from lite3r_jax.kernels.target import Device

CASE_SECONDS = 120.0
"""Seconds that one case may take, compiling included, before it counts as hung."""
START_SECONDS = 180.0
"""Seconds that the process of a self-check may take until it has a device."""
_COMMAND = (sys.executable, "-m", "lite3r_jax.kernels.check_process")
_log = logging.getLogger(__name__)


class Unavailable(Exception):
    """Raised where no self-check case could be run, which says nothing about the kernel."""


# (operator, implementation, scopes or None for all, whether only quick cases, kind of device).
Runner = Callable[[str, str, Collection[str] | None, bool, str], Iterator[Result]]


def run_case(
    operator: Operator[Any], implementation: str, check: Check[Any], device: Device
) -> Result:
    """Runs one self-check case in this process; one that runs out of memory counts as not run."""
    scope = operator.scope(check.call)
    if reason := operator[implementation].unable(device, check.call):
        return Result(check.name, scope, "refused", reason)
    try:
        wrong = check.run()
    except Exception as error:  # whatever a compiler or a driver raises: it is not proven
        wrong = f"{type(error).__name__}: {one_line(error)}"
        if _device_is_full(wrong):
            return Result(check.name, scope, "missing", wrong)
    return Result(check.name, scope, "failed" if wrong else "passed", wrong or "")


def _device_is_full(error: str) -> bool:
    """Returns whether an error says that memory ran out that other programs use too.

    Memory inside of a core (vmem, smem) is the kernel's own and does not count.
    """
    own = re.search(r"memory space (vmem|smem)", error, re.IGNORECASE)
    return own is None and re.search("out.of.memory", error, re.IGNORECASE) is not None


def in_process(
    operator: str,
    implementation: str,
    scopes: Collection[str] | None,
    quick: bool,
    kind: str,
    *,
    command: Sequence[str] = _COMMAND,
    start_seconds: float = START_SECONDS,
    case_seconds: float = CASE_SECONDS,
    end: float | None = None,
) -> Iterator[Result]:
    """Runs self-check cases in another process, which is ended when a case takes too long.

    A case that was begun and has no answer, because the process died or was ended, counts as
    failed. For each kind of calls whose cases were not all run, a last result says so.

    Args:
        operator: name in `operators.OPERATORS`.
        implementation: name of one of its implementations.
        scopes: only cases of these kinds of calls; None for all.
        quick: only the few that a model waits for.
        kind: of device that the process has to find.
        command: what starts the process, see `check_process`.
        start_seconds: until the process has a device.
        case_seconds: for each case.
        end: `time.monotonic()` at which no further case is waited for; what was running then has
            no answer, and did not fail.

    Raises:
        Unavailable: the process had no device, or ended before its first case.
    """
    arguments = [operator, implementation, "--device", kind, *(["--quick"] if quick else [])]
    arguments += [] if scopes is None else ["--scopes", *sorted(scopes)]
    # Beside this process, which may have most of the device's memory already.
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115, closed below
    with kept_from_children(signal.SIGINT):  # this process ends that one
        process = subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE, stderr=errors, text=True, env=environment,
        )  # fmt: skip
    assert process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    begun, running = False, None
    waiting: Counter[str] = Counter()
    try:
        while True:
            allowed = case_seconds if begun else start_seconds
            left = allowed if end is None else min(allowed, end - time.monotonic())
            try:
                line = lines.get(timeout=max(left, 0))
            except queue.Empty:
                if left < allowed:
                    yield from _missing(waiting, "there was no time for all cases")
                    return
                wrong = f"no answer in {allowed:g} seconds"
            else:
                if line is not None:
                    answer = _answer(line)
                    if "unavailable" in answer:
                        raise Unavailable(answer["unavailable"])
                    if "cases" in answer:
                        waiting = Counter(cast(Any, answer["cases"]))
                    elif "verdict" in answer:
                        running = None
                        waiting[answer["scope"]] -= 1
                        yield Result(**cast(Any, answer))
                    elif "case" in answer:
                        begun, running = True, answer
                    continue
                code = process.wait()
                if running is None and (begun or code == 0):
                    yield from _missing(waiting, f"the process ended with code {code}")
                    return
                wrong = f"the process ended with code {code}: {_last_line(errors)}"
            if running is None:
                raise Unavailable(wrong)
            yield Result(running["case"], running["scope"], "failed", wrong)
            waiting[running["scope"]] = 0
            yield from _missing(waiting, wrong)
            return
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
        errors.close()


def _missing(waiting: "Counter[str]", why: str) -> Iterator[Result]:
    """Yields a "missing" result for every kind of calls of which cases were not run."""
    for scope, cases in waiting.items():
        if cases > 0:
            yield Result(f"{cases} more", scope, "missing", why)


def _read(stream: IO[str], lines: "queue.Queue[str | None]") -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def _answer(line: str) -> dict[str, str]:
    """Parses a line of the process's output as JSON; an empty dict for a library's own output."""
    try:
        answer = json.loads(line)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _last_line(errors: IO[str]) -> str:
    errors.seek(0)
    return one_line((errors.read().strip() or "without a word").splitlines()[-1])


def self_check(
    operator: Operator[Any],
    implementation: str,
    run: Runner,
    *,
    device: Device | None = None,
    scopes: Collection[str] | None = None,
    quick: bool = False,
    command: str = "lite3r device-check",
    report: Callable[[str], None] = lambda line: None,
) -> Proof:
    """Runs an implementation's self-check on this device and writes the record.

    Results that an older record has for other kinds of calls stay in it.

    Args:
        operator: one of `operators.OPERATORS`.
        implementation: one of its implementations that needs a proof.
        run: yields the results; `in_process`, except in tests.
        device: the device of the record; by default the one that is here.
        scopes: only cases of these kinds of calls; None for all.
        quick: only the few that a model waits for.
        command: what the record names as the command that made it.
        report: is called with a line for each case.

    Raises:
        InputError: the implementation needs no proof or refuses every case here, the device is only
            described, or the record cannot be written.
        Unavailable: no case could be run.
    """
    device = target.device() if device is None else device
    if device.described:
        raise InputError(f"{device.kind} is only described here: run the self-check on a real one")
    if operator.sources is None or not operator[implementation].needs_proof:
        raise InputError(f"{operator.name} {implementation!r} is plain JAX and needs no proof")
    proofs.check_folder()
    results = []
    for result in run(operator.name, implementation, scopes, quick, device.kind):
        results.append(result)
        if result.verdict != "refused":
            report(f"{operator.name} {implementation}, {result.case}: {result.detail or 'fine'}")
    asked = [result for result in results if result.verdict in ("passed", "failed")]
    if not asked:
        why = results[0].detail if results else "there was no time for a case"
        raise InputError(f"{operator.name} {implementation!r} cannot run on {device.kind}: {why}")
    proof = Proof(
        operator=operator.name,
        implementation=implementation,
        device_kind=device.kind,
        compute_capability=device.compute_capability,
        jax=jax.__version__,
        driver=device.driver,
        package=proofs.package_version(),
        sources=proofs.digest(operator.sources),
        date=datetime.date.today().isoformat(),
        command=command,
        results=tuple(results),
    ).joined(proofs.own(operator.name, implementation, device))
    path = proofs.write(proof)
    verdicts = {result.verdict for result in results}
    word = "FAILED" if "failed" in verdicts else "proven"
    word += " in part" if word == "proven" and "missing" in verdicts else ""
    report(f"{operator.name} {implementation}: {word} on {device.kind}: {path}")
    return proof


def check_model_kernels(
    describe: Callable[[], object],
    operators: Mapping[str, Operator[Any]],
    *,
    device: Device | None = None,
    run: Runner = in_process,
) -> None:
    """Runs the self-check of the kernels that a model would use here, where it was not run yet.

    Afterwards "auto" takes what passed, and the plain form in the place of what did not, which is
    logged. Nothing is done without a GPU, or in a run of several processes, all of which must
    choose alike: there only records count that were made before. Likewise nothing is done on a
    TPU, which only one process at a time can hold, and this process holds it.

    Args:
        describe: asks the registry for the implementation of everything that the model computes.
        operators: by name; `operators.OPERATORS`.
        device: the device that is here by default.
        run: yields the results; `in_process`, except in tests.

    Raises:
        ValueError: a kernel that was asked for by name failed, or cannot run here.
    """
    device = target.device() if device is None else device
    if device.platform != "gpu" or device.described or jax.process_count() > 1:
        return
    tried: set[tuple[str, str]] = set()
    # Where the best fails there may be a second best, which nothing asked for before.
    while wanted := [d for d in _unchecked(describe) if (d.operator, d.best) not in tried]:
        key = operator, best = wanted[0].operator, wanted[0].best
        tried.add(key)
        scopes = {d.scope for d in wanted if (d.operator, d.best) == key}
        _log.warning(
            "%s %r: checked on %s for %s, once; this may take some minutes",
            operator, best, device.kind, ", ".join(sorted(scopes)),
        )  # fmt: skip
        try:
            self_check(
                operators[operator], best, run, device=device, scopes=scopes, quick=True,
                command="when a model was loaded",
            )  # fmt: skip
        except (InputError, Unavailable) as error:
            _log.warning("%s %r: could not be checked: %s", operator, best, error)
    describe()  # says what fell back


def _unchecked(describe: Callable[[], object]) -> list[Decision]:
    with decisions() as made:
        describe()
    return [decision for decision in made if decision.state == "unchecked"]


def one_line(error: object) -> str:
    """Returns an error's message as one line of at most 300 characters, for a cell of a table."""
    return " ".join(str(error).split()).replace("|", "/")[:300]
