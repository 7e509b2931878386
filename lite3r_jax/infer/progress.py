"""Progress bars and the seconds that each stage took."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Tick = Callable[[], object]


class Progress:
    """Stages of a run, one bar each.

    Attributes:
        seconds: stage -> wall time so far, in the order in which stages began; a stage that is
            entered again adds to its time.
    """

    def __init__(self, show: bool = True):
        """Args: show: whether bars are drawn; they go to stderr and only to a terminal."""
        self.seconds: dict[str, float] = {}
        self._show = show

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Tick]:
        """Time a stage and show how far it is.

        Args:
            name: what it does.
            total: number of steps; None where nobody can tell, then a clock runs.
            unit: what a step is, e.g. "photo".

        Yields:
            A function to be called after each step, from any thread.
        """
        from tqdm import tqdm

        start = time.perf_counter()
        layout = None if total is not None else "{desc}: {elapsed}"
        bar = tqdm(
            desc=name,
            total=total,
            unit=unit,
            bar_format=layout,
            disable=None if self._show else True,
        )
        lock = threading.Lock()

        def tick() -> None:
            with lock:
                bar.update()

        done = threading.Event()

        def clock() -> None:
            while not done.wait(0.5):
                bar.refresh()

        thread = threading.Thread(target=clock, daemon=True)
        if total is None and not bar.disable:
            thread.start()
        try:
            yield tick
        finally:
            done.set()
            if thread.ident is not None:
                thread.join()
            bar.close()
            spent = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
