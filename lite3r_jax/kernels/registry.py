"""Registry of each operator's implementations (plain JAX or kernels) and the choice among them.

Kernels of this package may be right in an interpreter and compile for a GPU, and still be wrong on
it. Therefore "auto" takes the best implementation that does not refuse the device, dtype and shapes
and is proven on that kind of device (`proofs`). Plain JAX and the libraries that jax calls (cuDNN)
need no proof of ours. An implementation that is asked for by name is the one that runs, or an error
where it cannot run or failed its self-check here.
"""

import contextlib
import contextvars
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from lite3r_jax.kernels import proofs, target
from lite3r_jax.kernels.target import Device

Call = TypeVar("Call")

_log = logging.getLogger(__name__)
_watched: contextvars.ContextVar["list[Decision] | None"] = contextvars.ContextVar(
    "decisions", default=None
)
REPORT_TO = "please report it with that file"


def _never(device: Device, call: Any) -> None:
    del device, call


def _nothing() -> None:
    """Returns None: the implementation lacks no package and fits the mesh in use."""


@dataclass(frozen=True)
class Implementation(Generic[Call]):
    """An implementation of an operator: its function, when it can run and when it is chosen.

    Attributes:
        name: by which it is asked for.
        run: computes it. A kernel is imported inside: neither the package nor the choice may need
            the kernel's compiler.
        refuses: why it cannot run a call (dtype and shapes, the operator's own class) on a device,
            as the end of a sentence, or None.
        needs_proof: whether "auto" takes it only on kinds of devices on which it was proven.
        missing: why it cannot run with the packages that are installed or on the mesh in use, and
            what to do about it, as the end of a sentence, or None. "auto" says so where it could
            run otherwise.
    """

    name: str
    run: Callable[..., Any]
    refuses: Callable[[Device, Call], str | None] = _never
    needs_proof: bool = False
    missing: Callable[[], str | None] = _nothing

    def unable(self, device: Device, call: Call) -> str | None:
        """Returns why `call` cannot run on `device` with what is installed, or None."""
        return self.refuses(device, call) or self.missing()


@dataclass(frozen=True)
class Check(Generic[Call]):
    """A self-check case: one comparison of an implementation with its definition on this device.

    Attributes:
        name: of the case.
        call: what is computed; a case that the implementation refuses says nothing about it.
        run: computes it, and says what is wrong, or None.
        quick: whether it is one of the few that a model waits for when it is loaded.
    """

    name: str
    call: Call
    run: Callable[[], str | None]
    quick: bool = False


@dataclass(frozen=True)
class Decision:
    """Which implementation of an operator was chosen for a kind of calls, and on what grounds.

    Attributes:
        operator: its name.
        scope: the kind of calls, see `Operator.scope`.
        chosen: the implementation that runs.
        best: the one that "auto" would take if it were proven: the best that was not checked, or
            else the best that failed; `chosen` where there is none, or by name.
        state: of `best`: "verified" by a record; "fell back", since it failed its self-check;
            "unchecked" without a record; "plain" where it needs none.
        detail: what was wrong.
    """

    operator: str
    scope: str
    chosen: str
    best: str
    state: Literal["verified", "fell back", "unchecked", "plain"]
    detail: str = ""

    def __str__(self) -> str:
        """Returns the decision as one line of a report."""
        state = {
            "verified": "verified on this kind of device",
            "fell back": f"{self.best} failed its self-check here ({self.detail})",
            "unchecked": f"{self.best} was never checked here",
            "plain": "plain JAX",
        }[self.state]
        return f"{self.operator} ({self.scope}): {self.chosen}, {state}"


@contextlib.contextmanager
def decisions() -> Iterator[list[Decision]]:
    """Context manager that yields a list of all choices made inside it, which are not logged."""
    made: list[Decision] = []
    token = _watched.set(made)
    try:
        yield made
    finally:
        _watched.reset(token)


