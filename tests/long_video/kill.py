"""Runs on a walk of 20 chunks, each ended without warning at one of its changes of files.

    python -m tests.long_video.kill FOLDER COUNT

Every run is a child that is killed (SIGKILL, by itself) when it is about to make its n-th change:
a file opened for writing, a name changed or removed, a folder made. Then another child goes on in
its folder. One line of JSON for each: n, chunks that the first one asked the model for, chunks that
were kept, chunks that the second one asked for, whether its cameras are those of a run that nobody
killed.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lite3r_jax.data.video import VideoOptions
from lite3r_jax.files import atomic_write
from lite3r_jax.long_video.run import reconstruct_chunks
from lite3r_jax.long_video.store import Store
from lite3r_jax.progress import Progress
from tools.benchmark.corridors import DegradedTruth, Walk, WalkFrames

CHUNKS = 20
WALK = Walk(8 + (CHUNKS - 1) * 6)
OPTIONS = VideoOptions(chunk=8, overlap=2, loops=2)
RESULT = "cameras.npy"
_CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir"}


class Counted(DegradedTruth):
    """Writes down every chunk that is asked for."""

    log: Path

    def photos(self, photos):
        with self.log.open("a") as file:
            file.write(f"{photos[0].name}\n")
        return super().photos(photos)


def run(folder: Path, log: Path) -> None:
    """The whole of it: chunks, loops, joined cameras."""
    predictor, frames, store = Counted(WALK), WalkFrames(WALK), Store(folder)
    predictor.log = log
    video = reconstruct_chunks(frames, predictor, OPTIONS, store, Progress(False))
    (part,) = video.parts()
    with atomic_write(folder / RESULT, overwrite=True) as partial, partial.open("wb") as file:
        np.save(file, part.cameras(frames).extrinsics)


def changes(event: str, arguments: tuple, folder: str) -> bool:
    """Whether an audit event changes something in the folder."""
    if not any(isinstance(value, str | Path) and str(value).startswith(folder)
               for value in arguments):  # fmt: skip
        return False
    if event == "open":
        return bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in _CHANGES


def in_child(work: Callable[[], None]) -> int:
    """Run in a process of its own; its exit status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    return os.waitpid(child, 0)[1]


def killed(folder: Path, log: Path, at: int, count: Path | None = None) -> None:
    """`run` that ends at a change, or with `count` to its end, writing the number of changes."""
    seen = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        if changes(event, arguments, str(folder)):
            seen += 1
            if seen == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    run(folder, log)
    if count is not None:
        count.write_text(str(seen))


def lines(path: Path) -> list[str]:
    """Of a log that may not exist."""
    return path.read_text().split() if path.exists() else []


def main() -> None:
    """See the module."""
    root, runs = Path(sys.argv[1]).resolve(), int(sys.argv[2])
    root.mkdir(exist_ok=True)
    whole, counted = root / "whole", root / "count"
    assert in_child(lambda: killed(whole, root / "whole.log", 0, counted)) == 0
    total = int(counted.read_text())
    print(json.dumps({"changes": total, "chunks": len(lines(root / "whole.log"))}), flush=True)
    wanted = (whole / RESULT).read_bytes()
    for number in range(runs):
        at = 1 + number * (total - 1) // max(runs - 1, 1)
        folder, first, second = (root / f"{number}{end}" for end in ("", ".first", ".second"))
        status = in_child(lambda to=folder, log=first, n=at: killed(to, log, n))
        assert os.WIFSIGNALED(status), status
        kept = [path for path in folder.glob("chunks/[0-9]*") if (path / "chunk.json").is_file()]
        assert in_child(lambda to=folder, log=second: run(to, log)) == 0
        left = [path.name for path in folder.rglob(".*")]
        row = {
            "at": at, "asked": len(lines(first)), "kept": len(kept),
            "asked_again": len(lines(second)), "left": left,
            "same": (folder / RESULT).read_bytes() == wanted,
        }  # fmt: skip
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
