"""Records of kernels that were compared with their definitions on a real device.

A record holds for one kind of device, one version of jax and one state of the kernel's code. This
machine's records lie in the user's cache directory, where `prove` writes them. Those in `proven/`
beside this file are part of the package; they were made by the same command on such a device.
"""

import contextlib
import contextvars
import dataclasses
import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax

from lite3r_jax.errors import InputError
from lite3r_jax.files import atomic_write, user_cache
from lite3r_jax.kernels.target import Device

COMMITTED = Path(__file__).with_name("proven")
_log = logging.getLogger(__name__)
_folder: contextvars.ContextVar[Path | None] = contextvars.ContextVar("proofs", default=None)
_assumed: contextvars.ContextVar[bool] = contextvars.ContextVar("assumed", default=False)


@dataclasses.dataclass(frozen=True)
class Proof:
    """The outcome of a self-check.

    Attributes:
        operator: its name.
        implementation: its name.
        device_kind: as "NVIDIA H200".
        compute_capability: of that device.
        jax: version.
        package: version of this package.
        sources: `digest` of the operator's folder.
        date: day, as 2026-11-30.
        command: with which the record was made.
        passed: names of the cases that agreed with the definition.
        refused: cases that the implementation does not take on this device.
        failures: "case: what was wrong"; empty where the implementation is proven.
    """

    operator: str
    implementation: str
    device_kind: str
    compute_capability: float | None
    jax: str
    package: str
    sources: str
    date: str
    command: str
    passed: tuple[str, ...]
    refused: tuple[str, ...]
    failures: tuple[str, ...]

    @property
    def file_name(self) -> str:
        """Of the record, in any folder."""
        return _file_name(self.operator, self.implementation, self.device_kind, self.jax)


def folder() -> Path:
    """Where this machine's records lie."""
    return _folder.get() or user_cache() / "kernels"


@contextlib.contextmanager
def kept_in(path: Path) -> Iterator[None]:
    """Inside, this machine's records are read from and written to `path`."""
    token = _folder.set(path)
    try:
        yield
    finally:
        _folder.reset(token)


@contextlib.contextmanager
def assumed() -> Iterator[None]:
    """Inside, every kernel counts as proven: to plan for a device on which it would be."""
    token = _assumed.set(True)
    try:
        yield
    finally:
        _assumed.reset(token)


def are_assumed() -> bool:
    """Whether this runs inside of `assumed`."""
    return _assumed.get()


def find(operator: str, implementation: str, device: Device, sources: str) -> Proof | None:
    """The record for that device, this jax and that code: this machine's, else the package's.

    What cannot be read counts as no record and is logged.
    """
    name = _file_name(operator, implementation, device.kind, jax.__version__)
    for path in (folder() / name, COMMITTED / name):
        proof = _read(path)
        if proof is None:
            continue
        wanted = operator, implementation, device.kind, jax.__version__, sources
        has = proof.operator, proof.implementation, proof.device_kind, proof.jax, proof.sources
        capable = device.described or proof.compute_capability == device.compute_capability
        if wanted == has and capable:
            return proof
    return None


def write(proof: Proof) -> Path:
    """Put a record into `folder`, in place of an older one.

    Raises:
        InputError: the folder cannot be written.
    """
    path = folder() / proof.file_name
    with atomic_write(path, overwrite=True) as partial:
        partial.write_text(json.dumps(dataclasses.asdict(proof), indent=1) + "\n")
    return path


def check_folder() -> None:
    """Refuse a `folder` that cannot be written, before time goes into a check.

    Raises:
        InputError: it cannot.
    """
    try:
        folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder()):
            pass
    except OSError as error:
        raise InputError(f"{folder()}: cannot be written ({error.strerror})") from error


def digest(sources: Path) -> str:
    """SHA-256 of the code of an operator and of how its kernels are started."""
    digest = hashlib.sha256()
    for path in [*sorted(sources.glob("*.py")), Path(__file__).with_name("triton_call.py")]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _file_name(operator: str, implementation: str, kind: str, version: str) -> str:
    return f"{operator}-{implementation}-{re.sub(r'[^A-Za-z0-9]+', '_', kind)}-jax{version}.json"


def _read(path: Path) -> Proof | None:
    try:
        values = json.loads(path.read_text())
        lists = {name: tuple(values[name]) for name in ("passed", "refused", "failures")}
        return Proof(**{**values, **lists})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        _log.warning("%s: no record of a kernel's proof (%s); it is ignored", path, error)
        return None