@dataclass(frozen=True)
class Operator(Generic[Call]):
    """An operator, such as dense attention, with all of its implementations.

    Attributes:
        name: of the operator.
        implementations: from the plainest to the best: "auto" is the last that can.
        sources: folder of its kernels, for whose code a proof holds; None where none needs one.
        scope: the kind of a call in words, as "bfloat16, head dim 64". A kernel is proven for the
            kinds of calls that its self-check had cases of.
    """

    name: str
    implementations: tuple[Implementation[Call], ...]
    sources: Path | None = None
    scope: Callable[[Call], str] = str

    def __post_init__(self):
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"{self.name}: two implementations of one name: {self.names}")
        unproven = [i.name for i in self.implementations if i.needs_proof]
        if unproven and self.sources is None:
            raise ValueError(f"{self.name}: {unproven[0]!r} needs a proof, and names no sources")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the operator's implementations."""
        return tuple(i.name for i in self.implementations)

    def __getitem__(self, name: str) -> Implementation[Call]:
        """Returns the implementation with the given name.

        Raises:
            ValueError: no implementation has that name.
        """
        for implementation in self.implementations:
            if implementation.name == name:
                return implementation
        raise ValueError(
            f"unknown implementation {name!r} of {self.name}, there are: {', '.join(self.names)}"
        )

    def check_name(self, name: str) -> None:
        """Raises an error unless `name` is "auto" or the name of an implementation.

        Raises:
            ValueError: it is neither.
        """
        if name != "auto" and name not in self.names:
            raise ValueError(
                f"unknown implementation {name!r} of {self.name}, there are: auto, "
                f"{', '.join(self.names)}"
            )

    def choose(self, name: str, call: Call, device: Device | None = None) -> str:
        """Returns the name of the implementation that runs: `name`, or what "auto" stands for.

        A warning is logged, once per process, where a better implementation could run but is not
        proven, or could run but for what is missing (`Implementation.missing`).

        Args:
            name: of an implementation, or "auto".
            call: dtype and shapes.
            device: the device that is computed on; `target.device()` by default.

        Raises:
            ValueError: an unknown name, or one that cannot run this or failed its self-check on
                this kind of device, with those that can.
        """
        self.check_name(name)
        device = target.device() if device is None else device
        refusals = {i.name: i.refuses(device, call) for i in self.implementations}
        absent = {i.name: i.missing() for i in self.implementations if refusals[i.name] is None}
        refusals |= absent
        able = [n for n, reason in refusals.items() if reason is None]
        scope = self.scope(call)
        if name == "auto" and able:
            proven = [n for n in able if self.proven(n, device, scope)]
            if proven:
                better = able[able.index(proven[-1]) + 1 :]
                self._note(proven[-1], better[::-1], device, scope)
                if not better:
                    self._note_absent(proven[-1], absent)
                return proven[-1]
        if name in able:
            record = self.proof(name, device, scope)
            if record is None or record.failure(scope) is None or proofs.are_assumed():
                self._note(name, [], device, scope)
                return name
            reason = self._failed(name, device, scope, record)
            able.remove(name)
        else:
            reason = refusals.get(name) or "; ".join(f"{n!r}: {why}" for n, why in refusals.items())
        raise ValueError(
            f"{self.name} {name!r} cannot run this: {reason}; "
            f"{', '.join(able) or 'no implementation'} can"
        )

    def proven(self, name: str, device: Device, scope: str) -> bool:
        """Returns whether "auto" may take an implementation on a device for a kind of calls."""
        if not self[name].needs_proof or proofs.are_assumed():
            return True
        record = self.proof(name, device, scope)
        return record is not None and record.failure(scope) is None

    def proof(self, name: str, device: Device, scope: str) -> proofs.Proof | None:
        """Returns the record of an implementation's self-check on a kind of device, or None.

        The record is of this code and this version of jax; None also where no proof is needed.
        """
        if not self[name].needs_proof:
            return None
        assert self.sources is not None
        return proofs.find(self.name, name, device, proofs.digest(self.sources), scope)

    def _note(self, chosen: str, better: Sequence[str], device: Device, scope: str) -> None:
        """Records the decision inside of `decisions`; elsewhere, logs what is not proven.

        Args:
            chosen: the implementation that runs.
            better: those that could run and are not proven, the best first.
            device: on which.
            scope: the kind of calls.
        """
        unchecked = [name for name in better if self.proof(name, device, scope) is None]
        best = [*unchecked, *better, chosen][0]
        watched = _watched.get()
        if watched is None:
            if better:
                _say_once(self._unproven(best, chosen, device, scope))
            return
        record = self.proof(best, device, scope)
        state, detail = "unchecked", ""
        if not self[best].needs_proof:
            state = "plain"
        elif record is not None:
            detail = record.failure(scope) or ""
            state = "fell back" if detail else "verified"
        watched.append(Decision(self.name, scope, chosen, best, state, detail))

    def _note_absent(self, chosen: str, absent: Mapping[str, str | None]) -> None:
        """Logs which better implementations than `chosen` could run but for what is missing."""
        better = self.names[self.names.index(chosen) + 1 :]
        reasons = [f"{name!r} cannot: {absent[name]}" for name in better if absent.get(name)]
        if reasons and _watched.get() is None:
            _say_once(f"{self.name}: {chosen!r} runs; {'; '.join(reasons)}")

    def _unproven(self, better: str, chosen: str, device: Device, scope: str) -> str:
        record = self.proof(better, device, scope)
        if record is None:
            return (
                f"{self.name}: {chosen!r} runs; {better!r} is meant to be faster, but was never "
                f"proven on {device.kind} for {scope}: prove it once with `lite3r device-check`"
            )
        return f"{self.name}: {chosen!r} runs: {self._failed(better, device, scope, record)}"

    def _failed(self, name: str, device: Device, scope: str, record: proofs.Proof) -> str:
        return (
            f"{name!r} failed its self-check on {device.kind} for {scope} "
            f"({record.failure(scope)}); {REPORT_TO}: {proofs.folder() / record.file_name}; "
            "`lite3r device-check` checks it again"
        )


@functools.cache
def _say_once(sentence: str) -> None:
    _log.warning(sentence)
