"""The one registry of kernels: an operator's implementations, and which of them runs where.

Kernels of this package may be right in an interpreter and compile for a GPU, and still be wrong on
it. Therefore "auto" takes the best implementation that does not refuse the device, dtype and shapes
and is proven on that kind of device (`proofs`). Plain JAX and the libraries that jax calls (cuDNN)
need no proof of ours. An implementation that is asked for by name is the one that runs.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from lite3r_jax.kernels import proofs, target
from lite3r_jax.kernels.target import Device

Call = TypeVar("Call")

_log = logging.getLogger(__name__)


def _never(device: Device, call: Any) -> None:
    del device, call


@dataclass(frozen=True)
class Implementation(Generic[Call]):
    """One way to compute an operator.

    Attributes:
        name: as it is asked for.
        run: computes it. A kernel is imported inside: neither the package nor the choice may need
            the kernel's compiler.
        refuses: why it cannot run a call (dtype and shapes, the operator's own class) on a device,
            as the end of a sentence, or None.
        needs_proof: whether "auto" takes it only on kinds of devices on which it was proven.
    """

    name: str
    run: Callable[..., Any]
    refuses: Callable[[Device, Call], str | None] = _never
    needs_proof: bool = False


@dataclass(frozen=True)
class Check(Generic[Call]):
    """One comparison of an implementation with the definition, on the device that is here.

    Attributes:
        name: of the case.
        call: what is computed; a case that the implementation refuses says nothing about it.
        run: computes it, and says what is wrong, or None.
    """

    name: str
    call: Call
    run: Callable[[], str | None]


@dataclass(frozen=True)
class Operator(Generic[Call]):
    """What is computed, and all ways to compute it.

    Attributes:
        name: of the operator.
        implementations: from the plainest to the best: "auto" is the last that can.
        sources: folder of its kernels, for whose code a proof holds; None where none needs one.
    """

    name: str
    implementations: tuple[Implementation[Call], ...]
    sources: Path | None = None

    def __post_init__(self):
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"{self.name}: two implementations of one name: {self.names}")
        unproven = [i.name for i in self.implementations if i.needs_proof]
        if unproven and self.sources is None:
            raise ValueError(f"{self.name}: {unproven[0]!r} needs a proof, and names no sources")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the implementations."""
        return tuple(i.name for i in self.implementations)

    def __getitem__(self, name: str) -> Implementation[Call]:
        """The implementation of that name.

        Raises:
            ValueError: there is none.
        """
        for implementation in self.implementations:
            if implementation.name == name:
                return implementation
        raise ValueError(
            f"unknown implementation {name!r} of {self.name}, there are: {', '.join(self.names)}"
        )

    def check_name(self, name: str) -> None:
        """Refuse what is neither "auto" nor the name of an implementation.

        Raises:
            ValueError: it is neither.
        """
        if name != "auto" and name not in self.names:
            raise ValueError(
                f"unknown implementation {name!r} of {self.name}, there are: auto, "
                f"{', '.join(self.names)}"
            )

    def choose(self, name: str, call: Call, device: Device | None = None) -> str:
        """The name of the implementation that runs: `name` itself, or what "auto" stands for.

        Where a better one could run and is not proven, that is logged, once per process.

        Args:
            name: of an implementation, or "auto".
            call: dtype and shapes.
            device: the device that is computed on; `target.device()` by default.

        Raises:
            ValueError: an unknown name, or one that cannot run this, with those that can.
        """
        self.check_name(name)
        device = target.device() if device is None else device
        refusals = {i.name: i.refuses(device, call) for i in self.implementations}
        able = [n for n, reason in refusals.items() if reason is None]
        if name == "auto" and able:
            proven = [n for n in able if self.proven(n, device)]
            if proven and proven[-1] != able[-1]:
                _say_once(self._unproven(able[-1], proven[-1], device))
            if proven:
                return proven[-1]
        if name in able:
            return name
        reason = refusals.get(name) or "; ".join(f"{n!r}: {why}" for n, why in refusals.items())
        raise ValueError(
            f"{self.name} {name!r} cannot run this: {reason}; "
            f"{', '.join(able) or 'no implementation'} can"
        )

    def proven(self, name: str, device: Device) -> bool:
        """Whether "auto" may take an implementation on a device."""
        if not self[name].needs_proof or proofs.are_assumed():
            return True
        record = self.proof(name, device)
        return record is not None and not record.failures

    def proof(self, name: str, device: Device) -> proofs.Proof | None:
        """The record of its last self-check on that kind of device, of this code and this jax."""
        assert self.sources is not None
        return proofs.find(self.name, name, device, proofs.digest(self.sources))

    def _unproven(self, better: str, chosen: str, device: Device) -> str:
        record = self.proof(better, device)
        if record is None:
            return (
                f"{self.name}: {chosen!r} runs; {better!r} is meant to be faster, but was never "
                f"proven on {device.kind}: prove it once with "
                f"`lite3r prove-kernels {self.name}`"
            )
        return (
            f"{self.name}: {chosen!r} runs, because {better!r} failed its self-check on "
            f"{device.kind} ({record.failures[0]}); please report {record.file_name}"
        )


@functools.cache
def _say_once(sentence: str) -> None:
    _log.warning(sentence)
