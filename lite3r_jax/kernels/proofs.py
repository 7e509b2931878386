"""Records of kernels that were compared with their definitions on a real device.

A record holds for one kind of device, one version of jax and one state of the kernel's code, and
speaks of kinds of calls (`registry.Operator.scope`). This machine's records lie in the user's cache
directory and hold for its driver and this version of the package as well; models write them when
they are loaded on a GPU, and `lite3r device-check` on GPUs and TPUs. Those in `proven/` beside this
file are part of the package; they are what `lite3r device-check --record` wrote on such a device.
"""

import contextlib
import contextvars
import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import jax

from lite3r_jax.files import atomic_write, check_writable, user_cache
from lite3r_jax.kernels.target import Device

COMMITTED = Path(__file__).with_name("proven")
Verdict = Literal["passed", "refused", "failed", "missing"]
_SHARED = (
    "flash_kernels.py",
    "jax_triton_call.py",
    "jax_triton_language.py",
    "launch.py",
    "softmax.py",
    "target.py",
    "triton_call.py",
)
_log = logging.getLogger(__name__)
_folder: contextvars.ContextVar[Path | None] = contextvars.ContextVar("proofs", default=None)
_assumed: contextvars.ContextVar[bool] = contextvars.ContextVar("assumed", default=False)


@dataclasses.dataclass(frozen=True)
class Result:
    """What came out of one case of a self-check.

    Attributes:
        case: its name.
        scope: the kind of calls that it speaks of, see `registry.Operator.scope`.
        verdict: "passed": it agreed with the definition. "refused": the implementation does not
            take it on this device, which says nothing about it. "missing": not all cases of the
            scope were run.
        detail: why it was refused, or what was wrong.
    """

    case: str
    scope: str
    verdict: Verdict
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Proof:
    """The outcome of self-checks of one implementation.

    Attributes:
        operator: its name.
        implementation: its name.
        device_kind: as "NVIDIA H200".
        compute_capability: of that device.
        jax: version.
        driver: version of NVIDIA's driver or of libtpu, or None.
        package: version of this package.
        sources: `digest` of the operator's folder.
        date: day, as 2026-11-30.
        command: with which the record was made.
        results: of all cases.
    """

    operator: str
    implementation: str
    device_kind: str
    compute_capability: float | None
    jax: str
    driver: str | None
    package: str
    sources: str
    date: str
    command: str
    results: tuple[Result, ...]

    @property
    def failures(self) -> tuple[Result, ...]:
        """Results of the cases that failed."""
        return tuple(result for result in self.results if result.verdict == "failed")

    @property
    def passed(self) -> "Proof":
        """This record without the kinds of calls in which a case failed or was not run."""
        wrong = {r.scope for r in self.results if r.verdict in ("failed", "missing")}
        kept = tuple(result for result in self.results if result.scope not in wrong)
        return dataclasses.replace(self, results=kept)

    def failure(self, scope: str) -> str | None:
        """Returns the first failed case of a kind of calls and what was wrong with it, or None."""
        failures = [f"{r.case}: {r.detail}" for r in self.failures if r.scope == scope]
        return failures[0] if failures else None

    def speaks_of(self, scope: str) -> bool:
        """Returns whether a kind of calls has an outcome: a case failed, or all cases were run."""
        verdicts = {r.verdict for r in self.results if r.scope == scope}
        return "failed" in verdicts or ("passed" in verdicts and "missing" not in verdicts)

    def joined(self, older: "Proof | None") -> "Proof":
        """Returns this record with an older one's results for kinds of calls that this one lacks.

        Only an older record of the same key counts, see `_key`.
        """
        if older is None or _key(older) != _key(self):
            return self
        scopes = {result.scope for result in (*older.results, *self.results)}
        kept = {s for s in scopes if older.speaks_of(s) and not self.speaks_of(s)}
        results = [r for r in older.results if r.scope in kept]
        results += [r for r in self.results if r.scope not in kept]
        return dataclasses.replace(self, results=tuple(results))

    @property
    def file_name(self) -> str:
        """Name of the record's file in this machine's folder."""
        return _file_name(
            self.operator, self.implementation, self.device_kind, self.jax, self.driver,
            self.package,
        )  # fmt: skip


def folder() -> Path:
    """Returns the folder of this machine's self-check records."""
    return _folder.get() or user_cache() / "kernels"


@contextlib.contextmanager
def kept_in(path: Path) -> Iterator[None]:
    """Context manager in which this machine's records are read from and written to `path`."""
    token = _folder.set(path)
    try:
        yield
    finally:
        _folder.reset(token)


