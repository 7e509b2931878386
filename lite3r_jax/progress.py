"""Progress of a run: bars with the remaining time on a terminal, a line now and then in logs."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

Tick = Callable[[], object]
EVERY = 30.0
"""Seconds from one line of a log to the next."""


class Bar:
    """The progress of one stage, shown on stderr with the remaining time where it is known.

    On a terminal it is a bar, elsewhere (logs, notebooks) a line every half minute, of stages that
    take so long.
    """

    def __init__(
        self,
        name: str,
        total: int | None = None,
        unit: str = "step",
        *,
        initial: int = 0,
        expected: float | None = None,
        show: bool = True,
        every: float = EVERY,
    ):
        """Starts the display of a stage.

        Args:
            name: of the stage.
            total: number of steps; None where nobody can tell.
            unit: what a step is, e.g. "photo".
            initial: steps that were done before.
            expected: seconds that it will take, about; for stages without steps.
            show: whether anything is shown.
            every: seconds between lines where there is no terminal.
        """
        from tqdm import tqdm

        self._name, self._total, self._unit, self._expected = name, total, unit, expected
        self._done, self._first, self._note = initial, initial, ""
        self._start = self._began = time.monotonic()
        terminal = sys.stderr is not None and sys.stderr.isatty()
        self._bar: Any = tqdm(
            desc=name,
            total=total,
            initial=initial,
            unit=unit,
            bar_format=None if total is not None else self._clock(),
            disable=not (show and terminal),
        )
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._follow, args=(every,), daemon=True)
        if show and not (terminal and total is not None):
            self._thread.start()

    def update(self, note: str = "") -> None:
        """Counts a finished step, from any thread; `note` is a figure to show, such as the loss."""
        with self._lock:
            self._done += 1
            if self._done == self._first + 1:  # it may have compiled, and tells little of the rest
                self._began = time.monotonic()
            if note and note != self._note:
                self._note = note
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update()

    def line(self) -> str:
        """Returns the progress as a line of text, with the time spent and the time left."""
        now = time.monotonic()
        spent, left = now - self._start, None
        text = self._name
        if self._total is not None:
            text += f": {self._done} of {self._total} {self._unit}s"
            counted = self._done - self._first - 1
            if counted > 0:
                left = (now - self._began) / counted * (self._total - self._done)
        elif self._expected is not None and self._expected > spent:
            left = self._expected - spent
        text += f", {_clock_time(spent)}"
        if left is not None:
            text += f", about {_clock_time(left)} to go"
        return f"{text}, {self._note}" if self._note else text

    def close(self) -> None:
        """Ends the display of the stage."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _clock(self) -> str:
        """Returns the tqdm format of a stage without a number of steps."""
        about = f" of about {_clock_time(self._expected)}" if self._expected is not None else ""
        return "{desc}: {elapsed}" + about

    def _follow(self, every: float) -> None:
        terminal = not self._bar.disable
        while not self._ended.wait(0.5 if terminal else every):
            if terminal:
                self._bar.refresh()
            else:
                print(self.line(), file=sys.stderr, flush=True)


class Progress:
    """Times the stages of a run, and shows a bar for each.

    Attributes:
        seconds: stage -> wall time so far, in the order in which stages began; a stage that is
            entered again adds to its time.
        show: whether anything is shown.
    """

    def __init__(self, show: bool = True, every: float = EVERY):
        """Begins without a stage; the arguments are those of `Bar`.

        Args:
            show: whether anything is shown.
            every: seconds between lines where there is no terminal.
        """
        self.seconds: dict[str, float] = {}
        self.show, self._every = show, every

    @contextmanager
    def stage(
        self,
        name: str,
        total: int | None = None,
        unit: str = "",
        expected: float | None = None,
        initial: int = 0,
    ) -> Iterator[Tick]:
        """Time a stage and show how far it is.

        Args:
            name: what it does.
            total: number of steps; None where nobody can tell, then a clock runs.
            unit: what a step is, e.g. "photo".
            expected: seconds that a stage without steps will take, about; None: nobody knows.
            initial: steps that were done before.

        Yields:
            A function to be called after each step, from any thread.
        """
        start = time.perf_counter()
        bar = Bar(
            name, total, unit,
            initial=initial, expected=expected, show=self.show, every=self._every,
        )  # fmt: skip
        try:
            with bar:
                yield bar.update
        finally:
            spent = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent


def _clock_time(seconds: float) -> str:
    from tqdm import tqdm

    return tqdm.format_interval(seconds)
