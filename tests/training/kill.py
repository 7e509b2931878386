"""Kill a training run at random points, again and again, and look what is left.

    python -m tests.training.kill [KILLS] [SEED]

A child process trains; it gets SIGKILL after some random step, every other time while a
checkpoint is being written and else while none is; the next child continues. At the end the run
has to be, bit for bit, the run of as many steps that nobody killed. Prints what was seen as JSON;
the exit code is 1 if anything was lost.
"""

import faulthandler
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

# A forked child has the locks of its parent's other threads, and not the threads. NumPy's BLAS
# would start one for each further core.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import jax
import numpy as np

from lite3r_jax.training.checkpoint import CheckpointOptions, Checkpoints, read_arrays
from lite3r_jax.training.loop import LoopOptions, train
from lite3r_jax.training.optimizer import OptimizerOptions
from lite3r_jax.training.run_dir import EVENTS, METRICS
from tests.training.toy import ToyBatches, toy_trainer

EVERY = 10
LIMIT_S = 120  # a child that has not come to its next step or save by then is stuck


def child(folder: Path, until: int | None = None) -> int:
    """Train in a process of its own; its id."""
    pid = os.fork()
    if pid:
        return pid
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    try:
        constant = OptimizerOptions(learning_rate=1e-3, schedule="constant")
        train(
            toy_trainer(1, optimizer=constant),
            ToyBatches(),
            folder,
            options=LoopOptions(1_000_000, log_every=1),
            checkpoint=CheckpointOptions(EVERY),
            until=until,
        )
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def starts(folder: Path) -> list[int]:
    """Steps after which the runs so far began."""
    path = folder / EVENTS
    events = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line["step"] for line in events if line["event"] == "start"]


def under_way(folder: Path) -> list[Path]:
    """Checkpoints that are being written: without a name, or without a manifest."""
    root = folder / "checkpoints"
    try:
        return [p for p in root.iterdir() if not (p / "manifest.json").exists()]
    except OSError:
        return []


def committed(folder: Path) -> list[int]:
    root = folder / "checkpoints"
    return [
        step for step in Checkpoints(folder).steps() if (root / f"{step}/manifest.json").exists()
    ]


def last_step(folder: Path) -> int:
    lines = (folder / METRICS).read_bytes().split(b"\n")[:-1]
    return json.loads(lines[-1])["step"] if lines else 0


def wait_for(reached: Callable[[], bool] | None, pid: int, limit_s: int = LIMIT_S) -> None:
    """Waits until a condition holds while the child runs; None: until the child ends, with success.

    A child that takes longer than the limit prints the stack of each of its threads and is killed.
    """
    end = time.monotonic() + limit_s
    while reached is None or not reached():
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended and reached is None and status == 0:
            return
        if ended:
            raise RuntimeError(f"a run that nobody killed ended (wait status {status})")
        if time.monotonic() > end:
            os.kill(pid, signal.SIGUSR1)
            time.sleep(2)
            os.kill(pid, signal.SIGKILL)
            raise RuntimeError(f"no progress within {limit_s} s; the stacks are above")
        time.sleep(0.002)


def main(kills: int, seed: int) -> int:
    rng = random.Random(seed)
    seen = {"kills": 0, "while_saving": 0, "committed_steps_lost": 0, "most_steps_repeated": 0}
    for name in ("optax", "orbax.checkpoint", "tqdm"):  # once, instead of in every child
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as parent:
        # Children compile the same step; only the first has to.
        jax.config.update("jax_compilation_cache_dir", f"{parent}/compiled")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        folder = Path(parent) / "killed"
        wanted = 0  # the step that the next run has to continue after
        for number in range(kills):
            pid = child(folder)
            wait_for(lambda n=number: len(starts(folder)) > n, pid)
            if starts(folder)[-1] < wanted:
                seen["committed_steps_lost"] += 1
            target = wanted + rng.randint(1, 6 * EVERY)
            wait_for(lambda t=target: last_step(folder) >= t, pid)
            while_saving = bool(number % 2)
            wait_for(lambda w=while_saving: bool(under_way(folder)) == w, pid)
            if while_saving:
                time.sleep(rng.uniform(0, 0.02))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            seen["kills"] += 1
            saving = bool(under_way(folder))
            seen["while_saving"] += saving
            wanted = max(committed(folder), default=0)
            repeated = last_step(folder) - wanted
            seen["most_steps_repeated"] = max(seen["most_steps_repeated"], repeated)
            # What is being written is of one interval later, and a save waits for the one before.
            if repeated > EVERY * (1 + saving):
                raise AssertionError(f"kill {number}: {repeated} steps lost")
        last = wanted + EVERY + 3
        wait_for(None, child(folder, until=last), 3 * LIMIT_S)
        straight = Path(parent) / "straight"
        wait_for(None, child(straight, until=last), 3 * LIMIT_S)
        seen["steps"] = last
        a, b = read_arrays(folder, last), read_arrays(straight, last)
        same = all(np.array_equal(a[path], b[path]) for path in a.keys() | b.keys())
        same &= (folder / METRICS).read_bytes() == (straight / METRICS).read_bytes()
        seen["equal_to_a_run_without_kills"] = bool(same)
    print(json.dumps(seen))
    return 0 if same and not seen["committed_steps_lost"] else 1


if __name__ == "__main__":
    given = [int(x) for x in sys.argv[1:]]
    sys.exit(main(*(given + [50, 0][len(given) :])))