@contextlib.contextmanager
def assumed() -> Iterator[None]:
    """Context manager in which all kernels count as proven, to plan for a device where they are."""
    token = _assumed.set(True)
    try:
        yield
    finally:
        _assumed.reset(token)


def are_assumed() -> bool:
    """Returns whether the code runs inside of `assumed`, where all kernels count as proven."""
    return _assumed.get()


def find(
    operator: str, implementation: str, device: Device, sources: str, scope: str
) -> Proof | None:
    """Returns the record that speaks of a kind of calls, this machine's or else the package's.

    None where there is no such record. A file that cannot be read counts as no record and is
    logged.

    Args:
        operator: its name.
        implementation: its name.
        device: for which the record has to hold.
        sources: `digest` of the operator's folder.
        scope: the kind of calls.
    """
    for proof in _candidates(operator, implementation, device):
        wanted = operator, implementation, device.kind, jax.__version__, sources
        has = proof.operator, proof.implementation, proof.device_kind, proof.jax, proof.sources
        capable = device.described or proof.compute_capability == device.compute_capability
        if wanted == has and capable and proof.speaks_of(scope):
            return proof
    return None


def _candidates(operator: str, implementation: str, device: Device) -> Iterator[Proof]:
    mine = own(operator, implementation, device)
    if mine is not None:
        yield mine
    for path in sorted(COMMITTED.glob("*.json")):
        yield from read_record(path)


def own(operator: str, implementation: str, device: Device) -> Proof | None:
    """Returns this machine's record of an implementation, for its driver and package version.

    For a device that is only described, the record is one that was made without a driver.
    """
    name = _file_name(
        operator, implementation, device.kind, jax.__version__, device.driver, package_version()
    )
    path = folder() / name
    if not path.exists():
        return None
    for proof in read_record(path):
        if (proof.driver, proof.package) == (device.driver, package_version()):
            return proof
    return None


def write(proof: Proof) -> Path:
    """Writes a record into `folder`, in place of an older one.

    Raises:
        InputError: the folder cannot be written.
    """
    path = folder() / proof.file_name
    write_record(path, [proof])
    return path


def write_record(path: Path, proofs: Iterable[Proof], **more: Any) -> None:
    """Writes self-check records to a file for `read_record`; an existing file is replaced.

    Args:
        path: of the file.
        proofs: the records.
        **more: further JSON values for the file, on which no choice depends.

    Raises:
        InputError: the file cannot be written.
    """
    values = {"proofs": [dataclasses.asdict(proof) for proof in proofs], **more}
    with atomic_write(path, overwrite=True) as partial:
        partial.write_text(json.dumps(values, indent=1) + "\n")


def read_record(path: Path) -> tuple[Proof, ...]:
    """Returns a file's records; none, and a warning, if it cannot be read or holds no records."""
    try:
        listed = json.loads(path.read_text())["proofs"]
        return tuple(_proof(values) for values in listed)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        _log.warning("%s: no record of kernels' proofs (%s); it is ignored", path, error)
        return ()


def _proof(values: dict[str, Any]) -> Proof:
    results = tuple(Result(**result) for result in values["results"])
    proof = Proof(**{**values, "results": results})
    for record in (proof, *results):
        for field in dataclasses.fields(record):
            value = getattr(record, field.name)
            if field.name in ("results", "compute_capability", "driver"):
                continue
            if not isinstance(value, str):
                raise ValueError(f"{field.name}: expected text, got {value!r}")
    if any(result.verdict not in get_args(Verdict) for result in results):
        raise ValueError(f"verdict: expected one of {', '.join(get_args(Verdict))}")
    return proof


def check_folder() -> None:
    """Raises an error if `folder` cannot be written, before time goes into a self-check.

    Raises:
        InputError: the folder cannot be written.
    """
    check_writable(folder() / "record.json")


def digest(sources: Path) -> str:
    """Returns the SHA-256 of an operator's code and of the code that several operators share."""
    digest = hashlib.sha256()
    shared = [Path(__file__).with_name(name) for name in _SHARED]
    tables = sorted(sources.glob("*.json"))
    for path in [*sorted(sources.glob("*.py")), *tables, *shared]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def package_version() -> str:
    """Returns the version of this package."""
    from lite3r_jax import __version__

    return __version__


def _key(proof: Proof) -> Sequence[Any]:
    """Returns the values in which two records have to agree to be joined."""
    return [
        value for name, value in vars(proof).items() if name not in ("date", "command", "results")
    ]


def _file_name(*words: str | None) -> str:
    operator, implementation, kind, version, driver, package = words
    text = f"{operator}-{implementation}-{kind}-jax{version}-driver{driver}-{package}"
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text) + ".json"
